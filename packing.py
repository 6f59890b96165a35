"""True tokens only: from a padded (batch, length) grid to packed rows (tokens, ...) and back.

Rows move by gathers in both directions, also in the gradients: a gather is a copy, while the
gradient that TensorFlow derives for it is a slow sum over rows that never collide.

Attention scores cost the square of the length, so they are computed in `GROUPS` of samples of like
length, each group a grid as long as its own longest.
"""
import collections

import compat  # noqa: F401  (before bert4keras)
import tensorflow as tf
from bert4keras.backend import K, keras
from bert4keras.layers import Layer


# On a GPU, many small products take longer than a few that pad.
GROUPS = 1 if tf.config.experimental.list_physical_devices('GPU') else 4
PARTS = 9 + 2 * GROUPS  # the tensors that `Packing` returns

Grid = collections.namedtuple('Grid', 'places pieces masks sizes rows')
Grid.__doc__ = """Heads on a (samples, heads, length) grid, or on several, each for a group of samples.

places: (tokens * heads,), in the flat grids, one after the other; pieces: into how many to cut the
queries of each, or None; masks: for each, (samples, length), bool, true tokens; sizes: their shapes, as
pairs; rows: for each, (samples * heads * length,), which of the (tokens * heads,) rows belongs at a
place, for padding any.
"""
Places = collections.namedtuple('Places', 'mask places rows order inverse whole groups')
Places.__doc__ = """The outputs of `Packing`, by name.

mask: (batch, length), bool, true tokens; places: (tokens,), their places in the flat grid; rows:
(batch * length,), the packed row for each place, for padding that of some token before it; whole:
`Grid` of the batch; order: (batch,), the samples from the longest to the shortest, and inverse, the
way back; groups: `Grid` of the samples in this order, in `GROUPS` of like size.
"""


def name_parts(parts):
    """`Places` of the list of tensors that `Packing` returns."""
    pieces, masks = tf.unstack(parts[8], GROUPS), parts[9:9 + GROUPS]
    sizes = [tf.unstack(tf.shape(mask)) for mask in [parts[0]] + masks]
    return Places(*parts[:5], whole=Grid(parts[5], [None], [parts[0]], sizes[:1], [parts[6]]),
                  groups=Grid(parts[7], pieces, masks, sizes[1:], parts[9 + GROUPS:]))


class Packing(Layer):
    """Where the true tokens are.

    heads, head_size: what vectors will be split into for attention.
    Input: token ids (batch, length), 0 for padding; the first of a row always counts as true, as in
    bert4keras.
    Outputs: what `name_parts` takes.
    """

    def __init__(self, heads, head_size, **kwargs):
        super(Packing, self).__init__(**kwargs)
        self.heads = heads
        self.head_size = head_size

    def call(self, inputs):
        first = tf.ones_like(inputs[:, :1], dtype='bool')
        mask = tf.concat([first, tf.not_equal(inputs[:, 1:], 0)], 1)
        flat = tf.reshape(mask, [-1])
        places = tf.cast(tf.where(flat)[:, 0], 'int32')
        batch, length = tf.shape(mask)[0], tf.shape(mask)[1]
        rows = tf.reshape(tf.cumsum(tf.cast(flat, 'int32')) - 1, [batch, length])
        # Where a sample ends; a token of id 0 may stand inside.
        lengths = tf.reduce_max(tf.cast(mask, 'int32') * tf.range(1, length + 1), 1)
        # By numbers that are all different: equal ones TensorFlow 1 and 2 may put in another order.
        order = tf.argsort(tf.range(batch) - lengths * batch)
        inverse = tf.math.invert_permutation(order)
        whole = self.grid([tf.range(batch)], [length], tf.range(batch), mask, rows, places)
        groups = [order[batch * i // GROUPS:batch * (i + 1) // GROUPS] for i in range(GROUPS)]
        longest = [tf.reduce_max(tf.concat([tf.gather(lengths, group), [1]], 0)) for group in groups]
        groups = self.grid(groups, longest, inverse, mask, rows, places)
        return [mask, places, tf.reshape(rows, [-1]), order, inverse, whole.places, whole.rows[0],
                groups.places, groups.pieces] + groups.masks + groups.rows

    def grid(self, groups, lengths, inverse, mask, rows, places):
        """`Grid` of groups of samples; inverse: the place of each sample among those of all groups."""
        batch_length, heads = tf.shape(mask)[1], tf.range(self.heads)
        sizes = [(tf.size(samples), length) for samples, length in zip(groups, lengths)]
        masks, head_rows, begins, begin = [], [], [], 0
        for samples, (count, length) in zip(groups, sizes):
            masks.append(tf.gather(mask, samples)[:, :length])
            of_group = tf.gather(rows, samples)[:, :length]
            head_rows.append(tf.reshape(of_group[:, None] * self.heads + heads[:, None], [-1]))
            size = self.heads * length
            begins.append(begin + tf.range(count) * size)
            begin += count * size
        steps = [tf.fill([count], length) for count, length in sizes]
        begin, step = [tf.gather(tf.gather(tf.concat(x, 0), inverse), places // batch_length)
                       for x in (begins, steps)]
        head_places = (begin + places % batch_length)[:, None] + step[:, None] * heads
        return Grid(tf.reshape(head_places, [-1]), query_pieces(lengths, self.head_size), masks,
                    sizes, head_rows)

    def compute_mask(self, inputs, mask=None):
        return [None] * PARTS

    def compute_output_shape(self, input_shape):
        return [tuple(input_shape)] + [(None,)] * 8 + [(None, None)] * GROUPS + [(None,)] * GROUPS

    def get_config(self):
        return dict(super(Packing, self).get_config(), heads=self.heads, head_size=self.head_size)


def query_pieces(lengths, head_size):
    """Into how many pieces to cut the queries of sequences of these lengths, powers of 2.

    Of products of more than 2**22 multiply-adds each, TensorFlow 1.15 gives its threads a part of
    one after the other, instead of one to each thread, and takes twice the time.
    """
    cost = tf.square(tf.cast(tf.stack(lengths), 'float32')) * (head_size / 2.0**22)
    pieces = tf.ones_like(cost)
    for _ in range(6):
        pieces = tf.where(cost > pieces, 2 * pieces, pieces)
    return tf.cast(pieces, 'int32')


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


def split_heads(x, grid, heads):
    """(tokens, heads * size) -> for each group of the grid (samples, heads, length, size).

    At padding there are copies of other tokens. The caller must not let them matter (attention masks
    keys and values, and drops queries): the gradient takes that for granted.
    """
    size = K.int_shape(x)[-1] // heads

    @tf.custom_gradient
    def spread(x):
        def gradient(*dys):
            return tf.gather(tf.concat(dys, 0), grid.places)
        return [tf.gather(x, rows) for rows in grid.rows], gradient

    return [tf.reshape(rows, [samples, heads, length, size])
            for rows, (samples, length) in zip(spread(tf.reshape(x, [-1, size])), grid.sizes)]


def merge_heads(xs, grid, heads):
    """For each group of the grid (samples, heads, length, size) -> (tokens, heads * size)."""
    size = K.int_shape(xs[0])[-1]

    @tf.custom_gradient
    def collect(*xs):
        def gradient(dy):
            true = [tf.reshape(tf.tile(mask[:, None], [1, heads, 1]), [-1, 1])
                    for mask in grid.masks]
            return [tf.gather(dy, rows) * tf.cast(keep, dy.dtype)
                    for rows, keep in zip(grid.rows, true)]
        return tf.gather(tf.concat(xs, 0), grid.places), gradient

    rows = collect(*[tf.reshape(x, [-1, size]) for x in xs])
    return tf.reshape(rows, [-1, heads * size])


def split_samples(x, places):
    """(batch, ...) -> for each group (samples, ...)."""
    @tf.custom_gradient
    def in_order(x):
        return tf.gather(x, places.order), lambda dy: tf.gather(dy, places.inverse)
    return tf.split(in_order(x), [samples for samples, _ in places.groups.sizes])


@tf.custom_gradient
def gather_first(x, mask, places, rows):
    first = tf.reshape(rows, tf.shape(mask))[:, 0]

    def gradient(dy):
        length = tf.shape(mask)[1]
        is_first = tf.cast(tf.equal(places % length, 0), dy.dtype)[:, None]
        return tf.gather(dy, places // length) * is_first, None, None, None
    return tf.gather(x, first), gradient


def first_rows(x, places):
    """(tokens, size) -> (batch, size), the rows of position 0."""
    return gather_first(x, *places[:3])


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
        return first_rows(inputs[0], name_parts(inputs[1:]))

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (None, input_shape[0][-1])


keras.utils.get_custom_objects().update(
    Packing=Packing, Pack=Pack, Unpack=Unpack, FirstToken=FirstToken)
