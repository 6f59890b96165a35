"""A Transformer on true tokens: the layers between embedding and head see no padding."""
from fltuning import compat  # noqa: F401  (before TensorFlow)
from bert4keras.backend import gelu_erf, keras
from bert4keras.layers import LayerNormalization, RelativePositionEmbedding, SinusoidalPositionEmbedding

from fltuning.attention import PromptMultiHeadAttention
from fltuning.dropout import KeyedDropout
from fltuning.kernels import FastLayerNormalization, exact_gelu
from fltuning.packing import FirstToken, Packing, Pad, Unpad


class PackedTransformer:
    """Mixin for a bert4keras Transformer whose attentions are `PromptMultiHeadAttention`s.

    packed: compute on true tokens only (packing.py); the output is on the padded grid, 0 at padding.
        Without it, this mixin changes nothing.
    first_only: with `packed`, the last layer computes position 0 alone, the output is
        (batch, 1, hidden).
    keyed_dropout: draw all dropout from `dropout.dropout_key`, which must then be set before each
        step; by itself it stays as it is.
    """

    def __init__(self, *args, packed=False, first_only=False, keyed_dropout=False, **kwargs):
        self.packed = packed
        self.first_only = first_only and packed
        self.keyed_dropout = keyed_dropout
        self.packing = None  # the outputs of `Packing`, between embedding and head
        self.in_last_layer = False
        super().__init__(*args, **kwargs)

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        if layer is keras.layers.Dropout and self.dropout_rate and self.keyed_dropout:
            layer = KeyedDropout
        fast = self.packed or self.precision != 'float32'  # the plain layers round in between
        if fast and layer is LayerNormalization:
            layer = FastLayerNormalization
        if fast and 'activation' in kwargs:
            activation = kwargs['activation']  # a list of them makes a gated FeedForward
            several = activation if isinstance(activation, list) else [activation]
            several = [exact_gelu if keras.activations.get(x) is gelu_erf else x for x in several]
            kwargs['activation'] = several if isinstance(activation, list) else several[0]
        if inputs is not None and isinstance(layer, type):
            if issubclass(layer, PromptMultiHeadAttention):
                kwargs['keyed_dropout'] = self.keyed_dropout
            if self.packing:
                inputs, arguments = self.on_rows(inputs, layer, arguments, kwargs)
        return super().apply(inputs, layer, arguments, **kwargs)

    def on_rows(self, inputs, layer, arguments, options):
        """(inputs, arguments) of a layer that runs on rows; its `options` may be changed."""
        if issubclass(layer, PromptMultiHeadAttention):
            options['packed'] = True
            inputs = list(inputs) + self.packing
            if self.in_last_layer and self.first_only:
                arguments = dict(arguments or {}, first_only=True)
        elif issubclass(layer, (RelativePositionEmbedding, SinusoidalPositionEmbedding)):
            # These read batch and length off their inputs, which rows do not show.
            rows, grid = self.trunk_input
            inputs = [grid if x is rows else x for x in inputs] if isinstance(inputs, list) else grid
        elif (self.in_last_layer and self.first_only
              and options.get('name', '').endswith('MultiHeadSelfAttention-Add')):
            first = super().apply([inputs[0]] + self.packing, FirstToken, name='Last-First-Token')
            inputs = [first] + inputs[1:]
        return inputs, arguments

    def apply_embeddings(self, inputs):
        x = super().apply_embeddings(inputs)
        if not self.packed:
            return x
        packing = super().apply(
            self.inputs[0], Packing, heads=self.num_attention_heads,
            head_size=self.attention_head_size, name='Packing')
        rows = super().apply([x] + packing, Unpad, name='Unpad')
        self.packing, self.trunk_input = packing, (rows, x)
        return rows  # (tokens, hidden)

    def apply_main_layers(self, inputs, index):
        self.in_last_layer = index == self.num_hidden_layers - 1
        return super().apply_main_layers(inputs, index)

    def apply_final_layers(self, inputs):
        x, packing, self.packing = inputs, self.packing, None
        if packing and self.first_only:
            x = super().apply(x, keras.layers.Reshape, target_shape=(1, self.hidden_size), name='Pad')
        elif packing:
            x = super().apply([x] + packing, Pad, name='Pad')
        return super().apply_final_layers(x)
