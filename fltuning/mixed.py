"""A Transformer that computes in bfloat16 or float16, on the stack `tf2`.

Keras gives each layer a policy: in which dtype it computes and in which it holds its variables.
`bfloat16` is both in bfloat16, for frozen layers, whose weights are held once, with no cast in a step.
`mixed_bfloat16` holds float32 and casts it in each step, for what is trained. Layers that are not named here
keep Keras's own float32: token ids, masks and sinusoids are no numbers to round.
"""
from fltuning import compat  # noqa: F401  (before TensorFlow)
from bert4keras.backend import K, keras
from bert4keras.layers import (
    Embedding, FeedForward, MultiHeadAttention, PositionEmbedding, RelativePositionEmbedding,
    SinusoidalPositionEmbedding)

from fltuning.adapters import AddBias, LowRank, TunedFeedForward, Vector
from fltuning.attention import PromptEmbedding
from fltuning.input_prompts import DropPrompts, InputPrompts
from fltuning.packing import FirstToken, Pad, Unpad


class LowEmbedding(Embedding):
    """bert4keras's Embedding, whose `dense` mode takes hidden vectors of any dtype."""

    def call(self, inputs, mode='embedding'):
        if mode == 'embedding':
            return super().call(inputs, mode)
        return K.dot(inputs, K.cast(K.transpose(self.embeddings), inputs.dtype))


# `TunedFeedForward` has the layers in it made with its own policy.
LOW = {Embedding: LowEmbedding, FeedForward: TunedFeedForward}
# Layers of hidden vectors.
COMPUTE_LOW = (
    AddBias, DropPrompts, Embedding, FeedForward, FirstToken, InputPrompts, LowRank, MultiHeadAttention, Pad,
    PositionEmbedding, PromptEmbedding, Unpad, Vector, keras.layers.Add, keras.layers.Dense, keras.layers.Dropout,
    keras.layers.Reshape)


class MixedTransformer:
    """Mixin: a Transformer in a precision; the last of the mixins, which sees each layer as it is made.

    precision: float32, with which this mixin changes nothing, bfloat16 or float16.
    low_weights: hold the weights of all layers but the trained ones in it; without, all are float32.
    Expects of the class that it is mixed into: `prompt_layers`, names of the layers that are trained.
    """

    def __init__(self, *args, precision='float32', low_weights=False, **kwargs):
        self.precision, self.low_weights = precision, low_weights and precision != 'float32'
        super().__init__(*args, **kwargs)

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        if self.precision != 'float32' and isinstance(layer, type):
            layer = LOW.get(layer, layer)
            # The table of relative positions is computed, in float32.
            held = self.low_weights and not issubclass(layer, RelativePositionEmbedding) and (
                kwargs.get('name') not in self.prompt_layers)
            if issubclass(layer, COMPUTE_LOW + (RelativePositionEmbedding,)):
                kwargs['dtype'] = ('' if held else 'mixed_') + self.precision
            elif issubclass(layer, SinusoidalPositionEmbedding):
                kwargs['autocast'] = False  # it reads but the shape
        return super().apply(inputs, layer, arguments, **kwargs)


keras.utils.get_custom_objects()['LowEmbedding'] = LowEmbedding
