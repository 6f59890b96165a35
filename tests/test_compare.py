"""Comparisons: the data of their parts, the rate that is chosen, going on, the table."""
import os

import numpy as np
import pytest

import checkpoints
import compare
import small
import train
from compat import K
from errors import UserError


@pytest.fixture
def start(tmp_path):
    """start(**changes) -> the runs of a comparison of AFQMC on a tiny backbone."""
    small.write_task(tmp_path / 'data', 'afqmc', train=20)
    paths = small.write_backbone(tmp_path / 'backbone')

    def run(*more, **changes):
        settings = dict(dict(config_path=os.path.dirname(paths['config_path']), epochs=1, dev=4,
                             data_path=tmp_path / 'data', output_dir=tmp_path / 'out'), **changes)
        compare.run(small.flags(settings) + [
            '--tasks', 'afqmc', '--seeds', '1', '2', '--rates', '1e-3', '1e-1'] + list(more))
        return small.read_json(tmp_path / 'out' / 'compare.json')['runs']
    return run


@pytest.mark.parametrize('setting', ['ffn_prompt_size', 'prompt_size'])
def test_sizes_are_the_share(setting, tmp_path, clear_session):
    """Against a count of the model's weights."""
    paths = small.write_backbone(tmp_path, hidden_size=32, intermediate_size=64, num_hidden_layers=3)
    method = compare.Method('', 'pretrained', setting)
    found = compare.sizes(method, paths['config_path'], 'roberta', 20)
    transformer = compare.snippets.load_backbone(
        paths['config_path'], paths['checkpoint_path'], backbone='roberta', **found)
    added, frozen = [sum(K.count_params(weight) for weight in weights) for weights in (
        transformer.model.trainable_weights, transformer.model.non_trainable_weights)]
    assert abs(added / frozen - 0.2) < 0.5 * 65 * 3 / frozen
    none = compare.sizes(compare.Method('', 'pretrained', None), paths['config_path'], 'roberta', 20)
    assert none == {'prompt_size': 0, 'ffn_prompt_size': 0}


def test_the_data_of_the_parts(tmp_path):
    """A fifth is to choose the rate on, and texts that stand in several records are on one side."""
    small.write_task(tmp_path / 'in', 'wsc')
    records = [dict(small.read_lines(tmp_path / 'in' / 'wsc' / 'train.json')[0],
                    text='她说这是美的。她们也说' + small.sentence(i // 3, 20)) for i in range(200)]
    small.write_lines(tmp_path / 'in' / 'wsc' / 'train.json', records)
    found = compare.write_data('wsc', str(tmp_path / 'in'), str(tmp_path / 'out'), 180, 3)
    assert found == {'train': 180, 'dev': 3}
    read = {(part, file): small.read_lines(tmp_path / 'out' / part / 'wsc' / (file + '.json'))
            for part in ('split', 'whole') for file in ('train', 'dev')}
    assert read['whole', 'train'] == records[:180]
    assert read['whole', 'dev'] == small.read_lines(tmp_path / 'in' / 'wsc' / 'dev.json')[:3]
    texts = [{record['text'] for record in read['split', file]} for file in ('train', 'dev')]
    assert not texts[0] & texts[1]
    sizes = [len(read['split', file]) for file in ('train', 'dev')]
    assert sum(sizes) == 180 and 15 < sizes[1] < 65


def test_a_comparison(start, tmp_path, monkeypatch, capsys, clear_session):
    """Stopped and started again: each run once, and the rate with the better score on the split."""
    original, done = train.run, []

    def stopped(task, argv):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(argv)
        return original(task, argv)
    monkeypatch.setattr(train, 'run', stopped)
    with pytest.raises(KeyboardInterrupt):
        start()
    monkeypatch.setattr(train, 'run', lambda task, argv: done.append(argv) or original(task, argv))
    runs = start()
    assert len(done) == 4 * (2 + 2) == len(os.listdir(str(tmp_path / 'out' / 'runs')))
    assert {run['method'] for run in runs} == {method.title for method in compare.METHODS}
    for run in runs:
        assert run['rates'][run['rate']] == max(run['rates'].values()) and len(run['scores']) == 2
        for seed, score in zip((1, 2), run['scores']):
            record = small.read_json(tmp_path / 'out' / 'runs' / 'afqmc whole {method} {rate} {}'.format(
                seed, **run), 'results', 'afqmc_run.json')
            assert record['history'][-1]['accuracy'] == score and record['seed'] == seed
            assert record['settings']['learning_rate'] == float(run['rate'])
            assert ('/random/' in record['settings']['config_path']) == ('random' in run['method'])
    row = capsys.readouterr().out.splitlines()[-1].split(' | ')
    assert row[0] == '| afqmc' and row[1] == '20, 4' and len(row) == 3 + 4
    fl = [run for run in runs if run['method'] == 'FL-Tuning'][0]
    assert row[3].startswith('%.1f ± ' % (100 * np.mean(fl['scores'])))
    assert start('--methods', 'head only') == runs and len(done) == 16  # the others stay


def test_earlier_runs_of_other_settings(start, tmp_path, clear_session):
    """They are not taken for those that are asked for."""
    start('--methods', 'head only')
    for expected, changes in [('epochs is 1, here it is 2', {'epochs': 2}),
                              ('share is 3.0, here it is 4.0', {'share': 4}),
                              ('dev.json is', {'dev': 3})]:
        with pytest.raises(UserError) as refused:
            start('--methods', 'head only', **changes)
        assert expected in str(refused.value)
    small.write_backbone(tmp_path / 'backbone', seed=5)
    with pytest.raises(UserError) as refused:
        start('--methods', 'head only')
    assert 'checkpoint_path is' in str(refused.value)


def test_one_table_is_of_one_kind(start, tmp_path, clear_session):
    """Columns that were measured on other seeds or other data do not stand beside new ones."""
    def methods(*more, **changes):
        return {run['method'] for run in start(*more, **changes)}
    assert methods('--methods', 'head only') == {'head only'}
    assert methods('--methods', 'P-Tuning V2', '--seeds', '1') == {'P-Tuning V2'}
    assert methods('--methods', 'FL-Tuning', dev=3) == {'FL-Tuning'}
    small.write_text(tmp_path / 'data' / 'afqmc' / 'train.json', '\ufeff' + (
        tmp_path / 'data' / 'afqmc' / 'train.json').read_text('utf-8').split('\n', 1)[1])
    assert methods('--methods', 'FL-Tuning, random weights', dev=3) == {'FL-Tuning, random weights'}
    small.write_text(tmp_path / 'out' / 'compare.json', '{"runs": [{}]}')
    with pytest.raises(UserError) as refused:
        start('--methods', 'P-Tuning V2', dev=3)
    assert 'compare.json: not a comparison' in str(refused.value)


@pytest.mark.parametrize('expected,flags', [
    ('abc', ['--rates', '1e-4', 'abc']), ('twice', ['--seeds', '1', '1']),
    ('no folder', ['--data_path', 'nowhere']), ('nowhere', ['--config_path', 'nowhere'])])
def test_bad_flags(expected, flags, start, tmp_path, clear_session):
    with pytest.raises(UserError) as refused:
        start(*flags)
    assert expected in str(refused.value) and not os.path.exists(str(tmp_path / 'out'))


def test_random_weights_are_of_the_same_shapes(start, tmp_path, clear_session):
    start('--methods', 'FL-Tuning, random weights')
    ours, again = [checkpoints.read_variables(
        str(tmp_path / 'out' / 'random' / seed / 'bert_model.ckpt')) for seed in '12']
    theirs = checkpoints.read_variables(str(tmp_path / 'backbone' / 'bert_model.ckpt'))
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    name = 'bert/encoder/layer_0/intermediate/dense/kernel'
    assert (ours[name] != again[name]).any() and abs(ours[name].std() - 0.02) < 0.005
