"""A factor of the loss without which gradients in float16 would be rounded to 0 (arXiv 1710.03740)."""
from fltuning import compat  # noqa: F401  (before TensorFlow)
import tensorflow as tf

from fltuning.errors import NotFinite

INITIAL, LEAST = 2.0**15, 1.0  # of the factor
GROWTH_STEPS = 2000  # good ones in a row, after which it is doubled


class LossScale:
    """Dynamic: a step whose gradients are not finite is left out and halves it. On `tf2`.

    named: [(name, variable)], part of the state of a run.
    """

    def __init__(self):
        self.scale = tf.Variable(INITIAL, trainable=False, dtype='float32', name='loss_scale')
        self.good_steps = tf.Variable(0, trainable=False, dtype='int64', name='good_steps')
        self.named = [('loss_scale/scale', self.scale), ('loss_scale/good_steps', self.good_steps)]

    def unscaled(self, gradients):
        """(gradients of the loss, dense, from those of the loss times `scale`; are all of them finite?)"""
        gradients = [tf.convert_to_tensor(gradient) / self.scale for gradient in gradients]
        finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]
        return gradients, tf.reduce_all(finite)

    def update(self, finite):
        """After a step; finite: scalar bool."""
        good = tf.where(finite, self.good_steps + 1, tf.zeros_like(self.good_steps))
        grow = tf.equal(good, GROWTH_STEPS)
        factor = tf.where(finite, tf.where(grow, 2.0, 1.0), 0.5)
        # No further than what is finite with a loss of some thousands.
        return tf.group(self.scale.assign(tf.minimum(self.scale * factor, 2.0**100)),
                        self.good_steps.assign(tf.where(grow, tf.zeros_like(good), good)))

    def check(self):
        """Raises NotFinite where no factor helps any more."""
        if self.scale.numpy() < LEAST:
            raise NotFinite('the gradients overflow float16 at every loss scale down to %g: '
                            'bfloat16 has a wider range' % LEAST)
