"""The model of pretraining: a Transformer whose MLM head sees the masked positions alone."""
import os

from fltuning import compat  # noqa: F401  (before TensorFlow)
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras

from fltuning import checkpoints
from fltuning.initializers import truncated_normal
from models import BACKBONES


class MaskedTokens:
    """Mixin: a Transformer whose MLM head sees the masked positions alone.

    positions: Keras input (masked,), places in the flat (batch * length).
    Output: (masked, vocabulary), logits.
    """

    def __init__(self, *args, **kwargs):
        self.positions = kwargs.pop('positions')
        super().__init__(*args, **dict(kwargs, with_mlm='linear', packed=True))

    def apply_final_layers(self, inputs):
        self.packing = None
        # Places are float32, as all inputs of Keras; rounded, they would be others.
        options = {} if self.precision == 'float32' else {'autocast': False}
        # As one row of a batch, since bert4keras's layers expect (batch, length, hidden).
        rows = keras.layers.Lambda(lambda x: tf.gather(x[0], tf.cast(x[1], 'int32'))[None],
                                   output_shape=lambda shapes: (1, None, self.hidden_size),
                                   name='Masked-Positions', **options)([inputs, self.positions])
        logits = super().apply_final_layers(rows)
        return keras.layers.Lambda(lambda x: x[0], output_shape=lambda shape: shape[1:],
                                   name='Masked-Logits')(logits)


class Objective:
    """What `loop.train_function` asks of a task: the mean cross-entropy at masked positions."""
    label_ndim, label_dtype = 1, 'int32'

    @staticmethod
    def loss(labels, outputs):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs)
        # A batch of unknown tokens has no masked position.
        return K.sum(losses) / tf.cast(tf.maximum(tf.size(losses), 1), losses.dtype)


def build(backbone, config, checkpoint_path=None, dropout=0.0, precision='float32'):
    """(model, transformer), all of it trained; starting from a checkpoint, or anew."""
    checkpoints.check_sizes(config)
    positions = keras.layers.Input(batch_shape=(None,), name='Input-Masked-Positions')
    kind = type('MaskedTokens' + backbone, (MaskedTokens, BACKBONES[backbone]), {})
    config = dict(config, max_position=config.get('max_position_embeddings', 512),
                  dropout_rate=dropout, attention_dropout_rate=dropout,
                  segment_vocab_size=config.get('type_vocab_size', 2))
    transformer = kind(positions=positions, keyed_dropout=True, precision=precision, **config)
    transformer.build(additional_input_layers=[positions])
    initialize(transformer, config.get('initializer_range', 0.02))
    transformer.anew = load(transformer, checkpoint_path) if checkpoint_path else ['Embedding-Position']
    if 'Embedding-Position' in transformer.anew:
        initialize_positions(transformer)
    return transformer.model, transformer


def load(transformer, checkpoint_path):
    """A checkpoint's values; positions, which other kinds lack, and an MLM head may start anew.

    Returns the names of the layers that do.
    """
    there, mapping = checkpoints.list_variables(checkpoint_path), transformer.variable_mapping()
    missing = [layer for layer, names in mapping.items() if layer in transformer.layers
               and layer.startswith(('Embedding-Position', 'MLM-')) and set(names) - set(there)]
    if missing:
        print('%s: starting anew: %s' % (checkpoint_path, ', '.join(missing)))
    transformer.load_weights_from_checkpoint(checkpoint_path, {
        layer: names for layer, names in mapping.items() if layer not in missing})
    return missing


def initialize(transformer, stddev):
    """The same initial values on both stacks, which draw them in ways of their own."""
    pairs = []
    for name, weight in sorted(variables(transformer).items()):
        shape = K.int_shape(weight)
        value = truncated_normal(shape, stddev) if len(shape) > 1 else np.full(
            shape, float(name.endswith('gamma')))
        pairs.append((weight, value))
    K.batch_set_value(pairs)


def initialize_positions(transformer):
    """Sinusoids, as strong as the tokens: neighbours are alike before any of them was trained."""
    layers = transformer.layers
    for weight in layers['Embedding-Position'].weights if 'Embedding-Position' in layers else []:
        tokens = K.get_value(layers['Embedding-Token'].weights[0])
        K.set_value(weight, sinusoids(*K.int_shape(weight)) * tokens.std() * 2**0.5)


def sinusoids(positions, size):
    """(positions, size)"""
    angles = np.arange(positions)[:, None] / 10000 ** (np.arange(size // 2) * 2 / size)
    return np.stack([np.sin(angles), np.cos(angles)], 2).reshape(positions, size)


def variables(transformer):
    """{Google's name: variable} of all weights that a checkpoint holds."""
    return {name: weight for layer, names in transformer.variable_mapping().items()
            if layer in transformer.layers
            for name, weight in zip(names, transformer.layers[layer].trainable_weights)}


def write_backbone(transformer, folder):
    found = variables(transformer)
    values = K.batch_get_value(list(found.values()))
    checkpoints.write_checkpoint(os.path.join(folder, 'bert_model.ckpt'),
                                 dict(zip(found, map(np.asarray, values))))
