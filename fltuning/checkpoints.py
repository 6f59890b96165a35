"""Backbone files: Google's layout (bert_config.json, TensorFlow checkpoint) and Hugging Face's.

Variables go by Google's names, e.g. bert/encoder/layer_0/intermediate/dense/kernel, (hidden, inner).
"""
import contextlib
import json
import os
import re
import shutil
import tempfile
from typing import Any, Callable, Dict, Iterator, Optional

from fltuning import compat, hf_weights  # noqa: F401  (compat before TensorFlow)
import numpy as np
import tensorflow as tf
from bert4keras.backend import keras
from bert4keras.tokenizers import load_vocab

from fltuning.errors import UserError
from fltuning.files import make_folder, read_json
from fltuning.hf_weights import SHARDS, google_name, is_huggingface, transposed
from fltuning.memory import check_room
from fltuning.methods import trained_parameters
from fltuning.records import Record
from fltuning.tokenizer import load_tokens

CONFIGS = ('bert_config.json', 'config.json')
WEIGHTS = ('model.safetensors', 'model.safetensors' + SHARDS, 'pytorch_model.bin',
           'pytorch_model.bin' + SHARDS, 'bert_model.ckpt')
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'}  # {Hugging Face: ours}


def find_files(config_path='', checkpoint_path='', dict_path='', setting='config_path'):
    """{setting: path} of a backbone's files, each found to be of its kind.

    A path may be that of a folder, and what is not given is looked for beside the first that is.
    setting: what `config_path` is called where it was given. Raises UserError, naming the setting.
    """
    given = {'config_path': config_path, 'checkpoint_path': checkpoint_path, 'dict_path': dict_path}
    found = {}
    # First what is given: where that is mistyped, it is at fault, not what is looked for beside it.
    for name, (names, check) in sorted(FILES.items(), key=lambda item: not given[item[0]]):
        source = name if given[name] else next((other for other in given if given[other]), name)
        path = given[source]
        if source != name and not os.path.isdir(path):
            path = os.path.dirname(path) or '.'
        with naming(setting if source == 'config_path' else source):
            try:
                found[name] = find_file(path, names)
            except UserError as error:
                raise UserError('%s%s' % (error, '; set %s' % name if source != name else ''))
            check(found[name])
    return found


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """UserErrors inside begin with the setting's name."""
    try:
        yield
    except UserError as error:
        raise UserError('%s: %s' % (setting, error))


def find_file(path, names):
    """A path, or in a folder the first of these names. Raises UserError if there is none."""
    path = in_folder(path, names)
    without = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', path)  # of a TensorFlow checkpoint
    if os.path.isfile(without + '.index'):
        return without
    if not os.path.isfile(path):
        raise UserError('%s: no such file or folder; expected %s' % (
            path or 'not set', ' or '.join(names)))
    return path


def in_folder(path, names):
    """The first of these files in a folder; a path that is no folder, as it is."""
    if not os.path.isdir(path):
        return path
    for name in names:
        found = os.path.join(path, name)
        if os.path.exists(found) or os.path.exists(found + '.index'):
            return found
    raise UserError('%s: no %s in this folder' % (path, ' or '.join(names)))


def read_config(path: str) -> Dict[str, Any]:
    """A BERT config in Google's terms, every field checked. Raises UserError if it is none.

    Hugging Face's `config.json` and Google's `bert_config.json` have the same names for most of it;
    what the former may leave out has its defaults. What would change the computation and can't be
    honoured is refused.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError('%s: expected a BERT config' % path)
    config = Record(config, path)
    kind = config.get('model_type')
    if kind not in (None, 'bert', 'nezha', 'roformer'):
        raise UserError('%s: model_type %s: expected bert, nezha or roformer' % (path, kind))
    for name, default in DEFAULTS.items():
        if config.get(name) is None:
            config[name] = default
    for name, (expected, fits) in FIELDS.items():
        if name not in config:
            raise UserError('%s: no field %r' % (path, name))
        if not fits(config[name]):
            raise config.error(name, expected)
    for name, only in FIXED.items():
        # Google's layout says max_relative_position, too, but the original never looked at it.
        if config.get(name) not in (None, only) and (kind or name != 'max_relative_position'):
            raise config.error(name, '%s, which is all that is supported here' % json.dumps(only))
    if config['hidden_size'] % config['num_attention_heads']:
        raise config.error('hidden_size', 'a multiple of num_attention_heads, %d'
                           % config['num_attention_heads'])
    found = {name: config[name] for name in FIELDS}
    if config.get('embedding_size') not in (None, config['hidden_size']):
        if kind or not is_size(2**16)(config['embedding_size']):
            raise config.error('embedding_size', 'hidden_size, %d' % config['hidden_size'])
        found['embedding_size'] = config['embedding_size']
    found['hidden_act'] = ACTIVATIONS.get(found['hidden_act'], found['hidden_act'])
    try:
        keras.activations.get(found['hidden_act'])
    except (ValueError, TypeError):
        raise config.error('hidden_act', 'a known activation such as gelu, gelu_new or relu')
    if kind == 'nezha' or config.get('use_relative_position'):
        found['use_relative_position'] = True
    if type(config.get('initializer_range')) in (int, float):
        found['initializer_range'] = config['initializer_range']
    return found


def is_size(maximum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 < value <= maximum


def is_number(below: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and 0 <= value < below


# {field: (what is expected, whether a value is that)}; the limits are far beyond any BERT's.
FIELDS = {
    'vocab_size': ('a whole number from 1 to 10,000,000', is_size(10**7)),
    'hidden_size': ('a whole number from 1 to 65,536', is_size(2**16)),
    'num_hidden_layers': ('a whole number from 1 to 1,000', is_size(1000)),
    'num_attention_heads': ('a whole number from 1 to 1,024', is_size(1024)),
    'intermediate_size': ('a whole number from 1 to 1,000,000', is_size(10**6)),
    'max_position_embeddings': ('a whole number from 1 to 1,000,000', is_size(10**6)),
    'type_vocab_size': ('a whole number from 1 to 1,000', is_size(1000)),
    'hidden_act': ('the name of an activation', lambda value: isinstance(value, str)),
    'hidden_dropout_prob': ('a number from 0 to below 1', is_number(1)),
    'attention_probs_dropout_prob': ('a number from 0 to below 1', is_number(1)),
    'layer_norm_eps': ('a number from 0 to below 0.01', is_number(0.01)),
}
DEFAULTS = {'hidden_act': 'gelu', 'hidden_dropout_prob': 0.1, 'attention_probs_dropout_prob': 0.1,
            'max_position_embeddings': 512, 'type_vocab_size': 2, 'layer_norm_eps': 1e-12}
# Of `transformers`, what would compute something else. bert4keras clips relative positions at 64.
FIXED = {'position_embedding_type': 'absolute', 'rotary_value': False, 'max_relative_position': 64}


def unreadable():
    """What TensorFlow raises for a damaged checkpoint; IndexError where one ends before it says so, in `tf2`."""
    return tf.errors.OpError, IndexError, ValueError


def read_variables(checkpoint_path, wanted=None):
    """{Google's name: array} of a checkpoint of either layout, the `wanted` ones or all.

    Raises UserError if it cannot be read, or a value is infinite or not a number.
    """
    variables = {}
    if is_huggingface(checkpoint_path):
        for name, value in hf_weights.read_weights(checkpoint_path):
            name = google_name(name)
            if name and (wanted is None or name in wanted):
                variables[name] = transposed(name, value)
    else:
        try:
            reader = tf.train.load_checkpoint(checkpoint_path)
            for name in reader.get_variable_to_shape_map():
                if wanted is None or name in wanted:
                    variables[name] = reader.get_tensor(name)
        except unreadable() as error:
            raise UserError('%s: expected a TensorFlow checkpoint: %s' % (checkpoint_path, error))
    for name, value in variables.items():
        check_finite(checkpoint_path, name, value)
    return variables


def check_finite(path, name, value):
    """Raises UserError if an array has a value that is infinite or not a number."""
    if value.dtype.kind == 'f' and not np.isfinite(value).all():
        raise UserError('%s: %s: %d of %d values are infinite or not a number: expected the weights of '
                        'a model that works' % (path, name, (~np.isfinite(value)).sum(), value.size))


def list_variables(checkpoint_path: str) -> Dict[str, tuple]:
    """{Google's name: shape}; of a file by PyTorch alone the values are read for it."""
    if not is_huggingface(checkpoint_path):
        try:
            return {name: tuple(shape) for name, shape in tf.train.list_variables(checkpoint_path)}
        except unreadable() as error:
            raise UserError('%s: expected a TensorFlow checkpoint: %s' % (checkpoint_path, error))
    shapes = hf_weights.list_weights(checkpoint_path)
    names = {name: google_name(name) for name in shapes}
    return {names[name]: shape[::-1] if names[name].endswith('/kernel') else shape
            for name, shape in shapes.items() if names[name]}


def check_weights(checkpoint_path: str) -> None:
    """Raises UserError if a checkpoint's files are not of their kind, by their headers and sizes."""
    if not is_huggingface(checkpoint_path):
        variables = list_variables(checkpoint_path)
        data = checkpoint_path + '.data-00000-of-00001'  # of several, TensorFlow finds one that is missing
        smallest = 2 * sum(int(np.prod(shape, dtype='int64')) for shape in variables.values())
        if os.path.isfile(data) and os.path.getsize(data) < smallest:
            raise UserError('%s: %d bytes: expected at least %d for what %s.index lists'
                            % (data, os.path.getsize(data), smallest, checkpoint_path))
        return
    hf_weights.check_weights(checkpoint_path)


# {setting: (what its file is called in a folder, a check that it is one)}
FILES = {'config_path': (CONFIGS, read_config), 'checkpoint_path': (WEIGHTS, check_weights),
         'dict_path': (('vocab.txt',), load_tokens)}


def detect_backbone(config_path: str, checkpoint_path: str) -> str:
    """'roberta', 'nezha' or 'roformer', read off the config and the names of the variables."""
    if read_config(config_path).get('use_relative_position'):
        return 'nezha'
    if 'bert/embeddings/position_embeddings' in list_variables(checkpoint_path):
        return 'roberta'
    return 'roformer'


def check_backbone(config_path: str, checkpoint_path: str, dict_path: str, maxlen: Optional[int] = None,
                   layers_to_transform: Optional[list] = None) -> None:
    """Raises UserError if config, checkpoint and vocabulary do not belong together.

    maxlen, layers_to_transform: what is to be done with it, which it may be too small for.
    """
    check_file(config_path, 'config_path', 'bert_config.json')
    check_file(checkpoint_path, 'checkpoint_path', 'a checkpoint, without .index',
               '' if is_huggingface(checkpoint_path) else '.index')
    config = read_config(config_path)
    last = config['num_hidden_layers'] - 1
    if layers_to_transform and max(layers_to_transform) > last:
        raise UserError('layers_to_transform: %d: the layers of %s are 0 to %d'
                        % (max(layers_to_transform), config_path, last))
    vocab = len(load_vocab(dict_path))
    if vocab != config['vocab_size']:
        raise UserError('%s: %d tokens, but %s says vocab_size %d: expected the vocabulary of '
                        'this checkpoint' % (dict_path, vocab, config_path, config['vocab_size']))
    variables = list_variables(checkpoint_path)
    rows = variables.get('bert/embeddings/word_embeddings', [vocab])[0]
    if rows != vocab:
        raise UserError('%s: %d tokens, but the checkpoint %s embeds %d'
                        % (dict_path, vocab, checkpoint_path, rows))
    positions = variables.get('bert/embeddings/position_embeddings')
    if maxlen and positions and maxlen > positions[0]:
        raise UserError('maxlen %d: the checkpoint %s has %d positions'
                        % (maxlen, checkpoint_path, positions[0]))
    # Here, since a wrong one may ask for more memory than there is before loading tells.
    narrow = 'embedding_size' in config  # and embeddings have other shapes
    for name, shape in variable_shapes(config, 'roberta' if positions else 'roformer').items():
        checked = not name.startswith('cls/') and not (narrow and '/embeddings/' in name)
        if checked and tuple(variables.get(name, shape)) != shape:
            raise UserError('%s: variable %s has shape %s, %s makes it %s' % (
                checkpoint_path, name, variables[name], config_path, shape))


def check_file(path, setting, expected, suffix=''):
    if not path or not os.path.isfile(path + suffix):
        raise UserError('%s: %s: no such file; expected the path of %s' % (setting, path, expected))


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


def check_sizes(config: Dict[str, Any], prompt_size: Optional[int] = 0,
                ffn_prompt_size: Optional[int] = 0, layers_to_transform: Optional[list] = None,
                method: Optional[str] = None, size: Optional[int] = None) -> None:
    """Raises UserError if a model of these sizes takes more memory than there is.

    config: of `read_config`.
    """
    prompt_size, ffn_prompt_size = prompt_size or 0, ffn_prompt_size or 0
    hidden, layers = config['hidden_size'], config['num_hidden_layers']
    count = layers if layers_to_transform is None else len(layers_to_transform)
    check_room({
        'ffn_prompt_size %d' % ffn_prompt_size: count * ffn_prompt_size * (2 * hidden + 1),
        'prompt_size %d' % prompt_size: count * prompt_size * 2 * hidden,
        'size %s' % size: trained_parameters(method or 'head', size, config, 'roberta', layers_to_transform),
        'a backbone of hidden_size %d and %d layers' % (hidden, layers): sum(
            int(np.prod(shape, dtype='int64')) for shape in variable_shapes(config, 'roberta').values())})


def write_checkpoint(path, variables):
    """{name: array} as a TensorFlow checkpoint, whole or not at all. Raises UserError.

    It is written beside its place, since TensorFlow leaves its temporary files behind where it fails.
    """
    for name, value in variables.items():
        check_finite(path, name, value)
    folder, name = os.path.split(path)
    make_folder(folder)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for variable, value in variables.items():
            tf.compat.v1.get_variable(variable, value.shape, value.dtype,
                                      tf.compat.v1.zeros_initializer())
        tensors = tf.compat.v1.global_variables()
        for tensor in tensors:
            tensor.load(variables[tensor.op.name], session)
        beside = None
        try:
            beside = tempfile.mkdtemp(dir=folder or '.', prefix='.%s.' % name)
            # Without the file `checkpoint`, which would hold this folder's path.
            tf.compat.v1.train.Saver(tensors).save(session, os.path.join(beside, name),
                                                   write_meta_graph=False, write_state=False)
            for written in sorted(os.listdir(beside)):  # its index, without which it is none, last
                os.replace(os.path.join(beside, written), os.path.join(folder, written))
        except (tf.errors.OpError, ValueError, OSError) as error:  # e.g. no space left
            message = getattr(error, 'strerror', None) or str(getattr(error, 'message', error))
            reason = re.search('; ([A-Z][A-Za-z ]+)$', message, re.MULTILINE)  # FILE; No space left on device
            raise UserError('%s: cannot be written: %s'
                            % (path, reason.group(1) if reason else message.split('\n')[0]))
        finally:
            if beside:
                shutil.rmtree(beside, ignore_errors=True)
