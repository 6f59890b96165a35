"""Full-size files in the layouts of the official releases, which are too large to keep here."""
import json
import os
import shutil

from fltuning import compat  # noqa: F401  (before bert4keras)
import numpy as np
import pytest

from backbones import write_backbone
from fltuning.compat import K
from fltuning.checkpoints import detect_backbone
from models import BACKBONES, PtuningV2AddFNNPtuning, build_transformer_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('clear_session')]

# release: kind, prefix of the checkpoint, vocabulary, tokens to keep of it, more of the config
RELEASES = {
    'chinese_roberta_wwm_ext_L-12_H-768_A-12': ('roberta', 'bert_model.ckpt', 21128, 13584, dict(
        directionality='bidi', pooler_fc_size=768, pooler_num_attention_heads=12,
        pooler_num_fc_layers=3, pooler_size_per_head=128, pooler_type='first_token_transform')),
    'NEZHA-Base-WWM': ('nezha', 'model.ckpt-691689', 21128, 13584, {}),
    'chinese_roformer-char_L-12_H-768_A-12': ('roformer', 'bert_model.ckpt', 12000, 11000, {}),
}


def add_training_state(variables):
    """What the optimizer of the pre-training left behind; the slots are of some variables only."""
    for name in list(variables):
        if name.endswith(('bias', 'beta', 'position_embeddings', 'token_type_embeddings')):
            variables[name + '/adam_m'] = np.zeros_like(variables[name])
            variables[name + '/adam_v'] = np.ones_like(variables[name])
    variables['global_step'] = np.array(691689, 'int64')


@pytest.fixture(params=RELEASES)
def release(request, tmp_path):
    """The kind, the tokens to keep, and the files of one release, while they are needed."""
    kind, checkpoint, vocab_size, n_keep, fields = RELEASES[request.param]
    folder = tmp_path / request.param
    folder.mkdir()
    backbone = write_backbone(
        folder, kind, checkpoint, change=add_training_state, vocab_size=vocab_size,
        hidden_size=768, intermediate_size=3072, max_position_embeddings=512,
        num_attention_heads=12, num_hidden_layers=12, attention_probs_dropout_prob=0.1,
        hidden_dropout_prob=0.1, **fields)
    random = np.random.RandomState(0)
    keep_tokens = [0] + [int(i) for i in 1 + random.permutation(vocab_size - 1)[:n_keep - 1]]
    yield kind, keep_tokens, backbone
    shutil.rmtree(str(folder))


def test_an_official_layout_loads(release):
    kind, keep_tokens, backbone = release
    with open(backbone.config_path) as reader:
        config = json.load(reader)
    assert 'max_relative_position' not in config
    assert os.path.isfile(backbone.checkpoint_path + '.index')
    assert detect_backbone(backbone.config_path, backbone.checkpoint_path) == kind

    transformer = build_transformer_model(
        backbone.config_path, backbone.checkpoint_path, model=PtuningV2AddFNNPtuning,
        application='unilm', prompt_size=0, ffn_prompt_size=160, keep_tokens=keep_tokens,
        return_keras_model=False)
    assert isinstance(transformer, BACKBONES[kind])
    variables = dict(backbone.variables)
    assert any(name.endswith('/adam_m') for name in variables)
    for name in ('bert/embeddings/word_embeddings', 'cls/predictions/output_bias'):
        variables[name] = variables[name][keep_tokens]

    loaded = set()
    for name, weights in transformer.variable_mapping().items():
        if name not in transformer.layers:
            continue
        layer = transformer.layers[name]
        for variable, value in zip(weights, K.batch_get_value(layer.trainable_weights)):
            np.testing.assert_array_equal(value, variables[variable], err_msg=variable)
            loaded.add(variable)
    not_loaded = {name for name in variables if not name.endswith(('/adam_m', '/adam_v'))} - loaded
    assert not_loaded == {
        'bert/pooler/dense/kernel', 'bert/pooler/dense/bias', 'global_step',
        'cls/seq_relationship/output_weights', 'cls/seq_relationship/output_bias'}

    transformer.freeze()
    trained = sum(K.count_params(w) for w in transformer.model.trainable_weights)
    assert trained == 12 * (768 * 160 + 160 + 160 * 768 + 768)
    if kind == 'nezha':  # relative positions are computed, not loaded: sines of up to 64 apart
        table = transformer.layers['Embedding-Relative-Position'].get_weights()[0]
        assert table.shape == (2 * 64 + 1, 64)
        np.testing.assert_allclose(table[3, 10:12], [np.sin(3 * 10000 ** (-10 / 64.)),
                                                     np.cos(3 * 10000 ** (-10 / 64.))], atol=1e-6)
