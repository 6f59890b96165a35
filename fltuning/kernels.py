"""GELU, layer norm and softmax with gradients of their own.

What TensorFlow derives for them goes over each activation more often, and on a CPU a pass over memory
counts. In a low precision they compute in float32 what cannot be rounded in between, and keep for the
gradient what is as short as their inputs.
"""
import functools
import math

from fltuning import compat  # before TensorFlow
import tensorflow as tf
from bert4keras.backend import keras
from bert4keras.layers import LayerNormalization

from fltuning.blocks import Blockwise, use_blocks


def normal_cdf(x):
    return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5))


def gelu_slope(x, cdf):
    return cdf + x * (tf.exp(-0.5 * tf.square(x)) * (1 / math.sqrt(2 * math.pi)))


def through_float32(kernel):
    """The kernel for xs of another dtype, that of the first being that of what it returns."""
    return lambda x, *more: tf.cast(kernel(*[tf.cast(t, 'float32') for t in (x,) + more]), x.dtype)


# Loops over blocks cost more than passes over a few values do.
WIDE = 1024
bias_gelu_blocks = [Blockwise(through_float32(kernel)) for kernel in (
    lambda x, bias: (x + bias) * normal_cdf(x + bias),
    lambda x, dy, bias: dy * gelu_slope(x + bias, normal_cdf(x + bias)))]


@tf.custom_gradient
def _gelu(x):
    cdf = normal_cdf(x)
    return x * cdf, lambda dy: dy * gelu_slope(x, cdf)


def exact_gelu(x):
    """x * P(X <= x), X normally distributed (arXiv 1606.08415), any shape."""
    return _gelu(x)


@tf.custom_gradient
def add_bias_gelu(x, bias):
    """`exact_gelu` of x + bias, (..., size) and (size,), of a low precision, in one pass."""
    forward, backward = bias_gelu_blocks

    def gradient(dy):
        dx = backward(x, dy, constants=[bias])
        total = tf.reduce_sum(tf.cast(dx, 'float32'), list(range(len(dx.shape) - 1)))
        return dx, tf.cast(total, bias.dtype)
    return forward(x, constants=[bias]), gradient


class FastDense(keras.layers.Dense):
    """Dense whose product, bias and activation are operations of their own, for low precisions.

    TensorFlow would make the bias part of the product, which takes up to twice the time of the product
    alone where the weights are no constants of the graph. It leaves products of a batch as they are.
    """

    def call(self, inputs):
        if not (self.use_bias and use_blocks(inputs.dtype)):
            return super().call(inputs)
        size = int(inputs.shape[-1])
        x = tf.matmul(tf.reshape(inputs, [1, -1, size]), tf.reshape(self.kernel, [1, size, self.units]))
        x = tf.reshape(x, [-1, self.units])
        if self.activation is exact_gelu and self.units >= WIDE:
            # As a tensor: a gradient of one's own is given the gradients of what it is called with, and outside
            # graphs TensorFlow does not see that a variable which casts itself is among that.
            x = add_bias_gelu(x, tf.convert_to_tensor(self.bias))
        else:
            x = self.activation(tf.nn.bias_add(x, self.bias))
        return tf.reshape(x, tf.concat([tf.shape(inputs)[:-1], [self.units]], 0))


def make_dense_fast(layer, *names):
    """Have a layer that was built use `FastDense`, where that pays, for its denses of these names, not built yet.

    All its denses, in the order in which it made them: that is the order of its weights.
    """
    if compat.TF2 and use_blocks(layer.compute_dtype):
        for name in names:
            setattr(layer, name, FastDense.from_config(getattr(layer, name).get_config()))


def normal_of(x, epsilon):
    """(x normalized over the last axis, the factor that did it), both float32."""
    x = tf.cast(x, 'float32')
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    return centred * scale, scale


def normal_gradient(y, scale, dy):
    along = tf.reduce_mean(dy * y, -1, keepdims=True)
    return (dy - tf.reduce_mean(dy, -1, keepdims=True) - y * along) * scale


def normalizer(epsilon):
    """f(x): (x - mean) / sqrt(variance + epsilon) over the last axis, float32."""
    @tf.custom_gradient
    def normalize(x):
        dtype = x.dtype
        y, scale = normal_of(x, epsilon)
        kept = tf.cast(y, dtype)
        return y, lambda dy: tf.cast(normal_gradient(tf.cast(kept, 'float32'), scale, dy), dtype)
    return normalize


@functools.lru_cache(maxsize=None)
def norm_blocks(epsilon):
    """f(x, gamma, beta): layer norm over the last axis, computed in float32, in one pass; and so its gradient."""
    forward = Blockwise(lambda x, gamma, beta: tf.cast(
        normal_of(x, epsilon)[0] * gamma + beta, x.dtype))
    backward = Blockwise(lambda x, dy, gamma: tf.cast(
        normal_gradient(*normal_of(x, epsilon), tf.cast(dy, 'float32') * gamma), x.dtype))

    @tf.custom_gradient
    def norm(x, gamma, beta):
        def gradient(dy):
            wide, axes = tf.cast(dy, 'float32'), list(range(len(dy.shape) - 1))
            return (backward(x, dy, constants=[gamma]), tf.reduce_sum(wide * normal_of(x, epsilon)[0], axes),
                    tf.reduce_sum(wide, axes))
        return forward(x, constants=[gamma, beta]), gradient
    return norm


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
        if self.scale is True and self.offset is True and use_blocks(inputs.dtype):
            return norm_blocks(self.epsilon)(inputs, self.gamma, self.beta)
        outputs = normalizer(self.epsilon)(inputs)
        if self.scale is not False and self.scale is not None:
            outputs = outputs * (self.gamma if self.scale is True else self.scale)
        if self.offset is not False and self.offset is not None:
            outputs = outputs + (self.beta if self.offset is True else self.offset)
        return tf.cast(outputs, inputs.dtype)


keras.utils.get_custom_objects().update(
    exact_gelu=exact_gelu, FastDense=FastDense, FastLayerNormalization=FastLayerNormalization)
