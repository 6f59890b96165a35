"""Backbones of random values in the official layout: config, checkpoint, and vocabulary if wanted.

Every value is random, biases and norms too, so that a variable that lands in the wrong place
changes what the model computes.
"""
import collections
import json
import os

from fltuning import compat  # noqa: F401
import numpy as np

from fltuning import checkpoints

Backbone = collections.namedtuple('Backbone', 'config_path checkpoint_path dict_path variables')


def variable_shapes(kind, config):
    """{variable: shape} as Google's BERT names them, with pooler, NSP and MLM."""
    hidden = config['hidden_size']
    return collections.OrderedDict(
        sorted(checkpoints.variable_shapes(config, kind).items())
        + [('cls/seq_relationship/output_weights', (2, hidden)),
           ('cls/seq_relationship/output_bias', (2,))])


def random_values(shapes, seed):
    """Of a size that keeps attention far from uniform and activations of order one."""
    random, values = np.random.default_rng(seed), collections.OrderedDict()
    for name, shape in shapes.items():
        value = random.standard_normal(shape, dtype='float32')
        if name.endswith('gamma'):
            value = 1 + value * np.float32(0.3)
        elif len(shape) < 2:
            value *= np.float32(0.3)
        elif 'embeddings' not in name:
            value *= np.float32(shape[0] ** -0.5)
        values[name] = value
    return values


def write_backbone(folder, kind, checkpoint='bert_model.ckpt', seed=0, tokens=None, change=None,
                   **fields):
    """Write a backbone of kind 'roberta', 'nezha' or 'roformer'.

    tokens: the lines of vocab.txt, which is not written without them.
    change: function that gets {variable: array} and changes it before it is written.
    fields: of bert_config.json.
    Returns paths and {variable: array}.
    """
    folder = str(folder)
    config = dict(
        attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, hidden_act='gelu',
        hidden_size=16, initializer_range=0.02, intermediate_size=24, max_position_embeddings=80,
        num_attention_heads=2, num_hidden_layers=1, type_vocab_size=2, vocab_size=30)
    if kind == 'nezha':
        config['use_relative_position'] = True
    config.update(fields)
    dict_path = None
    if tokens:
        dict_path = os.path.join(folder, 'vocab.txt')
        config['vocab_size'] = len(tokens)
        with open(dict_path, 'w', encoding='utf-8') as writer:
            writer.writelines(token + '\n' for token in tokens)
    config_path = os.path.join(folder, 'bert_config.json')
    with open(config_path, 'w') as writer:
        json.dump(config, writer)
    variables = random_values(variable_shapes(kind, config), seed)
    if change:
        change(variables)
    checkpoint_path = os.path.join(folder, checkpoint)
    checkpoints.write_checkpoint(checkpoint_path, variables)
    return Backbone(config_path, checkpoint_path, dict_path, variables)
