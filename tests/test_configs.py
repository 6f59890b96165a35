"""Configs and headers of backbones: read and checked once, in one place, before anything is built."""
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

import backbones
import small
from fltuning import checkpoints
from fltuning.compat import K
from fltuning.errors import UserError
from models import PtuningV2AddFNNPtuning, build_transformer_model

GOOD = dict(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24)


def read(tmp_path, **fields):
    small.write_json(tmp_path / 'config.json', dict(GOOD, **fields))
    return checkpoints.read_config(str(tmp_path / 'config.json'))


@pytest.mark.parametrize('kind', ['bert', 'nezha', 'roformer', None])
def test_what_a_config_leaves_out_has_the_defaults_of_its_kind(kind, tmp_path):
    """Those of `transformers`: BertConfig, NezhaConfig, RoFormerConfig."""
    found = read(tmp_path, **({'model_type': kind} if kind else {}))
    assert found['hidden_act'] == 'gelu' and found['layer_norm_eps'] == 1e-12
    assert found['hidden_dropout_prob'] == found['attention_probs_dropout_prob'] == 0.1
    assert found['type_vocab_size'] == 2
    assert found.get('use_relative_position', False) is (kind == 'nezha')


def test_fields_that_are_not_of_a_model_reach_none(tmp_path):
    """With or without model_type: `prefix` is an argument of bert4keras's models."""
    extra = dict(prefix=None, torch_dtype='float32', return_dict=True, hidden_act='gelu_new')
    for kind in ({}, {'model_type': 'bert'}):
        found = read(tmp_path, **dict(extra, **kind))
        assert set(found) <= set(checkpoints.FIELDS) | {'use_relative_position'}
        assert found['hidden_act'] == 'gelu_tanh'


@pytest.mark.parametrize('field, value, said', [
    ('hidden_size', True, 'a whole number'), ('hidden_size', '16', 'a whole number'),
    ('hidden_size', 17, 'a multiple of num_attention_heads, 2'), ('hidden_size', 10**9, '65,536'),
    ('num_hidden_layers', 0, 'a whole number from 1'), ('num_hidden_layers', 10**9, '1,000'),
    ('num_attention_heads', 2.0, 'a whole number'), ('vocab_size', -1, 'a whole number'),
    ('intermediate_size', [24], 'a whole number'), ('type_vocab_size', '1', 'a whole number'),
    ('max_position_embeddings', {}, 'a whole number'), ('hidden_dropout_prob', 1e12, 'below 1'),
    ('attention_probs_dropout_prob', -0.1, 'below 1'), ('hidden_dropout_prob', '0.1', 'below 1'),
    ('hidden_act', ['gelu'], 'the name of an activation'), ('hidden_act', 'geluu', 'a known activation'),
    ('layer_norm_eps', 1, 'below 0.01'), ('position_embedding_type', 'relative_key', '"absolute"'),
    ('rotary_value', True, 'false'), ('model_type', 'gpt2', 'bert, nezha or roformer')])
def test_a_field_of_a_wrong_kind_is_named(field, value, said, tmp_path):
    with pytest.raises(UserError) as refused:
        read(tmp_path, **{field: value})
    for text in (str(tmp_path / 'config.json'), field, said):
        assert text in str(refused.value)


def test_relative_positions_that_cannot_be_had(tmp_path):
    """bert4keras clips at 64; Google's layout says other numbers, which the original ignored, too."""
    assert read(tmp_path, model_type='nezha', max_relative_position=64)['use_relative_position']
    assert read(tmp_path, use_relative_position=True, max_relative_position=8)
    with pytest.raises(UserError, match='max_relative_position'):
        read(tmp_path, model_type='nezha', max_relative_position=32)


def test_the_epsilon_of_layer_norms_is_the_configs(tmp_path, clear_session):
    """Against NumPy: the embeddings' norm, on an input whose variance is of the order of epsilon."""
    paths = backbones.write_backbone(
        tmp_path, 'roberta', layer_norm_eps=1e-3,
        change=lambda variables: variables.update({name: value * 0.01 for name, value in variables.items()
                                                   if 'embeddings' in name and 'Norm' not in name}))
    transformer = build_transformer_model(paths.config_path, paths.checkpoint_path,
                                          model=PtuningV2AddFNNPtuning, return_keras_model=False)
    for layer in transformer.model.layers:
        if layer.name.endswith('Norm'):
            assert layer.epsilon == 1e-3, layer.name
    ids = np.array([[5, 7, 9]])
    variables = paths.variables
    x = (variables['bert/embeddings/word_embeddings'][ids]
         + variables['bert/embeddings/token_type_embeddings'][0]
         + variables['bert/embeddings/position_embeddings'][:3]).astype('float64')
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    x = (x * variables['bert/embeddings/LayerNorm/gamma'] + variables['bert/embeddings/LayerNorm/beta'])
    norm = transformer.model.get_layer('Embedding-Norm').output
    model = type(transformer.model)(transformer.model.inputs, norm)
    np.testing.assert_allclose(model.predict([ids, 0 * ids]), x, atol=1e-5)
    K.clear_session()


def test_names_and_shapes_come_from_the_header_alone(tmp_path):
    """Of a file whose values are not there at all."""
    path = str(tmp_path / 'model.safetensors')
    tensors = {'bert.embeddings.word_embeddings.weight': np.zeros((30, 16), 'float32'),
               'bert.encoder.layer.0.intermediate.dense.weight': np.zeros((24, 16), 'float16'),
               'bert.embeddings.position_ids': np.arange(8)}
    save_file(tensors, path)
    with open(path, 'rb') as reader:
        size = int.from_bytes(reader.read(8), 'little')
    os.truncate(path, 8 + size)
    assert checkpoints.list_variables(path) == {
        'bert/embeddings/word_embeddings': (30, 16),
        'bert/encoder/layer_0/intermediate/dense/kernel': (16, 24)}
    with pytest.raises(UserError, match='not a whole safetensors file'):
        checkpoints.read_variables(path)


@pytest.mark.parametrize('content', [
    b'', b'\x00', b'\xff' * 16, (5).to_bytes(8, 'little') + b'[1,2]', (2).to_bytes(8, 'little') + b'{',
    (20).to_bytes(8, 'little') + b'{"a": {"dtype": "F32', (9).to_bytes(8, 'little') + b'{"a": 12}'])
def test_headers_that_are_none(content, tmp_path):
    path = str(tmp_path / 'model.safetensors')
    with open(path, 'wb') as writer:
        writer.write(content)
    with pytest.raises(UserError, match='not a whole safetensors file'):
        checkpoints.list_variables(path)


@pytest.mark.parametrize('field, value', [('intermediate_size', 10**6), ('hidden_size', 2**16)])
def test_sizes_are_held_against_the_checkpoint_before_a_model_is_built(field, value, tmp_path):
    paths = small.write_backbone(tmp_path)
    config = dict(small.read_json(paths['config_path']), **{field: value})
    small.write_json(paths['config_path'], config)
    with pytest.raises(UserError) as refused:
        checkpoints.check_backbone(**paths)
    for text in (paths['checkpoint_path'], paths['config_path'], 'has shape', str(value)):
        assert text in str(refused.value)
    assert json.dumps(config)
