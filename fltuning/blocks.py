"""For low precisions: many operations as one pass over memory, and what is made again instead of being kept.

TensorFlow passes over memory once for each element-wise operation, and in bfloat16 these passes, not the matrix
products, are what a step waits for. XLA makes one pass of a chain of them, but compiles anew for each shape, and
every batch has another number of tokens. So the rows go through it in blocks of two shapes that never change.
"""
from typing import Any, Callable

from fltuning import compat
import tensorflow as tf

SIZES = [2**19, 2**16]  # values of a block: large ones as long as they are full, then small ones


def use_blocks(dtype: Any) -> bool:
    """Whether they pay for tensors of this dtype here: a GPU has no such passes to save."""
    return bool(compat.TF2 and tf.as_dtype(dtype).size < 4
                and not tf.config.list_physical_devices('GPU'))


def shared(function: Callable, **options) -> Callable:
    """The function, of tensors, as one that all layers call: a copy in each takes seconds and memory to trace."""
    return tf.function(function, experimental_attributes={'_noinline': True}, **options)


def recomputed(function: Callable) -> Callable:
    """function(*tensors) -> tensor, whose gradient computes anew, from its inputs, what it would keep."""
    def gradients(dy, *xs):
        with tf.GradientTape() as tape:
            tape.watch([x for x in xs if x.dtype.is_floating])
            y = function(*xs)
        return tape.gradient(y, xs, dy)
    forward, backward = [shared(f, reduce_retracing=True) for f in (function, gradients)]

    @tf.custom_gradient
    def compute(*xs):
        return forward(*xs), lambda dy: backward(dy, *xs)
    return compute


class Blockwise:
    """f(*xs, constants=()) -> y, in the shape of the first x, for a kernel that treats all rows, (..., size), alike.

    kernel: f(*xs, *constants) -> y of a block, (rows, size), with the dtype of the first x. It has no gradient:
        give it to `tf.custom_gradient`.
    All xs have the same shape.
    """

    def __init__(self, kernel: Callable):
        self.kernel = kernel
        self.compiled = None  # one for all graphs: what XLA has made of it is found by its name
        self.shared = None

    def __call__(self, *xs, constants=()):
        if self.compiled is None:
            self.compiled = tf.function(self.kernel, jit_compile=True)
            self.shared = shared(self.compute)
        # As tensors: which variable they are of is no matter of what is shared.
        return self.shared(xs, tuple(map(tf.convert_to_tensor, constants)), tuple(SIZES))

    def compute(self, xs, constants, sizes):
        dtype, shape, known = xs[0].dtype, tf.shape(xs[0]), xs[0].shape
        size = int(known[-1])
        xs = [tf.reshape(x, [-1, size]) for x in xs]
        rows = tf.shape(xs[0])[0]
        large, small = [max(count // size, 1) for count in sizes]  # rows of a block
        many = rows // large
        some = (rows - many * large) // small
        begin_of_last = many * large + some * small  # which is filled up

        def compute(parts, length):
            return self.compiled(*[tf.ensure_shape(part, [length, size]) for part in parts], *constants)

        def loop(done, begin, count, length, place):
            def body(i, done):
                row = begin + i * length
                return i + 1, done.write(place + i, compute([x[row:row + length] for x in xs], length))
            return tf.while_loop(lambda i, _: i < count, body, (0, done))[1]

        done = tf.TensorArray(dtype, many + some + 1, infer_shape=False, element_shape=[None, size])
        done = loop(done, 0, many, large, 0)
        done = loop(done, many * large, some, small, many)
        done = done.write(many + some, compute([
            tf.pad(x[begin_of_last:], [[0, begin_of_last + small - rows], [0, 0]]) for x in xs], small))
        y = tf.reshape(done.concat()[:rows], shape)
        y.set_shape(known)
        return y
