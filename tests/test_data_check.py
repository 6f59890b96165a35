"""`scripts/data`: counts against CLUE's published ones, what is missing, what does not read."""
import json
import os
import re
import sys

import pytest

import tasks
from fltuning import errors
from fltuning.errors import UserError
from fltuning.task import Published
from fltuning.files import file_digest
from tools import data

# CLUE's README and data card: train, dev, and each test file. The readers leave out lines labelled
# '-': cmnli and ocnli count without them.
PUBLISHED = {
    'afqmc': (34334, 4316, 3861), 'c3': (11869, 3816, 3892, 1625),
    'chid': (84709, 3218, 3231, 3447), 'cluener': (10748, 1343, 1345),
    'cmnli': (391783, 12241, 13880), 'csl': (20000, 3000, 3000), 'iflytek': (12133, 2599, 2600),
    'tnews': (53360, 10000, 10000, 10000), 'wsc': (1244, 304, 290, 2574),
    'ocnli': (50437, 2950, 3000), 'cmrc2018': (10142, 3219, 1002, 2000)}


def write(path, text):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(str(path), 'w', encoding='utf-8') as writer:
        writer.write(text)


def lines(records):
    return ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)


def check(root, capsys, *tasks):
    """(exit code, {(task, file): (records, published, unit, remark)}, lines below the table)."""
    code = data.run(['--data_path', str(root), '--task'] + list(tasks))
    rows, rest = {}, []
    for line in capsys.readouterr().out.splitlines()[1:]:
        found = re.match(r'(\w+) +(\S+\.json) +([\d,]+|-) +([\d,]+) (\w+) +(.*)$', line)
        if found:
            rows[found.groups()[:2]] = found.groups()[2:]
        else:
            rest.append(line)
    return code, rows, rest


def publish(monkeypatch, name, **counts):
    """Small published counts for a task."""
    monkeypatch.setattr(type(tasks.load_task(name)), 'published', {
        file.replace('__', '.') + '.json': Published(number) for file, number in counts.items()})


def questions(*numbers):
    return [{'id': i, 'sentence1': '花呗怎么还', 'sentence2': '借呗怎么还', 'label': '1'} for i in numbers]


@pytest.fixture
def afqmc(tmp_path, monkeypatch):
    """A folder with small right files of afqmc, and counts to match."""
    publish(monkeypatch, 'afqmc', train=3, dev=2, test=2)
    write(tmp_path / 'afqmc' / 'train.json', lines(questions(0, 1, 2)))
    write(tmp_path / 'afqmc' / 'dev.json', lines(questions(0, 1)))
    write(tmp_path / 'afqmc' / 'test.json', lines(questions(0, 1)))
    return tmp_path


def test_the_table_is_of_the_files_that_the_tasks_read(root):
    assert set(tasks.CLUE) == set(PUBLISHED)
    for name in tasks.CLUE:
        task = tasks.load_task(name)
        files = {file: published.records for file, published in task.published.items()}
        train_files = ['train.50k.json'] if name == 'ocnli' else task.train_files
        assert set(files) == set(train_files + task.dev_files + list(task.test_files)), name
        splits = [train_files, task.dev_files] + [[file] for file in task.test_files]
        assert tuple(sum(files[file] for file in split) for split in splits) == PUBLISHED[name]
        assert task.archive == {'wsc': 'cluewsc2020'}.get(name, name) + '_public.zip'


def test_all_is_well(afqmc, capsys):
    code, rows, rest = check(afqmc, capsys, 'afqmc')
    assert code == 0
    assert rows == {('afqmc', 'train.json'): ('3', '3', 'lines', 'ok'),
                    ('afqmc', 'dev.json'): ('2', '2', 'lines', 'ok'),
                    ('afqmc', 'test.json'): ('2', '2', 'lines', 'ok')}
    assert rest == ['1 of 1 tasks are as CLUE published them']


def test_a_missing_file_and_where_it_comes_from(afqmc, capsys):
    os.rename(str(afqmc / 'afqmc' / 'test.json'), str(afqmc / 'afqmc' / 'Test.json'))
    code, rows, rest = check(afqmc, capsys, 'afqmc')
    assert code == 1
    assert rows['afqmc', 'test.json'] == ('-', '2', 'lines', 'missing')
    assert rows['afqmc', 'dev.json'][3] == 'ok'
    assert rest == [
        'afqmc: test.json as published: from https://storage.googleapis.com/cluebenchmark/tasks/'
        'afqmc_public.zip into ' + str(afqmc / 'afqmc'),
        'afqmc: also there: Test.json',
        '0 of 1 tasks are as CLUE published them; not: afqmc']


def test_a_missing_folder(afqmc, capsys):
    code, rows, rest = check(afqmc, capsys, 'afqmc', 'wsc')
    assert code == 1
    assert [rows['wsc', file][3] for file in tasks.load_task('wsc').published] == ['missing'] * 4
    assert 'cluewsc2020_public.zip' in rest[0] and len(rest) == 2
    assert rest[-1] == '1 of 2 tasks are as CLUE published them; not: wsc'


def test_another_count(afqmc, capsys):
    write(afqmc / 'afqmc' / 'train.json', lines(questions(0, 1)))
    write(afqmc / 'afqmc' / 'test.json', lines(questions(*range(1502))))
    code, rows, rest = check(afqmc, capsys, 'afqmc')
    assert code == 1
    assert rows['afqmc', 'train.json'] == ('2', '3', 'lines', 'WRONG: 1 fewer than published')
    assert rows['afqmc', 'test.json'] == ('1,502', '2', 'lines',
                                          'WRONG: 1,500 more than published')
    assert rest[0].startswith('afqmc: train.json, test.json as published: from https://')


def test_another_version_with_as_many_records(afqmc, capsys, monkeypatch):
    """As tnews's two test files, with the same ids: answers to one score 0 as answers to the other."""
    path = str(afqmc / 'afqmc' / 'test.json')
    published = tasks.load_task('afqmc').published
    monkeypatch.setitem(published, 'test.json', Published(2, file_digest(path, 'md5')))
    assert check(afqmc, capsys, 'afqmc')[0] == 0
    write(afqmc / 'afqmc' / 'test.json', lines(questions(0, 1)[::-1]))
    code, rows, rest = check(afqmc, capsys, 'afqmc')
    assert code == 1 and rows['afqmc', 'test.json'][0] == '2'
    assert rows['afqmc', 'test.json'][3].startswith('OTHER: complete, but the MD5 is ')
    assert rest[-1] == '0 of 1 tasks are as CLUE published them; not: afqmc'


@pytest.mark.parametrize('text,message', [
    (lines(questions(0, 1)) + '{"id": 2', 'line 3: not JSON'),
    (lines(questions(0)) + lines([{'id': 1, 'sentence1': '', 'sentence2': '好', 'label': '0'}]),
     'line 2: field "sentence1": expected a text, got ""'),
    (lines(questions(0)).replace('"1"', '"2"'), 'line 1: field "label": expected one of 0, 1'),
    ('', 'the file is empty'),
])
def test_a_record_that_does_not_read(text, message, afqmc, capsys):
    path = afqmc / 'afqmc' / 'train.json'
    write(path, text)
    code, rows, _ = check(afqmc, capsys, 'afqmc')
    assert code == 1
    records, _, _, remark = rows['afqmc', 'train.json']
    assert records == '-' and remark.startswith('WRONG: %s: %s' % (path, message))
    assert rows['afqmc', 'dev.json'][3] == 'ok'


def test_lines_without_a_label_are_not_counted(tmp_path, monkeypatch, capsys):
    publish(monkeypatch, 'ocnli', train__50k=2, dev=1, test=3)
    labels = ['neutral', '-', 'entailment']
    records = [dict(record, label=label) for record, label in zip(questions(0, 1, 2), labels)]
    write(tmp_path / 'ocnli' / 'train.50k.json', lines(records))
    write(tmp_path / 'ocnli' / 'dev.json', lines(records[1:]))
    write(tmp_path / 'ocnli' / 'test.json', lines(questions(0, 1, 2)))
    code, rows, _ = check(tmp_path, capsys, 'ocnli')
    assert code == 0 and [row[0] for row in rows.values()] == ['2', '1', '3']


def test_chid_is_counted_by_lines_and_needs_its_answers(tmp_path, monkeypatch, capsys):
    publish(monkeypatch, 'chid', train=2, test1__0=2)
    idioms = ['一心一意', '三心二意', '四面八方', '五湖四海', '六神无主', '七上八下', '八仙过海', '九牛一毛',
              '十全十美', '百里挑一']
    text = lines([{'content': ['他#idiom1#地来', '#idiom2#的人#idiom3#地去'], 'candidates': idioms},
                  {'content': ['她#idiom4#'], 'candidates': idioms}])
    write(tmp_path / 'chid' / 'train.json', text)
    write(tmp_path / 'chid' / 'test1.0.json', text)
    write(tmp_path / 'chid' / 'train_answer.json',
          json.dumps({'#idiom%d#' % i: i for i in (1, 2, 3, 4)}))
    code, rows, _ = check(tmp_path, capsys, 'chid')
    assert code == 0 and [row[0] for row in rows.values()] == ['2', '2']
    os.remove(str(tmp_path / 'chid' / 'train_answer.json'))
    code, rows, rest = check(tmp_path, capsys, 'chid')
    assert code == 1 and 'train_answer.json: No such file' in rows['chid', 'train.json'][3]
    assert 'chid_public.zip' in rest[0]


def test_cmrc2018_is_counted_by_questions_and_says_what_it_moved(tmp_path, monkeypatch, capsys):
    publish(monkeypatch, 'cmrc2018', train=2)
    answer = {'text': '北京', 'answer_start': 0}
    qas = [{'id': str(i), 'question': '长城在哪里？', 'answers': [answer] * 3} for i in range(2)]
    paragraphs = [{'context': '长城在北京以北。' + '很长' * 900, 'qas': qas}]
    write(tmp_path / 'cmrc2018' / 'train.json', json.dumps({'data': [{'paragraphs': paragraphs}]}))
    code, rows, _ = check(tmp_path, capsys, 'cmrc2018')
    records, _, unit, remark = rows['cmrc2018', 'train.json']
    assert (code, records, unit) == (0, '2', 'questions')
    assert remark.startswith('ok; 6 answers are not where answer_start says')


def test_usage(tmp_path, capsys, monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['data'] + list(args))
        with pytest.raises(SystemExit) as ended:
            errors.run_tool('scripts/data', data.run)
        return ended.value.code, capsys.readouterr()

    for args, message in [(['--task', 'foo'], "argument --task: invalid choice: 'foo'"),
                          (['--task'], 'argument --task: expected at least one argument'),
                          (['--data_path', str(tmp_path / 'x')], 'data_path: no folder ')]:
        code, printed = call(*args)
        assert (code, printed.out, printed.err.count('\n')) == (2, '', 1)
        assert printed.err.startswith('scripts/data: error: ' + message)
    assert call('--data_path', str(tmp_path), '--task', 'wsc')[0] == 1


def test_the_default_folder_is_the_projects(root, monkeypatch, tmp_path):
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setattr('snippets.data_path', 'clue_dataset')
    assert tasks.find_root(None) == os.path.join(root, 'clue_dataset')
    monkeypatch.setattr('snippets.data_path', str(tmp_path))
    assert tasks.find_root(None) == str(tmp_path)
    with pytest.raises(UserError, match='no folder elsewhere'):
        tasks.find_root('elsewhere')


@pytest.mark.costly
def test_real_files(clue, capsys, monkeypatch):
    """Every record reads; what is right by its MD5 is called so, and of the rest the count is told."""
    # Two files of cmrc2018 will do: its passages take the longest to read.
    publish(monkeypatch, 'cmrc2018', trial=1002, test=2000)
    code, rows, rest = check(clue, capsys, *tasks.CLUE)
    wrong = {key: row[3] for key, row in rows.items() if not row[3].startswith('ok')}
    genuine = {(name, file) for name in tasks.CLUE
               for file, published in tasks.load_task(name).published.items()
               if published.md5 and os.path.exists(os.path.join(clue, name, file))
               and published.md5 == file_digest(os.path.join(clue, name, file), 'md5')}
    assert genuine and not genuine & set(wrong)
    for (name, file), remark in wrong.items():
        if os.path.exists(os.path.join(clue, name, file)):
            whole = rows[name, file][0] == rows[name, file][1]
            assert re.match('OTHER: complete, but the MD5 is [0-9a-f]{32}, as published it is [0-9a-f]{32}$' if whole
                            else 'WRONG: [0-9,]+ (fewer|more) than published$', remark)
        else:
            assert remark == 'missing'
    assert code == bool(wrong)
    assert rest[-1].startswith('%d of 11 tasks' % (11 - len({name for name, _ in wrong})))
