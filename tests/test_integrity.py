"""Runs that diverge, that meet another run, or that follow one: what is kept, what is said."""
import json
import os
import signal
import subprocess
import sys


import numpy as np
import pytest

import small
import train
from afqmc import AFQMC
from c3 import C3
from fltuning import deltas, locks
from fltuning.errors import UserError

pytestmark = pytest.mark.costly


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('integrity')
    small.write_task(folder, 'afqmc', train=12, dev=6, test=4)
    small.write_task(folder, 'c3')
    return folder


@pytest.fixture(scope='module')
def backbone(data):
    return small.write_backbone(data / 'backbone')


@pytest.fixture
def flags(data, backbone, tmp_path):
    """f(**settings) -> flags of a run of AFQMC."""
    def make(*more, **settings):
        return small.flags(dict(dict(backbone, data_path=data, output_dir=tmp_path / 'out', epochs=3,
                                     batch_size=4, maxlen=32, ffn_prompt_size=3, learning_rate=0.02),
                                **settings)) + list(more)
    return make


def left(tmp_path):
    """{file: bytes} of what a run wrote."""
    found = {}
    for folder in ('weights', 'results'):
        for name in os.listdir(str(tmp_path / 'out' / folder)):
            found[folder + '/' + name] = (tmp_path / 'out' / folder / name).read_bytes()
    return found


# ------------------------------------------------------------------ what is not finite


def test_a_run_that_diverges_at_once_leaves_nothing(flags, tmp_path, clear_session):
    """Three steps an epoch: the loss of the second or third is not finite."""
    with pytest.raises(UserError) as stopped:
        train.run(AFQMC, flags(learning_rate=1e30))
    assert 'epoch 1, ' in str(stopped.value) and 'step' in str(stopped.value)
    assert 'try a lower --learning_rate than 1e+30' in str(stopped.value)
    assert left(tmp_path) == {}


def test_a_run_that_diverges_later_keeps_the_best_epoch(flags, tmp_path, monkeypatch, capsys, clear_session):
    """Its weights, and predictions and a record that are JSON and say so."""
    train.run(AFQMC, flags(seed=3))
    expected = left(tmp_path)
    best = json.loads(expected['results/afqmc_run.json'].decode('utf-8'))['best']
    poison = best['epoch']  # the epoch after the best one, counted from 0
    assert poison == 2, 'choose another seed: the best epoch is to have one before and one behind'
    original = train.Run.get_state

    def get_state(self, epoch):
        if epoch == poison:
            values = self.trainer.get_values()
            name = sorted(values)[0]
            values[name] = values[name] * np.nan
            self.trainer.set_values(values)
        return original(self, epoch)

    monkeypatch.setattr(train.Run, 'get_state', get_state)
    with pytest.raises(UserError) as stopped:
        train.run(AFQMC, flags(seed=3))
    assert 'epoch %d, its last step: weights/' % (poison + 1) in str(stopped.value)
    assert 'those of the best epoch before' in capsys.readouterr().out
    after = left(tmp_path)
    for name in ('weights/afqmc.weights', 'results/afqmc_predict.json'):
        assert after[name] == expected[name]
    record = json.loads(after['results/afqmc_run.json'].decode('utf-8'),
                        parse_constant=lambda name: pytest.fail(name + ' is not JSON'))
    assert record['best'] == best and len(record['history']) == poison
    assert 'is not finite' in record['stopped']
    values, _ = deltas.read_delta(str(tmp_path / 'out' / 'weights' / 'afqmc.weights'))
    assert all(np.isfinite(value).all() for value in values.values())


def test_the_program_says_it_in_one_line(flags, root, tmp_path):
    done = subprocess.run([sys.executable, os.path.join(root, 'afqmc.py')] + flags(learning_rate=1e30),
                          capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.replace('\r', '\n').splitlines()[-1]
    assert last.startswith('afqmc.py: error: epoch 1, ') and 'try a lower' in last


# ------------------------------------------------------------------ gradients that are left over


@pytest.mark.parametrize('accumulated, batches', [(4, 3), (5, 3)])
def test_the_last_batches_make_an_update_too(accumulated, batches, data, backbone, tmp_path, clear_session):
    """Three batches, four to accumulate: once, of their mean, as if three were asked for."""
    values = []
    for number in (accumulated, batches):
        out = tmp_path / str(number)
        train.run(C3, small.flags(dict(backbone, data_path=data, output_dir=out, epochs=1, batch_size=2,
                                       maxlen=64, ffn_prompt_size=3, learning_rate=0.02,
                                       grad_accum_steps=number)))
        values.append(deltas.read_delta(str(out / 'weights' / 'c3.weights'))[0])
        state, _ = deltas.read_delta(str(out / 'weights' / 'c3.state'), deltas.STATE)
        assert all(not value.any() for name, value in state.items() if name.endswith('gradient_sum'))
        assert any(value.any() for name, value in state.items() if name.endswith('/m'))
    for name in values[0]:
        np.testing.assert_allclose(values[0][name], values[1][name], atol=1e-7)


# ------------------------------------------------------------------ two runs in one folder


def hold(path, root, then='time.sleep(60)'):
    """A process that holds a lock file."""
    process = subprocess.Popen(
        [sys.executable, '-c', 'import sys, time; sys.path.insert(0, %r)\n'
         'from fltuning.locks import locked\n'
         'with locked(%r):\n    print("held", flush=True)\n    %s' % (root, path, then)],
        stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    return process


def test_a_second_run_is_refused_and_told_who_is_there(flags, root, tmp_path, clear_session):
    train.run(AFQMC, flags(epochs=1))
    before = left(tmp_path)
    path = str(tmp_path / 'out' / 'weights' / 'afqmc.lock')
    process = hold(path, root)
    try:
        with pytest.raises(UserError) as refused:
            train.run(AFQMC, flags(epochs=2))
        for text in (path, 'process %d on ' % process.pid, 'another run'):
            assert text in str(refused.value)
        assert {name: content for name, content in left(tmp_path).items() if not name.endswith('lock')} == before
        small.write_task(tmp_path / 'other', 'cluener')  # another task may write there
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    train.run(AFQMC, flags(epochs=2))  # it was killed: its lock is nobody's
    assert not os.path.exists(path)


def test_a_lock_of_the_dead_is_taken_over(root, tmp_path):
    path = str(tmp_path / 'x.lock')
    for how in (signal.SIGKILL, signal.SIGTERM):
        process = hold(path, root)
        process.send_signal(how)
        process.wait()
        process.stdout.close()
        assert os.path.exists(path)
        with locks.locked(path):
            assert 'process %d on' % os.getpid() in small.read_text(path)
        assert not os.path.exists(path)


def test_of_many_at_once_one_holds(root, tmp_path):
    """Each notes that it came in and went out; no two are ever in at the same time."""
    path, log = str(tmp_path / 'x.lock'), str(tmp_path / 'log')
    program = ('import sys, time, os; sys.path.insert(0, %r)\n'
               'from fltuning.locks import locked\nfrom fltuning.errors import UserError\n'
               'end = time.time() + 3\n'
               'while time.time() < end:\n'
               '    try:\n'
               '        with locked(%r):\n'
               '            open(%r, "a").write("in\\n"); time.sleep(0.002); open(%r, "a").write("out\\n")\n'
               '    except UserError:\n        pass\n' % (root, path, log, log))
    processes = [subprocess.Popen([sys.executable, '-c', program]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    lines = small.read_text(log).split()
    assert len(lines) > 20 and lines == ['in', 'out'] * (len(lines) // 2)
    assert not os.path.exists(path)


# ------------------------------------------------------------------ a run after another


def test_the_record_of_another_configuration_is_kept(flags, tmp_path, capsys, clear_session):
    first = train.run(AFQMC, flags(epochs=1))
    assert first['threads'] == first['settings']['threads'] or first['threads'] > 0
    train.run(AFQMC, flags(epochs=1))
    assert 'by a run with another' not in capsys.readouterr().out
    assert not os.path.exists(str(tmp_path / 'out' / 'results' / 'afqmc_run.json.old'))
    train.run(AFQMC, flags(epochs=1, ffn_prompt_size=2, prompt_dropout=0.3))
    assert ('written by a run with another ffn_prompt_size, prompt_dropout: moved to afqmc_run.json.old;'
            in capsys.readouterr().out)
    kept = small.read_json(tmp_path, 'out', 'results', 'afqmc_run.json.old')
    assert kept['settings']['ffn_prompt_size'] == 3 and kept['history'][0]['loss'] == first['history'][0]['loss']
    small.write_text(tmp_path / 'out' / 'results' / 'afqmc_run.json', '{"settings": 3}')
    train.run(AFQMC, flags(epochs=1))
    assert small.read_text(tmp_path / 'out' / 'results' / 'afqmc_run.json.old.2') == '{"settings": 3}'


# ------------------------------------------------------------------ threads


def test_threads_are_a_setting_and_recorded(flags, root, tmp_path):
    """In a process of its own: TensorFlow takes the number once."""
    for threads in (1, 2):
        done = subprocess.run([sys.executable, os.path.join(root, 'afqmc.py')]
                              + flags(epochs=1, threads=threads), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        record = small.read_json(tmp_path, 'out', 'results', 'afqmc_run.json')
        assert record['threads'] == record['settings']['threads'] == threads


def test_another_number_of_threads_in_the_same_process_is_refused(flags, clear_session):
    train.run(AFQMC, flags(epochs=1))
    with pytest.raises(UserError, match='threads 7: TensorFlow already computes with'):
        train.run(AFQMC, flags(epochs=1, threads=7))
