"""Evaluations within epochs, early stopping, warm-up, several seeds, the history and TensorBoard."""
import json
import os
import statistics
from unittest import mock

import numpy as np
import pytest

import small
import snippets
import train
from afqmc import AFQMC
from fltuning import compat, deltas, steps
from fltuning.compat import K
from fltuning.errors import UserError
from fltuning.history import History


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
    """Of a run of two epochs of 7 batches, with dropout, and groups of batches that evaluations cut."""
    folder = tmp_path_factory.mktemp('training')
    small.write_task(folder, 'afqmc', train=14)
    return dict(small.write_backbone(folder / 'backbone'), data_path=folder, epochs=2, batch_size=2,
                grad_accum_steps=3, prompt_size=2, ffn_prompt_size=3, learning_rate=0.01)


def start(flags, out, *more, task=AFQMC, **changes):
    return train.run(task, small.flags(dict(flags, output_dir=out, **changes)) + list(more))


def without_times(entries):
    return [{name: value for name, value in entry.items() if name != 'seconds'} for entry in entries]


def tensors(out, name='afqmc.weights', kind=deltas.FORMAT):
    return deltas.read_delta(str(out / 'weights' / name), kind)[0]


def assert_equal_tensors(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        assert value.tobytes() == theirs[name].tobytes(), name


def lines(out):
    return small.read_lines(out / 'results' / 'afqmc_history.jsonl')


class Scored(AFQMC):
    """AFQMC with dev scores that are given, one after the other."""
    given = []

    def score(self, samples, results):
        accuracy = Scored.given[len(Scored.seen) % len(Scored.given)]
        Scored.seen.append(accuracy)
        return {'accuracy': accuracy, 'macro_f1': 0.0}


@pytest.fixture
def scored(request):
    Scored.seen = []
    return Scored


# ------------------------------------------------------------------ the history


@pytest.fixture(scope='module')
def often(flags, tmp_path_factory):
    """(output_dir, record) of a run whose dev is scored after each 3 batches, too.

    Its losses, one a batch, are in Scored.losses.
    """
    out, original, losses = tmp_path_factory.mktemp('often'), steps.train_function, []

    def train_function(*arguments):
        step = original(*arguments)
        return lambda *batch: losses.append(step(*batch)) or losses[-1]
    with mock.patch.object(steps, 'train_function', train_function):
        record = start(flags, out, eval_every=3, tensorboard=out / 'tb')
    Scored.losses = losses
    return out, record


@pytest.fixture(scope='module')
def plain(flags, tmp_path_factory):
    out = tmp_path_factory.mktemp('plain')
    return out, start(flags, out)


@pytest.mark.costly
def test_evaluations_change_no_number_of_the_training(often, plain):
    """After 3, 6, 9 and 12 batches and at the ends of the epochs, 7 and 14; the last state is the same."""
    (often_out, often_record), (out, record) = often, plain
    assert [entry['step'] for entry in often_record['history']] == [3, 6, 7, 9, 12, 14]
    assert [entry['epoch'] for entry in often_record['history']] == [1, 1, 1, 2, 2, 2]
    assert [entry['step'] for entry in record['history']] == [7, 14]
    assert without_times(record['history']) == without_times(
        [entry for entry in often_record['history'] if entry['step'] in (7, 14)])
    ours, theirs = [{name: value for name, value in tensors(folder, 'afqmc.state', deltas.STATE).items()
                     if not name.startswith('best/')} for folder in (often_out, out)]
    assert_equal_tensors(ours, theirs)


def test_the_record(often, plain):
    """The fields that docs/experiments.md lists, and the sums of its times."""
    for out, record in (often, plain):
        assert small.read_json(out, 'results', 'afqmc_run.json') == json.loads(json.dumps(record))
        assert record['stack'] == compat.STACK and record['steps'] == 14
        assert record['trained_parameters'] == record['parameters']['trained']
        for entry in record['history']:
            assert set(entry['dev']) == {'accuracy', 'macro_f1'}
            assert {name: entry[name] for name in entry['dev']} == entry['dev']
        first = max(record['history'], key=lambda entry: entry['dev']['accuracy'])
        assert record['best'] == record['selected'] == {
            name: first[name] for name in ('epoch', 'step', 'dev')}
        spent = sum(entry['seconds'] for entry in record['history'])
        assert 0 < record['train_seconds'] < spent + 0.1 and spent < record['seconds']
        from test_run import sha256
        assert sorted(record['sha256']) == ['results/afqmc_dev_errors.tsv', 'results/afqmc_predict.json',
                                            'weights/afqmc.weights']
        for name, digest in record['sha256'].items():
            assert sha256(out / name) == digest
        assert lines(out) == [{name: entry[name] for name in ('step', 'epoch', 'loss', 'dev', 'seconds')}
                              for entry in record['history']]


def test_losses_of_the_epoch_so_far(often):
    """Against the losses of the batches: 7 of 2 samples in an epoch."""
    assert len(Scored.losses) == 14
    for entry in often[1]['history']:
        begin = 7 * (entry['epoch'] - 1)
        assert entry['loss'] == pytest.approx(np.mean(Scored.losses[begin:entry['step']]), rel=1e-12)


def test_tensorboard(often):
    """Read back by TensorBoard's own reader, where it is there, or else by TensorFlow's."""
    out, record = often
    folder = str(out / 'tb' / 'afqmc')
    expected = {name: [(entry['step'], pytest.approx(value(entry))) for entry in record['history']]
                for name, value in [('loss', lambda entry: entry['loss']),
                                    ('dev/accuracy', lambda entry: entry['dev']['accuracy']),
                                    ('dev/macro_f1', lambda entry: entry['dev']['macro_f1'])]}
    assert read_events(folder) == expected


def read_events(folder):
    """{name: [(step, value)]} of a folder of event files, as TensorBoard sees them."""
    found = {}
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        import tensorflow as tf
        for name in sorted(os.listdir(folder)):
            for event in tf.compat.v1.train.summary_iterator(os.path.join(folder, name)):
                if event.HasField('session_log'):  # what TensorBoard forgets where it meets a start
                    found = {name: [pair for pair in pairs if pair[0] < event.step]
                             for name, pairs in found.items()}
                for value in event.summary.value:
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
        return {name: pairs for name, pairs in found.items() if pairs}
    events = EventAccumulator(folder)
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()['scalars']}


def test_a_folder_for_events_that_is_none(flags, tmp_path):
    small.write_text(tmp_path / 'file', '')
    with pytest.raises(UserError) as refused:
        start(flags, tmp_path, tensorboard=tmp_path / 'file')
    assert str(refused.value).startswith('tensorboard: ') and 'file' in str(refused.value)


# ------------------------------------------------------------------ stopped and resumed


class Stop(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.costly
def test_stopped_within_an_epoch(flags, often, tmp_path, monkeypatch, capsys, clear_session):
    """After so many batches, one stop after the other: numbers, files and history are those of a run that
    was not stopped, and neither the lines nor the events have gaps or doubles."""
    original = steps.train_function
    for moment in (5, 9):  # between two evaluations; right after one
        def train_function(model, head, optimizer, *others):
            step = original(model, head, optimizer, *others)

            def run(*batch):
                if K.get_value(optimizer.iterations) == moment:
                    raise Stop
                return step(*batch)
            return run
        monkeypatch.setattr(steps, 'train_function', train_function)
        with pytest.raises(Stop):
            start(flags, tmp_path, '--resume', eval_every=3, tensorboard=tmp_path / 'tb')
        # As where a process was killed after a line was written and before its state was.
        with open(str(tmp_path / 'results' / 'afqmc_history.jsonl'), 'a') as writer:
            writer.write('{"step": 99, "epo')
    monkeypatch.setattr(steps, 'train_function', original)
    record = start(flags, tmp_path, '--resume', eval_every=3, tensorboard=tmp_path / 'tb')
    assert 'going on after epoch 1 of 2, step 3\n' in capsys.readouterr().out
    out, expected = often
    assert without_times(record['history']) == without_times(expected['history'])
    assert without_times(lines(tmp_path)) == without_times(lines(out))
    assert record['sha256'] == expected['sha256'] and record['best'] == expected['best']
    assert_equal_tensors(*[tensors(folder, 'afqmc.state', deltas.STATE) for folder in (tmp_path, out)])
    assert read_events(str(tmp_path / 'tb' / 'afqmc')) == read_events(str(out / 'tb' / 'afqmc'))
    assert record['seconds'] > sum(entry['seconds'] for entry in record['history'])


def test_what_a_run_depends_on(flags, plain):
    """A state of other settings is refused."""
    assert {'eval_every', 'select', 'warmup', 'early_stopping', 'few_shot', 'few_shot_dev', 'draw_seed',
            'few_shot_split'} < set(train.RunSettings.of_before())
    with pytest.raises(UserError) as refused:
        start(flags, plain[0], '--resume', eval_every=3)
    assert 'eval_every is null, here it is 3' in str(refused.value)


# ------------------------------------------------------------------ which weights, and when to end


def test_select(flags, scored, tmp_path, clear_session):
    """The best within an epoch is kept, or the last; both are told of, and predictions are of the kept ones."""
    Scored.given = [0.2, 0.9, 0.5, 0.4, 0.9, 0.1]
    best = start(flags, tmp_path / 'best', task=scored, eval_every=3)
    Scored.seen = []
    last = start(flags, tmp_path / 'last', task=scored, eval_every=3, select='last')
    assert best['best'] == best['selected'] == last['best']
    assert best['best']['step'] == 6 and best['best']['dev']['accuracy'] == 0.9
    assert last['selected']['step'] == 14 and last['selected']['dev']['accuracy'] == 0.1
    values, belongs_to = deltas.read_delta(str(tmp_path / 'best' / 'weights' / 'afqmc.weights'))
    assert (belongs_to['epoch'], belongs_to['step']) == (1, 6)
    state = tensors(tmp_path / 'last', 'afqmc.state', deltas.STATE)
    for name, value in tensors(tmp_path / 'last').items():
        assert value.tobytes() == state['weights/' + name].tobytes()
    assert any((value != state['weights/' + name]).any() for name, value in values.items())


@pytest.mark.parametrize('given, patience, ends', [
    ([0.5, 0.4, 0.5, 0.3], 2, [False, False, True, True]),  # an equal score is no better one
    ([0.5, 0.4, 0.6, 0.5], 2, [False] * 4), ([0.1, 0.2, 0.3], 1, [False] * 3),
    ([0.3, 0.2, 0.1], None, [False] * 3)])
def test_when_a_run_is_over(given, patience, ends):
    history = History('f1', 7, patience=patience)
    found = []
    for number, score in enumerate(given, 1):
        history.add(7 * number, 0.5, {'f1': score}, 1.0)
        found.append(history.is_over)
    assert found == ends


def test_early_stopping(flags, scored, tmp_path, capsys, clear_session):
    """Within an epoch, and in a run that goes on after it ended: it trains no further."""
    Scored.given = [0.5, 0.6, 0.5, 0.7, 0.1, 0.2, 0.9]
    for more in ([], ['--resume']):
        record = start(dict(flags, epochs=4, early_stopping=2, eval_every=4), tmp_path, *more, task=scored)
        assert [entry['step'] for entry in record['history']] == [4, 7, 8, 12, 14, 16]
        assert record['steps'] == lines(tmp_path)[-1]['step'] == 16 and record['best']['step'] == 12
        assert 'ended early: 2 times in a row without a better dev accuracy' in capsys.readouterr().out


def test_history_of_earlier_versions():
    """Its entries had epochs alone, and scores beside the loss."""
    history = History('f1', 7, patience=1)
    history.restore([{'f1': 0.5, 'recall': 0.2, 'epoch': 1, 'loss': 0.7, 'seconds': 1.0},
                     {'f1': 0.5, 'recall': 0.3, 'epoch': 2, 'loss': 0.6, 'seconds': 1.0}])
    assert [entry['step'] for entry in history.entries] == [7, 14]
    assert history.best['dev'] == {'f1': 0.5, 'recall': 0.2} and history.is_over


# ------------------------------------------------------------------ warm-up


@pytest.mark.parametrize('warmup, batches', [('4', 4), ('0.25', 4), ('0', 0), ('0.0', 0), ('0.03', 0)])
def test_warmup(warmup, batches, flags, tmp_path, monkeypatch):
    """The schedule: a rise from 0 to the rate, then a fall to 0 in the last batch, 14."""
    made, original = [], snippets.get_optimizer

    def get_optimizer(*arguments, **options):
        made.append((arguments, original(*arguments, **options)))
        raise Stop
    monkeypatch.setattr(snippets, 'get_optimizer', get_optimizer)
    with pytest.raises(Stop):
        start(flags, tmp_path, warmup=warmup)
    (rate, warm, total), optimizer = made[0]
    assert (rate, warm, total) == (0.01, batches, 14)
    schedule = optimizer.lr_schedule
    factors = np.interp(range(15), sorted(schedule), [schedule[t] for t in sorted(schedule)])
    expected = [min(t / batches if batches else 1, (14 - t) / (14 - batches)) for t in range(15)]
    np.testing.assert_allclose(factors, expected, atol=1e-12)


def test_a_warm_run_is_another(flags, plain, tmp_path, clear_session):
    """In the first update the rate is 0: the weights stay, so the losses of its batches do not."""
    record = start(flags, tmp_path, warmup=0.5)
    assert record['settings']['warmup'] == 0.5
    assert record['history'][0]['loss'] != plain[1]['history'][0]['loss']


@pytest.mark.parametrize('flag, said', [
    (['--warmup', '1.5'], 'argument --warmup: expected a whole number from 0, or a share from 0 to below 1, got 1.5'),
    (['--warmup', '-1'], 'or a share from 0 to below 1, got -1'),
    (['--warmup', 'some'], 'or a share from 0 to below 1, got some'),
    (['--eval_every', '0'], 'argument --eval_every: expected a whole number from 1, got 0'),
    (['--early_stopping', '0'], 'argument --early_stopping: expected a whole number from 1, got 0'),
    (['--select', 'worst'], "argument --select: invalid choice: 'worst'"),
    (['--seeds', '1', 'x'], 'argument --seeds: expected a whole number from 0, got x'),
    (['--seeds', '1', '2', '1'], 'argument --seeds: one is given twice'),
    (['--seeds', '1', '--seed', '2'], 'argument --seed: not allowed with argument --seeds'),
    (['--seed', '42', '--seeds', '1'], 'argument --seeds: not allowed with argument --seed')])
def test_bad_values(flag, said):
    with pytest.raises(UserError) as refused:
        train.parse_flags(AFQMC, flag)
    assert said in str(refused.value)


def test_a_warmup_longer_than_the_run(flags, tmp_path):
    with pytest.raises(UserError) as refused:
        start(flags, tmp_path, warmup=14)
    assert str(refused.value) == 'warmup: expected fewer than the 14 batches of the run, got 14'
    assert os.listdir(str(tmp_path)) == []


# ------------------------------------------------------------------ several seeds


@pytest.mark.costly
def test_seeds(flags, plain, tmp_path, capsys, clear_session):
    """Each is the run that --seed makes, in a folder of its own; then mean and deviation over them."""
    found = start(flags, tmp_path, '--seeds', '3', '42')
    last = capsys.readouterr().out.splitlines()[-1]
    alone = plain[1]
    assert found == small.read_json(tmp_path, 'results', 'afqmc_seeds.json')
    assert found['seeds'] == [3, 42] and found['task'] == 'afqmc'
    assert found['runs'] == ['seed_3/results/afqmc_run.json', 'seed_42/results/afqmc_run.json']
    records = [small.read_json(tmp_path, path) for path in found['runs']]
    assert [record['seed'] for record in records] == [3, 42]
    assert [record['settings']['seeds'] for record in records] == [None, None]
    assert records[1]['sha256'] == alone['sha256'] != records[0]['sha256']
    assert without_times(records[1]['history']) == without_times(alone['history'])
    for metric in ('accuracy', 'macro_f1'):
        values = [record['selected']['dev'][metric] for record in records]
        assert found['dev'][metric] == {'values': values, 'mean': statistics.mean(values),
                                        'deviation': statistics.stdev(values)}
    accuracy = found['dev']['accuracy']
    assert last.startswith('afqmc: seeds 3, 42: dev accuracy %.4f ± %.4f, macro_f1 ' % (
        accuracy['mean'], accuracy['deviation']))


def test_a_seed_that_stops_leaves_the_others(flags, tmp_path, monkeypatch, capsys, clear_session):
    """It is named, and not in the mean; where all stop, the last one's reason is the answer."""
    original = steps.train_function

    def train_function(model, head, optimizer, seed, *more):
        step = original(model, head, optimizer, seed, *more)
        return (lambda *batch: float('nan')) if seed < 10 else step
    monkeypatch.setattr(steps, 'train_function', train_function)
    with pytest.raises(UserError, match='^seeds 3: stopped, and not among them$'):
        start(flags, tmp_path / 'out', '--seeds', '3', '42', epochs=1)
    captured = capsys.readouterr()
    assert 'seed 3: epoch 1, step 1 of 7: the loss is nan; try a lower --learning_rate' in captured.err
    assert 'seeds 42: dev accuracy' in captured.out
    assert small.read_json(tmp_path / 'out', 'results', 'afqmc_seeds.json')['seeds'] == [42]
    with pytest.raises(UserError, match='the loss is nan'):
        start(flags, tmp_path / 'other', '--seeds', '3', '4', epochs=1)
    assert not os.path.exists(str(tmp_path / 'other' / 'results' / 'afqmc_seeds.json'))
