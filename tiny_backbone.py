"""A tiny backbone of random weights in the official layout: for trying the program and its tests."""
import json
import os
import string

import compat  # noqa: F401
import numpy as np
import tensorflow as tf

from snippets import SPECIAL_TOKENS


def write_vocab(path, characters):
    """vocab.txt with the special tokens, ASCII letters and digits, and these characters."""
    ascii_characters = string.ascii_lowercase + string.digits
    tokens = SPECIAL_TOKENS + list(ascii_characters) + ['##' + c for c in ascii_characters]
    known = set(tokens)
    tokens += sorted(c for c in set(characters) if not c.isspace() and c not in known)
    with open(path, 'w', encoding='utf-8') as writer:
        writer.write('\n'.join(tokens) + '\n')
    return len(tokens)


def variable_shapes(config, backbone):
    """{variable: shape} of Google's BERT with its MLM head, as far as `backbone` has them."""
    hidden, inner = config['hidden_size'], config['intermediate_size']
    shapes = {'bert/embeddings/word_embeddings': (config['vocab_size'], hidden),
              'bert/embeddings/token_type_embeddings': (config['type_vocab_size'], hidden),
              'cls/predictions/output_bias': (config['vocab_size'],)}
    if backbone == 'roberta':
        shapes['bert/embeddings/position_embeddings'] = (config['max_position_embeddings'], hidden)
    dense = {'bert/pooler/dense': (hidden, hidden),
             'cls/predictions/transform/dense': (hidden, hidden)}
    norms = ['bert/embeddings', 'cls/predictions/transform']
    for i in range(config['num_hidden_layers']):
        layer = 'bert/encoder/layer_%d/' % i
        for part in ('self/query', 'self/key', 'self/value', 'output/dense'):
            dense[layer + 'attention/' + part] = (hidden, hidden)
        dense[layer + 'intermediate/dense'] = (hidden, inner)
        dense[layer + 'output/dense'] = (inner, hidden)
        norms += [layer + 'attention/output', layer + 'output']
    for name, shape in dense.items():
        shapes[name + '/kernel'], shapes[name + '/bias'] = shape, shape[1:]
    for name in norms:
        shapes[name + '/LayerNorm/gamma'] = shapes[name + '/LayerNorm/beta'] = (hidden,)
    return shapes


def write_checkpoint(path, variables):
    """{name: array} as a TensorFlow checkpoint."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in variables.items():
            tf.compat.v1.get_variable(name, value.shape, value.dtype,
                                      tf.compat.v1.zeros_initializer())
        tensors = tf.compat.v1.global_variables()
        for tensor in tensors:
            tensor.load(variables[tensor.op.name], session)
        tf.compat.v1.train.Saver(tensors).save(session, path, write_meta_graph=False)


def write_tiny_backbone(folder, characters='', backbone='roberta', seed=0, stddev=0.02, **sizes):
    """Write bert_config.json, bert_model.ckpt and vocab.txt; returns {setting: path}.

    sizes: fields of bert_config.json to be other than the default, e.g. num_hidden_layers=4.
    """
    os.makedirs(folder, exist_ok=True)
    paths = {'config_path': 'bert_config.json', 'checkpoint_path': 'bert_model.ckpt',
             'dict_path': 'vocab.txt'}
    paths = {setting: os.path.join(folder, name) for setting, name in paths.items()}
    config = dict(
        attention_probs_dropout_prob=0.1, hidden_act='gelu', hidden_dropout_prob=0.1,
        hidden_size=64, initializer_range=stddev, intermediate_size=256,
        max_position_embeddings=512, num_attention_heads=4, num_hidden_layers=2, type_vocab_size=2)
    config.update(sizes, vocab_size=write_vocab(paths['dict_path'], characters))
    if backbone == 'nezha':
        config['use_relative_position'] = True
    with open(paths['config_path'], 'w') as writer:
        json.dump(config, writer, indent=2)
    random, variables = np.random.RandomState(seed), {}
    for name, shape in sorted(variable_shapes(config, backbone).items()):
        if name.endswith(('gamma', 'beta', 'bias')):
            variables[name] = np.full(shape, float(name.endswith('gamma')), 'float32')
        else:
            variables[name] = random.normal(0, stddev, shape).astype('float32')
    write_checkpoint(paths['checkpoint_path'], variables)
    return paths
