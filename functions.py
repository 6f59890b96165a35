"""Initial values, dropout as a function of seed and step, GELU and layer norm with their gradients.

What TensorFlow derives on its own for those two goes over each activation more often, and on a CPU
a pass over memory counts.
"""
import math
import zlib

import compat
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras
from bert4keras.layers import LayerNormalization


# What new weights are drawn from. Not NumPy's global state, of which Keras 2.3.1 draws as well.
weights_random = np.random.RandomState(0)


def truncated_normal(shape, stddev):
    """Normal values from `weights_random`, none further than two standard deviations from 0."""
    values = weights_random.normal(0, 1, shape)
    while (np.abs(values) > 2).any():
        values = np.where(np.abs(values) > 2, weights_random.normal(0, 1, shape), values)
    return values * stddev


class PromptInitializer(keras.initializers.Initializer):
    """Truncated normal from `weights_random`, so that both stacks start from the same weights.

    (tf-keras gives every weight that shares an initializer the same values.)
    """

    def __init__(self, stddev=0.02):
        self.stddev = stddev

    def __call__(self, shape, dtype=None, **kwargs):
        return K.constant(truncated_normal(shape, self.stddev), dtype=dtype)

    def get_config(self):
        return {'stddev': self.stddev}


_keys = {}  # `tf2`: the one variable below


def dropout_key():
    """The variable (seed, step), int32, that all dropout is drawn from; like Keras's learning phase,
    one for the current graph.

    TensorFlow's own generators count their calls, which no file can keep. Set by whoever trains.
    """
    if not compat.TF2:
        found = tf.compat.v1.get_collection_ref('dropout_key')
        if not found:
            found.append(K.variable([0, 0], 'int32', 'dropout_key'))
        return found[0]
    if 'key' not in _keys:
        with tf.init_scope():
            _keys['key'] = tf.Variable([0, 0], trainable=False, dtype='int32', name='dropout_key')
    return _keys['key']


def keep_mask(shape, rate, name, dtype):
    """1 where a value stays, 0 at `rate` (to 1/65536), drawn from `dropout_key()` and `name`."""
    key = dropout_key() + np.array([zlib.crc32(name.encode()) >> 1, 0], 'int32')
    size = tf.reduce_prod(shape)
    # Two values of 16 bits from each of 32: random numbers are what costs here.
    bits = tf.random.stateless_uniform([(size + 1) // 2], key, -2**31, 2**31 - 1, 'int32')
    bits = tf.reshape(tf.bitcast(bits, 'int16'), [-1])[:size]
    keep = tf.reshape(bits, shape) >= tf.constant(int(round(rate * 65536)) - 32768, 'int16')
    return tf.cast(keep, dtype)


def dropout(x, rate, name=None, training=None):
    """(values, factor): in training x with values set to 0 at `rate`, and 1 / (1 - rate).

    They are to be multiplied, wherever that is cheapest; without training they are x and 1. With a
    name, which tells layers apart, the values are a function of it and of `dropout_key()` alone;
    without, TensorFlow draws them.
    """
    if not rate:
        return x, 1.0
    if name is None:
        return K.in_train_phase(lambda: K.dropout(x, rate), x, training), 1.0

    # Its own gradient: TensorFlow's would fill a tensor with zeros for the branch not taken.
    @tf.custom_gradient
    def drop(x, keep):
        return K.in_train_phase(lambda: x * keep, x, training), lambda dy: (dy * keep, None)
    y = drop(x, K.in_train_phase(lambda: keep_mask(tf.shape(x), rate, name, x.dtype),
                                 lambda: tf.constant(1, x.dtype), training))
    y.set_shape(x.shape)
    if not compat.TF2:
        y._uses_learning_phase = True
    factor = K.in_train_phase(lambda: tf.constant(1 / (1 - rate), x.dtype),
                              lambda: tf.constant(1, x.dtype), training)
    return y, factor


class KeyedDropout(keras.layers.Dropout):
    """Keras's Dropout, drawn from `dropout_key`."""

    def call(self, inputs, training=None):
        values, factor = dropout(inputs, self.rate, self.name, training)
        return values * factor


@tf.custom_gradient
def _gelu(x):
    cdf = 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))

    def gradient(dy):
        pdf = tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi))
        return dy * (cdf + x * pdf)
    return x * cdf, gradient


def exact_gelu(x):
    """x * P(X <= x), X normally distributed (arXiv 1606.08415), any shape."""
    return _gelu(x)


def normalizer(epsilon):
    """f(x): (x - mean) / sqrt(variance + epsilon) over the last axis."""
    @tf.custom_gradient
    def normalize(x):
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
        y = centred * scale

        def gradient(dy):
            along = tf.reduce_mean(dy * y, -1, keepdims=True)
            return (dy - tf.reduce_mean(dy, -1, keepdims=True) - y * along) * scale
        return y, gradient
    return normalize


class FastLayerNormalization(LayerNormalization):
    """bert4keras's LayerNormalization, where it is neither conditional nor without mean or variance."""

    def call(self, inputs):
        if self.conditional or not (self.zero_mean and self.unit_variance):
            return super(FastLayerNormalization, self).call(inputs)
        outputs = normalizer(self.epsilon)(inputs)
        if self.scale is not False and self.scale is not None:
            outputs = outputs * (self.gamma if self.scale is True else self.scale)
        if self.offset is not False and self.offset is not None:
            outputs = outputs + (self.beta if self.offset is True else self.offset)
        return outputs


keras.utils.get_custom_objects().update(
    PromptInitializer=PromptInitializer, KeyedDropout=KeyedDropout, exact_gelu=exact_gelu,
    FastLayerNormalization=FastLayerNormalization)
