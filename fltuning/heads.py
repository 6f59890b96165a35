"""Heads: what a kind of task puts on the backbone, and its loss."""
from fltuning import compat  # noqa: F401  (before TensorFlow)
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras, multilabel_categorical_crossentropy
from bert4keras.layers import GlobalPointer

from fltuning.initializers import PromptInitializer


class Head:
    """A task's layers on the backbone, the last of them named 'head', and its loss.

    task: with `labels`, `rows_per_sample`, `label_ndim`, `label_dtype`.
    """

    def __init__(self, task):
        self.labels, self.rows_per_sample = task.labels, task.rows_per_sample
        self.label_ndim, self.label_dtype = task.label_ndim, task.label_dtype

    def extra_inputs(self):
        """Keras inputs besides token and segment ids."""
        return []

    def outputs(self, hidden, inputs):
        """The task's output tensor from (rows, length, hidden) and the model's inputs."""
        raise NotImplementedError

    def loss(self, labels, outputs):
        """The mean loss of a batch, a scalar tensor."""
        raise NotImplementedError


class FirstVector(keras.layers.Layer):
    """The vector of [CLS]: (rows, length, hidden) -> (rows, hidden).

    No `Lambda`: TensorFlow 2 loads none from a file, since it would run the file's code.
    """

    supports_masking = True

    def call(self, inputs, mask=None):
        return inputs[:, 0]

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0],) + tuple(input_shape[2:])


def first_token_head(hidden, units, activation=None):
    """A dense layer on the vector of [CLS]: (rows, length, hidden) -> (rows, units)."""
    first = FirstVector(name='First-Token')(hidden)
    return keras.layers.Dense(units, activation=activation, name='head',
                              kernel_initializer=PromptInitializer())(first)


class ClassHead(Head):
    """Probabilities of the classes: (batch, classes)."""

    def outputs(self, hidden, inputs):
        return first_token_head(hidden, len(self.labels), 'softmax')

    def loss(self, labels, outputs):
        return K.mean(K.sparse_categorical_crossentropy(labels, outputs))


class ChoiceHead(Head):
    """A score for each row: (batch * choices, 1)."""

    def outputs(self, hidden, inputs):
        return first_token_head(hidden, 1)

    def loss(self, labels, outputs):
        scores = K.reshape(outputs, (-1, self.rows_per_sample))  # (samples, choices)
        labels = K.reshape(labels, (-1, self.rows_per_sample))[:, 0]
        return K.mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))


class SpanScores(GlobalPointer):
    """bert4keras's GlobalPointer with its mask as an input, of operations that ONNX has, too.

    Inputs: hidden (batch, length, hidden), mask (batch, length), not 0 where a span may begin or end.
    Output: (batch, heads, length, length), the score of (start, end); -inf where there is none.
    """

    def __init__(self, heads, head_size, **kwargs):
        kwargs['tril_mask'] = False  # done here
        super().__init__(heads, head_size, **kwargs)

    def build(self, input_shape):
        super().build(input_shape[0])

    def call(self, inputs):
        hidden, mask = inputs
        scores = super().call(hidden)
        ones, inside = tf.ones_like(scores), tf.cast(tf.not_equal(mask, 0), scores.dtype)
        keep = tf.linalg.band_part(ones, 0, -1) * inside[:, None, :, None] * inside[:, None, None]
        return tf.where(keep > 0, scores, ones * -np.inf)

    def compute_output_shape(self, input_shape):
        return super().compute_output_shape(input_shape[0])


def span_head(hidden, mask, heads):
    return SpanScores(heads, 64, use_bias=False, name='head',
                      kernel_initializer=PromptInitializer())([hidden, mask])


class EntityHead(Head):
    """A score for each type and span: (batch, types, length, length)."""

    def outputs(self, hidden, inputs):
        return span_head(hidden, inputs[0], len(self.labels))

    def loss(self, labels, outputs):
        shape = K.shape(outputs)
        flat = (shape[0] * shape[1], shape[2] * shape[3])
        labels = K.cast(K.reshape(labels, flat), K.floatx())
        return K.mean(multilabel_categorical_crossentropy(labels, K.reshape(outputs, flat)))


class AnswerHead(Head):
    """A score for each span of [CLS] and the passage: (batch, 1, length, length)."""

    def extra_inputs(self):
        return [keras.layers.Input(shape=(None,), name='Input-Passage')]

    def outputs(self, hidden, inputs):
        return span_head(hidden, inputs[-1], 1)

    def loss(self, labels, outputs):
        """Softmax cross-entropy over all (start, end)."""
        length = K.shape(outputs)[-1]
        logits = K.reshape(outputs, (-1, length * length))
        # -inf would give 0 * inf in the gradient; no weight is lost at this distance.
        logits = tf.maximum(logits, -1e9)
        labels = labels[:, 0] * length + labels[:, 1]
        return K.mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))


keras.utils.get_custom_objects().update(FirstVector=FirstVector, SpanScores=SpanScores)
