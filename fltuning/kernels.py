"""GELU, layer norm and softmax with gradients of their own.

What TensorFlow derives for them goes over each activation more often, and on a CPU a pass over memory
counts. In a low precision they compute in float32 what cannot be rounded in between, and keep for the
gradient what is as short as their inputs.
"""
import math

from fltuning import compat  # before TensorFlow
import tensorflow as tf
from bert4keras.backend import keras
from bert4keras.layers import LayerNormalization


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
    """f(x): (x - mean) / sqrt(variance + epsilon) over the last axis, float32."""
    @tf.custom_gradient
    def normalize(x):
        dtype = x.dtype
        x = tf.cast(x, 'float32')
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
        y = centred * scale
        kept = tf.cast(y, dtype)

        def gradient(dy):
            y = tf.cast(kept, 'float32')
            along = tf.reduce_mean(dy * y, -1, keepdims=True)
            return tf.cast((dy - tf.reduce_mean(dy, -1, keepdims=True) - y * along) * scale, dtype)
        return y, gradient
    return normalize


@tf.custom_gradient
def softmax(x):
    """Over the last axis, of a low precision, computed in float32."""
    y = tf.cast(tf.nn.softmax(tf.cast(x, 'float32')), x.dtype)

    def gradient(dy):
        weights, dy = tf.cast(y, 'float32'), tf.cast(dy, 'float32')
        return tf.cast((dy - tf.reduce_sum(dy * weights, -1, keepdims=True)) * weights, x.dtype)
    return y, gradient


class FastLayerNormalization(LayerNormalization):
    """bert4keras's LayerNormalization, where it is neither conditional nor without mean or variance.

    It computes in float32, with float32 weights; its output has the dtype of its input.
    """

    def __init__(self, *args, **kwargs):
        if compat.TF2:
            kwargs['autocast'] = False
        super().__init__(*args, **kwargs)

    def call(self, inputs):
        if self.conditional or not (self.zero_mean and self.unit_variance):
            return super().call(inputs)
        outputs = normalizer(self.epsilon)(inputs)
        if self.scale is not False and self.scale is not None:
            outputs = outputs * (self.gamma if self.scale is True else self.scale)
        if self.offset is not False and self.offset is not None:
            outputs = outputs + (self.beta if self.offset is True else self.offset)
        return tf.cast(outputs, inputs.dtype)


keras.utils.get_custom_objects().update(
    exact_gelu=exact_gelu, FastLayerNormalization=FastLayerNormalization)
