"""A run that was stopped goes on and ends with the same numbers."""
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

from fltuning import deltas
from fltuning import steps
import small
import train
from afqmc import AFQMC
from fltuning.errors import UserError

pytestmark = pytest.mark.costly


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
    """Of a run with dropout everywhere, and with groups of batches that an epoch's end cuts."""
    folder = tmp_path_factory.mktemp('resume')
    small.write_task(folder, 'afqmc', train=14)
    return dict(small.write_backbone(folder / 'backbone'), data_path=folder, epochs=5, batch_size=4,
                grad_accum_steps=3, prompt_size=2, ffn_prompt_size=3, learning_rate=0.01)


def start(flags, out, *more, **changes):
    return train.run(AFQMC, small.flags(dict(flags, output_dir=out, **changes)) + list(more))


def weights(out):
    values, belongs_to = deltas.read_delta(str(out / 'weights' / 'afqmc.weights'))
    state, _ = deltas.read_delta(str(out / 'weights' / 'afqmc.state'), deltas.STATE)
    return dict(values, **state), belongs_to


def results(out):
    with open(str(out / 'results' / 'afqmc_predict.json')) as reader:
        return reader.read()


def numbers(record):
    return [{k: v for k, v in epoch.items() if k != 'seconds'} for epoch in record['history']]


def assert_same(out, expected):
    (ours, belongs_to), (theirs, their_belongings) = weights(out), weights(expected)
    assert belongs_to == their_belongings
    assert sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        assert value.tobytes() == theirs[name].tobytes(), name
    assert results(out) == results(expected)


@pytest.fixture(scope='module')
def undisturbed(flags, tmp_path_factory):
    """(output_dir, record) of a run that was never stopped."""
    out = tmp_path_factory.mktemp('undisturbed')
    return out, start(flags, out)


class Stop(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize('epochs', [(0,), (1, 2), (4,), (1, 1, 3)])
def test_stopped_and_resumed(epochs, flags, undisturbed, tmp_path, monkeypatch):
    """Stopped after so many batches of these epochs, one stop after the other."""
    original = steps.train_epoch
    for stop in epochs:
        def train_epoch(step, task, encoded, settings, epoch):
            if epoch == stop:
                step(*task.collate(encoded[:4]))  # which counts for nothing
                raise Stop
            return original(step, task, encoded, settings, epoch)
        monkeypatch.setattr(steps, 'train_epoch', train_epoch)
        with pytest.raises(Stop):
            start(flags, tmp_path, '--resume')
    monkeypatch.setattr(steps, 'train_epoch', original)
    record = start(flags, tmp_path, '--resume')
    out, expected = undisturbed
    assert numbers(record) == numbers(expected)
    assert record['best'] == expected['best'] and record['dev_points'] == expected['dev_points'] != {}
    assert_same(tmp_path, out)


def test_a_run_that_is_through_only_predicts(flags, undisturbed, tmp_path, monkeypatch, capsys):
    start(flags, tmp_path)
    os.remove(str(tmp_path / 'results' / 'afqmc_predict.json'))
    os.remove(str(tmp_path / 'weights' / 'afqmc.weights'))
    monkeypatch.setattr(steps, 'train_epoch', None)
    record = start(flags, tmp_path, '--resume')
    assert numbers(record) == numbers(undisturbed[1]) and record['dev_points'] == undisturbed[1]['dev_points']
    assert_same(tmp_path, undisturbed[0])
    assert 'going on after epoch 5 of 5' in capsys.readouterr().out


def test_without_a_state_a_run_starts_anew(flags, undisturbed, tmp_path, capsys):
    start(flags, tmp_path, '--resume')
    assert 'no state of an earlier run: starting anew' in capsys.readouterr().out
    assert_same(tmp_path, undisturbed[0])


def test_other_settings_give_other_numbers(flags, undisturbed, tmp_path):
    """So that the equality above says something."""
    start(flags, tmp_path, seed=1)
    values, expected = weights(tmp_path)[0], weights(undisturbed[0])[0]
    name = 'weights/head/0/kernel'
    assert np.abs(values[name] - expected[name]).max() > 1e-4


@pytest.mark.parametrize('change, said', [
    (dict(seed=1), 'seed is 42, here it is 1'),
    (dict(epochs=6), 'epochs is 5, here it is 6'),
    (dict(batch_size=2), 'batch_size is 4, here it is 2'),
    (dict(ffn_prompt_size=4), ' is '),
    (dict(prompt_dropout=0.2), 'prompt_dropout is 0.1, here it is 0.2'),
    (dict(learning_rate=0.02), 'learning_rate is 0.01, here it is 0.02')])
def test_a_state_of_other_settings_is_refused(change, said, flags, undisturbed):
    out = undisturbed[0]
    before, results = weights(out)[0], sorted(os.listdir(str(out / 'results')))
    with pytest.raises(UserError) as refused:
        start(flags, out, '--resume', **change)
    assert sorted(os.listdir(str(out / 'results'))) == results
    assert str(out / 'weights' / 'afqmc.state') in str(refused.value) and said in str(refused.value)
    after = weights(out)[0]
    assert all(value.tobytes() == after[name].tobytes() for name, value in before.items())


def test_other_data_is_refused(flags, undisturbed, tmp_path):
    small.write_task(tmp_path, 'afqmc', train=15)
    with pytest.raises(UserError) as refused:
        start(flags, undisturbed[0], '--resume', data_path=tmp_path)
    assert 'data_sha256 is {' in str(refused.value)


def test_half_a_state_is_refused(flags, tmp_path):
    start(flags, tmp_path, epochs=1)
    path = str(tmp_path / 'weights' / 'afqmc.state')
    with open(path, 'rb') as reader:
        content = reader.read()
    with open(path, 'wb') as writer:
        writer.write(content[:-10])
    with pytest.raises(UserError) as refused:
        start(flags, tmp_path, '--resume', epochs=1)
    assert path + ': not a whole state' in str(refused.value)


def test_no_space_left_for_the_state(flags, tmp_path, monkeypatch):
    """The run ends with one line, and the state of the epoch before is still there."""
    original, saved = deltas.write_tensors, []

    def write_tensors(path, values, metadata):
        saved.extend([path] if deltas.STATE in metadata else [])
        with small.room_for(1000 if len(saved) == 3 else None):
            original(path, values, metadata)
    monkeypatch.setattr(deltas, 'write_tensors', write_tensors)
    with pytest.raises(UserError) as refused:
        start(flags, tmp_path)
    assert str(refused.value).endswith('afqmc.state: ' + os.strerror(errno.EFBIG))
    _, state = deltas.read_delta(str(tmp_path / 'weights' / 'afqmc.state'), deltas.STATE)
    assert len(state['history']) == 2
    assert sorted(os.listdir(str(tmp_path / 'weights'))) == ['afqmc.state', 'afqmc.weights']


def assert_whole(out):
    """Every file that stands under its own name can be read."""
    for folder in ('weights', 'results'):
        here = str(out / folder)
        for name in os.listdir(here) if os.path.isdir(here) else []:
            path = os.path.join(here, name)
            if name.endswith(('.tmp', '.lock')):
                continue
            if folder == 'weights':
                deltas.read_delta(path, deltas.STATE if name.endswith('.state') else deltas.FORMAT)
            elif name.endswith('_run.json'):
                with open(path) as reader:
                    json.load(reader)
            elif name.endswith('.json'):
                assert len(small.read_lines(path)) == 5


def start_at_once(command, count):
    """A process that holds the run, of `count` started at once; the others were refused."""
    errors = [tempfile.TemporaryFile() for _ in range(count)]  # a pipe that nobody reads fills up
    running = [(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=error), error) for error in errors]
    while len(running) > 1:
        time.sleep(0.01)
        for process, error in running[:]:
            if process.poll() is not None and len(running) > 1:
                running.remove((process, error))
                process.communicate()
                error.seek(0)
                said = error.read().decode()
                # Refused, or through before the other began.
                assert process.returncode == 0 or (
                    process.returncode == 2 and 'another run is writing here' in said), said
    return running[0][0]


@pytest.mark.slow
@pytest.mark.parametrize('at_once', [1, 2])
def test_killed_many_times(flags, undisturbed, tmp_path, root, at_once):
    """By SIGKILL, at random moments, most of them while it trains and writes."""
    flags = dict(flags, epochs=60 * at_once)  # the one that is not refused has a head start
    start(flags, tmp_path / 'undisturbed')
    moments, kills, most = random.Random(at_once), 0, 5 if small.DIVIDED else 20
    for number in itertools.count():  # a machine that is busy lets a run get through before it is killed
        out = tmp_path / ('killed_%d' % number)
        command = [sys.executable, os.path.join(root, 'afqmc.py'), '--resume'] + small.flags(
            dict(flags, output_dir=out))
        through = False
        while kills < most and not through:
            process = start_at_once(command, at_once)
            if moments.random() < 0.8:  # not while it only starts
                line = b'-'
                while line and not line.startswith(b'epoch'):
                    line = process.stdout.readline()
                time.sleep(moments.uniform(0, 0.15 / 2 ** number))
            else:
                time.sleep(moments.uniform(0, 4))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
            through = process.returncode == 0
            kills += not through
            assert_whole(out)
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert_same(out, tmp_path / 'undisturbed')
        assert sorted(os.listdir(str(out / 'weights'))) == sorted(
            os.listdir(str(tmp_path / 'undisturbed' / 'weights')))
        if kills == most:
            break
