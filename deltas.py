"""A delta: the weights that were trained, in a safetensors file that says what they belong to."""
import hashlib
import json
import re

import compat  # noqa: F401
import numpy as np
from bert4keras.backend import K
from safetensors import SafetensorError, safe_open

from data import shorten, write_tensors
from errors import UserError

FORMAT = 'fl-tuning-delta-1'
STATE = 'fl-tuning-state-1'  # the same with the optimizer's moments: a run that can go on


def named_weights(model, trainable=True):
    """[(name, variable)] of a model's trained (or frozen) weights.

    The name is the layer's with the weight's place in it, e.g. Transformer-0-AddFFN/0/kernel: what
    Keras calls them depends on what was built before.
    """
    pairs = []
    for layer in model.layers:
        weights = layer.trainable_weights if trainable else layer.non_trainable_weights
        for i, weight in enumerate(weights):
            pairs.append(('%s/%d/%s' % (layer.name, i, weight.name.split('/')[-1].split(':')[0]),
                          weight))
    return pairs


def get_values(pairs):
    """{name: array} of [(name, variable)]."""
    values = K.batch_get_value([weight for _, weight in pairs])
    return {name: np.asarray(value) for (name, _), value in zip(pairs, values)}


def check_values(path, pairs, values):
    """Raises UserError if {name: array} of a file do not fit [(name, variable)], all of them."""
    expected = {name: K.int_shape(weight) for name, weight in pairs}
    found = {name: value.shape for name, value in values.items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise UserError('%s: %s has shape %s, here it is %s'
                            % (path, name, found.get(name), expected.get(name)))


def set_values(pairs, values):
    """Set [(name, variable)] to {name: array}."""
    K.batch_set_value([(weight, values[name]) for name, weight in pairs])


def fingerprint(model, token_dict):
    """SHA-256 of the frozen weights and the vocabulary: the backbone a delta belongs to."""
    digest = hashlib.sha256(json.dumps(sorted(token_dict, key=token_dict.get)).encode())
    for name, value in sorted(get_values(named_weights(model, trainable=False)).items()):
        digest.update(('%s%s' % (name, value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def layer_numbers(names, pattern):
    """The numbers i, sorted, for which `pattern % i` is among the names."""
    expression = re.compile(re.escape(pattern).replace(re.escape('%d'), '(\\d+)') + '$')
    return sorted(int(found.group(1)) for found in map(expression.match, names) if found)


def method(prompt_size, ffn_prompt_size):
    names = [name for name, size in [('FL-Tuning', ffn_prompt_size), ('P-Tuning V2', prompt_size)]
             if size]
    return ' + '.join(names) or 'head only'


def identity(task, transformer, backbone_sha256):
    """What a delta belongs to: it loads where all of this is the same."""
    return {
        'task': task.name, 'labels': getattr(task, 'labels', []), 'maxlen': task.maxlen,
        'method': method(transformer.prompt_size, transformer.ffn_prompt_size),
        'prompt_size': transformer.prompt_size, 'ffn_prompt_size': transformer.ffn_prompt_size,
        'layers_to_transform': transformer.layers_to_transform,
        'backbone_kind': transformer.backbone, 'backbone_sha256': backbone_sha256}


def check_identity(path, theirs, ours):
    """Raises UserError with the first two values that differ."""
    for key, value in sorted(ours.items()):
        if theirs.get(key) != value:
            raise UserError('%s: %s is %s, here it is %s'
                            % (path, key, shorten(theirs.get(key), 80), shorten(value, 80)))


def save_delta(path, values, belongs_to, kind=FORMAT):
    """Write {name: array} and the JSON-able dict `belongs_to` to `path`, whole or not at all."""
    # One entry, since safetensors writes several in an order left to chance.
    write_tensors(path, values, {kind: json.dumps(belongs_to, sort_keys=True)})


def read_delta(path, kind=FORMAT):
    """({name: array}, belongs_to) of a delta. Raises UserError if the file is none."""
    what = kind.split('-')[2]
    try:
        with safe_open(path, 'numpy') as delta:
            metadata = delta.metadata() or {}
            values = {name: delta.get_tensor(name) for name in delta.keys()}
    except FileNotFoundError:
        raise UserError('%s: no such file' % path)
    except (SafetensorError, OSError) as error:
        raise UserError('%s: not a whole %s: %s' % (path, what, error))
    if kind not in metadata:
        raise UserError('%s: expected a %s of this project (%s)' % (path, what, kind))
    return values, json.loads(metadata[kind])


def load_delta(path, model, belongs_to):
    """Set a model's trained weights. Raises UserError, with what differs, if not its own."""
    values, theirs = read_delta(path)
    check_identity(path, theirs, belongs_to)
    check_values(path, named_weights(model), values)
    set_values(named_weights(model), values)
