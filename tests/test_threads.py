"""Each model owns its graph: other threads, later runs and other models leave it as it is."""
import concurrent.futures
import gc
import os
import threading

import numpy as np
import pytest

import predict
import small
import train
from afqmc import AFQMC
from fltuning import compat

pytestmark = pytest.mark.costly

RECORDS = [{'sentence1': small.sentence(i, 3 + i), 'sentence2': small.sentence(i + 1, 9 - i)}
           for i in range(6)]


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    """(paths of a backbone, a delta, the flags of the run that made it)."""
    folder = tmp_path_factory.mktemp('threads')
    small.write_task(folder / 'data', 'afqmc', train=16, dev=4, test=3)
    paths = small.write_backbone(folder / 'backbone')
    flags = small.flags(dict(paths, data_path=folder / 'data', output_dir=folder / 'out', epochs=1,
                             ffn_prompt_size=3, learning_rate=0.05))
    train.run(AFQMC, flags)
    return paths, str(folder / 'out' / 'weights' / 'afqmc.weights'), flags


def probabilities(model, records=RECORDS):
    return [list(line['probabilities'].values()) for line in model.predict(records)]


def in_thread(function, *args):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result(timeout=120)


def test_a_model_works_in_any_thread(tuned):
    paths, delta, _ = tuned
    here = predict.Predictor(**paths).load(delta)
    expected = probabilities(here)
    assert in_thread(probabilities, here) == expected
    there = in_thread(lambda: predict.Predictor(**paths).load(delta))
    assert probabilities(there) == expected
    # Over one backbone, loaded in two threads.
    predictor = predict.Predictor(**paths)
    models = [in_thread(predictor.load, delta), predictor.load(delta), in_thread(predictor.load, delta)]
    assert [probabilities(model) for model in models] == [expected] * 3


def test_two_threads_at_once(tuned):
    """Each gets the answers to its own records, ids that were left out among them."""
    paths, delta, _ = tuned
    model = predict.Predictor(**paths).load(delta)
    batches = [RECORDS[:3], RECORDS[3:], RECORDS, RECORDS[::-1]]
    expected = [model.predict(batch) for batch in batches]
    together = threading.Barrier(len(batches))

    def ask(batch):
        together.wait(60)
        return [model.predict(batch) for _ in range(10)]

    with concurrent.futures.ThreadPoolExecutor(len(batches)) as pool:
        for answers, wanted in zip(pool.map(ask, batches), expected):
            for answer in answers:
                assert [line['id'] for line in answer] == list(range(len(wanted)))
                np.testing.assert_allclose([list(line['probabilities'].values()) for line in answer],
                                           [list(line['probabilities'].values()) for line in wanted],
                                           atol=1e-6)


def test_a_later_run_leaves_a_model_as_it_is(tuned, tmp_path):
    """And a model that is loaded leaves a run as it is."""
    paths, delta, flags = tuned
    model = predict.Predictor(**paths).load(delta)
    expected = probabilities(model)
    train.run(AFQMC, flags + ['--output_dir', str(tmp_path)])
    assert probabilities(model) == expected
    again = str(tmp_path / 'weights' / 'afqmc.weights')
    with open(delta, 'rb') as first, open(again, 'rb') as second:
        assert first.read() == second.read()
    assert os.path.getsize(delta) > 0


@pytest.mark.slow
@pytest.mark.stack('tf1', 'on tf2 a model has no graph of its own')
def test_runs_and_models_give_their_memory_back(tuned, tmp_path):
    """No graph of one is left, though TensorFlow and Keras keep tables of what is in graphs."""
    paths, delta, flags = tuned

    def count_graphs():
        gc.collect()
        return sum(isinstance(thing, compat.tf.Graph) for thing in gc.get_objects())

    def use():
        train.run(AFQMC, flags + ['--output_dir', str(tmp_path)])
        model = predict.Predictor(**paths).load(delta)
        assert len(probabilities(model)) == 6

    use()
    before = count_graphs()
    for _ in range(2):
        use()
    assert count_graphs() <= before
