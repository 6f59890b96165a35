"""A model's weights by name: what was trained, and the fingerprint of what was not."""
import hashlib
import json

from fltuning import compat  # noqa: F401  (before TensorFlow)
import numpy as np
from bert4keras.backend import K

from fltuning import deltas
from fltuning.errors import UserError


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
    expected = {name: (K.int_shape(weight), K.dtype(weight)) for name, weight in pairs}
    found = {name: (value.shape, str(value.dtype)) for name, value in values.items()}
    for name in sorted(set(expected) | set(found)):
        (shape, dtype), (theirs, their_dtype) = [x.get(name, (None, None)) for x in (expected, found)]
        if shape != theirs:
            raise UserError('%s: %s has shape %s, here it is %s' % (path, name, theirs, shape))
        if dtype.split('_ref')[0] != their_dtype:
            raise UserError('%s: %s is of %s, here it is %s' % (path, name, their_dtype, dtype))


def set_values(pairs, values):
    """Set [(name, variable)] to {name: array}."""
    K.batch_set_value([(weight, values[name]) for name, weight in pairs])


def fingerprint(transformer, token_dict):
    """SHA-256 of the backbone that a delta belongs to: vocabulary, weights, and how it computes.

    The weights are those of the checkpoint, by its names, in float32 whatever the model computes in. What
    TensorFlow computes is left out: tables of positions differ in their last bits from one version or device
    to the next.
    transformer: one that loaded its checkpoint.
    """
    computation = {name: getattr(transformer, name) for name in (
        'backbone', 'hidden_act', 'num_attention_heads', 'attention_head_size', 'attention_key_size',
        'layer_norm_eps')}
    tokens = sorted(token_dict, key=token_dict.get)
    digest = hashlib.sha256(json.dumps([tokens, computation], sort_keys=True).encode())
    pairs = []
    for layer, variables in transformer.variable_mapping().items():
        layer = transformer.layers.get(transformer.prefixed(layer))
        pairs += zip(variables, layer.weights if layer else [])
    values = (transformer.checkpoint_values([name for name, _ in pairs]) if transformer.low_weights
              else get_values(pairs))
    for name, value in sorted(values.items()):
        digest.update(('%s%s' % (name, value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def frozen_sha256(model, token_dict):
    """SHA-256 of the vocabulary and all frozen weights, computed ones too: were any changed here?

    Files of format 1 have it as the backbone's fingerprint.
    """
    digest = hashlib.sha256(json.dumps(sorted(token_dict, key=token_dict.get)).encode())
    for name, value in sorted(get_values(named_weights(model, trainable=False)).items()):
        digest.update(('%s%s' % (name, value.shape)).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def count(weights):
    """How many numbers are in these variables."""
    return int(sum(np.prod(K.int_shape(weight)) for weight in weights))


def load_delta(path, model, belongs_to):
    """Set a model's trained weights. Raises UserError, with what differs, if they are not its own."""
    values, theirs = deltas.read_delta(path)
    deltas.check_identity(path, theirs, belongs_to)
    check_values(path, named_weights(model), values)
    set_values(named_weights(model), values)
