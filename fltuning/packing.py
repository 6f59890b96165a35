"""Unpadding: from a padded (batch, length) grid to rows of true tokens, (tokens, ...), and back.

Three samples of 4, 1 and 2 tokens, . for padding, with the numbers of their rows:

    as a grid (batch, length)    as rows (tokens,)       as groups of like length, here two
        a b c d                  a b c d e f g           a b c d        f g
        e . . .                  0 1 2 3 4 5 6                          e .
        f g . .
    mask      1 1 1 1  1 0 0 0  1 1 0 0
    indices   0 1 2 3 4 8 9                  of each row in the flat grid: unpads, grid[indices]
    rows      0 1 2 3  4 4 4 4  5 6 6 6      of each place in the grid: pads, rows[rows] * mask
    order     0 2 1                          of the samples, the longest first

Layers that look at one token at a time run on the rows. Attention looks at a sample, and its scores cost
the square of the length, so it runs on groups of samples of like length, each a grid as long as its
own longest.

Rows move by gathers in both directions, also in the gradients: a gather is a copy, while the gradient
that TensorFlow derives for it is a slow sum over rows that never collide.
"""
from typing import Any, List, NamedTuple, Optional, Tuple

from fltuning import compat  # noqa: F401  (before TensorFlow)
import tensorflow as tf
from bert4keras.backend import K, keras
from bert4keras.layers import Layer


def default_groups() -> int:
    """On a GPU, many small products take longer than a few that pad."""
    return 1 if tf.config.experimental.list_physical_devices('GPU') else 4


class HeadGrid(NamedTuple):
    """Attention heads on a (samples, heads, length) grid, or on several, one for each group of samples."""
    indices: Any  # (tokens * heads,), in the flat grids, one after the other
    pieces: List[Optional[Any]]  # into how many to cut the queries of each; None for one
    masks: List[Any]  # of each, (samples, length), bool, true tokens
    shapes: List[Tuple[Any, Any]]  # of each, (samples, length)
    rows: List[Any]  # of each, (samples * heads * length,), the row for a place, of padding any


class Unpadding(NamedTuple):
    """The outputs of `Packing`, by name."""
    mask: Any  # (batch, length), bool, true tokens
    indices: Any  # (tokens,), of each row in the flat grid
    rows: Any  # (batch * length,), of each place in the grid; for padding that of some token before it
    order: Any  # (batch,), the samples from the longest to the shortest
    inverse: Any  # (batch,), the way back
    whole: HeadGrid  # of the batch
    groups: HeadGrid  # of the samples in `order`, in groups of like size


def count_parts(groups: int) -> int:
    """How many tensors `Packing` returns."""
    return 9 + 2 * groups


def name_parts(parts) -> Unpadding:
    """`Unpadding` of the list of tensors that `Packing` returns."""
    groups = (len(parts) - 9) // 2
    pieces, masks = tf.unstack(parts[8], groups), parts[9:9 + groups]
    shapes = [tf.unstack(tf.shape(mask)) for mask in [parts[0]] + masks]
    return Unpadding(*parts[:5], whole=HeadGrid(parts[5], [None], [parts[0]], shapes[:1], [parts[6]]),
                     groups=HeadGrid(parts[7], pieces, masks, shapes[1:], parts[9 + groups:]))


class Packing(Layer):
    """Where the true tokens are.

    heads, head_size: what vectors will be split into for attention.
    groups: of samples of like length; None for what this machine's device is best with. It is part of
        the layer's configuration, since the layers behind it count on it.
    Input: token ids (batch, length), 0 for padding; the first of a row always counts as true, as in
    bert4keras.
    Outputs: what `name_parts` takes.
    """

    def __init__(self, heads, head_size, groups=None, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.head_size = head_size
        self.groups = groups or default_groups()

    def call(self, inputs):
        first = tf.ones_like(inputs[:, :1], dtype='bool')
        mask = tf.concat([first, tf.not_equal(inputs[:, 1:], 0)], 1)
        flat = tf.reshape(mask, [-1])
        indices = tf.cast(tf.where(flat)[:, 0], 'int32')
        batch, length = tf.shape(mask)[0], tf.shape(mask)[1]
        rows = tf.reshape(tf.cumsum(tf.cast(flat, 'int32')) - 1, [batch, length])
        # Where a sample ends; a token of id 0 may stand inside.
        lengths = tf.reduce_max(tf.cast(mask, 'int32') * tf.range(1, length + 1), 1)
        # By numbers that are all different: equal ones TensorFlow 1 and 2 may put in another order.
        order = tf.argsort(tf.range(batch) - lengths * batch)
        inverse = tf.math.invert_permutation(order)
        whole = self.grid([tf.range(batch)], [length], tf.range(batch), mask, rows, indices)
        count = self.groups
        groups = [order[batch * i // count:batch * (i + 1) // count] for i in range(count)]
        longest = [tf.reduce_max(tf.concat([tf.gather(lengths, group), [1]], 0)) for group in groups]
        groups = self.grid(groups, longest, inverse, mask, rows, indices)
        return [mask, indices, tf.reshape(rows, [-1]), order, inverse, whole.indices, whole.rows[0],
                groups.indices, groups.pieces] + groups.masks + groups.rows

    def grid(self, groups, lengths, inverse, mask, rows, indices):
        """`HeadGrid` of groups of samples; inverse: the place of each sample among those of all groups."""
        batch_length, heads = tf.shape(mask)[1], tf.range(self.heads)
        shapes = [(tf.size(samples), length) for samples, length in zip(groups, lengths)]
        masks, head_rows, begins, begin = [], [], [], 0
        for samples, (count, length) in zip(groups, shapes):
            masks.append(tf.gather(mask, samples)[:, :length])
            of_group = tf.gather(rows, samples)[:, :length]
            head_rows.append(tf.reshape(of_group[:, None] * self.heads + heads[:, None], [-1]))
            size = self.heads * length
            begins.append(begin + tf.range(count) * size)
            begin += count * size
        steps = [tf.fill([count], length) for count, length in shapes]
        begin, step = [tf.gather(tf.gather(tf.concat(x, 0), inverse), indices // batch_length)
                       for x in (begins, steps)]
        head_indices = (begin + indices % batch_length)[:, None] + step[:, None] * heads
        return HeadGrid(tf.reshape(head_indices, [-1]), query_pieces(lengths, self.head_size), masks,
                        shapes, head_rows)

    def compute_mask(self, inputs, mask=None):
        return [None] * count_parts(self.groups)

    def compute_output_shape(self, input_shape):
        return [tuple(input_shape)] + [(None,)] * 8 + [(None, None)] * self.groups + [
            (None,)] * self.groups

    def get_config(self):
        return dict(super().get_config(), heads=self.heads, head_size=self.head_size,
                    groups=self.groups)


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
def unpad(x, indices, rows, weights):
    """(batch * length, size) -> (tokens, size); weights: (batch * length, 1), 0 at padding."""
    def gradient(dy):
        return tf.gather(dy, rows) * weights, None, None, None
    return tf.gather(x, indices), gradient


@tf.custom_gradient
def pad(x, rows, indices):
    """(tokens, size) -> (batch * length, size), at padding copies of other tokens, which must not matter."""
    def gradient(dy):
        return tf.gather(dy, indices), None, None
    return tf.gather(x, rows), gradient


def split_heads(x, grid, heads):
    """(tokens, heads * size) -> for each group of the grid (samples, heads, length, size).

    At padding there are copies of other tokens. The caller must not let them matter (attention masks
    keys and values, and drops queries): the gradient takes that for granted.
    """
    size = K.int_shape(x)[-1] // heads

    @tf.custom_gradient
    def spread(x):
        def gradient(*dys):
            return tf.gather(tf.concat(dys, 0), grid.indices)
        return [tf.gather(x, rows) for rows in grid.rows], gradient

    return [tf.reshape(rows, [samples, heads, length, size])
            for rows, (samples, length) in zip(spread(tf.reshape(x, [-1, size])), grid.shapes)]


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
        return tf.gather(tf.concat(xs, 0), grid.indices), gradient

    rows = collect(*[tf.reshape(x, [-1, size]) for x in xs])
    return tf.reshape(rows, [-1, heads * size])


def split_samples(x, parts):
    """(batch, ...) -> for each group (samples, ...)."""
    @tf.custom_gradient
    def in_order(x):
        return tf.gather(x, parts.order), lambda dy: tf.gather(dy, parts.inverse)
    return tf.split(in_order(x), [samples for samples, _ in parts.groups.shapes])


@tf.custom_gradient
def gather_first(x, mask, indices, rows):
    first = tf.reshape(rows, tf.shape(mask))[:, 0]

    def gradient(dy):
        length = tf.shape(mask)[1]
        is_first = tf.cast(tf.equal(indices % length, 0), dy.dtype)[:, None]
        return tf.gather(dy, indices // length) * is_first, None, None, None
    return tf.gather(x, first), gradient


def first_rows(x, parts):
    """(tokens, size) -> (batch, size), the rows of position 0."""
    return gather_first(x, parts.mask, parts.indices, parts.rows)


class Unpad(Layer):
    """[(batch, length, size), *outputs of `Packing`] -> (tokens, size)."""

    def call(self, inputs):
        x, (mask, indices, rows) = inputs[0], inputs[1:4]
        weights = tf.cast(tf.reshape(mask, [-1, 1]), x.dtype)
        return unpad(tf.reshape(x, [-1, K.int_shape(x)[-1]]), indices, rows, weights)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (None, input_shape[0][-1])


class Pad(Layer):
    """[(tokens, size), *outputs of `Packing`] -> (batch, length, size), 0 at padding."""

    def call(self, inputs):
        x, (mask, indices, rows) = inputs[0], inputs[1:4]
        grid = tf.reshape(pad(x, rows, indices),
                          tf.concat([tf.shape(mask), [K.int_shape(x)[-1]]], 0))
        return grid * tf.cast(mask, x.dtype)[..., None]

    def compute_mask(self, inputs, mask=None):
        return inputs[1]

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[1]) + (input_shape[0][-1],)


class FirstToken(Layer):
    """[(tokens, size), *outputs of `Packing`] -> (batch, size)."""

    def call(self, inputs):
        return first_rows(inputs[0], name_parts(inputs[1:]))

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (None, input_shape[0][-1])


keras.utils.get_custom_objects().update(
    Packing=Packing, Unpad=Unpad, Pad=Pad, FirstToken=FirstToken)
