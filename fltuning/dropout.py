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
    if x.dtype.size < 4:  # a rate whose factor this dtype can say: what is expected stays the same
        rate = 1 - 1 / float(np.asarray(1 / (1 - rate), x.dtype.as_numpy_dtype))
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

    def build(self, input_shape):
        super().build(input_shape)
        track_key(self)

    def call(self, inputs, training=None):
        values, factor = dropout(inputs, self.rate, self.name, training)
        return values * factor


keras.utils.get_custom_objects()['KeyedDropout'] = KeyedDropout
