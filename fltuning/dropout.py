"""Dropout as a function of seed and step."""
import zlib

from fltuning import compat  # before TensorFlow
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras

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


def track_key(layer):
    """`tf2`: have what is saved of a layer (SavedModel) hold `dropout_key()`, which is no weight of it."""
    if compat.TF2:
        layer._track_trackable(dropout_key(), 'dropout_key', overwrite=True)


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
        return K.in_train_phase(lambda: K.dropout(x, nearest_rate(rate, x.dtype)), x, training), 1.0

    # Its own gradient: TensorFlow's would fill a tensor with zeros for the branch not taken.
    @tf.custom_gradient
    def drop(x, keep):
        def gradient(dy):
            with tf.control_dependencies([dy]):  # else the numbers of the forward pass would be kept
                numbers = tf.cast(keep, dy.dtype)
            return dy * numbers, None
        return K.in_train_phase(lambda: x * tf.cast(keep, x.dtype), x, training), gradient
    keep, factor = draw(tf.shape(x), x.dtype, rate, name, training)
    y = drop(x, keep)
    y.set_shape(x.shape)
    if not compat.TF2:
        y._uses_learning_phase = True
    return y, factor


def nearest_rate(rate, dtype):
    """The rate whose factor, 1 / (1 - rate), this dtype can say: what is expected stays the same."""
    return 1 - 1 / float(np.asarray(1 / (1 - rate), dtype.as_numpy_dtype)) if dtype.size < 4 else rate


def draw(shape, dtype, rate, name, training=None):
    """(keep, factor) of `dropout` for values of this dtype: keep, (*shape), says what stays, by name and key.

    It is bool for a low precision: half the memory of what is held for the gradient. Without training both are 1.
    """
    rate = nearest_rate(rate, dtype)
    kept_as = tf.bool if dtype.size < 4 else dtype
    keep = K.in_train_phase(lambda: keep_mask(shape, rate, name, kept_as), lambda: tf.cast(1, kept_as), training)
    factor = K.in_train_phase(lambda: tf.constant(1 / (1 - rate), dtype), lambda: tf.constant(1, dtype), training)
    return keep, factor


class KeyedDropout(keras.layers.Dropout):
    """Keras's Dropout, drawn from `dropout_key`."""

    def build(self, input_shape):
        super().build(input_shape)
        track_key(self)

    def call(self, inputs, training=None):
        values, factor = dropout(inputs, self.rate, self.name, training)
        return values * factor


keras.utils.get_custom_objects()['KeyedDropout'] = KeyedDropout
