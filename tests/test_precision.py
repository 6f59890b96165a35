"""Low precisions: what is held in which dtype, the same numbers up to their rounding, and runs that repeat."""
import collections
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import erf

import predict
import small
import snippets
import train
from afqmc import AFQMC
from fltuning import attention, blocks, compat, deltas, kernels, precision, steps, weights
from fltuning.compat import K
from fltuning.dropout import dropout, dropout_key
from fltuning.errors import NotFinite, UserError
from fltuning.initializers import set_seed
from fltuning.kernels import FastLayerNormalization, add_bias_gelu, exact_gelu, softmax
from fltuning.loss_scale import GROWTH_STEPS, INITIAL, LossScale
from fltuning.methods import BY_SIZES, METHODS
from fltuning.task import Encoded
from tools import benchmark, pretrain, pretraining

if not compat.TF2:  # which refuses them: test_other_precisions.py; and lacks what is used here
    pytest.skip('low precisions are for the stack tf2', allow_module_level=True)
pytestmark = pytest.mark.stack('tf2', 'low precisions are for it')

KINDS = ['roberta', 'nezha', 'roformer']
SIZES = {'fl': (0, 8), 'prefixes': (5, 0), 'both': (5, 8)}
NEZHA_AND_SLOW_ONES = ['nezha'] + [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != 'nezha']
ROUNDING = 2.0**-8  # of bfloat16: half a unit of the last place


@pytest.fixture(autouse=True)
def unsaid(monkeypatch):
    monkeypatch.setattr(precision, '_said', set())


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """The tiny backbones' feed-forward networks are computed as those of base size are."""
    monkeypatch.setattr(kernels, 'WIDE', 16)


@pytest.mark.parametrize('flags, said', [
    ({'avx2'}, ['no instructions for it', 'slow']), ({'avx2', 'amx_bf16'}, ['without oneDNN']),
    (None, ['without oneDNN'])])
def test_what_is_said_of_the_cpu(flags, said, monkeypatch, capsys):
    """TensorFlow was loaded before, and without oneDNN."""
    monkeypatch.setattr(precision, 'cpu_flags', lambda: flags)
    monkeypatch.setenv(precision.ONEDNN, '0')
    for _ in range(2):
        precision.use('bfloat16')
    line, = capsys.readouterr().err.splitlines()  # once
    assert all(part in line for part in said)


def test_onednn_is_for_low_precisions(root):
    """On where a low one comes first, which is said to who computes in float32 later."""
    code = ("import os; from fltuning import precision; precision.use('bfloat16'); "
            "from fltuning import compat; precision.use('float32'); print(os.environ[precision.ONEDNN])")
    environ = {key: value for key, value in os.environ.items() if key != precision.ONEDNN}
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env=environ, capture_output=True, text=True)
    assert done.stdout.split() == ['1'], done.stderr
    assert 'float32: TensorFlow was loaded with oneDNN' in done.stderr
    assert os.environ[precision.ONEDNN] == '0'  # here, where none was asked for first


# ------------------------------------------------------------------ the kernels against closed forms


def value_and_gradient(function, x, dtype):
    """float64 arrays of a function at x, as `dtype` has it, and of the gradient of its weighted sum; both of
    these arguments in float64."""
    weights = np.random.RandomState(1).normal(size=x.shape)
    x, weights = tf.cast(x, dtype), tf.cast(weights, dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        assert y.dtype == dtype
        total = tf.reduce_sum(tf.cast(y, 'float64') * tf.cast(weights, 'float64'))
    return [tf.cast(t, 'float64').numpy() for t in (y, tape.gradient(total, x), x, weights)]


def test_gelu():
    y, gradient, x, weights = value_and_gradient(exact_gelu, np.linspace(-6, 6, 500), 'bfloat16')
    cdf = 0.5 * (1 + erf(x / np.sqrt(2)))
    np.testing.assert_allclose(y, x * cdf, atol=4 * ROUNDING, rtol=2 * ROUNDING)
    slope = cdf + x * np.exp(-x**2 / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, weights * slope, atol=8 * ROUNDING, rtol=2 * ROUNDING)


@pytest.mark.parametrize('rows', [1, 7, 8, 9, 24, 30, 72, 75])
def test_passes_in_blocks(rows, monkeypatch):
    """Of 24 rows and then of 8; what fills the last one up matters nowhere. Values: float64, rounded once."""
    assert blocks.use_blocks('bfloat16') or tf.config.list_physical_devices('GPU')
    assert not blocks.use_blocks('float32')
    monkeypatch.setattr(blocks, 'SIZES', [24 * 20, 8 * 20])
    bias = tf.cast(np.random.RandomState(2).normal(size=20), 'bfloat16')
    numbers = np.random.RandomState(3).normal(0, 2, (rows, 20))
    y, gradient, x, weights = value_and_gradient(tf.function(lambda x: add_bias_gelu(x, bias)), numbers, 'bfloat16')
    x += tf.cast(bias, 'float64').numpy()
    cdf = 0.5 * (1 + erf(x / np.sqrt(2)))
    np.testing.assert_allclose(y, x * cdf, rtol=1.01 * ROUNDING, atol=1e-6)
    slope = cdf + x * np.exp(-x**2 / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, weights * slope, rtol=1.01 * ROUNDING, atol=1e-6)
    with tf.GradientTape() as tape:
        tape.watch(bias)
        total = tf.reduce_sum(add_bias_gelu(tf.cast(numbers, 'bfloat16'), bias) * tf.cast(weights, 'bfloat16'))
    np.testing.assert_allclose(tf.cast(tape.gradient(total, bias), 'float64').numpy(), (weights * slope).sum(0),
                               rtol=2 * ROUNDING, atol=rows * 8 * ROUNDING)


def test_layers_share_what_goes_through_blocks():
    """A graph has one copy of it, however many layers there are."""
    def functions(layers):
        def stack(x):
            for _ in range(layers):
                x = add_bias_gelu(x, tf.ones([2048], 'bfloat16'))
            return x
        graph = tf.function(stack).get_concrete_function(tf.TensorSpec([None, 2048], 'bfloat16')).graph
        return len(graph.as_graph_def().library.function)
    assert 0 < functions(1) == functions(3)


def test_trained_norms_in_blocks(monkeypatch):
    """Gradients of gamma and beta, which fine-tuning trains."""
    monkeypatch.setattr(blocks, 'SIZES', [24 * 20, 8 * 20])
    layer, random_state = FastLayerNormalization(epsilon=1e-12), np.random.RandomState(0)
    x, weights = [tf.cast(random_state.normal(1, 2, (3, 7, 20)), 'bfloat16') for _ in range(2)]
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.cast(layer(x) * weights, 'float32'))
    beta, gamma = [gradient.numpy() for gradient in tape.gradient(total, [layer.beta, layer.gamma])]
    x, weights = [tf.cast(value, 'float64').numpy().reshape(21, 20) for value in (x, weights)]
    normal = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(beta, weights.sum(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(gamma, (weights * normal).sum(0), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize('dtype, tolerance', [('bfloat16', ROUNDING), ('float16', 2.0**-11)])
def test_softmax_and_layer_norm_round_once(dtype, tolerance):
    """Their values are those of float64, rounded once; the gradients are of rounded values."""
    x = np.random.RandomState(0).normal(0, 3, (6, 400))
    y, gradient, x, weights = value_and_gradient(softmax, x, dtype)
    expected = np.exp(x - x.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    seen = expected > 1e-3  # where float16 is not too coarse for small numbers
    np.testing.assert_allclose(y[seen], expected[seen], rtol=1.01 * tolerance)
    expected *= weights - (weights * expected).sum(-1, keepdims=True)
    assert np.median(abs(gradient - expected)[seen] / abs(expected[seen])) < tolerance

    layer = FastLayerNormalization(epsilon=1e-12)
    y, gradient, x, weights = value_and_gradient(layer, np.random.RandomState(0).normal(3, 2, (6, 400)), dtype)
    assert {weight.dtype for weight in layer.weights} == {tf.float32}
    normal = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(y, normal, rtol=1.01 * tolerance, atol=1e-6)
    expected = (weights - weights.mean(-1, keepdims=True)
                - normal * (weights * normal).mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    np.testing.assert_allclose(gradient, expected, atol=4 * tolerance)


def test_dropout_keeps_what_is_expected():
    """1 / (1 - 0.1) is no bfloat16: the rate is the nearest whose factor is one."""
    K.set_value(dropout_key(), [7, 1])
    values, factor = dropout(tf.ones([2000, 1000], 'bfloat16'), 0.1, 'here', True)
    values, factor = [tf.cast(x, 'float64').numpy() for x in (values, factor)]
    assert set(np.unique(values)) == {0, 1} and factor == 1.109375
    deviation = math.sqrt(0.1 * 0.9 / values.size) * factor
    assert abs(values.mean() * factor - 1) < 4 * deviation < 1 - 0.9 * factor


# ------------------------------------------------------------------ models


def build(paths, sizes, name, padded=False, **method):
    """(task, model, transformer) without dropout."""
    K.clear_session()
    set_seed(3)
    tokenizer, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    task = AFQMC(tokenizer)
    settings = snippets.ModelSettings(prompt_size=sizes[0], ffn_prompt_size=sizes[1], prompt_dropout=0.0,
                                      padded=padded, precision=name, **method)
    return (task,) + snippets.build_model(task, settings, paths, keep_tokens)


def backbone(folder, kind, attention_dropout=0.0):
    """Of two layers, without dropout but of attention, its weights larger than those of a trained one."""
    return small.write_backbone(folder, kind, hidden_size=32, intermediate_size=64, num_hidden_layers=2, stddev=0.1,
                                hidden_dropout_prob=0.0, attention_probs_dropout_prob=attention_dropout)


def batches(task, count, size=15):
    random = np.random.RandomState(0)
    encoded = [Encoded([random.randint(5, 150, random.randint(5, 60)).astype('int32')], i % 2)
               for i in range(count * size)]
    return [task.collate(batch) for batch in steps.batches(encoded, size)]


def trained_gradients(model, task, batch, training=False):
    """{name: array} of the trained weights' gradients, with weights that are no longer the initial ones."""
    random = np.random.RandomState(5)
    pairs = weights.named_weights(model)
    weights.set_values(pairs, {name: random.normal(0, 0.1, weight.shape).astype('float32')
                               for name, weight in pairs})
    (inputs, labels), variables = batch, [weight for _, weight in pairs]
    with tf.GradientTape() as tape:
        loss = task.head().loss(labels, model([tf.constant(x, 'float32') for x in inputs], training=training))
    gradients = tape.gradient(loss, variables)
    return {name: tf.convert_to_tensor(gradient).numpy() for (name, _), gradient in zip(pairs, gradients)}


@pytest.mark.parametrize('kind, prompts', [
    pytest.param(kind, prompts, marks=[] if (kind == 'roberta') == (prompts != 'both') else pytest.mark.slow)
    for kind in KINDS for prompts in sorted(SIZES)])
def test_gradients_are_those_of_float32(kind, prompts, tmp_path):
    """Within 2 %, the median over all numbers that are trained."""
    paths, found = backbone(tmp_path, kind), {}
    for name in ('float32', 'bfloat16'):
        task, model, _ = build(paths, SIZES[prompts], name)
        found[name] = trained_gradients(model, task, batches(task, 1)[0])
    errors = []
    for name, expected in found['float32'].items():
        ours = found['bfloat16'][name]
        assert ours.dtype == np.float32 and np.abs(expected).max() > 0
        errors.append((np.abs(ours - expected) / (np.abs(expected) + 1e-12)).ravel())
    assert 1e-5 < np.median(np.concatenate(errors)) < 0.02


def keeping(function):
    """As `blocks.recomputed`, with the gradient from what the forward pass has kept."""
    @tf.custom_gradient
    def compute(*xs):
        with tf.GradientTape() as tape:
            tape.watch([x for x in xs if x.dtype.is_floating])
            y = function(*xs)
        return y, lambda dy: tape.gradient(y, xs, dy)
    return compute


@pytest.mark.parametrize('kind', NEZHA_AND_SLOW_ONES)
def test_what_is_made_again_for_the_gradient(kind, tmp_path, monkeypatch):
    """Attention, from queries, keys, values and what dropout keeps: the same bits as if all had been kept."""
    paths, found = backbone(tmp_path, kind, attention_dropout=0.3), {}
    for name, training in [('again', True), ('kept', True), ('not dropped', False)]:
        if name == 'kept':
            monkeypatch.setattr(attention, 'recomputed', keeping)
            monkeypatch.setattr(attention, 'core_recomputed', attention.core_recomputed.__wrapped__)
        task, model, _ = build(paths, SIZES['both'], 'bfloat16')
        K.set_value(dropout_key(), [7, 1])
        found[name] = trained_gradients(model, task, batches(task, 1)[0], training)
    for name, numbers in found['again'].items():
        np.testing.assert_array_equal(numbers, found['kept'][name])
        assert (numbers != found['not dropped'][name]).any()


def test_a_step_holds_no_scores(tmp_path):
    """They live and end inside functions that its graph calls, the same for all layers and groups of samples."""
    paths, scores, called = backbone(tmp_path, 'roberta', attention_dropout=0.3), {}, {}
    for name in ('float32', 'bfloat16'):
        task, model, _ = build(paths, SIZES['both'], name)

        @tf.function
        def gradients(inputs, labels, model=model, task=task):
            with tf.GradientTape() as tape:
                loss = task.head().loss(labels, model(inputs, training=True))
            return tape.gradient(loss, model.trainable_weights)
        inputs, labels = batches(task, 1)[0]
        graph = gradients.get_concrete_function([tf.TensorSpec(x.shape, x.dtype) for x in model.inputs],
                                                tf.constant(labels)).graph
        operations = graph.get_operations()
        scores[name] = sum(op.type == 'Softmax' and op.outputs[0].shape.rank == 4 for op in operations)
        called[name] = collections.Counter(
            op.get_attr('f').name for op in operations if op.type.endswith('PartitionedCall'))
    assert scores['float32'] > 4 and scores['bfloat16'] == 0
    # Four groups of a layer and the last one's first token, forward and backward, at most two kinds of shapes each.
    attention_calls = {name: count for name, count in called['bfloat16'].items() if 'attend' in name or 'grad' in name}
    assert sum(attention_calls.values()) == 10 and len(attention_calls) <= 4


@pytest.mark.slow
@pytest.mark.parametrize('method', [name for name in METHODS if name not in BY_SIZES])
def test_other_ways_of_tuning(method, tmp_path):
    """A loss near that of float32, and trained weights in float32 that all have a gradient."""
    paths, losses = backbone(tmp_path, 'roformer'), {}
    for name in ('float32', 'bfloat16'):
        task, model, _ = build(paths, (0, 0), name, method=method, size=2)
        (inputs, labels), = batches(task, 1)
        with tf.GradientTape() as tape:
            loss = task.head().loss(labels, model([tf.constant(x, 'float32') for x in inputs], training=False))
        gradients = tape.gradient(loss, model.trainable_weights)
        assert None not in gradients and {weight.dtype for weight in model.trainable_weights} == {tf.float32}
        losses[name] = loss.numpy()
    np.testing.assert_allclose(losses['bfloat16'], losses['float32'], rtol=ROUNDING)
    assert losses['bfloat16'] != losses['float32']


@pytest.mark.parametrize('kind', NEZHA_AND_SLOW_ONES)
def test_padded_and_packed_differ_by_rounding(kind, tmp_path):
    """Losses over 20 steps, and what is then predicted."""
    paths, results = backbone(tmp_path, kind), {}
    for padded in (True, False):
        task, model, _ = build(paths, (5, 8), 'bfloat16', padded)
        step = steps.train_function(model, task.head(), snippets.get_optimizer(3e-3, 0, 20))
        given = batches(task, 4)
        losses = [step(*batch) for _ in range(5) for batch in given]
        results[padded] = losses, steps.predict_function(model)(given[0][0])
    np.testing.assert_allclose(results[False][0], results[True][0], rtol=ROUNDING)
    np.testing.assert_allclose(results[False][1], results[True][1], atol=2 * ROUNDING)
    losses = results[False][0]
    assert np.ptp(losses[::4]) > 1e-3  # one and the same batch: something was learned


@pytest.mark.parametrize('kind', NEZHA_AND_SLOW_ONES)
def test_frozen_weights_are_held_once(kind, tmp_path):
    paths = backbone(tmp_path, kind)
    _, model, transformer = build(paths, (5, 8), 'bfloat16')
    for name, weight in weights.named_weights(model, trainable=False):
        small_ones = 'Norm' in name or 'Relative' in name
        assert weight.dtype == ('float32' if small_ones else 'bfloat16'), name
    assert {weight.dtype for _, weight in weights.named_weights(model)} == {tf.float32}
    # No step casts what is frozen: of what is read of variables, casts see trained ones alone.
    outputs = tf.function(lambda ids: model([ids, ids * 0])).get_concrete_function(
        tf.TensorSpec([None, None], 'float32'))
    trained = {id(weight.handle) for weight in model.trainable_weights}
    handles = {id(inner): outer for outer, inner in outputs.graph.captures}
    read = []
    for op in outputs.graph.get_operations():
        if op.type == 'Cast':
            source = op.inputs[0].op
            while source.type in ('Identity', 'Transpose', 'Reshape', 'StridedSlice'):
                source = source.inputs[0].op
            if source.type == 'ReadVariableOp':
                read.append(id(handles[id(source.inputs[0])]))
    assert len(read) >= 12 and set(read) <= trained  # two layers: four of the hidden units, two prefixes


def test_the_fingerprint_is_that_of_float32_weights(tmp_path):
    paths = backbone(tmp_path, 'nezha')
    found = {}
    for name in precision.NAMES:
        task, _, transformer = build(paths, (0, 8), name)
        found[name] = weights.fingerprint(transformer, task.tokenizer._token_dict)
    assert len(set(found.values())) == 1
    checkpoint = dict(transformer.checkpoint_values(['bert/encoder/layer_0/output/dense/kernel']))
    held = transformer.layers['Transformer-0-FeedForward'].weights[2].numpy()
    value, = checkpoint.values()
    assert held.dtype == np.float16 and (held == value.astype('float16')).all() and (held != value).any()


# ------------------------------------------------------------------ runs


@pytest.fixture(scope='module')
def flags(tmp_path_factory):
    """Of a run with dropout everywhere."""
    folder = tmp_path_factory.mktemp('precision')
    small.write_task(folder, 'afqmc', train=14)
    return dict(small.write_backbone(folder / 'backbone'), data_path=folder, epochs=2, batch_size=4,
                grad_accum_steps=2, prompt_size=2, ffn_prompt_size=3, learning_rate=0.01)


def start(flags, out, *more, **changes):
    return train.run(AFQMC, small.flags(dict(flags, output_dir=out, **changes)) + list(more))


def state(out):
    return deltas.read_delta(os.path.join(str(out), 'weights', 'afqmc.state'), deltas.STATE)


def assert_same(out, expected):
    (ours, _), (theirs, _) = state(out), state(expected)
    assert {name: value.tobytes() for name, value in ours.items()} == {
        name: value.tobytes() for name, value in theirs.items()}


@pytest.mark.parametrize('name', ['bfloat16', pytest.param('float16', marks=pytest.mark.slow)])
def test_a_seed_gives_the_same_bits_also_when_stopped(name, flags, tmp_path, monkeypatch):
    monkeypatch.setattr('fltuning.loss_scale.GROWTH_STEPS', 3)  # so that the scale changes on the way
    start(flags, tmp_path / 'one', precision=name)
    original = steps.train_epoch

    def train_epoch(step, task, encoded, settings, epoch):
        if epoch == 1:
            step(*task.collate(encoded[:4]))  # which counts for nothing
            raise KeyboardInterrupt
        return original(step, task, encoded, settings, epoch)
    monkeypatch.setattr(steps, 'train_epoch', train_epoch)
    with pytest.raises(KeyboardInterrupt):
        start(flags, tmp_path / 'stopped', precision=name)
    monkeypatch.setattr(steps, 'train_epoch', original)
    start(flags, tmp_path / 'stopped', '--resume', precision=name)
    assert_same(tmp_path / 'stopped', tmp_path / 'one')
    values, belongs_to = state(tmp_path / 'one')
    assert belongs_to['precision'] == name and ('loss_scale/scale' in values) == (name == 'float16')
    if name == 'float16':
        assert values['loss_scale/scale'] > INITIAL
    with pytest.raises(UserError, match='precision is "%s", here it is "float32"' % name):
        start(flags, tmp_path / 'one', '--resume')


def test_a_delta_is_for_either_precision(flags, tmp_path, clear_session):
    records = small.read_lines(os.path.join(str(flags['data_path']), 'afqmc', 'test.json'))
    paths = {name: flags[name] for name in ('config_path', 'checkpoint_path', 'dict_path')}
    predictors = {name: predict.Predictor(precision=name, **paths) for name in ('float32', 'bfloat16')}
    start(flags, tmp_path, precision='bfloat16')
    path = str(tmp_path / 'weights' / 'afqmc.weights')
    values, belongs_to = deltas.read_delta(path)
    assert {str(value.dtype) for value in values.values()} == {'float32'} and 'precision' not in belongs_to
    found = {name: [line['probabilities']['1'] for line in predictor.load(path).predict(records)]
             for name, predictor in predictors.items()}
    np.testing.assert_allclose(found['bfloat16'], found['float32'], rtol=4 * ROUNDING)
    assert found['bfloat16'] != found['float32']


def test_a_loss_that_is_no_number_ends_bfloat16(flags, tmp_path, monkeypatch):
    original = steps.train_function

    def train_function(*args):
        step, losses = original(*args), iter([None] * 5 + [math.nan] * 99)
        return lambda *batch: next(losses) or step(*batch)
    monkeypatch.setattr(steps, 'train_function', train_function)
    with pytest.raises(UserError, match='epoch 2, step 2 of 4: the loss is nan; try a lower'):
        start(flags, tmp_path, precision='bfloat16')


def test_nothing_is_scored_before_a_step_counts(flags, tmp_path, monkeypatch):
    """Steps that are left out give no loss, of which an evaluation within the epoch would need the mean."""
    original = steps.train_function

    def train_function(*args):
        step, left_out = original(*args), iter([True, True])
        return lambda *batch: None if next(left_out, False) else step(*batch)
    monkeypatch.setattr(steps, 'train_function', train_function)
    start(flags, tmp_path, precision='float16', eval_every=1, epochs=1)
    entries = small.read_lines(tmp_path / 'results' / 'afqmc_history.jsonl')
    assert [entry['step'] for entry in entries] == [3, 4]


@pytest.mark.parametrize('accumulated, said', [
    (1, '4 of 4 batches were left out, since their gradients overflow float16; bfloat16'), (4, '4 of 4 batches')])
def test_a_run_of_steps_that_overflow_says_so(accumulated, said, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('fltuning.loss_scale.INITIAL', 2.0**100)
    start(flags, tmp_path, precision='float16', epochs=1, grad_accum_steps=accumulated)
    assert said in capsys.readouterr().out
    monkeypatch.setattr('fltuning.loss_scale.INITIAL', 1.0)
    start(flags, tmp_path, precision='float16', epochs=1, grad_accum_steps=accumulated)
    assert 'left out' not in capsys.readouterr().out


def test_steps_that_overflow_are_left_out(tmp_path):
    """With a scale that no gradient survives, until it is halved often enough."""
    task, model, _ = build(backbone(tmp_path, 'roberta'), (5, 8), 'float16')
    scale, optimizer = LossScale(), snippets.get_optimizer(1e-3, 0, 100)
    step = steps.train_function(model, task.head(), optimizer, loss_scale=scale)
    pairs, (batch,) = weights.named_weights(model), batches(task, 1)
    K.set_value(scale.scale, 2.0**50)
    before, tried = weights.get_values(pairs), 0
    while not K.get_value(optimizer.iterations):
        now = K.get_value(scale.scale)
        assert math.isfinite(step(*batch))  # of the weights before the step
        tried += 1
        if not K.get_value(optimizer.iterations):
            assert K.get_value(scale.scale) == now / 2 and K.get_value(scale.good_steps) == 0
            after = weights.get_values(pairs)
            assert all((before[name] == after[name]).all() for name in before)
    assert 10 < tried < 50 and K.get_value(scale.good_steps) == 1
    assert any((before[name] != value).any() for name, value in weights.get_values(pairs).items())
    # Where the weights themselves are too large, no scale helps: the loss counts for nothing, then the end.
    weights.set_values(pairs, {name: value * np.float32(1e6) for name, value in before.items()})
    K.set_value(scale.scale, 2.0)
    values = weights.get_values(pairs)
    assert step(*batch) is None
    assert all((values[name] == value).all() for name, value in weights.get_values(pairs).items())
    with pytest.raises(NotFinite, match='overflow float16 at every loss scale'):
        step(*batch)


def test_the_scale_doubles_after_good_steps():
    scale = LossScale()
    K.set_value(scale.good_steps, GROWTH_STEPS - 2)
    for finite, expected, good in [(True, 1, GROWTH_STEPS - 1), (True, 2, 0), (True, 2, 1), (False, 1, 0)]:
        scale.update(tf.constant(finite))
        assert (scale.scale.numpy(), scale.good_steps.numpy()) == (expected * INITIAL, good)
    gradients, finite = scale.unscaled([tf.constant([INITIAL, -2 * INITIAL]), tf.IndexedSlices(
        tf.constant([[INITIAL]]), tf.constant([1]), tf.constant([2, 1]))])
    assert finite and [gradient.numpy().tolist() for gradient in gradients] == [[1, -2], [[0], [1]]]
    assert not scale.unscaled([tf.constant([1, np.inf])])[1]


# ------------------------------------------------------------------ pretraining and the benchmark


def test_pretraining(tmp_path, monkeypatch, clear_session):
    """Losses near those of float32, weights in float32, and a state that goes on."""
    monkeypatch.setattr(pretraining, 'draw', lambda *args: None)
    small.write_text(tmp_path / 'texts.txt', ''.join(small.sentence(i % 20, 30) + '\n\n' for i in range(60)))
    found = {}
    for name in ('float32', 'bfloat16'):
        settings = pretrain.parse_flags(
            ['--texts', str(tmp_path / 'texts.txt'), '--no_whole_words'] + small.flags(dict(
                precision=name, output_dir=tmp_path / name, layers=1, hidden_size=16, heads=2,
                intermediate_size=32, max_position=40, vocab_size=300, maxlen=16, batch_size=4, steps=8,
                eval_every=4, save_every=4, held_out=5, learning_rate=0.01)))
        os.makedirs(settings.output_dir)
        run = pretraining.Pretraining(settings)
        run.run()
        found[name] = [row['loss'] for row in run.history]
        assert {weight.dtype for weight in run.model.trainable_weights} == {tf.float32}
    assert found['float32'][1] < found['float32'][0]
    np.testing.assert_allclose(found['bfloat16'], found['float32'], rtol=4 * ROUNDING)
    assert found['bfloat16'] != found['float32']
    again = pretrain.parse_flags(['--texts', str(tmp_path / 'texts.txt'), '--output_dir',
                                  str(tmp_path / 'float32'), '--precision', 'bfloat16', '--resume',
                                  '--no_whole_words'] + small.flags(dict(
                                      layers=1, hidden_size=16, heads=2, intermediate_size=32,
                                      max_position=40, vocab_size=300, maxlen=16, batch_size=4, steps=8,
                                      eval_every=4, save_every=4, held_out=5, learning_rate=0.01)))
    with pytest.raises(UserError, match='precision is "float32", here it is "bfloat16"'):
        pretraining.Pretraining(again).run()


@pytest.mark.slow
def test_the_benchmark_compares_with_float32(tmp_path, capsys):
    small.write_task(tmp_path / 'data', 'afqmc', train=40)
    paths = small.write_backbone(tmp_path / 'backbone')
    benchmark.run(small.flags(dict(
        data_path=tmp_path / 'data', dict_path=paths['dict_path'], layers=1, hidden_size=16, ffn_prompt_size=3,
        repeats=2, output_dir=tmp_path / 'out', precision='bfloat16', tasks='afqmc')) + [
            '--parts', 'tasks', 'memory', 'profile'])
    report = small.read_json(tmp_path / 'out' / 'results' / 'benchmark.json')
    result, = report['tasks']
    for part in ('train', 'predict'):
        times = {name: np.median(result[part]['seconds'][name]) for name in ('float32', 'bfloat16')}
        assert result[part]['ratio'] == pytest.approx(times['float32'] / times['bfloat16'])
    assert set(report['memory'][0]['peak_memory_mb']) == {'float32', 'bfloat16'}
    assert all(seconds['matrix products'] > 0 for seconds in report['profile'].values())
    assert '| erf and exp of GELU |' in capsys.readouterr().out
