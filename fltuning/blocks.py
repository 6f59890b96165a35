"""Many operations as one pass over memory, for low precisions on a CPU.

TensorFlow passes over memory once for each element-wise operation, and in bfloat16 these passes, not the matrix
products, are what a step waits for. XLA makes one pass of a chain of them, but compiles anew for each shape, and
every batch has another number of tokens. So the rows go through it in blocks of a shape that never changes.
"""
from typing import Any, Callable

from fltuning import compat
import tensorflow as tf

SIZE = 2**17  # values of a block


def use_blocks(dtype: Any) -> bool:
    """Whether they pay for tensors of this dtype here: a GPU has no such passes to save."""
    return bool(compat.TF2 and tf.as_dtype(dtype).size < 4
                and not tf.config.list_physical_devices('GPU'))


class Blockwise:
    """f(*xs, constants=()) -> y, in the shape of the first x, for a kernel that treats all rows, (..., size), alike.

    kernel: f(*xs, *constants) -> y of a block, (rows, size), with the dtype of the first x. It has no gradient:
        give it to `tf.custom_gradient`.
    All xs have the same shape.
    """

    def __init__(self, kernel: Callable):
        self.kernel = kernel
        self.compiled = None  # one for all graphs: what XLA has made of it is found by its name

    def __call__(self, *xs, constants=()):
        if self.compiled is None:
            self.compiled = tf.function(self.kernel, jit_compile=True)
        dtype, shape, known = xs[0].dtype, tf.shape(xs[0]), xs[0].shape
        size = int(known[-1])
        block = [max(SIZE // size, 1), size]
        xs = [tf.reshape(x, [-1, size]) for x in xs]
        rows = tf.shape(xs[0])[0]
        whole = rows // block[0]  # blocks of rows; one more has what is left, filled up
        left = rows - whole * block[0]

        def compute(parts):
            return self.compiled(*[tf.ensure_shape(part, block) for part in parts], *constants)

        def body(i, done):
            return i + 1, done.write(i, compute([x[i * block[0]:(i + 1) * block[0]] for x in xs]))

        done = tf.TensorArray(dtype, whole + 1, element_shape=block)
        _, done = tf.while_loop(lambda i, _: i < whole, body, (0, done))
        done = done.write(whole, compute([
            tf.pad(x[whole * block[0]:], [[0, block[0] - left], [0, 0]]) for x in xs]))
        y = tf.reshape(done.concat()[:rows], shape)
        y.set_shape(known)
        return y
