"""Prompt Tuning and P-Tuning: trained vectors among the embedded tokens.

They enter where the embeddings are summed, before their layer norm and dropout. In the arrays they stand
behind [CLS], so that position 0 is [CLS] for whoever reads it alone; to relative and rotary positions they
stand in front of it, at -size ... -1, so that all distances between tokens stay as they were:

    array      [CLS]  prompt 0  ...  prompt size-1  token 1  token 2 ...
    position   0      -size     ...  -1             1        2

Absolute positions and segments are added to tokens alone: a prompt, being trained, can hold its own.
"""
from fltuning import compat  # noqa: F401  (before TensorFlow)
import tensorflow as tf
from bert4keras.backend import K, keras, sinusoidal_embeddings
from bert4keras.layers import Layer, RelativePositionEmbedding, SinusoidalPositionEmbedding

from fltuning.initializers import PromptInitializer
from fltuning.methods import LSTM_LAYERS


def insert(x, prompts):
    """(batch, length, ...) with `prompts` behind its first place: (batch, length + size, ...)."""
    return tf.concat([x[:, :1], tf.cast(prompts, x.dtype), x[:, 1:]], 1)


def places(length, size):
    """The positions of a sequence of this length, `size` prompts among them, int32."""
    return tf.concat([[0], tf.range(-size, 0), tf.range(1, length - size)], 0)


class Prompts(Layer):
    """What all that has to do with prompts share. size: how many."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def longer(self, shape):
        return (shape[0], None if shape[1] is None else shape[1] + self.size) + tuple(shape[2:])

    def get_config(self):
        return dict(super().get_config(), size=self.size)


class InputPrompts(Prompts):
    """Prompt Tuning (arXiv 2104.08691): (batch, length, width) -> (batch, length + size, width)."""

    def build(self, input_shape):
        super().build(input_shape)
        self.embeddings = self.add_weight(name='prompt_embedding', shape=(self.size, int(input_shape[-1])),
                                          initializer=self.initializer())

    def initializer(self):
        return PromptInitializer()

    def vectors(self):
        """(size, width)"""
        return self.embeddings

    def call(self, inputs):
        return insert(inputs, tf.tile(self.vectors()[None], [tf.shape(inputs)[0], 1, 1]))

    def compute_mask(self, inputs, mask=None):
        if mask is None:
            return None
        return insert(mask, tf.fill([tf.shape(mask)[0], self.size], True))

    def compute_output_shape(self, input_shape):
        return self.longer(input_shape)


class EncodedPrompts(InputPrompts):
    """P-Tuning (arXiv 2103.10385): the same, its vectors made by LSTMs in both directions and an MLP.

    vectors = relu(lstms(embeddings) W1 + b1) W2 + b2; a direction has half the width.
    """

    def build(self, input_shape):
        super().build(input_shape)
        width = int(input_shape[-1])
        half = max(1, width // 2)
        for i in range(LSTM_LAYERS):
            lstm = keras.layers.LSTM(
                half, return_sequences=True, unit_forget_bias=False, recurrent_activation='sigmoid',
                kernel_initializer=spread(half), recurrent_initializer=spread(half))
            self.add_part('lstm_%d' % i, keras.layers.Bidirectional(lstm), (1, self.size, 2 * half if i else width))
        self.add_part('inner', keras.layers.Dense(
            2 * half, activation='relu', kernel_initializer=spread(2 * half)), (self.size, 2 * half))
        self.add_part('outer', keras.layers.Dense(
            width, kernel_initializer=spread(2 * half)), (self.size, 2 * half))

    def add_part(self, name, layer, input_shape):
        """Make a layer one of this one's parts, built: what comes later may only compute."""
        setattr(self, name, layer)
        with K.name_scope(name):
            layer.build(input_shape)
        layer.built = True

    def initializer(self):
        return PromptInitializer(1.0)

    def vectors(self):
        x = self.embeddings[None]  # (1, size, width)
        for i in range(LSTM_LAYERS):
            x = getattr(self, 'lstm_%d' % i)(x)
        return self.outer(self.inner(x[0]))


def spread(inputs):
    """As PyTorch begins its LSTMs and dense layers: a deviation of 1 / sqrt(3 inputs)."""
    return PromptInitializer((3.0 * inputs)**-0.5)


class PromptIds(Prompts):
    """Token ids (batch, length) -> (batch, length + size), a prompt's being 1: none is padding."""

    def call(self, inputs):
        return insert(inputs, tf.fill([tf.shape(inputs)[0], self.size], tf.cast(1, inputs.dtype)))

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return self.longer(input_shape)


class DropPrompts(Prompts):
    """(batch, length + size, ...) -> (batch, length, ...)"""

    def call(self, inputs):
        return tf.concat([inputs[:, :1], inputs[:, 1 + self.size:]], 1)

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else self.call(mask)

    def compute_output_shape(self, input_shape):
        length = None if input_shape[1] is None else input_shape[1] - self.size
        return (input_shape[0], length) + tuple(input_shape[2:])


class PromptRelativePositions(RelativePositionEmbedding):
    """bert4keras's relative positions (NEZHA) of sequences with prompts."""

    def __init__(self, *args, size=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.size = size

    def compute_position_ids(self, inputs):
        place, most = places(tf.shape(inputs[0])[1], self.size), (self.input_dim - 1) // 2
        return tf.clip_by_value(place[None] - place[:, None], -most, most) + most

    def get_config(self):
        return dict(super().get_config(), size=self.size)


class PromptSinusoidalPositions(SinusoidalPositionEmbedding):
    """bert4keras's rotary positions (RoFormer) of sequences with prompts: (1, length, output_dim)."""

    def __init__(self, *args, size=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.size = size

    def call(self, inputs):
        place = tf.cast(places(tf.shape(inputs)[1], self.size), K.floatx())
        return sinusoidal_embeddings(place[None], self.output_dim)

    def get_config(self):
        return dict(super().get_config(), size=self.size)


keras.utils.get_custom_objects().update({layer.__name__: layer for layer in (
    InputPrompts, EncodedPrompts, PromptIds, DropPrompts, PromptRelativePositions,
    PromptSinusoidalPositions)})
