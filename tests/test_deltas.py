"""The file of trained weights: what it holds, whose it is, and that it is whole or not there."""
import errno
import json
import os
import re
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fltuning import deltas, weights
import small
import snippets
import train
from afqmc import AFQMC
from fltuning.compat import K, keras
from fltuning.errors import UserError
from fltuning.files import write_tensors

BELONGS_TO = {'task': 'afqmc', 'labels': ['0', '1'], 'prompt_size': 0, 'ffn_prompt_size': 3,
              'backbone_sha256': 'abc'}


@pytest.fixture
def model(clear_session):
    """A frozen layer and two trained ones."""
    inputs = keras.layers.Input((4,))
    frozen = keras.layers.Dense(5, name='frozen', trainable=False)(inputs)
    hidden = keras.layers.Dense(3, name='Transformer-0-AddFFN')(frozen)
    return keras.models.Model(inputs, keras.layers.Dense(2, name='head')(hidden))


def values_of(model):
    return weights.get_values(weights.named_weights(model))


@pytest.fixture
def path(model, tmp_path):
    path = str(tmp_path / 'weights' / 'afqmc.weights')
    deltas.save_delta(path, values_of(model), BELONGS_TO)
    return path


def shift(model):
    """Other values than before."""
    K.batch_set_value([(w, K.get_value(w) + 1) for w in model.weights])


def assert_equal_values(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert value.dtype == found[name].dtype
        np.testing.assert_array_equal(found[name], value)


def test_round_trip(model, path):
    before = values_of(model)
    assert {name: value.shape for name, value in before.items()} == {
        'Transformer-0-AddFFN/0/kernel': (5, 3), 'Transformer-0-AddFFN/1/bias': (3,),
        'head/0/kernel': (3, 2), 'head/1/bias': (2,)}
    shift(model)
    frozen = weights.get_values(weights.named_weights(model, trainable=False))
    weights.load_delta(path, model, BELONGS_TO)
    assert_equal_values(values_of(model), before)
    assert_equal_values(weights.get_values(weights.named_weights(model, trainable=False)), frozen)


def test_file_is_plain_safetensors(model, path):
    """Any tool for safetensors reads it."""
    assert_equal_values(load_file(path), values_of(model))
    values, belongs_to = deltas.read_delta(path)
    assert_equal_values(values, values_of(model))
    assert belongs_to == BELONGS_TO


def test_the_same_weights_are_the_same_bytes(model, path, tmp_path):
    with open(path, 'rb') as reader:
        expected = reader.read()
    for _i in range(20):
        other = str(tmp_path / 'other')
        deltas.save_delta(other, values_of(model), dict(reversed(list(BELONGS_TO.items()))))
        with open(other, 'rb') as reader:
            assert reader.read() == expected


@pytest.mark.parametrize('key, theirs, ours', [
    ('task', 'afqmc', 'csl'), ('ffn_prompt_size', 3, 160), ('prompt_size', 0, 8),
    ('backbone_sha256', 'abc', 'def'), ('labels', ['0', '1'], ['1', '0'])])
def test_what_belongs_elsewhere_is_refused(model, path, key, theirs, ours):
    """The error names the file and both values; the model keeps its weights."""
    shift(model)
    before = values_of(model)
    with pytest.raises(UserError) as refused:
        weights.load_delta(path, model, dict(BELONGS_TO, **{key: ours}))
    for text in (path, key, str(theirs).replace("'", '"'), str(ours).replace("'", '"')):
        assert text in str(refused.value)
    assert_equal_values(values_of(model), before)


def drop(values):
    del values['head/0/kernel']


def add(values):
    values['head/2/scale'] = np.zeros((7,), 'float32')


def reshape(values):
    values['head/0/kernel'] = np.zeros((2, 3), 'float32')


@pytest.mark.parametrize('change, name, shapes', [
    (drop, 'head/0/kernel', ['None', '(3, 2)']), (add, 'head/2/scale', ['(7,)', 'None']),
    (reshape, 'head/0/kernel', ['(2, 3)', '(3, 2)'])])
def test_other_tensors_are_refused(model, path, change, name, shapes):
    values = values_of(model)
    change(values)
    deltas.save_delta(path, values, BELONGS_TO)
    shift(model)
    before = values_of(model)
    with pytest.raises(UserError) as refused:
        weights.load_delta(path, model, BELONGS_TO)
    for text in [path, name] + shapes:
        assert text in str(refused.value)
    assert_equal_values(values_of(model), before)


def truncated(path):
    os.truncate(path, os.path.getsize(path) - 5)


def truncated_in_the_header(path):
    os.truncate(path, 40)


def empty(path):
    os.truncate(path, 0)


def text(path):
    small.write_text(path, '{"epochs": 1}\n' * 100)


def enormous_header(path):
    with open(path, 'r+b') as writer:
        writer.write(struct.pack('<Q', 1 << 60))


def another_safetensors_file(path):
    save_file({'a': np.zeros(3, 'float32')}, path, {'format': 'pt'})


def no_metadata(path):
    save_file({'a': np.zeros(3, 'float32')}, path)


def missing(path):
    os.remove(path)


def directory(path):
    os.remove(path)
    os.mkdir(path)


@pytest.mark.parametrize('damage', [truncated, truncated_in_the_header, empty, text,
                                    enormous_header, another_safetensors_file, no_metadata,
                                    missing, directory])
def test_what_is_no_delta_is_refused(model, path, damage):
    damage(path)
    with pytest.raises(UserError) as refused:
        weights.load_delta(path, model, BELONGS_TO)
    message = str(refused.value)
    assert message.startswith(path + ': ') and len(message.splitlines()) == 1
    expected = {'missing': 'no such file', 'another_safetensors_file': 'of this project',
                'no_metadata': 'of this project'}
    assert expected.get(damage.__name__, 'not a whole delta') in message


@pytest.mark.parametrize('interrupted', [False, True])
def test_writing_is_all_or_nothing(model, path, monkeypatch, interrupted):
    """A write that ends in its middle leaves the old file, and no other."""
    with open(path, 'rb') as reader:
        before = reader.read()

    def interrupt(_):
        raise KeyboardInterrupt

    shift(model)
    if interrupted:
        monkeypatch.setattr(os, 'fsync', interrupt)
        with pytest.raises(KeyboardInterrupt):
            deltas.save_delta(path, values_of(model), BELONGS_TO)
    else:
        with small.room_for(len(before) // 2), pytest.raises(UserError) as refused:
            deltas.save_delta(path, values_of(model), BELONGS_TO)
        assert str(refused.value) == '%s: %s' % (path, os.strerror(errno.EFBIG))
    assert os.listdir(os.path.dirname(path)) == ['afqmc.weights']
    with open(path, 'rb') as reader:
        assert reader.read() == before


# ------------------------------------------------------------------ of real models


def build(tmp_path, name, ffn_prompt_size=2, prompt_size=0, **sizes):
    paths = small.write_backbone(tmp_path / name, **sizes)
    settings = train.parse_flags(AFQMC, small.flags(dict(
        paths, ffn_prompt_size=ffn_prompt_size, prompt_size=prompt_size)))
    tokenizer, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    model, _ = snippets.build_model(AFQMC(tokenizer), settings, paths, keep_tokens)
    return model, weights.frozen_sha256(model, tokenizer._token_dict)


def test_names_do_not_depend_on_what_was_built_before(tmp_path, clear_session):
    models = [build(tmp_path, 'a', prompt_size=1)[0] for _ in range(2)]
    names = [[name for name, _ in weights.named_weights(model)] for model in models]
    assert names[0] == names[1] == [
        'Transformer-0-MultiHeadSelfAttention-Key-PromptEmbedding/0/prompt_embedding',
        'Transformer-0-MultiHeadSelfAttention-Value-PromptEmbedding/0/prompt_embedding',
        'Transformer-0-AddFFN/0/kernel', 'Transformer-0-AddFFN/1/bias',
        'Transformer-0-AddFFN/2/kernel', 'Transformer-0-AddFFN/3/bias',
        'head/0/kernel', 'head/1/bias']


def test_frozen_sha256(tmp_path, clear_session):
    """Of the frozen weights and the vocabulary, and of nothing that is trained."""
    model, first = build(tmp_path, 'a')
    shift_trained = [(w, K.get_value(w) + 1) for _, w in weights.named_weights(model)]
    K.batch_set_value(shift_trained)
    paths = small.write_backbone(tmp_path / 'a')
    tokenizer, _ = snippets.load_tokenizer(paths['dict_path'])
    assert weights.frozen_sha256(model, tokenizer._token_dict) == first
    assert build(tmp_path, 'a', ffn_prompt_size=5, prompt_size=2)[1] == first
    assert build(tmp_path, 'b', seed=1)[1] != first
    other = dict(tokenizer._token_dict)
    other['一'], other['二'] = other['二'], other['一']
    assert weights.frozen_sha256(model, other) != first
    # one bit of one frozen weight
    name, weight = weights.named_weights(model, trainable=False)[-1]
    value = K.get_value(weight)
    value.view('int32').flat[0] ^= 1
    K.set_value(weight, value)
    assert weights.frozen_sha256(model, tokenizer._token_dict) != first


def test_other_sizes_are_refused_also_where_nothing_is_compared(tmp_path, clear_session):
    model, _ = build(tmp_path, 'a')
    path = str(tmp_path / 'delta')
    deltas.save_delta(path, values_of(model), {})
    expected = r'AddFFN/0/kernel has shape \(16, 2\), here it is \(16, 3\)'
    with pytest.raises(UserError, match=expected):
        weights.load_delta(path, build(tmp_path, 'a', ffn_prompt_size=3)[0], {})
    with pytest.raises(UserError, match='PromptEmbedding/0/prompt_embedding has shape None'):
        weights.load_delta(path, build(tmp_path, 'a', prompt_size=3)[0], {})


def test_metadata_is_json(path):
    """The header of the file, as the safetensors format has it."""
    with open(path, 'rb') as reader:
        length, = struct.unpack('<Q', reader.read(8))
        metadata = json.loads(reader.read(length).decode('utf-8'))['__metadata__']
    assert list(metadata) == [deltas.FORMAT]
    found = json.loads(metadata[deltas.FORMAT])
    assert re.match('[0-9a-f]{64}$', found.pop('content_sha256')) and found == BELONGS_TO


# ------------------------------------------------------------------ damage


def bits_of(path):
    """(offset, bit) of some 400 bits, evenly over the file; each byte of the header has one."""
    with open(path, 'rb') as reader:
        header = 8 + struct.unpack('<Q', reader.read(8))[0]
    size = os.path.getsize(path)
    places = list(range(header)) + [header + (size - header) * i // 100 for i in range(100)]
    return [(place, (3 * i) % 8) for i, place in enumerate(places)]


@pytest.mark.parametrize('kind', [deltas.FORMAT, deltas.STATE])
def test_any_flipped_bit_is_noticed(kind, model, tmp_path):
    path = str(tmp_path / 'file')
    deltas.save_delta(path, dict(values_of(model), iterations=np.array(7)), dict(
        BELONGS_TO, labels=['正', '负'], history=[{'loss': 0.25}]), kind)
    with open(path, 'rb') as reader:
        content = reader.read()
    deltas.read_delta(path, kind)
    bits = bits_of(path)
    assert len(bits) > 500
    for place, bit in bits:
        with open(path, 'wb') as writer:
            writer.write(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1:])
        with pytest.raises(UserError) as refused:
            deltas.read_delta(path, kind)
        assert str(refused.value).startswith(path + ': ')


def test_another_dtype_is_refused(model, path):
    """Also where the checksum is right."""
    values = values_of(model)
    values['head/1/bias'] = values['head/1/bias'].astype('float16')
    deltas.save_delta(path, values, BELONGS_TO)
    with pytest.raises(UserError, match='head/1/bias is of float16, here it is float32'):
        weights.load_delta(path, model, BELONGS_TO)


@pytest.mark.parametrize('wrong', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_written_nor_read(wrong, model, path):
    with open(path, 'rb') as reader:
        before = reader.read()
    values = values_of(model)
    values['head/0/kernel'][1, 1] = wrong
    said = '%s: tensor head/0/kernel: expected finite numbers, it holds %s' % (path, wrong)
    with pytest.raises(UserError) as refused:
        deltas.save_delta(path, values, BELONGS_TO)
    assert str(refused.value) == said
    with open(path, 'rb') as reader:
        assert reader.read() == before
    write_tensors(path, values, {'fl-tuning-delta-1': json.dumps(BELONGS_TO)})
    with pytest.raises(UserError) as refused:
        deltas.read_delta(path)
    assert str(refused.value) == said


def test_a_file_of_before_is_read_with_a_note(model, path, capsys):
    """It has no checksum, and what it calls backbone_sha256 is that of all frozen weights."""
    write_tensors(path, values_of(model), {'fl-tuning-delta-1': json.dumps(BELONGS_TO)})
    for _ in range(2):
        values, theirs = deltas.read_delta(path)
        assert_equal_values(values, values_of(model))
    assert capsys.readouterr().err == (
        '%s: of an earlier version, without a checksum: whether it is whole is not known\n' % path)
    ours = dict(BELONGS_TO, backbone_sha256='new')
    deltas.check_identity(path, theirs, ours, lambda: 'abc')
    with pytest.raises(UserError, match='backbone_sha256'):
        deltas.check_identity(path, theirs, ours, lambda: 'another')
