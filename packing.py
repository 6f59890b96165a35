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

    heads: into how many attention heads the vectors will be split.
    Input: token ids (batch, length), 0 for padding; the first of a row always counts as true, as in
    bert4keras.
    Outputs: `mask` (batch, length), bool, true tokens; `places` (tokens,), their places in the flat
    grid; `rows` (batch * length,), the packed row for each place, for padding that of some token
    before it; `head_places` and `head_rows`, the same between (tokens * heads,) and
    (batch * heads * length,), so that splitting heads costs no transpose.
    """

    def __init__(self, heads, **kwargs):
        super(Packing, self).__init__(**kwargs)
        self.heads = heads

    def call(self, inputs):
        first = tf.ones_like(inputs[:, :1], dtype='bool')
        mask = tf.concat([first, tf.not_equal(inputs[:, 1:], 0)], 1)
        flat = tf.reshape(mask, [-1])
        places = tf.cast(tf.where(flat)[:, 0], 'int32')
        rows = tf.cumsum(tf.cast(flat, 'int32')) - 1
        batch, length, heads = tf.shape(mask)[0], tf.shape(mask)[1], tf.range(self.heads)
        sample, position = places // length, places % length
        head_places = (sample[:, None] * self.heads + heads) * length + position[:, None]
        head_rows = tf.reshape(rows, [batch, 1, length]) * self.heads + heads[:, None]
        return [mask, places, rows, tf.reshape(head_places, [-1]), tf.reshape(head_rows, [-1])]

    def compute_mask(self, inputs, mask=None):
        return [None] * 5

    def compute_output_shape(self, input_shape):
        return [tuple(input_shape)] + [(None,)] * 4

    def get_config(self):
        return dict(super(Packing, self).get_config(), heads=self.heads)


@tf.custom_gradient
def move_rows(x, there, back, weights):
    """x[there], where `back` undoes it; `weights` (rows, 1) are 0 for rows that were thrown away."""
    def gradient(dy):
        return tf.gather(dy, back) * weights, None, None, None
    return tf.gather(x, there), gradient


@tf.custom_gradient
def spread_rows(x, there, back):
    """x[there], where rows beyond x[there][back] are copies that must not matter."""
    def gradient(dy):
        return tf.gather(dy, back), None, None
    return tf.gather(x, there), gradient


def split_heads(x, packing, heads):
    """(tokens, heads * size) -> (batch, heads, length, size).

    At padding there are copies of other tokens. The caller must not let them matter (attention masks
    keys and values, and drops queries): the gradient takes that for granted.
    """
    mask, _, _, head_places, head_rows = packing
    size = K.int_shape(x)[-1] // heads
    grid = spread_rows(tf.reshape(x, [-1, size]), head_rows, head_places)
    return tf.reshape(grid, [tf.shape(mask)[0], heads, tf.shape(mask)[1], size])


def merge_heads(x, packing, heads):
    """(batch, heads, length, size) -> (tokens, heads * size)."""
    mask, _, _, head_places, head_rows = packing
    size = K.int_shape(x)[-1]
    weights = tf.cast(tf.reshape(tf.tile(mask[:, None], [1, heads, 1]), [-1, 1]), x.dtype)
    rows = move_rows(tf.reshape(x, [-1, size]), head_places, head_rows, weights)
    return tf.reshape(rows, [-1, heads * size])


@tf.custom_gradient
def gather_first(x, mask, places, rows):
    first = tf.reshape(rows, tf.shape(mask))[:, 0]

    def gradient(dy):
        length = tf.shape(mask)[1]
        is_first = tf.cast(tf.equal(places % length, 0), dy.dtype)[:, None]
        return tf.gather(dy, places // length) * is_first, None, None, None
    return tf.gather(x, first), gradient


def first_rows(x, packing):
    """(tokens, size) -> (batch, size), the rows of position 0."""
    return gather_first(x, *packing[:3])


class Pack(Layer):
    """[(batch, length, size), packing] -> (tokens, size)."""

    def call(self, inputs):
        x, (mask, places, rows) = inputs[0], inputs[1:4]
        weights = tf.cast(tf.reshape(mask, [-1, 1]), x.dtype)
        return move_rows(tf.reshape(x, [-1, K.int_shape(x)[-1]]), places, rows, weights)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (None, input_shape[0][-1])


class Unpack(Layer):
    """[(tokens, size), packing] -> (batch, length, size), 0 at padding."""

    def call(self, inputs):
        x, (mask, places, rows) = inputs[0], inputs[1:4]
        grid = tf.reshape(spread_rows(x, rows, places),
                          tf.concat([tf.shape(mask), [K.int_shape(x)[-1]]], 0))
        return grid * tf.cast(mask, x.dtype)[..., None]

    def compute_mask(self, inputs, mask=None):
        return inputs[1]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[1]) + (input_shape[0][-1],)


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
