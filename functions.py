"""Initial values, and GELU and layer norm with their gradients written out.

What TensorFlow derives on its own goes over each activation more often, and on a CPU a pass over
memory counts.
"""
import math

import compat  # noqa: F401  (before bert4keras)
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras
from bert4keras.layers import LayerNormalization


class PromptInitializer(keras.initializers.Initializer):
    """Truncated normal from NumPy's random state, so that both stacks start from the same weights.

    (tf-keras gives every weight that shares an initializer the same values.)
    """

    def __init__(self, stddev=0.02):
        self.stddev = stddev

    def __call__(self, shape, dtype=None, **kwargs):
        values = np.random.normal(0, 1, shape)
        while (np.abs(values) > 2).any():
            values = np.where(np.abs(values) > 2, np.random.normal(0, 1, shape), values)
        return K.constant(values * self.stddev, dtype=dtype)

    def get_config(self):
        return {'stddev': self.stddev}


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
    """f(x): (x - mean) / sqrt(variance + epsilon) over the last axis."""
    @tf.custom_gradient
    def normalize(x):
        centred = x - tf.reduce_mean(x, -1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
        y = centred * scale

        def gradient(dy):
            along = tf.reduce_mean(dy * y, -1, keepdims=True)
            return (dy - tf.reduce_mean(dy, -1, keepdims=True) - y * along) * scale
        return y, gradient
    return normalize


class FastLayerNormalization(LayerNormalization):
    """bert4keras's LayerNormalization, where it is neither conditional nor without mean or variance."""

    def call(self, inputs):
        if self.conditional or not (self.zero_mean and self.unit_variance):
            return super(FastLayerNormalization, self).call(inputs)
        outputs = normalizer(self.epsilon)(inputs)
        if self.scale is not False and self.scale is not None:
            outputs = outputs * (self.gamma if self.scale is True else self.scale)
        if self.offset is not False and self.offset is not None:
            outputs = outputs + (self.beta if self.offset is True else self.offset)
        return outputs


keras.utils.get_custom_objects().update(
    PromptInitializer=PromptInitializer, exact_gelu=exact_gelu,
    FastLayerNormalization=FastLayerNormalization)
