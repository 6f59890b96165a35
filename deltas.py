"""A delta: the weights that were trained, in a safetensors file that says what they belong to."""
import hashlib
import json

import compat  # noqa: F401
from bert4keras.backend import K
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from data import replacing
from errors import UserError

FORMAT = 'fl-tuning-delta-1'


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
    return dict(zip([name for name, _ in pairs], K.batch_get_value([w for _, w in pairs])))


def fingerprint(model, token_dict):
    """SHA-256 of the frozen weights and the vocabulary: the backbone a delta belongs to."""
    digest = hashlib.sha256(json.dumps(sorted(token_dict, key=token_dict.get)).encode())
    for name, value in sorted(get_values(named_weights(model, trainable=False)).items()):
        digest.update(('%s%s' % (name, value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def save_delta(path, values, belongs_to):
    """Write {name: array} and the JSON-able dict `belongs_to` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        try:
            # One entry, since safetensors writes several in an order left to chance.
            save_file(values, temporary, {FORMAT: json.dumps(belongs_to, sort_keys=True)})
        except SafetensorError as error:  # e.g. no space left
            raise UserError('%s: %s' % (path, error))


def read_delta(path):
    """({name: array}, belongs_to) of a delta. Raises UserError if the file is none."""
    try:
        with safe_open(path, 'numpy') as delta:
            metadata = delta.metadata() or {}
            values = {name: delta.get_tensor(name) for name in delta.keys()}
    except FileNotFoundError:
        raise UserError('%s: no such file' % path)
    except (SafetensorError, OSError) as error:
        raise UserError('%s: not a whole delta: %s' % (path, error))
    if FORMAT not in metadata:
        raise UserError('%s: expected a delta of this project (%s)' % (path, FORMAT))
    return values, json.loads(metadata[FORMAT])


def load_delta(path, model, belongs_to):
    """Set a model's trained weights. Raises UserError, with what differs, if not its own."""
    values, theirs = read_delta(path)
    for key, ours in belongs_to.items():
        if theirs.get(key) != ours:
            raise UserError('%s: %s is %s, here it is %s' % (path, key, theirs.get(key), ours))
    pairs = named_weights(model)
    expected = {name: K.int_shape(weight) for name, weight in pairs}
    found = {name: value.shape for name, value in values.items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise UserError('%s: %s has shape %s, here it is %s'
                            % (path, name, found.get(name), expected.get(name)))
    K.batch_set_value([(weight, values[name]) for name, weight in pairs])
