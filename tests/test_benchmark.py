"""The benchmark: what it counts, and that each of its parts runs and reports. No test is of a time."""
import argparse
import os

import numpy as np
import pytest

from tools import benchmark, measure as measuring
import small
from fltuning.errors import UserError


def count(lengths, first_only=False, training=False, **changes):
    flags = dict(dict(hidden_size=8, layers=3, prompt_size=0, ffn_prompt_size=0), **changes)
    return measuring.multiply_adds(lengths, argparse.Namespace(**flags), first_only, training)


def test_forward_multiply_adds():
    """12 h^2 + 2 n h for a token in a layer (24 and 4 floating-point operations), and the prompts."""
    assert count([5, 9]) == 3 * sum(n * (12 * 64 + 2 * n * 8) for n in (5, 9))
    assert count([5], ffn_prompt_size=4) - count([5]) == 3 * 5 * 2 * 8 * 4
    assert count([5], prompt_size=4) - count([5]) == 3 * 5 * 2 * 8 * 4
    # Of the last layer: keys and values of all, the rest of one.
    saved = (5 - 1) * (2 * 64 + 8 * 64 + 2 * 5 * 8)
    assert count([5]) - count([5], first_only=True) == saved


def test_training_multiply_adds():
    assert count([5], training=True) == count([5])  # nothing in the backbone is trained
    trained = 5 * 2 * 8 * 4
    one = dict(layers=1, ffn_prompt_size=4)
    assert count([5], training=True, **one) - count([5], **one) == 1.5 * trained
    # Each layer above the first: twice forward, the scores thrice, the trained weights' gradient.
    two = dict(one, layers=2)
    more = count([5], training=True, **two) - count([5], training=True, **one)
    assert more == 5 * (2 * 12 * 64 + 3 * 2 * 5 * 8) + 3 * trained
    # Prefixes of the first layer: the FFN and the output projection, softmax over 5 + 4 keys, the
    # gradients of keys and values.
    one = dict(layers=1, prompt_size=4)
    assert (count([5], training=True, **one) - count([5], **one)
            == 5 * (8 * 64 + 64 + 8 * (5 + 4) + 2 * 8 * 4))


@pytest.fixture
def measure(tmp_path):
    """measure(*flags) -> the report on small data sets and a tiny backbone."""
    small.write_task(tmp_path / 'data', 'afqmc', train=40)
    small.write_task(tmp_path / 'data', 'c3')
    paths = small.write_backbone(tmp_path / 'backbone')

    def run(*more):
        benchmark.run(small.flags(dict(
            data_path=tmp_path / 'data', dict_path=paths['dict_path'], layers=1, hidden_size=16,
            ffn_prompt_size=3, repeats=2, output_dir=tmp_path / 'out')) + list(more))
        return small.read_json(tmp_path / 'out' / 'results' / 'benchmark.json')
    return run


@pytest.mark.slow
def test_methods_report(measure, monkeypatch, capsys, clear_session):
    """A row for each that was measured; two of them here."""
    from fltuning import methods
    monkeypatch.setattr(methods, 'METHODS', {name: methods.METHODS[name] for name in ('fl', 'lora')})
    rows = measure('--parts', 'methods')['methods']
    assert [row['method'] for row in rows] == ['fl', 'lora']
    for row in rows:
        assert row['trained'] > 0 and row['size'] > 0
        for path in ('padded', 'default'):
            seconds = np.array(row['seconds'][path]) / row['seconds']['reference']
            assert row['ratio'][path] == pytest.approx(np.median(seconds))


@pytest.mark.slow
def test_every_part_reports(measure, monkeypatch, capsys, clear_session):
    report = measure('--tasks', 'afqmc', 'c3', '--parts', 'input', 'tasks')
    assert [[one['task'] for one in report[part]] for part in ('input', 'tasks')] == [
        ['afqmc', 'c3']] * 2
    for one in report['tasks']:
        for part in ('train', 'predict'):
            found = one[part]
            padded, default = [np.median(found['seconds'][path]) for path in ('padded', 'default')]
            assert found['ratio'] == pytest.approx(padded / default)
            assert len(found['seconds']['default']) == 2 and found['share_of_floor'] > 0
        assert one['padding'] >= 1 and one['peak_gflops'] > 0
    growth = measuring.measure_growth
    monkeypatch.setattr(measuring, 'measure_growth',
                        lambda *args: growth(*args, lengths=(8, 16), sizes=(1, 2)))
    report = measure('--tasks', 'afqmc', '--parts', 'memory', 'growth', 'merged')
    memory, = report['memory']
    assert all(50 < megabytes < 2000 for megabytes in memory['peak_memory_mb'].values())
    assert [row['length'] for row in report['growth']] == [8, 16]
    assert report['merged']['ratio'] > 0
    printed = capsys.readouterr().out
    assert 'geometric mean' in printed and 'afqmc     peak MB' in printed


@pytest.mark.costly
def test_memory_is_the_processs_own(measure, clear_session):
    """Not what the process that started it holds or held."""
    held = np.ones(2 * 10**9, 'int8')
    memory, = measure('--tasks', 'afqmc', '--parts', 'memory')['memory']
    assert held[-1] == 1
    assert all(50 < megabytes < 1500 for megabytes in memory['peak_memory_mb'].values())


def test_less_than_a_batch(measure, tmp_path, clear_session):
    lines = small.read_lines(tmp_path / 'data' / 'afqmc' / 'train.json')
    small.write_lines(tmp_path / 'data' / 'afqmc' / 'train.json', lines[:15])
    with pytest.raises(UserError, match='afqmc: 15 samples, less than a batch of 32'):
        measure('--tasks', 'afqmc', '--parts', 'tasks')


@pytest.mark.costly
def test_a_killed_process_is_named(measure, monkeypatch, clear_session):
    monkeypatch.setattr(measuring, 'step_memory', kill)
    with pytest.raises(UserError, match='afqmc, padded: the process was ended'):
        measure('--tasks', 'afqmc', '--parts', 'memory')


def kill(*args):
    """In place of a step: ends its process, as the system does where memory is short."""
    os._exit(9)
