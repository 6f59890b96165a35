"""True tokens only: from a padded (batch, length) grid to packed rows (tokens, ...) and back.

Rows move by gathers in both directions, also in the gradients: a gather is a copy, while the
gradient that TensorFlow derives for it is a slow sum over rows that never collide.
"""
import compat  # noqa: F401  (before bert4keras)
import tensorflow as tf
from bert4keras.backend import K, keras
from bert4keras.layers import Layer


class Packing(Layer):
    """Where the true tokens are.

    Input: token ids (batch, length), 0 for padding; the first of a row always counts as true, as in
    bert4keras.
    Outputs: `places` (tokens,), the true places in the flat grid; `rows` (batch * length,), the
    packed row for each place, for padding that of some token before it; `mask` (batch, length),
    bool, true tokens.
    """

    def call(self, inputs):
        first = tf.ones_like(inputs[:, :1], dtype='bool')
        mask = tf.concat([first, tf.not_equal(inputs[:, 1:], 0)], 1)
        flat = tf.reshape(mask, [-1])
        places = tf.cast(tf.where(flat)[:, 0], 'int32')
        return [places, tf.cumsum(tf.cast(flat, 'int32')) - 1, mask]

    def compute_mask(self, inputs, mask=None):
        return [None, None, None]

    def compute_output_shape(self, input_shape):
        return [(None,), (None,), tuple(input_shape)]


@tf.custom_gradient
def gather_tokens(x, places, rows, mask):
    def gradient(dy):
        # Padding must get 0: what was computed there was thrown away.
        return tf.gather(dy, rows) * tf.cast(tf.reshape(mask, [-1, 1]), dy.dtype), None, None, None
    return tf.gather(x, places), gradient


@tf.custom_gradient
def gather_grid(x, places, rows):
    def gradient(dy):
        return tf.gather(dy, places), None, None
    return tf.gather(x, rows), gradient


def fold(x, packing):
    """(batch * length, size) -> (tokens, size)."""
    places, rows, mask = packing
    return gather_tokens(x, places, rows, mask)


def unfold(x, packing):
    """(tokens, size) -> (batch * length, size).

    At padding there are copies of other rows. The caller must not let them matter (attention masks
    keys and values, and drops queries): the gradient takes that for granted.
    """
    places, rows, _ = packing
    return gather_grid(x, places, rows)


@tf.custom_gradient
def gather_first(x, places, rows, mask):
    first = tf.reshape(rows, tf.shape(mask))[:, 0]

    def gradient(dy):
        length = tf.shape(mask)[1]
        is_first = tf.cast(tf.equal(places % length, 0), dy.dtype)[:, None]
        return tf.gather(dy, places // length) * is_first, None, None, None
    return tf.gather(x, first), gradient


def first_rows(x, packing):
    """(tokens, size) -> (batch, size), the rows of position 0."""
    return gather_first(x, *packing)


class Pack(Layer):
    """[(batch, length, size), packing] -> (tokens, size)."""

    def call(self, inputs):
        x, packing = inputs[0], inputs[1:]
        return fold(K.reshape(x, (-1, K.int_shape(x)[-1])), packing)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (None, input_shape[0][-1])


class Unpack(Layer):
    """[(tokens, size), packing] -> (batch, length, size), 0 at padding."""

    def call(self, inputs):
        x, packing = inputs[0], inputs[1:]
        shape = tf.concat([tf.shape(packing[2]), [K.int_shape(x)[-1]]], 0)
        grid = tf.reshape(unfold(x, packing), shape)
        return grid * K.cast(packing[2], K.dtype(x))[..., None]

    def compute_mask(self, inputs, mask=None):
        return inputs[-1]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[-1]) + (input_shape[0][-1],)


class FirstToken(Layer):
    """[(tokens, size), packing] -> (batch, size)."""

    def call(self, inputs):
        return first_rows(inputs[0], inputs[1:])

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (None, input_shape[0][-1])


keras.utils.get_custom_objects().update(
    Packing=Packing, Pack=Pack, Unpack=Unpack, FirstToken=FirstToken)
