"""The fingerprint of a backbone: the same for what computes the same, another for what does not."""
import json
import os

import numpy as np
import pytest

import make_cross
import predict
import small
import snippets
from fltuning import checkpoints, deltas, hf_weights, weights
from fltuning.compat import K
from fltuning.errors import UserError
from fltuning.files import write_tensors
from tasks import load_task

CROSS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'cross')


@pytest.mark.parametrize('kind', make_cross.KINDS)
@pytest.mark.parametrize('stack', ['tf1', 'tf2'])
def test_a_delta_of_each_stack_is_used_on_each(kind, stack, tmp_path, clear_session):
    folder = os.path.join(CROSS, '%s-%s' % (stack, kind))
    paths = small.write_backbone(tmp_path / 'backbone', kind)
    model = predict.Predictor(**paths).load(os.path.join(folder, 'afqmc.weights'))
    found, expected = model.predict(make_cross.RECORDS), small.read_json(folder, 'expected.json')
    np.testing.assert_allclose([list(line['probabilities'].values()) for line in found],
                               [list(line['probabilities'].values()) for line in expected], atol=1e-5)


def build(paths, task_name='afqmc', **settings):
    tokenizer, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    model, transformer = snippets.build_model(
        load_task(task_name, tokenizer), snippets.ModelSettings(**settings), paths, keep_tokens)
    return model, transformer, tokenizer._token_dict


def fingerprint(paths, task_name='afqmc', **settings):
    K.clear_session()
    _, transformer, token_dict = build(paths, task_name, **settings)
    return weights.fingerprint(transformer, token_dict)


def to_huggingface(paths, folder):
    """The same weights in Hugging Face's layout."""
    config = small.read_json(paths['config_path'])
    kind = checkpoints.detect_backbone(paths['config_path'], paths['checkpoint_path'])
    model_type = {'roberta': 'bert'}.get(kind, kind)
    os.makedirs(str(folder))
    small.write_json(folder / 'config.json', dict(config, model_type=model_type))
    small.write_text(folder / 'vocab.txt', small.read_text(paths['dict_path']))
    write_tensors(str(folder / 'model.safetensors'), hf_weights.to_huggingface(
        checkpoints.read_variables(paths['checkpoint_path']), model_type), {})
    return checkpoints.find_files(str(folder))


@pytest.mark.parametrize('kind', make_cross.KINDS)
def test_it_is_of_the_backbone_alone(kind, tmp_path, clear_session):
    """Not of layout, task, prompts, way of computing, nor of what TensorFlow computes."""
    paths = small.write_backbone(tmp_path / 'google', kind)
    expected = fingerprint(paths)
    assert fingerprint(to_huggingface(paths, tmp_path / 'huggingface')) == expected
    assert fingerprint(paths, 'cluener', prompt_size=2, ffn_prompt_size=0, padded=True) == expected
    K.clear_session()
    model, transformer, token_dict = build(paths)
    before = weights.frozen_sha256(model, token_dict)
    tables = [weight for name, weight in weights.named_weights(model, trainable=False)
              if 'Relative-Position' in name]
    assert len(tables) == (kind == 'nezha')
    for table in tables:
        K.set_value(table, K.get_value(table) + np.float32(1e-6))
        assert weights.frozen_sha256(model, token_dict) != before
    assert weights.fingerprint(transformer, token_dict) == expected


@pytest.mark.parametrize('kind, fields', [
    ('roberta', dict(hidden_act='relu')), ('nezha', dict(hidden_act='gelu_new')),
    ('roberta', dict(num_attention_heads=4)), ('roformer', dict(num_attention_heads=1)),
    ('roberta', dict(layer_norm_eps=1e-5))])
def test_the_same_weights_that_compute_something_else(kind, fields, tmp_path, clear_session):
    paths = small.write_backbone(tmp_path, kind)
    model, transformer, token_dict = build(paths, ffn_prompt_size=3)
    path = str(tmp_path / 'afqmc.weights')
    deltas.save_delta(path, weights.get_values(weights.named_weights(model)), deltas.identity(
        load_task('afqmc'), transformer, weights.fingerprint(transformer, token_dict)))
    predict.Predictor(**paths).load(path)
    config = small.read_json(paths['config_path'])
    small.write_json(paths['config_path'], dict(config, **fields))
    with pytest.raises(UserError, match='backbone_sha256 is '):
        predict.Predictor(**paths).load(path)


def test_every_weight_of_the_checkpoint_counts(tmp_path, clear_session):
    """One bit of any of them, and the order of the vocabulary."""
    model, transformer, token_dict = build(small.write_backbone(tmp_path))
    expected = weights.fingerprint(transformer, token_dict)
    for name, weight in weights.named_weights(model, trainable=False):
        value = K.get_value(weight)
        changed = value.copy()
        changed.view('int32').flat[-1] ^= 1
        K.set_value(weight, changed)
        assert weights.fingerprint(transformer, token_dict) != expected, name
        K.set_value(weight, value)
    assert weights.fingerprint(transformer, token_dict) == expected
    other = dict(token_dict)
    other['一'], other['二'] = other['二'], other['一']
    assert weights.fingerprint(transformer, other) != expected


def test_a_delta_says_its_format(tmp_path):
    for stack in ('tf1', 'tf2'):
        folder = os.path.join(CROSS, stack + '-roberta')
        _, belongs_to = deltas.read_delta(os.path.join(folder, 'afqmc.weights'))
        assert 'format' not in belongs_to and json.dumps(belongs_to)
