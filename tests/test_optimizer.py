"""optimizer.py against the original's numbers and against Adam's definition in NumPy."""
import json
import os
import subprocess
import sys

from fltuning import compat  # before bert4keras
import numpy as np
import pytest
import tensorflow as tf

import test_models
from fltuning.compat import K, keras
from models import PtuningV2AddFNNPtuning, build_transformer_model
from fltuning.optimizer import PromptAdam

pytestmark = pytest.mark.usefixtures('clear_session')


# ------------------------------------------------------------------ the original's numbers

RUNS = 20
# The original drops out its prefixes in training: no numbers of those.
GOLDEN_RUNS = [('roberta', 'fl'), ('roberta', 'none'), ('nezha', 'fl'), ('roformer', 'fl')]


def use_several_threads():
    """Operations that need not wait for each other do not, in an order that chance decides."""
    if compat.TF2:
        tf.config.threading.set_inter_op_parallelism_threads(4)
        tf.config.threading.set_intra_op_parallelism_threads(1)
    else:
        K.set_session(tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=4, intra_op_parallelism_threads=1,
            use_per_session_threads=True)))


def train_golden(golden, kind, case, result_path):
    """Six steps of training from the golden weights, RUNS times; a program of its own.

    Writes losses (RUNS, 6) and, under their golden names, the weights after the last run.
    """
    use_several_threads()
    numbers = test_models.load_golden(golden, kind)
    inputs, labels = [numbers['token_ids'], numbers['segment_ids']], numbers['labels']
    prompt_size, ffn_prompt_size = test_models.CASES[case]
    transformer = build_transformer_model(
        *test_models.golden_paths(golden, kind), model=PtuningV2AddFNNPtuning,
        prompt_size=prompt_size, ffn_prompt_size=ffn_prompt_size, return_keras_model=False)
    transformer.freeze()
    model = test_models.with_head(transformer)
    optimizer = PromptAdam(1e-3, weight_decay_rate=0.01, lr_schedule={0: 1, 10: 0},
                           exclude_from_weight_decay=['Norm', 'bias'])
    model.compile(loss='sparse_categorical_crossentropy', optimizer=optimizer)
    losses = []
    for _ in range(RUNS):
        test_models.set_golden_weights(model, numbers, case)
        optimizer.set_weights([np.zeros_like(w) for w in optimizer.get_weights()])
        losses.append([model.train_on_batch(inputs, labels) for _ in range(6)])
    results = {'losses': losses}
    for layer, pairs in test_models.golden_weights(numbers, case + '/w/').items():
        for (name, _), value in zip(pairs, model.get_layer(layer).get_weights()):
            results[name] = value
    np.savez(result_path, **results)


@pytest.fixture(scope='module')
def trained(golden, root, tmp_path_factory):
    """{(kind, case): what `train_golden` wrote}, in a process whose threads are set in time."""
    folder = tmp_path_factory.mktemp('trained')
    paths = {run: str(folder / ('%s-%s.npz' % run)) for run in GOLDEN_RUNS}
    program = 'import sys, test_optimizer as t\n' + ''.join(
        't.compat.K.clear_session(); t.train_golden(sys.argv[1], %r, %r, %r)\n'
        % (run + (paths[run],)) for run in GOLDEN_RUNS)
    subprocess.run([sys.executable, '-c', program, golden], check=True,
                   cwd=os.path.dirname(os.path.abspath(__file__)),
                   env=dict(os.environ, PYTHONPATH=root))
    return {run: dict(np.load(path)) for run, path in paths.items()}


@pytest.mark.parametrize('kind, case', GOLDEN_RUNS)
def test_golden_training_in_every_run(golden, trained, kind, case):
    want, got = test_models.load_golden(golden, kind), trained[kind, case]
    losses = got.pop('losses')
    assert losses.shape == (RUNS, 6)
    assert (losses == losses[0]).all()  # to the last bit
    test_models.close(losses[0], want[case + '/train_losses'], 1e-4)
    # Adam divides a gradient by its own size, so where it is almost zero float32's rounding
    # decides between a step up and a step down. Entries with a clear gradient show no such thing.
    compared = 0
    for name, after in got.items():
        clear = np.abs(want['%s/grad/%s' % (case, name)]) > 1e-3
        compared += clear.sum()
        np.testing.assert_allclose(
            after[clear], want['%s/after6/%s' % (case, name)][clear], rtol=0, atol=2e-5,
            err_msg=name)
    assert compared > 0.75 * want[case + '/n_trainable']


# ------------------------------------------------------------------ the definition in NumPy


def linear_model(embedded=False):
    """x W + b, then N: layer 'score' and layer 'score-Norm', whose weights do not decay.

    embedded: W holds rows to look up, whose gradient TensorFlow keeps sparse.
    """
    if embedded:
        source = keras.layers.Input((1,))
        hidden = keras.layers.Embedding(3, 4, name='score')(source)
        hidden = keras.layers.Flatten()(hidden)
    else:
        source = keras.layers.Input((3,))
        hidden = keras.layers.Dense(4, name='score')(source)
    output = keras.layers.Dense(2, use_bias=False, name='score-Norm')(hidden)
    return keras.models.Model(source, output)


def linear_gradients(weights, x, y):
    """Of the mean squared error; the embedded model has no b."""
    w, b, n = weights if len(weights) == 3 else (weights[0], 0, weights[1])
    hidden = x.dot(w) + b
    d_output = 2 * (hidden.dot(n) - y) / y.size
    d_hidden = d_output.dot(n.T)
    gradients = [x.T.dot(d_hidden), d_hidden.sum(0), hidden.T.dot(d_output)]
    return gradients if len(weights) == 3 else gradients[::2]


def adam_in_numpy(weights, batches, learning_rate, schedule, decay, grad_accum_steps, epsilon, end=None):
    """Yields the weights after each batch, in float64. decay: the rate of each weight.

    end: batches after which an update is made of what there is.
    """
    weights = [w.astype('float64') for w in weights]
    m, v, total = [[np.zeros_like(w) for w in weights] for _ in range(3)]
    updates, first_step = 0, 0
    for step, (x, y) in enumerate(batches):
        total = [a + g for a, g in zip(total, linear_gradients(weights, x, y))]
        if (step + 1) % grad_accum_steps == 0 or step + 1 == end:
            rate = learning_rate * np.interp(first_step, *zip(*sorted(schedule.items())))
            updates += 1
            for i, w in enumerate(weights):
                gradient = total[i] / (step + 1 - first_step)
                m[i] = 0.9 * m[i] + 0.1 * gradient
                v[i] = 0.999 * v[i] + 0.001 * gradient ** 2
                step_size = m[i] / (1 - 0.9 ** updates) / (
                    np.sqrt(v[i] / (1 - 0.999 ** updates)) + epsilon)
                weights[i] = w - rate * (step_size + decay[i] * w)
            total, first_step = [np.zeros_like(w) for w in weights], step + 1
        yield list(weights)


@pytest.mark.parametrize('embedded', [False, True])
@pytest.mark.parametrize('grad_accum_steps', [1, 3])
@pytest.mark.parametrize('schedule', [
    {0: 1.0, 20: 0.0},  # falling
    {0: 0.0, 4: 1.0, 11: 0.1},  # warm-up, then falling to a rate that stays
    {3: 0.5, 5: 1.0},  # the first rate holds before its step
])
@pytest.mark.parametrize('end', [None, 14])
def test_adam_in_numpy(end, schedule, grad_accum_steps, embedded):
    random = np.random.RandomState(0)
    model = linear_model(embedded)
    weights = [random.normal(0, 1, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    batches = []
    for _ in range(14):  # with 3 to accumulate the last two wait for a third, unless it is the end
        x = np.eye(3)[random.randint(0, 3, 6)] if embedded else random.normal(0, 1, (6, 3))
        batches.append((x, random.normal(0, 1, (6, 2))))
    model.compile(loss='mse', optimizer=PromptAdam(
        0.02, weight_decay_rate=0.3, exclude_from_weight_decay=['Norm', 'bias'], epsilon=0.05,
        lr_schedule=schedule, grad_accum_steps=grad_accum_steps, num_train_steps=end))
    decay = [0.3, 0] if embedded else [0.3, 0, 0]
    expected = adam_in_numpy(weights, batches, 0.02, schedule, decay, grad_accum_steps, 0.05, end)
    for (x, y), values in zip(batches, expected):
        model.train_on_batch(x.argmax(1)[:, None] if embedded else x, y)
        for weight, value in zip(model.get_weights(), values):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ accumulation


def test_accumulated_batches_equal_a_whole_one(tmp_path):
    """A small prompt-tuned backbone, five updates; steps of the schedule count batches."""
    backbone = test_models.write_backbone(tmp_path, 'roberta')
    random = np.random.RandomState(0)
    token_ids, segment_ids = random.randint(1, 30, (8, 12)), random.randint(0, 2, (8, 12))
    token_ids[::2, 7:] = 0
    labels = np.array([[0], [1], [2], [0], [2], [1], [0], [1]])
    transformer = build_transformer_model(
        backbone.config_path, backbone.checkpoint_path, model=PtuningV2AddFNNPtuning,
        prompt_size=2, ffn_prompt_size=3, prompt_dropout=0, return_keras_model=False)
    transformer.freeze()
    test_models.set_random_prompts(transformer)
    model = test_models.with_head(transformer)
    start, results = model.get_weights(), []
    for k in (1, 2, 4):
        model.set_weights(start)
        # With a smaller epsilon Adam makes whole steps of gradients that are rounding errors.
        model.compile(loss='sparse_categorical_crossentropy', optimizer=PromptAdam(
            1e-2, weight_decay_rate=0.01, epsilon=1e-4, lr_schedule={0: 0.1, 2 * k: 1, 7 * k: 0},
            grad_accum_steps=k))
        for _ in range(5):
            for part in np.split(np.arange(8), k):
                before = K.batch_get_value(model.trainable_weights)
                model.train_on_batch([token_ids[part], segment_ids[part]], labels[part])
                after = K.batch_get_value(model.trainable_weights)
                changed = [not np.array_equal(b, a) for b, a in zip(before, after)]
                assert all(changed) if part[-1] == 7 else not any(changed)
        results.append(after)
    for whole, by_two, by_four in zip(*results):
        np.testing.assert_allclose(by_two, whole, rtol=0, atol=1e-6)
        np.testing.assert_allclose(by_four, whole, rtol=0, atol=1e-6)


# ------------------------------------------------------------------ saving


def test_config_round_trip():
    settings = dict(
        learning_rate=0.25, beta_1=0.8, beta_2=0.99, epsilon=1e-5, weight_decay_rate=0.02,
        exclude_from_weight_decay=['Norm', 'bias'], lr_schedule={0: 0.0, 10: 1.0, 100: 0.5},
        grad_accum_steps=3)
    config = json.loads(json.dumps(PromptAdam(**settings).get_config()))
    optimizer = PromptAdam.from_config(config)
    for name in settings:
        value = getattr(optimizer, name)
        assert (K.get_value(value) if name == 'learning_rate' else value) == settings[name]
    assert optimizer.get_config() == config
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is PromptAdam and again.get_config() == config


@pytest.mark.parametrize('grad_accum_steps', [1, 2])
def test_training_goes_on_after_saving(tmp_path, grad_accum_steps):
    random = np.random.RandomState(0)
    batches = [(random.normal(0, 1, (6, 3)), random.normal(0, 1, (6, 2))) for _ in range(7)]
    model = linear_model()
    model.compile(loss='mse', optimizer=PromptAdam(
        0.02, weight_decay_rate=0.3, lr_schedule={0: 1, 9: 0}, grad_accum_steps=grad_accum_steps))
    path = str(tmp_path / 'model.h5')
    for i, batch in enumerate(batches):
        if i == 3:
            model.save(path)
        model.train_on_batch(*batch)
    again = keras.models.load_model(path)
    for batch in batches[3:]:
        again.train_on_batch(*batch)
    for weight, expected in zip(again.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(weight, expected)
