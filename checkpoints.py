"""Backbone files: Google's layout (bert_config.json, TensorFlow checkpoint) and Hugging Face's.

Variables go by Google's names, e.g. bert/encoder/layer_0/intermediate/dense/kernel, (hidden, inner).
"""
import json
import os
import re

import compat  # noqa: F401
import numpy as np
import safetensors
import tensorflow as tf

from data import read_json, replacing
from errors import UserError

CONFIGS = ('bert_config.json', 'config.json')
WEIGHTS = ('model.safetensors', 'pytorch_model.bin', 'bert_model.ckpt')
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}  # {Hugging Face: ours}


def find_files(config_path='', checkpoint_path='', dict_path=''):
    """{setting: path}, with folders replaced by the files in them.

    A folder's files need not be named one by one: what is not set is looked for beside the config.
    """
    folder = config_path if os.path.isdir(config_path) else ''
    return {
        'config_path': in_folder(config_path, CONFIGS),
        'checkpoint_path': in_folder(checkpoint_path or folder, WEIGHTS),
        'dict_path': in_folder(dict_path or folder, ('vocab.txt',))}


def in_folder(path, names):
    """The first of these files in a folder; a path that is no folder, as it is."""
    if not os.path.isdir(path):
        return path
    for name in names:
        found = os.path.join(path, name)
        if os.path.exists(found) or os.path.exists(found + '.index'):
            return found
    raise UserError('%s: no %s in this folder' % (path, ' or '.join(names)))


def is_huggingface(checkpoint_path):
    return checkpoint_path.endswith(('.safetensors', '.bin'))


def read_config(path):
    """A BERT config in Google's terms. Raises UserError if it is none."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError('%s: expected a BERT config' % path)
    kind = config.get('model_type')
    if kind == 'nezha':
        config['use_relative_position'] = True
    if kind in ('bert', 'nezha', 'roformer'):
        config['hidden_act'] = ACTIVATIONS.get(config.get('hidden_act'), config.get('hidden_act'))
        # In Hugging Face's config there is more, which would reach bert4keras's models by name.
        config = {name: value for name, value in config.items() if name in (
            'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
            'intermediate_size', 'hidden_act', 'hidden_dropout_prob', 'attention_probs_dropout_prob',
            'max_position_embeddings', 'type_vocab_size', 'use_relative_position')}
    elif kind is not None:
        raise UserError('%s: model_type %s: expected bert, nezha or roformer' % (path, kind))
    return config


def google_name(name):
    """Google's name of a Hugging Face weight; None for what is computed or tied."""
    name = re.sub(r'^(bert|nezha|roformer)\.', '', name)
    if name.startswith(('embeddings.', 'encoder.', 'pooler.')):
        name = 'bert.' + name
    elif not name.startswith('cls.'):
        return None
    name = name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
        'LayerNorm.bias', 'LayerNorm.beta')  # older files have gamma and beta
    name = re.sub(r'\.layer\.(\d+)\.', r'.layer_\1.', name)
    name = re.sub(r'_embeddings\.weight$', '_embeddings', name)
    name = re.sub(r'\.weight$', '.kernel', name)
    name = {'cls.predictions.bias': 'cls.predictions.output_bias',
            'cls.seq_relationship.kernel': 'cls.seq_relationship.output_weights',
            'cls.seq_relationship.bias': 'cls.seq_relationship.output_bias'}.get(name, name)
    if name.startswith('cls.predictions.decoder') or re.search('position_ids|embed_positions', name):
        return None
    return name.replace('.', '/')


def huggingface_name(name, kind='bert'):
    """Hugging Face's name of Google's variable; kind is the model_type."""
    name = re.sub(r'/layer_(\d+)/', r'/layer/\1/', name).replace('/', '.')
    name = re.sub(r'^bert\.', kind + '.', name)
    name = {'cls.predictions.output_bias': 'cls.predictions.bias',
            'cls.seq_relationship.output_weights': 'cls.seq_relationship.weight',
            'cls.seq_relationship.output_bias': 'cls.seq_relationship.bias'}.get(name, name)
    name = re.sub(r'_embeddings$', '_embeddings.weight', name)
    return re.sub(r'\.beta$', '.bias', re.sub(r'\.(kernel|gamma)$', '.weight', name))


def transposed(name, value):
    """PyTorch's dense kernels are (outputs, inputs)."""
    return np.ascontiguousarray(value.T) if name.endswith('/kernel') else value


def read_variables(checkpoint_path, wanted=None):
    """{Google's name: array} of a checkpoint of either layout, the `wanted` ones or all.

    Raises UserError if it cannot be read.
    """
    if checkpoint_path.endswith('.safetensors'):
        weights = read_safetensors(checkpoint_path)
    elif checkpoint_path.endswith('.bin'):
        weights = read_torch(checkpoint_path)
    else:
        try:
            reader = tf.train.load_checkpoint(checkpoint_path)
            return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
                    if wanted is None or name in wanted}
        except (tf.errors.OpError, IndexError, ValueError) as error:  # IndexError: cut, in `tf2`
            raise UserError('%s: expected a TensorFlow checkpoint: %s' % (checkpoint_path, error))
    variables = {}
    for name, value in weights:
        name = google_name(name)
        if name and (wanted is None or name in wanted):
            variables[name] = transposed(name, value)
    return variables


def list_variables(checkpoint_path):
    """{Google's name: shape}."""
    if is_huggingface(checkpoint_path):
        return {name: value.shape for name, value in read_variables(checkpoint_path).items()}
    try:
        return {name: tuple(shape) for name, shape in tf.train.list_variables(checkpoint_path)}
    except (tf.errors.OpError, ValueError) as error:
        raise UserError('%s: expected a TensorFlow checkpoint: %s' % (checkpoint_path, error))


def read_safetensors(path):
    """(name, float32 array) of a safetensors file, bfloat16 too, which NumPy lacks."""
    try:
        with open(path, 'rb') as reader:
            tensors = safetensors.deserialize(reader.read())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError('%s: not a whole safetensors file: %s' % (path, error))
    for name, tensor in tensors:
        if tensor['dtype'] == 'BF16':
            value = (np.frombuffer(tensor['data'], '<u2').astype('<u4') << 16).view('<f4')
        elif tensor['dtype'] in ('F16', 'F32', 'F64'):
            value = np.frombuffer(tensor['data'], '<f%d' % (int(tensor['dtype'][1:]) // 8))
        else:
            continue  # position ids and the like
        yield name, value.astype('float32').reshape(tensor['shape'])


def read_torch(path):
    """(name, float32 array) of a PyTorch file, of which only weights are read: no code is run."""
    try:
        import torch
    except ImportError:
        raise UserError('%s: to read this file needs PyTorch (pip install torch); a model.safetensors '
                        'beside it needs nothing' % path)
    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)
        found = [(name, value) for name, value in weights.items() if value.is_floating_point()]
    except Exception as error:  # whatever a wrong file makes the unpickler do
        raise UserError('%s: not a PyTorch file of weights: %s' % (path, error))
    for name, value in found:
        yield name, value.float().numpy()


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
    """{name: array} as a TensorFlow checkpoint; its index, without which it is none, comes last."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in variables.items():
            tf.compat.v1.get_variable(name, value.shape, value.dtype,
                                      tf.compat.v1.zeros_initializer())
        tensors = tf.compat.v1.global_variables()
        for tensor in tensors:
            tensor.load(variables[tensor.op.name], session)
        try:
            tf.compat.v1.train.Saver(tensors).save(session, path, write_meta_graph=False)
        except (tf.errors.OpError, ValueError) as error:  # e.g. no space left, no such folder
            raise UserError('%s: cannot be written: %s' % (path, error))


def write_json(path, value):
    with replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8') as writer:
            json.dump(value, writer, ensure_ascii=False, indent=2)
            writer.write('\n')
