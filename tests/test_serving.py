"""Several tuned models over one backbone: one graph for all of a shape; other processes; whole models."""
import concurrent.futures
import json
import os
import random
import shutil
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

import make_cross
import predict
import small
import snippets
from fltuning import compat, deltas
from fltuning.compat import keras
from fltuning.errors import UserError
from fltuning.files import write_tensors

HERE = os.path.dirname(os.path.abspath(__file__))
DELTA = os.path.join(HERE, 'cross', 'tf1-roberta', 'afqmc.weights')
WHOLE = os.path.join(HERE, 'before', 'tf1-roberta', 'model.h5')


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    return small.write_backbone(tmp_path_factory.mktemp('serving'))


@pytest.fixture(scope='module')
def paths(tmp_path_factory):
    """Four deltas of one shape, with other weights."""
    folder, found = tmp_path_factory.mktemp('deltas'), []
    values, belongs_to = deltas.read_delta(DELTA)
    for i in range(4):
        found.append(str(folder / ('%d.weights' % i)))
        deltas.save_delta(found[-1], {name: value * (1 + i) for name, value in values.items()}, belongs_to)
    return found


def probabilities(model, records=make_cross.RECORDS):
    return [list(line['probabilities'].values()) for line in model.predict(records)]


@pytest.fixture(scope='module')
def alone(backbone, paths):
    """What each of them says where it is the only one."""
    return [probabilities(predict.Predictor(**backbone).load(path)) for path in paths]


@pytest.fixture
def builds(monkeypatch):
    """A list that grows with each model that is built."""
    made, original = [], snippets.build_model
    monkeypatch.setattr(snippets, 'build_model', lambda *args: made.append(args) or original(*args))
    return made


def size(predictor):
    """`tf1`: how many operations the graph has."""
    return 0 if compat.TF2 else len(predictor.graph.graph.get_operations())


def test_one_graph_for_all_of_a_shape(backbone, paths, alone, builds):
    """Each has its own weights, one after the other and again."""
    assert len({str(found) for found in alone}) == 4
    predictor = predict.Predictor(**backbone)
    models = [predictor.load(path) for path in paths]
    operations = size(predictor)
    models += [predictor.load(path) for path in paths * 5]
    for order in (range(24), range(23, -1, -1)):
        for i in order:
            assert probabilities(models[i]) == alone[i % 4]
    for model, path in zip(models, paths):
        for name, value in deltas.read_delta(path)[0].items():
            np.testing.assert_array_equal(model.get_values()[name], value)
    assert len(builds) == 1 and size(predictor) == operations


def test_they_take_turns_in_threads(backbone, paths, alone):
    predictor = predict.Predictor(**backbone)
    models = [predictor.load(path) for path in paths] * 2  # two threads for each
    together = threading.Barrier(len(models))

    def ask(model):
        together.wait(60)
        return [probabilities(model) for _ in range(10)]

    with concurrent.futures.ThreadPoolExecutor(len(models)) as pool:
        futures = [pool.submit(ask, model) for model in models]
        for future, expected in zip(futures, alone * 2):
            for found in future.result(timeout=300):
                np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_keras_model_is_of_one_alone(backbone, paths, alone, builds):
    """Who asks for it may change its weights: no other tuned model sees that."""
    predictor = predict.Predictor(**backbone)
    first, second = [predictor.load(path) for path in paths[:2]]
    own = first.model
    assert first.model is own and len(builds) == 2
    assert second.model is not own and len(builds) == 2  # it was the only one left
    third = predictor.load(paths[2])
    assert len(builds) == 3
    with predictor.graph.use():
        head = own.get_layer('head')
        head.set_weights([-value for value in head.get_weights()])
    assert probabilities(second) == alone[1] and probabilities(third) == alone[2]
    changed = probabilities(first)
    np.testing.assert_allclose(np.array(changed)[:, ::-1], alone[0], atol=1e-5)


def test_one_that_does_not_fit_leaves_no_graph(backbone, paths, tmp_path):
    predictor = predict.Predictor(**backbone)
    values, belongs_to = deltas.read_delta(DELTA)
    path = str(tmp_path / 'x.weights')
    for change, said in [(dict(backbone_sha256='0' * 64), 'backbone_sha256'), (dict(labels=['a', 'b']), 'labels'),
                         (dict(maxlen=2000), 'maxlen is 2000, the backbone has'),
                         (dict(layers_to_transform=[7]), 'layers_to_transform')]:
        deltas.save_delta(path, values, dict(belongs_to, **change))
        with pytest.raises(UserError) as refused:
            predictor.load(path)
        assert said in str(refused.value) and not predictor.shared
    predictor.load(paths[0])


# ------------------------------------------------------------------ Keras's files


def test_keras_saves_it_in_all_its_ways(backbone, tmp_path, clear_session):
    tuned = predict.Predictor(**backbone).load(DELTA)
    ids = np.array([[2, 10, 11, 3], [2, 12, 3, 0]], 'float32')
    inputs = [ids, np.zeros_like(ids)]
    expected = tuned.outputs(inputs)
    with tuned.graph.use():
        for name in ['model.h5', 'folder', 'model.keras'] if compat.TF2 else ['model.h5']:
            path = str(tmp_path / name)
            tuned.model.save(path)
            loaded = keras.models.load_model(path, compile=False)
            np.testing.assert_allclose(loaded.predict(inputs), expected, atol=1e-6)
        if compat.TF2:
            import tensorflow as tf
            tuned.model.export(str(tmp_path / 'export'))
            exported = tf.saved_model.load(str(tmp_path / 'export'))
            np.testing.assert_allclose(exported.serve(inputs).numpy(), expected, atol=1e-6)
        tuned.model.save_weights(str(tmp_path / 'weights.h5'))
    again = predict.Predictor(**backbone).load(str(tmp_path / 'weights.h5'), 'afqmc')
    np.testing.assert_allclose(again.outputs(inputs), expected, atol=1e-6)


# ------------------------------------------------------------------ forked processes

FORK = '''
import json, os, signal, sys
sys.path[:0] = sys.argv[1:3]
import predict, train
from afqmc import AFQMC
from fltuning.errors import UserError
loaded, backbone, delta = sys.argv[3] == 'loaded', json.loads(sys.argv[4]), sys.argv[5]

def load():
    return predict.Predictor(**backbone).load(delta)

def ask(model):
    print(model.predict([{'sentence1': '她', 'sentence2': '她'}])[0]['id'])

ways = [lambda: ask(load())]
if loaded:
    predictor = predict.Predictor(**backbone)
    model = predictor.load(delta)
    ask(model)
    ways += [lambda: ask(model), lambda: model.model, model.get_values, lambda: predictor.load(delta)]
sys.stdout.flush()
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
signal.alarm(100)  # ends the child where it hangs
for way in ways:
    try:
        way()
    except UserError as error:
        print('refused: %s' % error)
sys.stdout.flush()
os._exit(0)
'''


@pytest.mark.parametrize('what', ['loaded', 'only imported'])
def test_a_forked_process_is_told_what_to_do(what, backbone, root):
    """And does not hang. Where the parent has loaded nothing, the child may."""
    done = subprocess.run([sys.executable, '-c', FORK, root, HERE, what, json.dumps(backbone), DELTA],
                          capture_output=True, timeout=300)
    said = done.stdout.decode('utf-8').splitlines()
    assert done.returncode == 0, done.stderr.decode('utf-8')[-500:]
    assert said[0] == '0'
    assert len(said) == (6 if what == 'loaded' else 1)
    for line in said[1:]:
        assert line.startswith('refused: process ') and 'had loaded a model' in line and 'spawn' in line


# ------------------------------------------------------------------ whole models in HDF5


def edit_hdf5(change):
    """A function that changes the layers' group of a file."""
    def edit(path):
        with h5py.File(path, 'r+') as file:
            change(file.get('model_weights', file), file)
    return edit


def replace(group, name, **options):
    del group[name]
    return group.create_dataset(name, **options)


def a_set(group):
    """The name of a layer's kernel in the file."""
    return 'head/' + [name.decode() if isinstance(name, bytes) else name
                      for name in group['head'].attrs['weight_names']][0]


def without_names(group, file):
    del group.attrs['layer_names']


def numbers_for_names(group, file):
    group.attrs['layer_names'] = np.arange(3)


def no_such_layer(group, file):
    group.attrs['layer_names'] = [b'head', b'none']


def the_same_layer_twice(group, file):
    group.attrs['layer_names'] = [b'head'] * 2


def a_group_for_values(group, file):
    name = a_set(group)
    del group[name]
    group.create_group(name)


def other_dtype(group, file):
    replace(group, a_set(group), data=np.zeros((16, 2)))


def texts_for_values(group, file):
    replace(group, a_set(group), data=np.array([b'a', b'b']))


def sparse_and_huge(group, file):
    replace(group, a_set(group), shape=(1 << 20, 1 << 20), dtype='float32', chunks=(64, 64))[0, 0] = 1


def never_written(group, file):
    replace(group, a_set(group), shape=(16, 2), dtype='float32')


def compressed_and_huge(group, file):
    replace(group, a_set(group), data=np.zeros((1 << 12, 1 << 12), 'float32'), compression='gzip')


def in_another_file(group, file):
    name = a_set(group)
    del group[name]
    group[name] = h5py.ExternalLink('/etc/hostname', '/x')


def in_a_file_of_bytes(group, file):
    name = a_set(group)
    del group[name]
    group.create_dataset(name, (1, 2), 'float32', external=[('/etc/hostname', 0, 8)])


def one_weight_for_four(group, file):
    group['Transformer-0-AddFFN'].attrs['weight_names'] = group['Transformer-0-AddFFN'].attrs['weight_names'][:1]


def not_finite(group, file):
    name = a_set(group)
    group[name][0, 0] = np.nan


def frozen_not_finite(group, file):
    layer = group['Transformer-0-FeedForward']
    names = [name.decode() if isinstance(name, bytes) else name for name in layer.attrs['weight_names']]
    layer[names[0]][0, 0] = np.nan


def frozen_changed(group, file):
    layer = group['Transformer-0-FeedForward']
    names = [name.decode() if isinstance(name, bytes) else name for name in layer.attrs['weight_names']]
    layer[names[0]][0, 0] += 1


WRONG = {
    without_names: 'no layer_names', numbers_for_names: 'layer_names: expected texts',
    no_such_layer: 'no none', the_same_layer_twice: 'layer head is there twice',
    a_group_for_values: 'expected values', other_dtype: 'expected float32, got float64',
    texts_for_values: 'expected float32', sparse_and_huge: 'more values than a file of this size',
    never_written: 'are not all in the file', compressed_and_huge: 'more values than a file of this size',
    in_another_file: 'no ', in_a_file_of_bytes: 'are not all in the file',
    one_weight_for_four: 'Transformer-0-AddFFN', not_finite: 'tensor head/0: expected finite numbers',
    frozen_not_finite: 'expected finite numbers', frozen_changed: 'is not that of this backbone'}


@pytest.mark.parametrize('change', list(WRONG), ids=lambda change: change.__name__)
def test_whole_models_that_are_wrong(change, predictor, tmp_path):
    path = str(tmp_path / 'model.h5')
    shutil.copy(WHOLE, path)
    os.chmod(path, 0o644)
    edit_hdf5(change)(path)
    with pytest.raises(UserError) as refused:
        predictor.load(path, 'afqmc')
    message = str(refused.value)
    assert message.startswith(path + ': ') and WRONG[change] in message and len(message) < 600


@pytest.fixture(scope='module')
def predictor(backbone):
    found = predict.Predictor(**backbone)
    found.load(WHOLE, 'afqmc')
    return found


def test_damaged_bytes_of_a_whole_model(predictor, tmp_path):
    """Whatever they make of HDF5's library, this process goes on, with one line or a model."""
    with open(WHOLE, 'rb') as reader:
        content = reader.read()
    path, chance, refused = str(tmp_path / 'model.h5'), random.Random(0), 0
    for i in range(25):
        damaged = bytearray(content)
        if i % 5 == 0:
            damaged = damaged[:chance.randrange(8, len(damaged))]
        for _ in range(chance.choice([1, 8, 200])):
            damaged[chance.randrange(8, min(len(damaged), chance.choice([2000, len(content)])))] = chance.randrange(256)
        with open(path, 'wb') as writer:
            writer.write(damaged)
        try:
            predictor.load(path, 'afqmc')
        except UserError as error:
            assert str(error).startswith(path + ': ')
            refused += 1
    assert refused > 10


# ------------------------------------------------------------------ metadata of deltas


def test_mutated_metadata(predictor, tmp_path):
    """Every field with every wrong kind of value, in a file of this format and of the one before."""
    values, belongs_to = deltas.read_delta(DELTA)
    path, refused = str(tmp_path / 'x.weights'), 0
    wrong = [None, [], {}, '', 'x', True, -1, 0.5, 10**30, 2**31 - 1, [None], [[]], [-1], [10**30], {'a': 1},
             float('nan'), '\ud800']
    for name in deltas.FIELDS:
        for value in wrong + [KeyError]:
            changed = dict(belongs_to, **{name: value})
            if value is KeyError:
                del changed[name]
            text = json.dumps(changed)
            write_tensors(path, values, {'fl-tuning-delta-1': text})
            with pytest.raises(UserError) as error:
                predictor.load(path)
            assert str(error.value).startswith((path + ': ', 'task ')) and len(str(error.value)) < 500
            refused += 1
    assert refused == len(deltas.FIELDS) * (len(wrong) + 1)
