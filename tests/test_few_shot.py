"""Few-shot: what is drawn, and FewCLUE's splits."""
import collections
import os
import shutil

import numpy as np
import pytest

import small
import snippets
import train
from afqmc import AFQMC
from chid import CHID
from fltuning import few_shot
from fltuning.errors import UserError
from fltuning.run_data import RunData
from tasks import NAMES, load_task
from tnews import TNEWS
from tools import submit
from wsc import WSC


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    return small.write_backbone(tmp_path_factory.mktemp('few_shot'))


def tnews_lines(count, labels=(100, 101, 116)):
    return [{'sentence': small.sentence(i, 5), 'label': labels[i % len(labels)], 'id': i} for i in range(count)]


def draw(task, folder, *arguments, **options):
    return few_shot.draw(task, str(folder), task.train_files, *arguments, **options)


# ------------------------------------------------------------------ the draw


def test_so_many_of_each_class(tmp_path):
    """Records left out have no number; of every class as many, whatever their order in the file."""
    labels = [0, 1, 2, 0, '-', 2, 2, 1, 1, '-', 0, 2, 1, 0, 2]
    names = ['entailment', 'neutral', 'contradiction']
    small.write_lines(tmp_path / 'train.json', [
        dict(sentence1='她', sentence2='他', label=label if label == '-' else names[label]) for label in labels])
    kept = [label for label in labels if label != '-']
    drawn = draw(load_task('cmnli'), tmp_path, 3, 0)
    assert drawn == sorted(set(drawn)) and set(map(type, drawn)) == {int}
    assert collections.Counter(kept[i] for i in drawn) == {0: 3, 1: 3, 2: 3}


def test_draws_are_a_function_of_their_seed(tmp_path):
    """Those of another seed, and of dev, are others; smaller ones are parts of larger ones."""
    small.write_lines(tmp_path / 'train.json', tnews_lines(300))
    task = TNEWS()
    eight = draw(task, tmp_path, 8, 1)
    assert eight == draw(task, tmp_path, 8, 1)
    assert len({tuple(eight), tuple(draw(task, tmp_path, 8, 2)), tuple(draw(task, tmp_path, 8, 1, stream=1))}) == 3
    assert set(draw(task, tmp_path, 3, 1)) < set(eight)
    # What is drawn stays, on both stacks and in versions to come: NumPy keeps this generator as it is.
    expected = [np.random.RandomState([1, 0, place]).permutation(range(start, 300, 3))[:8]
                for place, start in [(0, 0), (1, 1), (14, 2)]]
    assert eight == sorted(np.concatenate(expected).tolist())


def test_a_class_with_fewer(tmp_path, capsys):
    small.write_lines(tmp_path / 'train.json', tnews_lines(7))
    assert draw(TNEWS(), tmp_path, 3, 0) == list(range(7))
    text, = capsys.readouterr().out.splitlines()
    assert text.endswith(
        'train.json: fewer than 3 records of some labels: 2 of 101, 0 of 102, 0 of 103, 0 of 104, 0 of 106 '
        'and 9 labels more; all of those are taken')


@pytest.mark.parametrize('name, records', [('cluener', 3), ('chid', 2), ('cmrc2018', 3), ('c3', 6)])
def test_without_classes_so_many_in_all(name, records, tmp_path, capsys):
    """Records are what CLUE counts: a line of several blanks, a question of several windows."""
    folder = small.write_task(tmp_path, name)
    task = load_task(name)
    files = task.train_files
    samples = task.load(folder, files, True)
    assert [number for number, _ in task.number_records(samples)][-1] == records - 1
    drawn = few_shot.draw(task, folder, files, 1, 3)
    assert len(drawn) == 1
    chosen = task.load(folder, files, True, records=drawn)
    assert 1 <= len(chosen) < len(samples)
    if name == 'chid':
        assert len(chosen) == 3 and len({blank.line for blank in chosen}) == 1
    assert few_shot.draw(task, folder, files, 99, 3) == list(range(records))
    assert 'fewer than 99 records in all: %d; all of those are taken' % records in capsys.readouterr().out


def test_limit_comes_before_the_draw(tmp_path):
    small.write_lines(tmp_path / 'train.json', tnews_lines(60))
    drawn = draw(TNEWS(), tmp_path, 3, 0, limit=12)
    assert len(drawn) == 9 and max(drawn) < 12


@pytest.mark.parametrize('name', NAMES)
def test_real_data(name, clue_folder):
    """Each class of CLUE's own files as often as it is asked for, or as it is there."""
    folder, task = clue_folder(name), load_task(name)
    files = task.find_train_files(folder)
    drawn = few_shot.draw(task, folder, files, 4, 0, limit=3000)
    samples = task.load(folder, files, True, 3000)
    records = list(task.number_records(samples))
    chosen = task.load(folder, files, True, 3000, records=frozenset(drawn))
    assert chosen == [sample for number, sample in records if number in drawn] or name == 'cmrc2018'
    counts = collections.Counter(map(task.class_of, chosen))
    there = collections.Counter(map(task.class_of, samples))
    if None in there:
        assert len(drawn) == 4
    else:
        assert counts == {label: min(4, count) for label, count in there.items()}


# ------------------------------------------------------------------ runs


def start(backbone, data, out, *more, task=AFQMC, **settings):
    return train.run(task, small.flags(dict(
        dict(backbone, data_path=data, output_dir=out, epochs=1, batch_size=4, ffn_prompt_size=2,
             learning_rate=0.01), **settings)) + list(more))


@pytest.mark.costly
def test_a_run_records_its_draw(backbone, tmp_path, clear_session):
    """It trains on what it drew: the same numbers as with files that have nothing else."""
    folder = small.write_task(tmp_path / 'data', 'afqmc', train=40, dev=20)
    record = start(backbone, tmp_path / 'data', tmp_path / 'out', few_shot=3, few_shot_dev=4, draw_seed=7)
    drawn = record['few_shot']
    assert record['samples'] == {'train': 6, 'dev': 8}
    assert {part: len(numbers) for part, numbers in drawn.items()} == {'train': 6, 'dev': 8}
    for part, numbers in drawn.items():
        lines = small.read_lines(os.path.join(folder, part + '.json'))
        small.write_lines(os.path.join(folder, part + '.json'), [lines[i] for i in numbers])
    alone = start(backbone, tmp_path / 'data', tmp_path / 'alone')
    for name in ('loss', 'dev'):
        assert alone['history'][0][name] == record['history'][0][name]
    assert 'few_shot' not in alone


def test_the_training_seed_draws_nothing(backbone, tmp_path):
    small.write_task(tmp_path, 'afqmc', train=40)
    drawn = []
    for flags in ([], ['--seed', '9'], ['--draw_seed', '1']):
        settings = train.parse_flags(AFQMC, ['--few_shot', '3'] + flags)
        data = RunData(load_task('afqmc', snippets.load_tokenizer(backbone['dict_path'])[0]),
                       str(tmp_path / 'afqmc'), settings)
        assert len(data.train) == 6 and len(data.dev) == 6 and 'dev' not in data.drawn
        drawn.append(data.drawn['train'])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize('flag, said', [
    (['--few_shot', '0'], 'argument --few_shot: expected a whole number from 1, got 0'),
    (['--few_shot', 'many'], 'argument --few_shot: expected a whole number from 1, got many'),
    (['--few_shot_dev', '-1'], 'argument --few_shot_dev: expected a whole number from 1, got -1'),
    (['--draw_seed', '-1'], 'argument --draw_seed: expected a whole number from 0, got -1'),
    (['--few_shot_split', '5'], "argument --few_shot_split: invalid choice: '5'")])
def test_bad_values(flag, said):
    with pytest.raises(UserError) as refused:
        train.parse_flags(AFQMC, flag)
    assert said in str(refused.value)


# ------------------------------------------------------------------ FewCLUE


def write_few_clue(folder, name, split='0'):
    """A task's folder as FewCLUE has it, of a few records of our own."""
    os.makedirs(str(folder))
    files = {'train_%s' % split: 8, 'dev_%s' % split: 6, 'test_public': 5, 'test': 4}

    def record(i):
        if name == 'tnews':
            return {'label': [100, 116][i % 2], 'label_desc': 'news', 'sentence': small.sentence(i, 7),
                    'keywords': '', 'id': i}
        if name == 'wsc':
            return {'target': {'span2_index': 7, 'span1_index': 0, 'span1_text': '她', 'span2_text': '她们'},
                    'idx': i, 'label': ['true', 'false'][i % 2], 'text': '她说这是美的。她们也说'}
        return {'id': 10 * i, 'candidates': [small.sentence(i + k, 4) for k in range(7)],
                'content': small.sentence(i, 30) + '#idiom#' + small.sentence(i + 1, 90), 'answer': i % 7}

    for file, count in files.items():
        lines = [record(i) for i in range(count)]
        if file == 'test':
            lines = [{name: value for name, value in line.items() if name in (
                'sentence', 'target', 'text', 'candidates', 'content', 'id')} for line in lines]
            lines = [dict({'id': str(i) if name == 'tnews' else i}, **line) for i, line in enumerate(lines)]
            if name == 'tnews':
                lines = [dict(line, id=str(line['id'])) for line in lines]
        small.write_lines(os.path.join(str(folder), file + '.json'), lines)
    return str(folder)


@pytest.mark.costly
@pytest.mark.parametrize('task, folder, result, answer', [
    (WSC, 'cluewsc', 'cluewscf_predict_0.json', {'id': 0, 'label': {'true', 'false'}}),
    (CHID, 'chid', 'chidf_predict_0.json', {'id': 0, 'answer': set(range(7))})])
def test_a_split(task, folder, result, answer, backbone, tmp_path, clear_session, capsys):
    """Folders, ids, labels and result files as FewCLUE has them, and its public test set is scored."""
    write_few_clue(tmp_path / 'data' / folder, task.name)
    record = start(backbone, tmp_path / 'data', tmp_path / 'out', task=task, few_shot_split='0', maxlen=48)
    assert record['samples'] == {'train': 8, 'dev': 6}
    assert 'few_shot' not in record and record['settings']['few_shot_split'] == '0'
    assert set(record['test_public']) == set(record['best']['dev'])
    assert 'test_public.json: accuracy %.4f' % record['test_public']['accuracy'] in capsys.readouterr().out
    lines = small.read_lines(tmp_path / 'out' / 'results' / result)
    assert len(lines) == 4 and set(lines[0]) == set(answer) and lines[0]['id'] == answer['id']
    name = 'label' if 'label' in answer else 'answer'
    assert {line[name] for line in lines} <= answer[name]
    assert 'results/' + result in record['sha256']


def test_the_public_test_set_is_scored_right(backbone, tmp_path, clear_session):
    """With the dev set in its place, it has the dev set's scores; without labels it has none."""
    folder = write_few_clue(tmp_path / 'data' / 'tnews', 'tnews', 'few_all')
    shutil.copy(os.path.join(folder, 'dev_few_all.json'), os.path.join(folder, 'test_public.json'))
    record = start(backbone, tmp_path / 'data', tmp_path / 'out', task=TNEWS, few_shot_split='few_all')
    assert record['test_public'] == record['best']['dev']
    lines = small.read_lines(tmp_path / 'out' / 'results' / 'tnewsf_predict_all.json')
    assert [line['id'] for line in lines] == ['0', '1', '2', '3']
    shutil.copy(os.path.join(folder, 'test.json'), os.path.join(folder, 'test_public.json'))
    task = TNEWS()
    task.use_few_clue('few_all')
    assert few_shot.load_public_test(task, folder) == []


def test_chid_of_few_clue(tmp_path):
    """Seven candidates, one blank: the asked one is [unused1], others are [MASK]s."""
    small.write_lines(tmp_path / 'train_1.json', [{
        'id': 3, 'candidates': [small.sentence(k, 4) for k in range(7)],
        'content': '大#idiom#小#idiom#多', 'answer': 6}])
    task = CHID()
    task.use_few_clue('1')
    blank, = task.load(str(tmp_path), task.train_files, True)
    assert (blank.left, blank.right, blank.label) == ('大', '小#idiom#多', 6)
    assert task.rows_per_sample == 7 and CHID().rows_per_sample == 10
    for change, said in [(('"answer": 6', '"answer": 7'), 'line 1: field "answer": expected the place of a candidate, '
                                                           '0 to 6, got 7'),
                         (('"answer": 7', '"answer": null'), 'field "answer": expected a whole number'),
                         ((r'", "[^"]*"\], "content"', '"], "content"'), 'field "candidates": expected 7 idioms')]:
        small.edit(tmp_path / 'train_1.json', *change)
        with pytest.raises(UserError) as refused:
            task.load(str(tmp_path), task.train_files, True)
        assert said in str(refused.value)


@pytest.mark.parametrize('task, said', [
    (AFQMC, 'few_shot_split: FewCLUE has no afqmc'), (TNEWS, 'no file %s; expected the files of FewCLUE there')])
def test_no_such_split(task, said, backbone, tmp_path):
    write_few_clue(tmp_path / task.name, 'tnews', '1')
    with pytest.raises(UserError) as refused:
        start(backbone, tmp_path, tmp_path / 'out', task=task, few_shot_split='0')
    said = said % os.path.join(str(tmp_path), 'tnews', 'train_0.json') if '%s' in said else said
    assert said in str(refused.value)


def test_few_clue_files_hinder_no_submission(tmp_path, capsys):
    """Beside CLUE's they are not wrong: they are for another benchmark."""
    os.makedirs(str(tmp_path / 'results'))
    small.write_task(tmp_path / 'data', 'afqmc')
    small.write_lines(tmp_path / 'results' / 'tnewsf_predict_0.json', [{'id': '0', 'label': '100'}])
    small.write_lines(tmp_path / 'results' / 'afqmc_predict.json',
                      [{'id': str(i), 'label': '0'} for i in range(5)])
    assert submit.run(['--data_path', str(tmp_path / 'data'), '--output_dir', str(tmp_path)]) == 0
    assert 'wrong' not in capsys.readouterr().out
