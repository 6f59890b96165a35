"""Predictions as a stream: windows, bad records, what becomes of a closed or full output."""
import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import predict
import small
import train
from afqmc import AFQMC
from fltuning import errors, steps, streaming
from fltuning.errors import UserError
from fltuning.records import Record
from tasks import load_task

pytestmark = pytest.mark.costly


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('stream')


@pytest.fixture(scope='module')
def backbone(folder):
    return small.write_backbone(folder / 'backbone')


@pytest.fixture(scope='module')
def tuned(folder, backbone):
    """f(task) -> (folder of data, flags of scripts/predict)."""
    made = {}

    def run(name):
        if name not in made:
            data, out = str(folder / 'data'), str(folder / name)
            where = small.write_task(data, name)
            train.run(type(load_task(name)), small.flags(dict(
                backbone, data_path=data, output_dir=out, epochs=1, maxlen=64)))
            made[name] = where, [name, '--weights', os.path.join(out, 'weights', name + '.weights')] + small.flags(
                backbone)
        return made[name]
    return run


@pytest.fixture
def windows(monkeypatch):
    """The sizes of the windows that are predicted; a window has three samples."""
    monkeypatch.setattr(streaming, 'WINDOW', 3)
    sizes, original = [], steps.predict
    monkeypatch.setattr(steps, 'predict', lambda run, task, encoded, *args, **kwargs: sizes.append(
        len(encoded)) or original(run, task, encoded, *args, **kwargs))
    return sizes


def pairs(count):
    return [{'sentence1': small.sentence(i, 3 + 5 * i % 7), 'sentence2': small.sentence(i, 4)} for i in range(count)]


def labels(lines):
    return [(line['id'], line['label']) for line in lines]


def test_the_first_windows_are_short():
    items = [streaming.Item(None, i, [None], '') for i in range(10000)]
    found = list(streaming.fill_windows(items, streaming.WINDOW))
    assert [len(window) for window in found] == [256, 512, 1024, 2048, 4096, 2064]
    assert [item for window in found for item in window] == items
    assert [len(window) for window in streaming.fill_windows(items[:8], 3)] == [3, 3, 2]


def test_windows_say_what_one_says(tuned, windows, tmp_path, monkeypatch):
    _, flags = tuned('afqmc')
    del windows[:]
    small.write_lines(tmp_path / 'in', pairs(10))
    predict.run(flags + ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out')])
    found = small.read_lines(tmp_path / 'out')
    assert windows == [3, 3, 3, 1] and [line['id'] for line in found] == list(range(10))
    monkeypatch.setattr(streaming, 'WINDOW', 4096)
    predict.run(flags + ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'whole')])
    whole = small.read_lines(tmp_path / 'whole')
    assert windows[4:] == [10] and labels(found) == labels(whole)
    np.testing.assert_allclose([list(line['probabilities'].values()) for line in found],
                               [list(line['probabilities'].values()) for line in whole], atol=1e-6)


BAD = ['{"sentence1": "x"', '[1]', '{"sentence1": 3, "sentence2": "x"}', '{"id": "mine", "sentence1": "x"}',
       '{"sentence1": "x", "sentence2": "\\ud83d"}']


@pytest.mark.parametrize('bad', BAD)
def test_a_bad_line_comes_after_what_was_before(bad, tuned, windows, tmp_path, capfdbinary, monkeypatch):
    _, flags = tuned('afqmc')
    lines = [json.dumps(pair) for pair in pairs(9)]
    lines[7:7] = [bad]
    small.write_text(tmp_path / 'in', '\n'.join(lines) + '\n')
    monkeypatch.setattr(sys, 'argv', ['predict'] + flags + ['--input', str(tmp_path / 'in')])
    capfdbinary.readouterr()
    with pytest.raises(SystemExit) as ended:
        errors.run_tool('scripts/predict', predict.run)
    out, said = capfdbinary.readouterr()
    assert ended.value.code == 2
    assert [json.loads(line)['id'] for line in out.decode().splitlines()] == list(range(7))
    assert said.decode().splitlines()[-1].startswith('scripts/predict: error: %s: line 8: ' % (tmp_path / 'in'))

    small.write_text(tmp_path / 'out', 'mine')
    with pytest.raises(UserError, match='line 8: '):
        predict.run(flags + ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out')])
    assert small.read_text(tmp_path / 'out') == 'mine' and sorted(os.listdir(str(tmp_path))) == ['in', 'out']

    predict.run(flags + ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out'), '--skip_bad'])
    found = small.read_lines(tmp_path / 'out')
    name = 'mine' if 'mine' in bad else 7
    assert [line['id'] for line in found] == list(range(7)) + [name, 8, 9]
    assert [sorted(line) for line in found] == [['id', 'label', 'probabilities']] * 7 + [['error', 'id']] + [
        ['id', 'label', 'probabilities']] * 2
    assert found[7]['error'].startswith('%s: line 8: ' % (tmp_path / 'in'))


def test_bad_records_of_the_python_call(tuned, windows):
    _, flags = tuned('afqmc')
    model = predict.Predictor(**dict(zip([f[2:] for f in flags[3::2]], flags[4::2]))).load(flags[2])
    records = pairs(5)
    records[1] = {'id': np.int64(5), 'sentence1': b'x', 'sentence2': 'y'}
    records[3] = 'x'
    records[4] = dict(records[4], id=np.int64(9), sentence1=np.str_('中'))
    found = model.predict(records, skip_bad=True)
    assert [(line['id'], 'error' in line) for line in found] == [
        (0, False), (1, True), (2, False), (3, True), (9, False)]
    assert found[1]['error'].startswith('record 1: field "sentence1": expected a text, a number')
    assert found[3]['error'] == 'record 3: expected an object, got "x"'
    json.dumps(found)
    with pytest.raises(UserError, match='record 1: field "sentence1"'):
        model.predict(records)
    assert [line['id'] for line in model.predict(iter(pairs(4)))] == [0, 1, 2, 3]


@pytest.mark.parametrize('name', ['chid', 'wsc'] + [
    pytest.param(name, marks=pytest.mark.slow) for name in ('c3', 'cluener', 'cmrc2018')])
def test_windows_of_every_kind(name, tuned, windows, tmp_path, monkeypatch):
    """No record is torn apart."""
    data, flags = tuned(name)
    file = [file for file in load_task(name).test_files if os.path.exists(os.path.join(data, file))][0]
    said = []
    for size in (1, 2, 4096):
        monkeypatch.setattr(streaming, 'WINDOW', size)
        predict.run(flags + ['--input', os.path.join(data, file), '--output', str(tmp_path / 'out')])
        said.append([{key: line.get(key) for key in ('id', 'label', 'answer')}
                     for line in small.read_lines(tmp_path / 'out')])
    assert said[0] == said[1] == said[2] and len(said[0]) >= 3


@pytest.mark.parametrize('name, pattern, bad', [
    ('c3', r'(?s)"choice": \[.*?\]', '"choice": [1]'), ('c3', '"question": "[^"]*"', '"question": 3'),
    ('chid', r'"candidates": \["[^"]*", ', '"candidates": ['),
    ('cmrc2018', '"context": "[^"]*"', '"context": "\\u0301"'), ('cmrc2018', '"context": "[^"]*"', '"context": 3')])
def test_bad_records_of_every_kind(name, pattern, bad, tuned, tmp_path):
    data, flags = tuned(name)
    file = 'test.json' if name == 'cmrc2018' else 'test1.0.json'
    small.write_text(tmp_path / 'in', small.read_text(os.path.join(data, file)))
    small.edit(tmp_path / 'in', pattern, bad)
    predict.run(flags + ['--input', str(tmp_path / 'in'), '--output', str(tmp_path / 'out'), '--skip_bad'])
    found = small.read_lines(tmp_path / 'out')
    assert ['error' in line for line in found] == [True] + [False] * (len(found) - 1) and len(found) > 2
    assert sorted(found[0]) == ['error', 'id']


def test_predictions_that_are_not_finite_name_their_record(windows):
    """On three windows, one of whose records gives NaN."""
    task = AFQMC()
    task.encode = lambda sample: sample.first

    def fake(task, encoded):
        if 'NaN' in encoded:
            raise errors.NotFinite('not a number')
        return [np.array([0.25, 0.75])] * len(encoded)

    records = [Record({'sentence1': text, 'sentence2': 'x'}, 'line %d' % i)
               for i, text in enumerate(['a', 'b', 'c', 'd', 'NaN', 'f', 'g'])]
    stream, got = streaming.predict_windows(task, fake, records), []
    with pytest.raises(errors.NotFinite, match='^line 4: not a number'):
        for lines in stream:
            got += lines
    assert [line['id'] for line in got] == [0, 1, 2, 3]
    got = list(itertools.chain(*streaming.predict_windows(task, fake, records, skip_bad=True)))
    assert [(line['id'], 'error' in line) for line in got] == [(i, i == 4) for i in range(7)]


def test_a_notebook_has_no_bytes(tuned, tmp_path, monkeypatch):
    _, flags = tuned('afqmc')
    small.write_lines(tmp_path / 'in', pairs(2))
    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    predict.run(flags + ['--input', str(tmp_path / 'in')])
    assert [json.loads(line)['id'] for line in sys.stdout.getvalue().splitlines()] == [0, 1]
    monkeypatch.setattr(sys, 'stdout', None)
    with pytest.raises(UserError, match='standard output is closed'):
        predict.run(flags + ['--input', str(tmp_path / 'in')])


# ------------------------------------------------------------------ outputs that fail


def shell(command, *args):
    return subprocess.run(['bash', '-c', 'set -o pipefail; ' + command, sys.executable] + list(args),
                          capture_output=True, timeout=300)


def last_line(done):
    return done.stderr.decode().splitlines()[-1]


@pytest.mark.slow
def test_predictions_to_a_full_device_or_to_nobody(tuned, root, tmp_path):
    _, flags = tuned('afqmc')
    small.write_lines(tmp_path / 'in', pairs(5000))
    program = [os.path.join(root, 'predict.py')] + flags + ['--input', str(tmp_path / 'in')]
    done = shell('"$0" "$@" > /dev/full', *program)
    assert done.returncode == 2
    assert last_line(done) == 'scripts/predict: error: standard output: No space left on device'
    assert b'Traceback' not in done.stderr and b'Exception' not in done.stderr
    done = shell('"$0" "$@" | head -1', *program)
    assert (done.returncode, done.stdout.count(b'\n')) == (141, 1)
    assert b'Traceback' not in done.stderr and b'Exception' not in done.stderr and b'error' not in done.stderr


@pytest.mark.parametrize('ending, code', [('| head -1', 0)] + [pytest.param(*case, marks=pytest.mark.slow) for case in [
    ('2>&1 | head -1', 0), ('| true', 0), ('> /dev/full', 2)]])
def test_a_training_that_nobody_reads_goes_on(ending, code, root, backbone, tmp_path):
    small.write_task(tmp_path / 'data', 'afqmc')
    done = shell('"$0" "$@" ' + ending, os.path.join(root, 'afqmc.py'), *small.flags(dict(
        backbone, data_path=tmp_path / 'data', output_dir=tmp_path / 'out', epochs=2)))
    assert done.returncode == code, done.stderr.decode()
    assert len(small.read_lines(tmp_path / 'out' / 'results' / 'afqmc_predict.json')) == 5
    assert small.read_json(tmp_path, 'out', 'results', 'afqmc_run.json')['best']
    assert b'Traceback' not in done.stderr and b'Exception' not in done.stderr
    if code:
        assert last_line(done) == 'afqmc.py: error: standard output: No space left on device: not all is there'


@pytest.mark.parametrize('tool', ['data', 'submit'])
@pytest.mark.parametrize('ending', ['| head -1', '| true', '> /dev/full'])
def test_tables_that_nobody_reads(tool, ending, root, tmp_path):
    os.makedirs(str(tmp_path / 'results'))
    small.write_text(tmp_path / 'results' / 'x_predict.json', '')
    flags = ['--data_path', str(tmp_path)] + (['--output_dir', str(tmp_path)] if tool == 'submit' else [])
    done = shell('"$0" "$@" ' + ending, os.path.join(root, 'tools'), tool, *flags)
    assert done.returncode == (2 if 'full' in ending else 1), done.stderr.decode()
    assert b'Traceback' not in done.stderr and b'Exception' not in done.stderr
    if 'full' in ending:
        assert last_line(done).startswith('scripts/%s: error: standard output: No space left' % tool)


@pytest.mark.parametrize('tool', ['predict.py', 'afqmc.py'])
@pytest.mark.parametrize('ending', ['| true', '> /dev/full'])
def test_help_that_nobody_reads(tool, ending, root):
    done = shell('"$0" "$@" ' + ending, os.path.join(root, tool), '--help')
    assert done.returncode == (2 if 'full' in ending else 0)
    assert b'Traceback' not in done.stderr and b'Exception' not in done.stderr
