"""`scripts/submit`: right results are packed; every kind of damage is named and packs nothing."""
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import tasks
from fltuning.classification import Classification
from fltuning.errors import UserError
from tools import submit as submission

# As CLUE's leaderboard names them (its notes on submission, of 2021-09-04).
CLUE_NAMES = {
    'afqmc_predict.json', 'c310_predict.json', 'c311_predict.json', 'chid10_predict.json',
    'chid11_predict.json', 'cluener_predict.json', 'cmnli_predict.json', 'cmrc2018_predict.json',
    'csl_predict.json', 'iflytek_predict.json', 'ocnli_50k_predict.json', 'tnews10_predict.json',
    'tnews11_predict.json', 'cluewsc10_predict.json', 'cluewsc11_predict.json'}

PAIRS = [{'id': i, 'sentence1': '花呗怎么还', 'sentence2': '借呗怎么还'} for i in range(3)]
HEADLINES = [{'id': i, 'sentence': '今天下雨了'} for i in range(3)]
PRONOUNS = [{'id': i + 1, 'text': '妈妈说她累了', 'target': {
    'span1_text': '妈妈', 'span1_index': 0, 'span2_text': '她', 'span2_index': 3}} for i in range(3)]
DIALOGUES = [
    [['男：你喝茶吗？', '女：喝咖啡。'],
     [{'id': 7, 'question': '女的喝什么？', 'choice': ['茶', '咖啡']},
      {'id': 3, 'question': '男的说什么？', 'choice': ['茶', '水', '咖啡', '酒']}], '1-1'],
    [['天晴了。'], [{'id': 5, 'question': '天怎么样？', 'choice': ['晴', '阴', '雨']}], '1-2']]
IDIOMS = ['一心一意', '三心二意', '四面八方', '五湖四海', '六神无主', '七上八下', '八仙过海', '九牛一毛',
          '十全十美', '百里挑一']
BLANKS = [{'content': ['他#idiom000001#地学习', '#idiom000002#的人#idiom000003#地来'],
           'candidates': IDIOMS},
          {'content': ['她#idiom000004#'], 'candidates': IDIOMS}]
PASSAGES = {'version': 'v1.0', 'data': [{'paragraphs': [{
    'context': '长城在北京以北，始建于春秋。',
    'qas': [{'id': 'TEST_0_QUERY_%d' % i, 'question': '长城在哪里？'} for i in range(3)]}]}]}
TEST_FILES = {
    'afqmc/test.json': PAIRS, 'cmnli/test.json': PAIRS, 'ocnli/test.json': PAIRS,
    'csl/test.json': [{'id': i, 'abst': '论文摘要', 'keyword': ['论文', '摘要']} for i in (9, 4, 6)],
    'iflytek/test.json': HEADLINES, 'tnews/test.json': HEADLINES, 'tnews/test1.0.json': HEADLINES,
    'wsc/test.json': PRONOUNS, 'wsc/test1.0.json': PRONOUNS,
    'cluener/test.json': [{'id': i, 'text': '张三在北京大学'} for i in range(3)],
    'chid/test1.0.json': BLANKS, 'chid/test1.1.json': BLANKS,
    'c3/test1.0.json': DIALOGUES, 'c3/test1.1.json': DIALOGUES, 'cmrc2018/test.json': PASSAGES,
}


def write(path, text):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(str(path), 'wb') as writer:
        writer.write(text if isinstance(text, bytes) else text.encode('utf-8'))


def read(path):
    with open(str(path), encoding='utf-8') as reader:
        return reader.read()


def lines(records):
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)


def predictions(root, name):
    """{result file: text} of a task, as its own code writes them, with some answer to each."""
    task, texts = tasks.load_task(name), {}
    random = np.random.RandomState(0)
    for test_file, result in task.test_files.items():
        path = os.path.join(str(root), name, test_file)
        if result not in CLUE_NAMES or not os.path.exists(path):
            continue
        samples = task.read(path, False)
        if name == 'cluener':
            results = [{('name', 0, 1), ('address', 1, 1)} for _ in samples]
        elif name == 'cmrc2018':
            results = [(float(random.rand()), 0, 2) for _ in samples]
        else:
            size = {'c3': 10, 'chid': 10}.get(name) or len(task.labels)
            results = list(random.rand(len(samples), size))
        texts[result] = task.submission(samples, results)
    return texts


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(a folder of small test files, {result file: right text})."""
    root = tmp_path_factory.mktemp('data')
    for name, content in TEST_FILES.items():
        whole = name.startswith(('c3', 'cmrc2018'))
        write(root / name, json.dumps(content) if whole else lines(content))
    texts = {}
    for name in tasks.CLUE:
        texts.update(predictions(root, name))
    assert set(texts) == CLUE_NAMES
    return str(root), texts


def submit(root, output_dir, texts, capsys):
    """(exit code, the lines printed) of scripts/submit on some result files."""
    for name, text in texts.items():
        write(os.path.join(str(output_dir), 'results', name), text)
    code = submission.run(['--data_path', str(root), '--output_dir', str(output_dir)])
    return code, capsys.readouterr().out.splitlines()


def listed(printed, kind):
    return [line[9:] for line in printed if line[:9].strip() == kind]


def test_right_results_are_packed(made, tmp_path, capsys):
    root, texts = made
    others = {'afqmc_run.json': '{}', 'afqmc_dev_errors.tsv': 'x',
              'cmrc2018_trial_predict.json': '{}', 'afqmc_predict.json.77.tmp': 'half'}
    code, printed = submit(root, tmp_path, dict(texts, **others), capsys)
    assert code == 0, printed
    assert set(listed(printed, 'ok')) == CLUE_NAMES
    assert printed[-1].endswith('15 files, 0 missing')
    with zipfile.ZipFile(str(tmp_path / 'submit.zip')) as packed:
        assert packed.testzip() is None
        assert set(packed.namelist()) == CLUE_NAMES
        for info in packed.infolist():
            assert packed.read(info).decode('utf-8') == texts[info.filename]
            assert stat.S_IMODE(info.external_attr >> 16) == 0o644
    assert sorted(os.listdir(str(tmp_path))) == ['results', 'submit.zip']  # nothing half-written
    first = (tmp_path / 'submit.zip').read_bytes()
    assert submit(root, tmp_path, texts, capsys)[0] == 0
    assert (tmp_path / 'submit.zip').read_bytes() == first


def test_a_task_of_ones_own_is_left_out(made, tmp_path, capsys, monkeypatch):
    class Reviews(Classification):
        name, test_files = 'reviews', {'test.json': 'reviews_predict.json'}
    root, texts = made
    monkeypatch.setattr(submission, 'OWN', ['reviews'])
    load = submission.load_task
    monkeypatch.setattr(submission, 'load_task', lambda name: Reviews(None) if name == 'reviews' else load(name))
    code, printed = submit(root, tmp_path, dict(texts, **{'reviews_predict.json': '{}'}), capsys)
    assert code == 0 and printed[-1].endswith('15 files, 0 missing')
    assert 'left out reviews_predict.json: reviews is no task of CLUE' in printed


def test_missing_results_are_listed_and_do_not_stop_the_zip(made, tmp_path, capsys):
    root, texts = made
    some = {name: text for name, text in texts.items() if not name.startswith(('tnews11', 'c310'))}
    code, printed = submit(root, tmp_path, some, capsys)
    assert code == 0
    assert listed(printed, 'missing') == ['c310_predict.json: scripts/run c3 writes it',
                                          'tnews11_predict.json: scripts/run tnews writes it']
    with zipfile.ZipFile(str(tmp_path / 'submit.zip')) as packed:
        assert set(packed.namelist()) == set(some)


def test_without_results_there_is_nothing_to_pack(made, tmp_path, capsys):
    with pytest.raises(UserError, match='no folder .*results: expected the results'):
        submit(made[0], tmp_path, {}, capsys)
    with pytest.raises(UserError, match='no result files'):
        submit(made[0], tmp_path, {'afqmc_run.json': '{}'}, capsys)
    assert not (tmp_path / 'submit.zip').exists()


def test_a_result_without_its_test_file_is_wrong(made, tmp_path, capsys):
    root = str(tmp_path / 'data')
    shutil.copytree(made[0], root)
    os.remove(os.path.join(root, 'tnews', 'test1.0.json'))
    code, printed = submit(root, tmp_path, made[1], capsys)
    wrong, = listed(printed, 'wrong')
    assert code == 1 and 'tnews10_predict.json: cannot be checked: no test file' in wrong
    # A test file that is not right itself is named.
    write(os.path.join(root, 'tnews', 'test1.0.json'), '{"id": 0}\n')
    code, printed = submit(root, tmp_path, made[1], capsys)
    wrong, = listed(printed, 'wrong')
    assert code == 1 and 'test1.0.json: line 1: field "sentence": expected a text' in wrong
    # One that is needed for a missing result is named too.
    os.remove(os.path.join(root, 'tnews', 'test1.0.json'))
    os.remove(str(tmp_path / 'results' / 'tnews10_predict.json'))
    code, printed = submit(root, tmp_path, {}, capsys)
    missing, = listed(printed, 'missing')
    assert code == 0 and missing.startswith('tnews10_predict.json: needs ')


def change(number, **fields):
    """Other fields on a line of a file with a record a line."""
    def damage(text):
        records = [json.loads(line) for line in text.splitlines()]
        records[number - 1].update(fields)
        return lines(records)
    return damage


def move(*numbers):
    """Only these lines, in this order."""
    return lambda text: ''.join(text.splitlines(True)[number - 1] for number in numbers)


def put(**answers):
    """Other answers in a file that is one object; None takes one out."""
    def damage(text):
        changed = json.loads(text)
        changed.update({key.replace('idiom', '#idiom') + ('#' if 'idiom' in key else ''): answer
                        for key, answer in answers.items()})
        return json.dumps({key: answer for key, answer in changed.items() if answer is not None},
                          ensure_ascii=False, indent=4)
    return damage


def insert(place, text):
    return lambda whole: whole[:place] + text + whole[place:]



DAMAGES = [
    # A record a line: ids, order, count.
    ('afqmc', move(1, 3), ['expected 3 lines, as the test file has, got 2',
                           'line 2: expected id "1", which is on no line']),
    ('afqmc', insert(0, '{"id": "77", "label": "1"}\n'),
     ['expected 3 lines, as the test file has, got 4',
      'line 1: field "id": expected an id of the test file, got "77"']),
    ('afqmc', move(1, 2, 3, 1),
     ['got 4', 'line 4: field "id": expected each id once (see line 1), got "0"']),
    ('afqmc', move(2, 1, 3), ['line 1: expected id "0", got "1": CLUE compares line by line']),
    ('csl', move(2, 3, 1), ['line 1: expected id "9", got "4"']),
    ('afqmc', change(2, id=None),
     ['line 2: field "id": expected a text or a whole number, got null',
      'line 2: expected id "1"']),
    ('afqmc', lambda text: '', ['the file is empty']),
    ('chid10', lambda text: '\n', ['the file is empty']),
    # What is no JSON, no record, no UTF-8.
    ('afqmc', lambda text: text[:-4], ['line 3: not JSON', 'line 3: expected id "2"']),
    ('afqmc', insert(0, '\n'), ['got 4', 'line 1: not JSON']),
    ('afqmc', insert(0, '[]\n'), ['got 4', 'line 1: expected an object, got []']),
    ('afqmc', insert(0, '\ufeff'), ['line 1: expected no byte order mark']),
    ('cluener', lambda text: text.encode('gbk'), ['line 1: expected UTF-8']),
    ('chid10', lambda text: text.encode('utf-16'), ['line 1: expected UTF-8']),
    # Labels of each task.
    ('afqmc', change(2, label='2'), ['line 2: field "label": expected one of "0", "1", got "2"']),
    ('afqmc', change(2, label=1), ['line 2: field "label": expected one of "0", "1", got 1']),
    ('afqmc', move(1, 2, 3), []),  # no damage
    ('csl', change(1, label=None), ['line 1: field "label": expected one of "0", "1", got null']),
    ('iflytek', change(3, label='119'),
     ['line 3: field "label": expected "0" to "118", got "119"']),
    ('tnews10', change(1, label='105'), ['line 1: field "label": expected one of "100", "101"']),
    ('tnews11', change(1, label='news_tech'), ['got "news_tech"']),
    ('cmnli', change(1, label='-'), ['expected one of "entailment", "neutral", "contradiction"']),
    ('ocnli_50k', change(1, label='0'), ['expected one of "entailment", "neutral"']),
    ('cluewsc10', change(1, label='True'), ['expected one of "false", "true", got "True"']),
    ('cluewsc11', change(1, label=True), ['expected one of "false", "true", got true']),
    ('c310', change(1, label='2'), ['line 1: field "label": expected one of "0", "1", got "2"']),
    ('c311', change(3, label='3'), ['line 3: field "label": expected one of "0", "1", "2", got']),
    ('c311', change(2, label='茶'), ['line 2: field "label": expected one of "0", "1", "2", "3"']),
    # Entities.
    ('cluener', change(2, text='张三在南京大学'),
     ['line 2: field "text": expected the text of the test']),
    ('cluener', change(2, label={'person': {'张三': [[0, 1]]}}),
     ['line 2: field "label": field "person": expected one of the types address, book']),
    ('cluener', change(2, label={'name': {'张三': [[1, 2]]}}),
     ['field "张三": expected [start, end] where the text says so, got [[1, 2]]']),
    ('cluener', change(2, label={'name': {'大学': [[5, 7]]}}), ['line 2: field "label": ']),
    ('cluener', change(2, label=[]), ['line 2: field "label": expected an object, got []']),
    ('cluener', change(2, label={}), []),  # a text without names is right
    # One object: blanks.
    ('chid10', put(idiom000002=None),
     ['expected 4 answers, as the test file has, got 3',
      'expected an answer to "#idiom000002#", which is not there']),
    ('chid10', put(idiom000009=1), ['got 5', 'line 6: "#idiom000009#" is not in the test file']),
    ('chid11', insert(1, '\n"#idiom000003#": 1,'),
     ['got 5', 'line 5: expected "#idiom000003#" once (see line 2)']),
    ('chid10', put(idiom000003=10),
     ['line 4: field "#idiom000003#": expected the place of a candidate, 0 to 9, got 10']),
    ('chid10', put(idiom000003='3'), ['0 to 9, got "3"']),
    ('chid10', put(idiom000003=True), ['0 to 9, got true']),
    ('chid10', put(idiom000003=-1), ['0 to 9, got -1']),
    ('chid10', lambda text: text[:-1], ['line 6: not JSON']),
    ('chid10', lambda text: '[]', ['line 1: expected an object, {"#idiom000001#": answer, ...}']),
    ('chid10', lambda text: json.dumps(json.loads(text), sort_keys=True), []),  # order is free
    # One object: questions.
    ('cmrc2018', put(TEST_0_QUERY_1=None), ['got 2', 'expected an answer to "TEST_0_QUERY_1"']),
    ('cmrc2018', put(TEST_0_QUERY_3='长城'),
     ['got 4', 'line 5: "TEST_0_QUERY_3" is not in the test file']),
    ('cmrc2018', put(TEST_0_QUERY_1='南京'),
     ['line 3: field "TEST_0_QUERY_1": expected a text that is in the passage, got "南京"']),
    ('cmrc2018', put(TEST_0_QUERY_1=''), ['expected a text that is in the passage, got ""']),
    ('cmrc2018', put(TEST_0_QUERY_1=['北京']), ['expected a text that is in the passage']),
    ('cmrc2018', insert(1, '"TEST_0_QUERY_2": "长城",'),
     ['got 4', 'line 4: expected "TEST_0_QUERY_2" once (see line 1)']),
]


@pytest.mark.parametrize('name,damage,expected', DAMAGES)
def test_damage_is_named_and_nothing_is_packed(name, damage, expected, made, tmp_path, capsys):
    root, texts = made
    name += '_predict.json'
    code, printed = submit(root, tmp_path, dict(texts, **{name: damage(texts[name])}), capsys)
    wrong = listed(printed, 'wrong')
    assert len(wrong) == len(expected), wrong
    for line, message in zip(wrong, expected):
        assert line.startswith(os.path.join(str(tmp_path), 'results', name) + ': ')
        assert message in line
    assert code == (1 if expected else 0)
    assert (tmp_path / 'submit.zip').exists() == (not expected)
    if expected:
        assert set(listed(printed, 'ok')) == CLUE_NAMES - {name}
        assert printed[-1].endswith('submit.zip is not written: 1 wrong')


def test_half_a_surrogate_pair_is_named(made, tmp_path, capsys):
    """Python reads it and could not print it."""
    afqmc, cmrc2018 = made[1]['afqmc_predict.json'], made[1]['cmrc2018_predict.json']
    code, printed = submit(made[0], tmp_path, {
        'afqmc_predict.json': afqmc.replace('"0", "label": "', '"0", "label": "\\ud800'),
        'cmrc2018_predict.json': cmrc2018.replace(': "', ': "\\ud800')}, capsys)
    assert code == 1
    assert [line.split(': ')[2] for line in listed(printed, 'wrong')] == [
        'not JSON', 'expected id "0", which is on no line', 'not JSON']


@pytest.mark.parametrize('name,expected', [
    ('tnews_predict.json', 'tnews10_predict.json or tnews11_predict.json'),
    ('ocnli_predict.json', 'ocnli_50k_predict.json'),
    ('AFQMC_predict.json', 'afqmc_predict.json'),
    ('wsc_predict.json', 'cluewsc10_predict.json or cluewsc11_predict.json'),
    ('afqmc_predict.jsonl', 'afqmc_predict.json'),
    ('predict.txt', 'afqmc_predict.json or c310_predict.json or c311_predict.json or '),
])
def test_a_wrong_name_is_wrong(name, expected, made, tmp_path, capsys):
    code, printed = submit(made[0], tmp_path, dict(made[1], **{name: 'x'}), capsys)
    wrong, = listed(printed, 'wrong')
    assert code == 1 and not (tmp_path / 'submit.zip').exists()
    assert os.path.join('results', name) + ': CLUE knows no such file: expected ' in wrong
    assert ': expected ' + expected in wrong


def test_an_earlier_zip_is_named_as_such(made, tmp_path, capsys):
    root, texts = made
    assert submit(root, tmp_path, texts, capsys)[0] == 0
    code, printed = submit(root, tmp_path, {'afqmc_predict.json': 'x\n'}, capsys)
    assert code == 1
    assert printed[-1].endswith('1 wrong; the one that is there is of an earlier run')


def test_many_errors_are_cut_short(made, tmp_path, capsys):
    text = lines({'id': str(i), 'label': '7'} for i in range(100))
    code, printed = submit(made[0], tmp_path, {'afqmc_predict.json': text}, capsys)
    wrong = listed(printed, 'wrong')
    assert code == 1 and len(wrong) == submission.SHOWN + 1
    assert wrong[-1].endswith('afqmc_predict.json: and 96 more')  # 101 in all


def test_the_zip_cannot_be_written(made, tmp_path, capsys):
    (tmp_path / 'submit.zip').mkdir()
    with pytest.raises(UserError, match='submit.zip'):
        submit(made[0], tmp_path, made[1], capsys)
    assert sorted(os.listdir(str(tmp_path))) == ['results', 'submit.zip']


def test_what_the_tasks_write_for_whole_test_files_is_right(any_data, tmp_path, capsys):
    """Of the original's results, test_tasks.py says the same."""
    texts, partial = {}, set()
    for name in tasks.CLUE:
        texts.update(predictions(any_data, name))
        task = tasks.load_task(name)
        for test_file, result in task.test_files.items():
            if result in texts:
                text = read(os.path.join(any_data, name, test_file))
                count = text.count('"question"') if task.unit == 'questions' else text.count('\n{') + 1
                if count != task.published[test_file].records:
                    partial.add(result)
    code, printed = submit(any_data, tmp_path, texts, capsys)
    assert code == 0, printed
    assert texts and set(listed(printed, 'ok')) == set(texts)
    # Where a test file is not CLUE's whole one, this is said.
    notes = listed(printed, 'note')
    assert {line.split(':')[0] for line in notes} == partial
    assert all(line.endswith(' than published') for line in notes)


def test_usage_from_the_shell(root, tmp_path):
    """Bad usage is one line and exit code 2; no TensorFlow is loaded to say so."""
    def call(*args):
        done = subprocess.run([sys.executable, os.path.join(root, 'tools'), 'submit'] + list(args),
                              cwd=str(tmp_path), capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = call('--help')
    assert code == 0 and '--data_path' in out and '--output_dir' in out
    for args, message in [(['--bogus'], 'unrecognized arguments: --bogus'),
                          (['--data_path', 'nowhere'], 'data_path: no folder nowhere'),
                          (['--data_path', '.', '--output_dir', 'x'], 'no folder x/results')]:
        code, out, err = call(*args)
        assert (code, out, err.count('\n')) == (2, '', 1)
        assert err.startswith('scripts/submit: error: ' + message)


@pytest.mark.parametrize('script', ['submit', 'data'])
def test_the_scripts_keep_the_folder_and_pass_on_the_flags(script, root, tmp_path):
    folder = tmp_path / 'a project' / 'scripts'
    folder.mkdir(parents=True)
    for name in (script, 'program.sh'):
        shutil.copy(os.path.join(root, 'scripts', name), str(folder))
    (folder / 'python').write_text('#!/bin/bash\npwd\nprintf "%s\\n" "$@"\nexit 3\n')
    (folder / 'python').chmod(0o755)
    (tmp_path / 'link').symlink_to(folder / script)
    done = subprocess.run(['../link', '--data_path', 'a b', '--stack', 'tf2'],
                          stdout=subprocess.PIPE, cwd=str(tmp_path / 'a project'),
                          text=True)
    assert done.returncode == 3
    assert done.stdout.splitlines() == [
        str(tmp_path / 'a project'), '--stack', 'tf2', str(folder.parent / 'tools'), script,
        '--data_path', 'a b']
