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
import json

import compat  # noqa: F401  (before bert4keras)
import bert4keras.models
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, align, attention_normalize, gelu_erf, keras
from bert4keras.layers import FeedForward, Layer, LayerNormalization, MultiHeadAttention
from bert4keras.layers import RelativePositionEmbedding, SinusoidalPositionEmbedding
from bert4keras.models import BERT, NEZHA, RoFormer

from errors import UserError
from functions import FastLayerNormalization, exact_gelu
from packing import FirstToken, Pack, Packing, Unpack, first_rows, merge_heads, split_heads

initializers = keras.initializers


class PromptInitializer(initializers.Initializer):
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


class PromptEmbedding(Layer):
    """Trainable keys (or values) of P-Tuning V2, for one attention layer.

    Input: any tensor whose first axis is the batch.
    Output: (batch, prompt_size, heads, head_size).
    `dropout` is applied in training, to each sample on its own.
    """

    def __init__(self, prompt_size, heads, head_size, dropout=0.1,
                 embeddings_initializer='glorot_uniform', **kwargs):
        super(PromptEmbedding, self).__init__(**kwargs)
        self.prompt_size = prompt_size
        self.heads = heads
        self.head_size = head_size
        self.dropout = dropout
        self.embeddings_initializer = initializers.get(embeddings_initializer)

    def build(self, input_shape):
        super(PromptEmbedding, self).build(input_shape)
        self.embeddings = self.add_weight(
            name='prompt_embedding',
            shape=(self.prompt_size, self.heads, self.head_size),
            initializer=self.embeddings_initializer)

    def call(self, inputs, training=None):
        prompts = K.tile(self.embeddings[None], [K.shape(inputs)[0], 1, 1, 1])
        if not self.dropout:
            return prompts
        return K.in_train_phase(lambda: K.dropout(prompts, self.dropout), prompts, training)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.prompt_size, self.heads, self.head_size)

    def get_config(self):
        config = super(PromptEmbedding, self).get_config()
        config.update(
            prompt_size=self.prompt_size, heads=self.heads, head_size=self.head_size,
            dropout=self.dropout,
            embeddings_initializer=initializers.serialize(self.embeddings_initializer))
        return config


def rotate(x, sinusoidal):
    """Rotary positions (arXiv 2104.09864): x (batch, heads, length, size), sinusoidal (1 or batch,
    length, size), sines at even places and cosines at odd ones."""
    sines = K.repeat_elements(sinusoidal[..., ::2], 2, -1)[:, None]
    cosines = K.repeat_elements(sinusoidal[..., 1::2], 2, -1)[:, None]
    turned = tf.reshape(tf.stack([-x[..., 1::2], x[..., ::2]], -1), tf.shape(x))
    return x * cosines + turned * sines


def add_masks(scores, mask, a_bias):
    """Attention scores (batch, heads, length, length) with what is masked far below the rest.

    mask: (batch, length), the keys to see, or None; a_bias: bool or numbers to add, (batch, length,
    length) or with heads, or None. By a large number instead of -inf: the weights are 0 all the
    same, but a row in which all is masked gets no NaN.
    """
    biases = [] if mask is None else [mask[:, None, None]]
    if a_bias is not None:
        biases.append(align(a_bias, [0, -2, -1], 4) if K.ndim(a_bias) == 3 else a_bias)
    for bias in biases:
        if K.dtype(bias) == 'bool':
            bias = (1 - tf.cast(bias, scores.dtype)) * (scores.dtype.min / 2)
        scores = scores + bias
    return scores


class PromptMultiHeadAttention(MultiHeadAttention):
    """Multi-head attention that also attends to trainable keys and values.

    Inputs: those of bert4keras's MultiHeadAttention, then, if `prompt_size`, key prompts and value
    prompts, (batch, prompt_size, heads, size) each, then, if `packed`, the outputs of `Packing`.
    Rotary and relative positions and masks concern the sequence's own keys alone. A row whose keys
    are all masked gets finite numbers, not NaN.

    Output: (batch, length, out_dim); if `packed`, (tokens, out_dim), or (batch, out_dim) for the
    queries of position 0 alone where it is called with `first_only=True`.
    """

    def __init__(self, *args, **kwargs):
        self.prompt_size = kwargs.pop('prompt_size', 0)
        self.packed = kwargs.pop('packed', False)
        super(PromptMultiHeadAttention, self).__init__(*args, **kwargs)

    def call(self, inputs, mask=None, **kwargs):
        inputs, packing, first_only = list(inputs), None, kwargs.get('first_only')
        if self.packed:
            inputs, packing = inputs[:-5], inputs[-5:]
        query, key, value = inputs[:3]
        if first_only:
            query = first_rows(query, packing)
        # To (batch, heads, length, size) each.
        if first_only:
            q = K.reshape(self.q_dense(query), (-1, self.heads, 1, self.key_size))
        else:
            q = self.to_heads(self.q_dense(query), packing)
        k = self.to_heads(self.k_dense(key), packing)
        v = self.to_heads(self.v_dense(value), packing)
        mask = packing[0] if packing else mask[2] if mask else None
        output, scores = self.attend(q, k, v, inputs[3:], mask, **kwargs)
        if first_only:
            output = K.reshape(output, (-1, self.heads * self.head_size))
        elif packing:
            output = merge_heads(output, packing, self.heads)
        else:
            output = K.flatten(tf.transpose(output, [0, 2, 1, 3]), 2)
        output = self.o_dense(output)
        return [output, scores] if self.return_attention_scores else output

    def to_heads(self, x, packing):
        """(batch, length, heads * size) or (tokens, heads * size) -> (batch, heads, length, size)."""
        if packing:
            return split_heads(x, packing, self.heads)
        return tf.transpose(K.reshape(x, (self.heads, K.int_shape(x)[-1] // self.heads), -1),
                            [0, 2, 1, 3])

    def compute_output_shape(self, input_shape):
        shape = super(PromptMultiHeadAttention, self).compute_output_shape(input_shape)
        if not self.packed:
            return shape
        if self.return_attention_scores:
            return [(None, self.out_dim), (None, self.heads, None, None)]
        return (None, self.out_dim)

    def compute_mask(self, inputs, mask=None):
        if not self.packed:
            return super(PromptMultiHeadAttention, self).compute_mask(inputs, mask)
        return [None, None] if self.return_attention_scores else None

    def attend(self, q, k, v, inputs, mask, a_bias=None, p_bias=None, first_only=False, **kwargs):
        """softmax([q kp, q k] / sqrt(d)) [vp, v].

        q, k, v: (batch, heads, length, size); with `first_only` one query, at position 0. inputs:
        attention bias, positions and prompts, as far as there are any; mask: (batch, length).
        Returns the result, like q, and the scores among the sequence's own tokens,
        (batch, heads, length, length).
        """
        inputs, prompts = list(inputs), []
        if self.prompt_size:
            inputs, prompts = inputs[:-2], [
                tf.transpose(prompt, [0, 2, 1, 3]) for prompt in inputs[-2:]]
        a_bias = inputs.pop(0) if a_bias else None
        positions = inputs.pop(0) if p_bias else None
        if first_only:
            if p_bias in ('typical_relative', 't5_relative'):
                positions = positions[:1]  # (1, length, ...)
            if a_bias is not None:
                a_bias = a_bias[..., :1, :]

        if p_bias == 'rotary':  # queries turn with their positions, prompts have none
            k = rotate(k, positions)
            q = q if first_only else rotate(q, positions)  # at position 0 nothing turns
        if self.attention_scale:
            q = q * (1 / self.key_size**0.5)
        scores = tf.matmul(q, k, transpose_b=True)
        if p_bias == 'typical_relative':
            scores = scores + tf.einsum('bhjd,jkd->bhjk', q, positions)
        elif p_bias == 't5_relative':
            bias = K.permute_dimensions(positions, (2, 0, 1))[None]
            scores = scores + (bias / self.key_size**0.5 if self.attention_scale else bias)
        masked = add_masks(scores, mask, a_bias)
        if prompts:
            masked = K.concatenate([tf.matmul(q, prompts[0], transpose_b=True), masked], -1)
        weights = attention_normalize(masked, None, -1, self.normalization)
        if self.attention_dropout:
            weights = keras.layers.Dropout(self.attention_dropout)(weights)
        own = weights[..., self.prompt_size:] if prompts else weights
        output = tf.matmul(own, v)
        if prompts:
            output = output + tf.matmul(weights[..., :self.prompt_size], prompts[1])
        if p_bias == 'typical_relative':
            output = output + tf.einsum('bhjk,jkd->bhjd', own, positions)
        return output, scores

    def get_config(self):
        config = super(PromptMultiHeadAttention, self).get_config()
        config.update(prompt_size=self.prompt_size, packed=self.packed)
        return config


class PromptTuning(object):
    """Mixin that gives a bert4keras Transformer its prompts.

    prompt_size: trainable key/value pairs in each attention (P-Tuning V2); 0 for none.
    ffn_prompt_size: trainable hidden units in each feed-forward network (FL-Tuning); 0 for none.
    prompt_dropout: dropout of the keys and values in training.
    packed: compute on true tokens only; the output is unfolded, 0 where there is padding.
    first_only: with `packed`, the last layer computes position 0 alone, the output is
        (batch, 1, hidden).
    Raises ValueError if a size is negative.

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
        for name in ('prompt_size', 'ffn_prompt_size'):
            if getattr(self, name) != int(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError('%s: expected a whole number from 0, got %r'
                                 % (name, getattr(self, name)))
        self.packed = kwargs.pop('packed', False)
        self.first_only = self.packed and kwargs.pop('first_only', False)
        kwargs.pop('first_only', None)
        self.packing = None  # the outputs of `Packing`, once the trunk has begun
        self.in_last_layer = False
        self.prompt_layers = []
        super(PromptTuning, self).__init__(*args, **kwargs)

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        if layer is LayerNormalization:
            # The original's; bert4keras 0.11.5 leaves some norms to K.epsilon().
            kwargs.setdefault('epsilon', 1e-12)
            layer = FastLayerNormalization if self.packed else layer
        if self.packed and keras.activations.get(kwargs.get('activation')) is gelu_erf:
            kwargs['activation'] = exact_gelu
        if inputs is None:
            return super(PromptTuning, self).apply(inputs, layer, arguments, **kwargs)
        if layer is MultiHeadAttention:
            return self.apply_attention(inputs, arguments, **kwargs)
        if layer is FeedForward and self.ffn_prompt_size:
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
            self.inputs[0], Packing, heads=self.num_attention_heads, name='Packing')
        packed = super(PromptTuning, self).apply([x] + packing, Pack, name='Pack')
        self.packing, self.trunk_input = packing, (packed, x)
        return packed  # (tokens, hidden)

    def apply_main_layers(self, inputs, index):
        self.in_last_layer = index == self.num_hidden_layers - 1
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
        if self.residual_attention_scores:
            kwargs['return_attention_scores'] = True
        if self.prompt_size:
            heads, head_size = kwargs['heads'], kwargs['head_size']
            inputs = list(inputs)
            for part, size in [('Key', kwargs.get('key_size') or head_size), ('Value', head_size)]:
                inputs.append(self.apply_prompt(
                    self.inputs[0], PromptEmbedding, prompt_size=self.prompt_size, heads=heads,
                    head_size=size, dropout=self.prompt_dropout,
                    embeddings_initializer=PromptInitializer(),
                    name='%s-%s-PromptEmbedding' % (kwargs['name'], part)))
        if self.packing:
            inputs = list(inputs) + self.packing
            arguments = dict(arguments or {})
            if self.in_last_layer and self.first_only:
                arguments['first_only'] = True
        return super(PromptTuning, self).apply(
            inputs, PromptMultiHeadAttention, arguments, prompt_size=self.prompt_size,
            packed=bool(self.packing), **kwargs)

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
            reader = tf.train.load_checkpoint(checkpoint)
            variables = {}
            for layer, names in mapping.items():
                if self.prefixed(layer) in self.layers:
                    variables.update((name, reader.get_tensor(name)) for name in names
                                     if reader.has_tensor(name))
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
    """'roberta', 'nezha' or 'roformer', read off the config and the checkpoint's variables."""
    with open(config_path) as reader:
        if json.load(reader).get('use_relative_position'):
            return 'nezha'
    names = [name for name, _ in tf.train.list_variables(checkpoint_path)]
    if any(name.endswith('embeddings/position_embeddings') for name in names):
        return 'roberta'
    return 'roformer'


def build_transformer_model(config_path=None, checkpoint_path=None, model='bert', backbone='auto',
                            **kwargs):
    """bert4keras's `build_transformer_model`; PtuningV2AddFNNPtuning fits itself to the backbone.

    backbone: 'auto' (read off the checkpoint), 'roberta', 'nezha' or 'roformer'; concerns only
    `model=PtuningV2AddFNNPtuning`, which takes `prompt_size`, `ffn_prompt_size` and
    `prompt_dropout` besides bert4keras's own arguments.
    Raises UserError if the checkpoint does not fit the config.
    """
    if model is PtuningV2AddFNNPtuning:
        if backbone == 'auto':
            backbone = 'roberta'
            if config_path and checkpoint_path:
                backbone = detect_backbone(config_path, checkpoint_path)
        model = BACKBONES[backbone]
    return bert4keras.models.build_transformer_model(
        config_path, checkpoint_path, model=model, **kwargs)


custom_objects = {
    'PromptInitializer': PromptInitializer,
    'PromptEmbedding': PromptEmbedding,
    'PromptMultiHeadAttention': PromptMultiHeadAttention,
}
keras.utils.get_custom_objects().update(custom_objects)
