"""Files that earlier versions wrote go on loading, and give the numbers that they gave then."""
import os
import shutil

import numpy as np
import pytest

import predict
import small
import train
from afqmc import AFQMC
from fltuning import compat

BEFORE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'before')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """f(kind) -> (paths of the backbone, data folder), as they were then."""
    found = {}

    def make(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp('before')
            small.write_task(folder, 'afqmc', train=16, dev=6, test=5)
            found[kind] = small.write_backbone(folder / 'backbone', kind), folder
        return found[kind]
    return make


def expected(name):
    return small.read_json(BEFORE, name, 'expected.json')


def probabilities(lines):
    return [list(line['probabilities'].values()) for line in lines]


@pytest.mark.parametrize('name', ['tf1-roberta', 'tf2-roberta', 'tf1-nezha', 'tf2-nezha'])
def test_a_delta(name, made, clear_session):
    stack, kind = name.split('-')
    if kind == 'nezha' and stack != compat.STACK:
        pytest.skip('of a NEZHA, that version hashed numbers that the stacks compute differently')
    paths, data = made(kind)
    model = predict.Predictor(**paths).load(os.path.join(BEFORE, name, 'afqmc.weights'))
    found = model.predict(small.read_lines(data / 'afqmc' / 'test.json'))
    np.testing.assert_allclose(probabilities(found), probabilities(expected(name)['predictions']),
                               atol=1e-5)


def test_a_whole_model(made, clear_session):
    paths, data = made('roberta')
    model = predict.Predictor(**paths).load(os.path.join(BEFORE, 'tf1-roberta', 'model.h5'), 'afqmc')
    found = model.predict(small.read_lines(data / 'afqmc' / 'test.json'))
    np.testing.assert_allclose(probabilities(found),
                               probabilities(expected('tf1-roberta')['predictions']), atol=1e-5)


@pytest.mark.parametrize('kind', ['roberta', 'nezha'])
def test_a_state(kind, made, tmp_path, clear_session):
    """A run that was stopped under the earlier version goes on to the end that it had."""
    name = '%s-%s' % (compat.STACK, kind)
    paths, data = made(kind)
    os.makedirs(str(tmp_path / 'weights'))
    shutil.copy(os.path.join(BEFORE, name, 'afqmc.state'), str(tmp_path / 'weights'))
    record = train.run(AFQMC, small.flags(dict(
        paths, data_path=data, output_dir=tmp_path, epochs=3, batch_size=4, maxlen=32, ffn_prompt_size=3,
        prompt_size=2, learning_rate=0.02, seed=5)) + ['--resume'])
    assert len(record['history']) == 3
    for ours, theirs in zip(record['history'], expected(name)['history']):
        assert ours['epoch'] == theirs['epoch'] and ours['accuracy'] == theirs['accuracy']
        assert ours['loss'] == pytest.approx(theirs['loss'], abs=1e-5)
    assert record['best']['epoch'] == expected(name)['best']['epoch']
