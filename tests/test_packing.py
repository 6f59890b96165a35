"""The fast path against the plain one: the same numbers from true tokens alone."""
import argparse
import json
import os
import random

from fltuning import compat
import numpy as np
import pytest
import tensorflow as tf
from bert4keras.backend import K, gelu_erf
from bert4keras.snippets import truncate_sequences
from scipy.special import erf

from fltuning import attention, packing, steps
import small
import snippets
from afqmc import AFQMC
from cluener import CLUENER
from fltuning.initializers import set_seed
from fltuning.kernels import FastLayerNormalization, exact_gelu
from fltuning.packing import Packing, merge_heads, name_parts, query_pieces, split_heads, split_samples
from tools.random_backbone import write_random_backbone
from fltuning.task import Encoded
from fltuning.text import cut
from fltuning.tokenizer import FastTokenizer

CHARACTERS = '你我他她它们的是不了在人有这上大来和国地到以说时要就出会可也'


def write_backbone(folder, kind, dropout=0.0):
    return write_random_backbone(str(folder), CHARACTERS, kind, hidden_size=32, intermediate_size=64,
                                 stddev=0.1, hidden_dropout_prob=dropout,
                                 attention_probs_dropout_prob=dropout)


def build(task_class, paths, padded, sizes=(0, 8), prompt_dropout=0.0):
    K.clear_session()
    set_seed(3)
    tokenizer, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    task = task_class(tokenizer)
    settings = snippets.ModelSettings(prompt_size=sizes[0], ffn_prompt_size=sizes[1],
                                      prompt_dropout=prompt_dropout, padded=padded)
    return task, snippets.build_model(task, settings, paths, keep_tokens)[0]


def samples(task, count, seed=0):
    state = random.Random(seed)
    text = lambda: ''.join(state.choice(CHARACTERS) for _ in range(state.randint(1, 30)))  # noqa: E731
    if isinstance(task, CLUENER):
        texts = [text() for _ in range(count)]
        return [task.Text(i, t, {(state.choice(task.labels), 0, len(t) // 3)})
                for i, t in enumerate(texts)]
    return [task.Text(i, text(), text(), state.randint(0, 1)) for i in range(count)]


@pytest.mark.costly
@pytest.mark.parametrize('kind,sizes', [
    ('roberta', (0, 8)), ('roberta', (5, 0)), ('roberta', (0, 0)), ('roberta', (5, 8)),
    ('nezha', (5, 8)), ('roformer', (5, 8))])
def test_same_losses_and_predictions(kind, sizes, tmp_path, monkeypatch):
    """20 steps of training, dropout off, and what is then predicted."""
    paths = write_backbone(tmp_path, kind)
    results = []
    for padded in (True, False):
        task, model = build(AFQMC, paths, padded, sizes, 0.0)
        encoded = list(map(task.encode, samples(task, 60)))
        step = steps.train_function(model, task.head(), snippets.get_optimizer(1e-2, 0, 20))
        losses = [step(*task.collate(batch)) for _ in range(5) for batch in steps.batches(encoded, 15)]
        predict = steps.predict_function(model)
        probabilities = np.concatenate([predict(task.collate(batch)[0])
                                        for batch in steps.batches(encoded, 15)])
        results.append((losses, probabilities))
    np.testing.assert_allclose(results[1][0], results[0][0], atol=1e-4)
    assert np.ptp(results[0][0][::4]) > 1e-3  # one and the same batch: something was learned
    np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-4)


def test_same_for_heads_that_read_all(tmp_path):
    paths, results = write_backbone(tmp_path, 'roformer'), []
    for padded in (True, False):
        task, model = build(CLUENER, paths, padded, (3, 8), 0.0)
        encoded = list(map(task.encode, samples(task, 24)))
        step = steps.train_function(model, task.head(), snippets.get_optimizer(1e-2, 0, 20))
        losses = [step(*task.collate(batch)) for _ in range(5) for batch in steps.batches(encoded, 6)]
        outputs = steps.predict_function(model)(task.collate(encoded)[0])
        results.append((losses, outputs))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    np.testing.assert_array_equal(np.isinf(results[1][1]), np.isinf(results[0][1]))
    finite = np.isfinite(results[0][1])
    np.testing.assert_allclose(results[1][1][finite], results[0][1][finite], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['roberta', 'nezha', 'roformer'])
def test_same_for_long_sequences(kind, tmp_path, monkeypatch):
    """Lengths at which queries are cut into pieces, in fewer and in more samples than groups."""
    paths = write_random_backbone(
        str(tmp_path), CHARACTERS, kind, num_hidden_layers=3, hidden_size=64, num_attention_heads=1,
        intermediate_size=64, stddev=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    state, results = np.random.RandomState(0), []
    rows = [[state.randint(5, 30, length) for length in lengths]
            for lengths in ([380], [301, 12, 400], [5, 260, 363, 257, 256, 31])]
    for padded in (True, False):
        task, model = build(AFQMC, paths, padded, (3, 8), 0.0)
        step = steps.train_function(model, task.head(), snippets.get_optimizer(1e-2, 0, 20))
        batches = [task.collate([Encoded([row], i % 2) for i, row in enumerate(batch)])
                   for batch in rows]
        losses = [step(*batch) for _ in range(3) for batch in batches]
        predict = steps.predict_function(model)
        results.append((losses, np.concatenate([predict(inputs) for inputs, _ in batches])))
    assert abs(results[0][0][0] - results[0][0][-1]) > 1e-3
    for packed, plain in zip(results[1], results[0]):
        np.testing.assert_allclose(packed, plain, atol=1e-4)


def test_pieces_of_queries():
    """No product of a piece of queries with all keys takes more than 2**22 multiply-adds."""
    lengths = [1, 255, 256, 257, 362, 363, 512, 513, 1024, 2048]
    values = query_pieces(lengths, 64)
    values = values.numpy() if compat.TF2 else K.eval(values)
    assert values.tolist() == [1, 1, 1, 2, 2, 4, 4, 8, 16, 64]


def test_groups_of_like_length():
    """Each sample is in one group, and heads go to their groups and back unchanged."""
    lengths = [3, 9, 1, 5, 7, 2, 9, 4, 6]
    ids = np.array([[1] * n + [0] * (9 - n) for n in lengths], 'float32')
    heads, size = 2, 3
    x = np.random.RandomState(0).normal(size=(sum(lengths), heads * size)).astype('float32')
    places = name_parts(Packing(heads, size)(K.constant(ids)))
    split = split_heads(K.constant(x), places.groups, heads)
    merged = merge_heads([2 * part for part in split], places.groups, heads)
    sorted_ids = tf.concat([tf.pad(part, [[0, 0], [0, 9 - tf.shape(part)[1]]])
                            for part in split_samples(K.constant(ids), places)], 0)
    tensors = [merged, sorted_ids] + split + places.groups.masks
    values = [t.numpy() for t in tensors] if compat.TF2 else K.get_session().run(tensors)
    np.testing.assert_array_equal(values[0], 2 * x)
    assert (values[1] > 0).sum(1).tolist() == sorted(lengths, reverse=True)
    begins, i = np.cumsum([0] + lengths), 0
    order = sorted(range(9), key=lambda j: -lengths[j])
    grids, masks = np.array_split(np.array(values[2:], dtype=object), 2)
    for grid, mask in zip(grids, masks):
        assert mask.any(0).all()  # no longer than its longest
        for heads_of_sample, true in zip(grid, mask):
            j, n = order[i], true.sum()
            own = x[begins[j]:begins[j] + n].reshape(n, heads, size)
            assert n == lengths[j]
            np.testing.assert_array_equal(heads_of_sample[:, :n], own.transpose(1, 0, 2))
            i += 1
    assert i == 9


@pytest.mark.slow
def test_dropout_is_the_same_in_distribution(tmp_path):
    """The mean and the spread of a batch's loss over many draws."""
    paths, drawn = write_backbone(tmp_path, 'roberta', dropout=0.3), []
    for padded in (True, False):
        task, model = build(AFQMC, paths, padded, (4, 8), 0.3)
        batch = task.collate(list(map(task.encode, samples(task, 8))))
        step = steps.train_function(model, task.head(), snippets.get_optimizer(1e-12, 0, 10**6))
        drawn.append([step(*batch) for _ in range(400)])
    padded, packed = np.array(drawn)
    error = np.hypot(padded.std(), packed.std()) / np.sqrt(400)
    assert padded.std() > 1e-4
    assert abs(padded.mean() - packed.mean()) < 5 * error
    assert 0.8 < packed.std() / padded.std() < 1.25


def test_padding_costs_nothing_and_changes_nothing(tmp_path):
    """Rows of a batch do not see each other: a longer neighbour changes no prediction."""
    task, model = build(AFQMC, write_backbone(tmp_path, 'nezha'), False, (3, 8), 0.0)
    predict = steps.predict_function(model)
    encoded = list(map(task.encode, samples(task, 12)))
    together = predict(task.collate(encoded)[0])
    alone = np.concatenate([predict(task.collate([one])[0]) for one in encoded])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def evaluate(function, *values):
    """Arrays of what `function` makes of these arrays, and of the gradient of its weighted sum."""
    weights = np.random.RandomState(1).normal(size=values[0].shape).astype('float32')
    if compat.TF2:
        tensors = [tf.constant(value) for value in values]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = function(*tensors)
            total = tf.reduce_sum(y * weights)
        return y.numpy(), tape.gradient(total, tensors)[0].numpy(), weights
    tensors = [K.variable(value) for value in values]
    y = function(*tensors)
    gradient = K.gradients(K.sum(y * weights), tensors)[0]
    return K.eval(y), K.eval(gradient), weights


def test_gelu_against_closed_form():
    x = np.linspace(-6, 6, 200).reshape(10, 20).astype('float32')
    y, gradient, weights = evaluate(exact_gelu, x)
    cdf = 0.5 * (1 + erf(x.astype('float64') / np.sqrt(2)))
    np.testing.assert_allclose(y, x * cdf, atol=1e-6)
    pdf = np.exp(-x.astype('float64')**2 / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, weights * (cdf + x * pdf), atol=1e-5)
    np.testing.assert_allclose(y, evaluate(gelu_erf, x)[0], atol=1e-6)


def test_layer_norm_against_closed_form():
    x = np.random.RandomState(0).normal(3, 2, (5, 7, 16)).astype('float32')
    layer = FastLayerNormalization(epsilon=1e-12)
    y, gradient, weights = evaluate(layer, x)
    x = x.astype('float64')
    deviation = x.std(-1, keepdims=True)
    normal = (x - x.mean(-1, keepdims=True)) / deviation
    np.testing.assert_allclose(y, normal, atol=1e-5)
    expected = (weights - weights.mean(-1, keepdims=True)
                - normal * (weights * normal).mean(-1, keepdims=True)) / deviation
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def data_texts(root):
    """Every string in the JSON files of a folder."""
    texts = set()

    def walk(value):
        if isinstance(value, str):
            texts.add(value)
        elif isinstance(value, dict):
            for key, item in value.items():
                texts.add(key)
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith('.json'):
                with open(os.path.join(folder, name), encoding='utf-8') as reader:
                    content = reader.read()
                try:
                    walk(json.loads(content))
                except ValueError:
                    for line in content.split('\n'):
                        if line.strip():
                            walk(json.loads(line))
    return sorted(texts)


@pytest.mark.parametrize('every', [50, pytest.param(10 if small.DIVIDED else 1, marks=pytest.mark.slow)])
def test_token_ids_are_the_references(every, any_data, any_vocab):
    """Of CLUE's texts where they are, else of the sample's."""
    tokenizer = snippets.load_tokenizer(any_vocab)[0]
    texts = data_texts(any_data)[::every]
    assert len(texts) > 4000 / every
    for text in texts:
        assert tokenizer.ids(text) == tokenizer.reference_ids(text), text


def test_token_ids_of_odd_texts():
    letters = 'abcdefgσςa01①Ⅷé'
    tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + sorted(
        set(letters) | {'##' + c for c in letters} | set('一二。,'))
    tokenizer = FastTokenizer({token: i for i, token in enumerate(tokens)})
    state = random.Random(0)
    alphabet = letters + '一二。, \t\n\r\u3000\u00a0\u2028\x00\x0b\x1f\ufffd\u200b\ufeffΣÉÀǅİßé\u0301' \
        '\u0315\u302e\u302f\ue000😀𠀀豈'
    for _ in range(3000):
        text = ''.join(state.choice(alphabet) for _ in range(state.randint(0, 12)))
        assert tokenizer.ids(text) == tokenizer.reference_ids(text), ascii(text)
    long_word = 'a' * 201
    assert tokenizer.ids(long_word) == tokenizer.reference_ids(long_word)


def test_cut_is_truncate_sequences():
    state = random.Random(0)
    for _ in range(2000):
        parts = [[100 * i + j for j in range(state.randint(2, 12))]
                 for i in range(state.randint(1, 3))]
        maxlen = state.randint(2 * len(parts), 30)
        expected = [list(part) for part in parts]
        truncate_sequences(maxlen, -2, *expected)
        assert cut(maxlen, *parts) == expected


def test_every_sample_once_by_tokens():
    task = AFQMC(FastTokenizer({'[UNK]': 0, '[CLS]': 1, '[SEP]': 2}))
    encoded = list(map(task.encode, samples(task, 300)))
    lists = list(steps.token_batches(encoded, 400))
    assert sorted(i for places in lists for i in places) == list(range(300))
    widths = [max(steps.longest(encoded[i]) for i in places) for places in lists]
    assert widths == sorted(widths, reverse=True)
    assert all(width * len(places) <= 400 for width, places in zip(widths, lists))


def test_batches_by_tokens_count_the_rows_of_all_samples():
    """Four choices and then ten, as in c3's test1.1, stay below the limit together."""
    encoded = [Encoded([np.ones(10, 'int32')] * rows, 0) for rows in (4, 10, 4, 10, 4)]
    lists = list(steps.token_batches(encoded, 200))
    assert sorted(i for places in lists for i in places) == list(range(5))
    rows = [sum(len(encoded[i].rows) for i in places) for places in lists]
    assert all(10 * count <= 200 for count in rows) and len(lists) == 2


@pytest.mark.parametrize('saved_with, loaded_with', [(4, 1), (1, 4)])
def test_groups_are_a_models_own(saved_with, loaded_with, tmp_path, monkeypatch):
    """Built where one number is best, rebuilt from its configuration where another is."""
    paths = write_backbone(tmp_path, 'roberta')
    for module in (packing, attention):
        monkeypatch.setattr(module, 'default_groups', lambda: saved_with)
    task, model = build(AFQMC, paths, padded=False)
    config, values = model.get_config(), model.get_weights()
    inputs = task.collate(list(map(task.encode, samples(task, 9))))[0]
    expected = model.predict(inputs)
    K.clear_session()
    for module in (packing, attention):
        monkeypatch.setattr(module, 'default_groups', lambda: loaded_with)
    again = type(model).from_config(config)
    again.set_weights(values)
    np.testing.assert_array_equal(again.predict(inputs), expected)
    assert again.get_layer('Packing').groups == saved_with


def test_padded_prediction_takes_samples_as_they_stand():
    task = AFQMC(FastTokenizer({'[UNK]': 0, '[CLS]': 1, '[SEP]': 2}))
    encoded, rows = list(map(task.encode, samples(task, 40))), []

    def run(inputs):
        rows.append(inputs[0])
        return np.arange(40)[32 * (len(rows) - 1):][:len(inputs[0])]
    assert steps.predict(run, task, encoded, padded=True) == list(range(40))
    assert task.batch_size == 32 and [len(batch) for batch in rows] == [32, 8]
    for i, one in enumerate(encoded):
        row = rows[i // 32][i % 32]
        assert row[row > 0].tolist() == [token for token in one.rows[0] if token]


@pytest.mark.parametrize('bucket', [False, True])
def test_an_epoch_has_every_sample_once(bucket):
    task = AFQMC(FastTokenizer({'[UNK]': 0, '[CLS]': 1, '[SEP]': 2}))
    encoded = list(map(task.encode, samples(task, 1000)))
    settings = argparse.Namespace(seed=1, batch_size=4, bucket=bucket)
    orders = [list(steps.epoch_order(encoded, settings, epoch)) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(1000))
    padded = sum(4 * max(steps.longest(e) for e in batch) for batch in steps.batches(
        encoded, 4, orders[0]))
    true = sum(steps.longest(e) for e in encoded)
    assert (padded < 1.1 * true) == bucket
