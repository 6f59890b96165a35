"""FL-Tuning and P-Tuning V2 inside bert4keras's frozen Transformers.

Two ways to tune a frozen Transformer, each alone, both together, or neither:

- FL-Tuning (arXiv 2206.15312, section 3): every feed-forward network gains `ffn_prompt_size`
  trainable hidden units beside its frozen ones,
  FFN(x) = act(x W1 + b1) W2 + b2 + act(x P1 + p1) P2 + p2.
- P-Tuning V2 (arXiv 2110.07602): every attention sees `prompt_size` trainable keys and values in
  front of the sequence's own, without positions of theirs, never masked.

bert4keras makes every layer through `Transformer.apply`, so one mixin that overrides it serves
every backbone: `class MyTransformer(PromptTuning, AnyTransformer): pass`.

A padded batch (batch, length) holds padding for up to half of its places. With `packed=True` the
layers between embedding and head see the true tokens alone, (tokens, hidden); only the attention
scores unfold to (batch, length). The numbers are the same (packing.py).
"""
import compat  # noqa: F401  (before bert4keras)
import bert4keras.models
from bert4keras.backend import K, gelu_erf, keras
from bert4keras.layers import FeedForward, LayerNormalization, MultiHeadAttention
from bert4keras.layers import RelativePositionEmbedding, SinusoidalPositionEmbedding
from bert4keras.models import BERT, NEZHA, RoFormer

import checkpoints
from attention import PromptEmbedding, PromptMultiHeadAttention
from errors import UserError
from functions import FastLayerNormalization, KeyedDropout, PromptInitializer, exact_gelu
from packing import FirstToken, Pack, Packing, Unpack


class PromptTuning(object):
    """Mixin that gives a bert4keras Transformer its prompts.

    prompt_size: trainable key/value pairs in each attention (P-Tuning V2); 0 for none.
    ffn_prompt_size: trainable hidden units in each feed-forward network (FL-Tuning); 0 for none.
    layers_to_transform: indices of the layers that get them, from 0; None for all.
    prompt_dropout: dropout of the keys and values in training.
    keyed_dropout: draw all dropout from `functions.dropout_key`, which must then be set before each
        step; by itself it stays as it is.
    packed: compute on true tokens only; the output is unfolded, 0 where there is padding.
    first_only: with `packed`, the last layer computes position 0 alone, the output is
        (batch, 1, hidden).
    Raises ValueError if a size is negative or a layer is not there.

    >>> class PromptALBERT(PromptTuning, bert4keras.models.ALBERT): pass
    >>> albert = PromptALBERT(ffn_prompt_size=4, vocab_size=9, max_position=8, hidden_size=4,
    ...     num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, hidden_act='gelu')
    >>> albert.build()
    >>> albert.freeze()
    >>> [layer.name for layer in albert.model.layers if layer.trainable_weights]
    ['Transformer-AddFFN']
    """

    def __init__(self, *args, **kwargs):
        self.prompt_size = kwargs.pop('prompt_size', 0)
        self.ffn_prompt_size = kwargs.pop('ffn_prompt_size', 0)
        self.prompt_dropout = kwargs.pop('prompt_dropout', 0.1)
        self.keyed_dropout = kwargs.pop('keyed_dropout', False)
        for name in ('prompt_size', 'ffn_prompt_size'):
            if getattr(self, name) != int(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError('%s: expected a whole number from 0, got %r'
                                 % (name, getattr(self, name)))
        self.packed = kwargs.pop('packed', False)
        self.first_only = kwargs.pop('first_only', False) and self.packed
        self.packing = None  # the outputs of `Packing`, once the trunk has begun
        self.in_last_layer = False
        self.prompt_layers = []
        chosen = kwargs.pop('layers_to_transform', None)
        super(PromptTuning, self).__init__(*args, **kwargs)
        layers = list(range(self.num_hidden_layers))
        self.layers_to_transform = layers if chosen is None else sorted(set(chosen))
        if not set(self.layers_to_transform) <= set(layers):
            raise ValueError('layers_to_transform: expected layers of 0 to %d, got %s'
                             % (len(layers) - 1, self.layers_to_transform))
        self.has_prompts = False  # the layer that is being built

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        if layer is keras.layers.Dropout and self.dropout_rate and self.keyed_dropout:
            layer = KeyedDropout
        if layer is LayerNormalization:
            # The original's; bert4keras 0.11.5 leaves some norms to K.epsilon().
            kwargs.setdefault('epsilon', 1e-12)
            layer = FastLayerNormalization if self.packed else layer
        if self.packed and 'activation' in kwargs:
            activation = kwargs['activation']  # a list of them makes a gated FeedForward
            several = activation if isinstance(activation, list) else [activation]
            several = [exact_gelu if keras.activations.get(x) is gelu_erf else x for x in several]
            kwargs['activation'] = several if isinstance(activation, list) else several[0]
        if inputs is None:
            return super(PromptTuning, self).apply(inputs, layer, arguments, **kwargs)
        if layer is MultiHeadAttention:
            return self.apply_attention(inputs, arguments, **kwargs)
        if layer is FeedForward and self.ffn_prompt_size and self.has_prompts:
            return self.apply_feed_forward(inputs, **kwargs)
        if self.packing:
            if isinstance(layer, type) and issubclass(
                    layer, (RelativePositionEmbedding, SinusoidalPositionEmbedding)):
                # These read batch and length off their inputs, which packed rows do not show.
                packed, grid = self.trunk_input
                inputs = [grid if x is packed else x for x in inputs] if isinstance(
                    inputs, list) else grid
            elif (self.in_last_layer and self.first_only
                  and kwargs.get('name', '').endswith('MultiHeadSelfAttention-Add')):
                rows = super(PromptTuning, self).apply(
                    [inputs[0]] + self.packing, FirstToken, name='Last-First-Token')
                inputs = [rows] + inputs[1:]
        return super(PromptTuning, self).apply(inputs, layer, arguments, **kwargs)

    def apply_embeddings(self, inputs):
        x = super(PromptTuning, self).apply_embeddings(inputs)
        if not self.packed:
            return x
        packing = super(PromptTuning, self).apply(
            self.inputs[0], Packing, heads=self.num_attention_heads,
            head_size=self.attention_head_size, name='Packing')
        packed = super(PromptTuning, self).apply([x] + packing, Pack, name='Pack')
        self.packing, self.trunk_input = packing, (packed, x)
        return packed  # (tokens, hidden)

    def apply_main_layers(self, inputs, index):
        self.in_last_layer = index == self.num_hidden_layers - 1
        self.has_prompts = index in self.layers_to_transform
        return super(PromptTuning, self).apply_main_layers(inputs, index)

    def apply_final_layers(self, inputs):
        x, packing, self.packing = inputs, self.packing, None
        if packing and self.first_only:
            x = super(PromptTuning, self).apply(
                x, keras.layers.Reshape, target_shape=(1, self.hidden_size), name='Unpack')
        elif packing:
            x = super(PromptTuning, self).apply([x] + packing, Unpack, name='Unpack')
        return super(PromptTuning, self).apply_final_layers(x)

    def apply_prompt(self, inputs, layer, **kwargs):
        """Like `apply`, and remembers the layer as one that is trained."""
        if kwargs['name'] not in self.prompt_layers:
            self.prompt_layers.append(kwargs['name'])
        return super(PromptTuning, self).apply(inputs, layer, **kwargs)

    def apply_feed_forward(self, inputs, **kwargs):
        """FFN(x) + FFN_prompt(x), the paper's equation 6: (..., hidden) -> (..., hidden)."""
        name = kwargs.pop('name')
        prompt = dict(kwargs, units=self.ffn_prompt_size, kernel_initializer=PromptInitializer())
        outputs = [
            super(PromptTuning, self).apply(inputs, FeedForward, name=name, **kwargs),
            self.apply_prompt(inputs, FeedForward,
                              name=name.replace('FeedForward', 'AddFFN'), **prompt)]
        return super(PromptTuning, self).apply(outputs, keras.layers.Add, name=name + '-Sum')

    def apply_attention(self, inputs, arguments, **kwargs):
        """Attention with `prompt_size` trainable keys and values before the sequence's own."""
        arguments = dict(arguments or {})
        if self.residual_attention_scores:
            kwargs['return_attention_scores'] = True
        if self.prompt_size and self.has_prompts:
            arguments['prompts'] = True
            heads, head_size = kwargs['heads'], kwargs['head_size']
            inputs = list(inputs)
            for part, size in [('Key', kwargs.get('key_size') or head_size), ('Value', head_size)]:
                inputs.append(self.apply_prompt(
                    self.inputs[0], PromptEmbedding, prompt_size=self.prompt_size, heads=heads,
                    head_size=size, dropout=self.prompt_dropout, keyed_dropout=self.keyed_dropout,
                    embeddings_initializer=PromptInitializer(),
                    name='%s-%s-PromptEmbedding' % (kwargs['name'], part)))
        if self.packing:
            inputs = list(inputs) + self.packing
            if self.in_last_layer and self.first_only:
                arguments['first_only'] = True
        return super(PromptTuning, self).apply(
            inputs, PromptMultiHeadAttention, arguments, packed=bool(self.packing),
            keyed_dropout=self.keyed_dropout, **kwargs)

    def freeze(self):
        """Leave only the prompts trainable. Call it after the checkpoint is loaded."""
        prompts = [self.prefixed(name) for name in self.prompt_layers]
        for name, layer in self.layers.items():
            layer.trainable = name in prompts

    def load_weights_from_checkpoint(self, checkpoint, mapping=None):
        """As in bert4keras; raises UserError if a variable is missing or has another shape."""
        mapping = mapping or self.variable_mapping()
        variables = checkpoint
        if not isinstance(checkpoint, dict):
            variables = checkpoints.read_variables(checkpoint, {
                name for layer, names in mapping.items() if self.prefixed(layer) in self.layers
                for name in names})
        for layer, names in mapping.items():
            layer = self.layers.get(self.prefixed(layer))
            for weight, name in zip(layer.trainable_weights if layer else [], names):
                if name not in variables:
                    if not self.ignore_invalid_weights:
                        raise UserError('%s: no variable %s, which this model needs'
                                        % (checkpoint, name))
                elif not self.autoresize_weights:
                    shape = self.load_variable(variables, name).shape
                    if K.int_shape(weight) != shape:
                        raise UserError('%s: variable %s has shape %s, the config makes it %s'
                                        % (checkpoint, name, shape, K.int_shape(weight)))
        super(PromptTuning, self).load_weights_from_checkpoint(variables, mapping)


class PtuningV2AddFNNPtuning(PromptTuning, BERT):
    """BERT or RoBERTa with prompts; in `build_transformer_model`, whichever backbone is there."""
    backbone = 'roberta'


class PromptNEZHA(PromptTuning, NEZHA):
    """NEZHA with prompts."""
    backbone = 'nezha'


class PromptRoFormer(PromptTuning, RoFormer):
    """RoFormer with prompts."""
    backbone = 'roformer'


BACKBONES = {model.backbone: model
             for model in (PtuningV2AddFNNPtuning, PromptNEZHA, PromptRoFormer)}


def detect_backbone(config_path, checkpoint_path):
    """'roberta', 'nezha' or 'roformer', read off the config and the names of the variables."""
    if checkpoints.read_config(config_path).get('use_relative_position'):
        return 'nezha'
    if 'bert/embeddings/position_embeddings' in checkpoints.list_variables(checkpoint_path):
        return 'roberta'
    return 'roformer'


def build_transformer_model(config_path=None, checkpoint_path=None, model='bert', backbone='auto',
                            **kwargs):
    """bert4keras's `build_transformer_model`; PtuningV2AddFNNPtuning fits itself to the backbone.

    backbone: 'auto' (read off the checkpoint), 'roberta', 'nezha' or 'roformer'; concerns only
    `model=PtuningV2AddFNNPtuning`, which takes `prompt_size`, `ffn_prompt_size` and
    `prompt_dropout` besides bert4keras's own arguments, and whose paths may name a Hugging Face
    folder or files of one.
    Raises UserError if the checkpoint does not fit the config.
    """
    if model is PtuningV2AddFNNPtuning:
        if checkpoint_path:
            checkpoint_path = checkpoints.in_folder(checkpoint_path, checkpoints.WEIGHTS)
        if config_path:
            config_path = checkpoints.in_folder(config_path, checkpoints.CONFIGS)
        if backbone == 'auto':
            backbone = 'roberta'
            if config_path and checkpoint_path:
                backbone = detect_backbone(config_path, checkpoint_path)
        if config_path:  # as arguments, since Hugging Face's says things otherwise
            kwargs = dict(checkpoints.read_config(config_path), **kwargs)
            config_path = None
        if backbone not in BACKBONES:
            raise UserError('backbone: expected auto, %s, got %s'
                            % (', '.join(sorted(BACKBONES)), backbone))
        model = BACKBONES[backbone]
    return bert4keras.models.build_transformer_model(
        config_path, checkpoint_path, model=model, **kwargs)
