"""Multi-head attention with trainable keys and values (P-Tuning V2), on a padded grid or on true tokens."""
import functools
from typing import NamedTuple, Optional

from fltuning import compat  # before TensorFlow
import tensorflow as tf
from bert4keras.backend import K, align, attention_normalize, keras
from bert4keras.layers import Layer, MultiHeadAttention

from fltuning.blocks import recomputed
from fltuning.dropout import draw, dropout, track_key
from fltuning.kernels import make_dense_fast, softmax
from fltuning.packing import (
    count_parts, default_groups, first_rows, merge_heads, name_parts, split_heads, split_samples)

initializers = keras.initializers


class PromptEmbedding(Layer):
    """Trainable keys (or values) of P-Tuning V2, for one attention layer.

    Input: any tensor whose first axis is the batch.
    Output: (batch, prompt_size, heads, head_size).
    `dropout` is applied in training, to each sample on its own; with `keyed_dropout` it is drawn from
    `dropout.dropout_key`.
    """

    def __init__(self, prompt_size, heads, head_size, dropout=0.1, keyed_dropout=False,
                 embeddings_initializer='glorot_uniform', **kwargs):
        super().__init__(**kwargs)
        self.prompt_size = prompt_size
        self.heads = heads
        self.head_size = head_size
        self.dropout = dropout
        self.keyed_dropout = keyed_dropout
        self.embeddings_initializer = initializers.get(embeddings_initializer)

    def build(self, input_shape):
        super().build(input_shape)
        self.embeddings = self.add_weight(
            name='prompt_embedding',
            shape=(self.prompt_size, self.heads, self.head_size),
            initializer=self.embeddings_initializer)
        if self.keyed_dropout:
            track_key(self)

    def call(self, inputs, training=None):
        prompts = K.tile(self.embeddings[None], [K.shape(inputs)[0], 1, 1, 1])
        values, factor = dropout(prompts, self.dropout, self.name if self.keyed_dropout else None,
                                 training)
        return values * factor

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.prompt_size, self.heads, self.head_size)

    def get_config(self):
        config = super().get_config()
        config.update(
            prompt_size=self.prompt_size, heads=self.heads, head_size=self.head_size,
            dropout=self.dropout, keyed_dropout=self.keyed_dropout,
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


def product(x, y, pieces=None, transpose_b=False):
    """x y, (batch, heads, ...), with the rows of x cut into `pieces` of equal length."""
    if pieces is None:
        return tf.matmul(x, y, transpose_b=transpose_b)
    batch, heads, rows, size = tf.unstack(tf.shape(x))
    cut = tf.reshape(x, [batch, heads, pieces, rows // pieces, K.int_shape(x)[-1] or size])
    result = tf.matmul(cut, y[:, :, None], transpose_b=transpose_b)
    return tf.reshape(result, [batch, heads, rows, K.int_shape(result)[-1] or tf.shape(result)[-1]])


def take_changes(inputs, changes):
    """The inputs of `PromptMultiHeadAttention` without its changes' tensors, and f(part, x): x changed.

    A third argument of f is what becomes of a tensor of rows before it is added to x.
    """
    end = 3 + len(changes)
    tensors = list(zip(changes, inputs[3:end]))

    def change(part, x, of_rows=lambda rows: rows):
        for (where, how), tensor in [(said.split(), tensor) for said, tensor in tensors]:
            if where == part:
                x = x * tensor if how == 'scale' else x + (of_rows(tensor) if how == 'rows' else tensor)
        return x
    return inputs[:3] + inputs[end:], change


def normalize_scores(scores, normalization):
    """Attention weights of scores, over the last axis, computed in float32."""
    if scores.dtype == 'float32':
        return attention_normalize(scores, None, -1, normalization)
    if normalization == 'softmax':
        return softmax(scores)
    weights = attention_normalize(tf.cast(scores, 'float32'), None, -1, normalization)
    return tf.cast(weights, scores.dtype)


class AttentionCore(NamedTuple):
    """How queries, keys and values, (batch, heads, length, size), are attended with.

    given, of the methods: what there is of 'mask', 'a_bias', 'positions', and the prompts' 'keys' and 'values',
    (batch, heads, prompt_size, size); pieces: see `query_pieces`.
    """
    normalization: str
    p_bias: Optional[str]
    divisor: float  # of T5's positions

    def weigh(self, q, k, given, pieces=None):
        """(scores among the sequence's own tokens, the weights of prompts, if any, and tokens)."""
        scores, positions = product(q, k, pieces, transpose_b=True), given.get('positions')
        if self.p_bias == 'typical_relative':
            scores = scores + tf.einsum('bhjd,jkd->bhjk', q, positions)
        elif self.p_bias == 't5_relative':
            scores = scores + K.permute_dimensions(positions, (2, 0, 1))[None] / self.divisor
        masked = add_masks(scores, given.get('mask'), given.get('a_bias'))
        if 'keys' in given:
            masked = K.concatenate([tf.matmul(q, given['keys'], transpose_b=True), masked], -1)
        return scores, normalize_scores(masked, self.normalization)

    def mix(self, weights, v, given, pieces=None):
        """The values' means by these weights, (batch, heads, length, size)."""
        prompt_size = tf.shape(given['keys'])[2] if 'keys' in given else 0
        own = weights[..., prompt_size:] if 'keys' in given else weights
        output = product(own, v, pieces)
        if 'keys' in given:
            output = output + tf.matmul(weights[..., :prompt_size], given['values'])
        if self.p_bias == 'typical_relative':
            output = output + tf.einsum('bhjk,jkd->bhjd', own, given['positions'])
        return output


@functools.lru_cache(maxsize=None)
def core_recomputed(core, *names):
    """f(keep, q, k, v, *given) -> the mix by what is kept of the weights, which are made again for its gradient.

    names: those of `given`.
    """
    def attend(keep, q, k, v, *given):
        given = dict(zip(names, given))
        weights = core.weigh(q, k, given)[1]
        return core.mix(weights * tf.cast(keep, weights.dtype), v, given)
    return recomputed(attend)


class PromptMultiHeadAttention(MultiHeadAttention):
    """Multi-head attention that also attends to trainable keys and values.

    Inputs: those of bert4keras's MultiHeadAttention, behind the values, where it is called with
    `changes`, a tensor for each of them; at the end, where it is called with `prompts=True`,
    key prompts and value prompts, (batch, prompt_size, heads, size) each, then, if `packed`, the
    outputs of `Packing`. changes: what becomes of projections, e.g. 'query rows', a tensor like the
    queries is added to them, 'key scale' or 'key bias', keys are multiplied by a (1, size), or it is added.
    Rotary and relative positions and masks concern the sequence's own keys
    alone. A row whose keys are all masked gets finite numbers, not NaN.

    Output: (batch, length, out_dim); if `packed`, (tokens, out_dim), or (batch, out_dim) for the
    queries of position 0 alone where it is called with `first_only=True`.

    Prompts and changes are a matter of the call, so models with and without may share a frozen layer.
    """

    def __init__(self, *args, **kwargs):
        self.packed = kwargs.pop('packed', False)
        self.groups = kwargs.pop('groups', None) or default_groups()  # as `Packing` has them
        self.keyed_dropout = kwargs.pop('keyed_dropout', False)
        super().__init__(*args, **kwargs)

    def build(self, input_shape):
        with compat.policy_of(self):
            super().build(input_shape)
        make_dense_fast(self, 'q_dense', 'k_dense', 'v_dense', 'o_dense')
        if self.keyed_dropout:
            track_key(self)

    def call(self, inputs, mask=None, changes=(), **kwargs):
        inputs, change = take_changes(list(inputs), changes)
        if self.packed:
            return self.call_packed(inputs, change, **kwargs)
        q, k, v = [self.split_heads(x) for x in (
            change('query', self.q_dense(inputs[0])), change('key', self.k_dense(inputs[1])),
            change('value', self.v_dense(inputs[2])))]
        output, scores = self.attend(q, k, v, inputs[3:], mask[2] if mask else None, **kwargs)
        output = self.o_dense(K.flatten(tf.transpose(output, [0, 2, 1, 3]), 2))
        return [output, scores] if self.return_attention_scores else output

    def split_heads(self, x):
        """(batch, length, heads * size) -> (batch, heads, length, size)."""
        return tf.transpose(K.reshape(x, (self.heads, K.int_shape(x)[-1] // self.heads), -1),
                            [0, 2, 1, 3])

    def call_packed(self, inputs, change, **kwargs):
        """`call` on true tokens, (tokens, hidden)."""
        first_only = kwargs.get('first_only')
        count = count_parts(self.groups)
        inputs, parts = inputs[:-count], name_parts(inputs[-count:])
        query, key, value = inputs[:3]
        # Groups save scores: of one query there are few, and some are wanted for the whole batch.
        whole = first_only or kwargs.get('a_bias') or self.return_attention_scores
        grid = parts.whole if whole else parts.groups
        k, v = [split_heads(x, grid, self.heads)
                for x in (change('key', self.k_dense(key)), change('value', self.v_dense(value)))]
        if first_only:
            q = change('query', self.q_dense(first_rows(query, parts)), lambda x: first_rows(x, parts))
            q = [K.reshape(q, (-1, self.heads, 1, self.key_size))]
        else:
            q = split_heads(change('query', self.q_dense(query)), grid, self.heads)
        others = [inputs[3:]] if whole else self.split_inputs(inputs[3:], parts, **kwargs)
        outputs = [self.attend(*args, group=i, **kwargs)
                   for i, args in enumerate(zip(q, k, v, others, grid.masks, grid.pieces))]
        if first_only:
            output = K.reshape(outputs[0][0], (-1, self.heads * self.head_size))
        else:
            output = merge_heads([output for output, _ in outputs], grid, self.heads)
        output = self.o_dense(output)
        return [output, outputs[0][1]] if self.return_attention_scores else output

    def compute_output_shape(self, input_shape):
        shape = super().compute_output_shape(input_shape)
        if not self.packed:
            return shape
        if self.return_attention_scores:
            return [(None, self.out_dim), (None, self.heads, None, None)]
        return (None, self.out_dim)

    def compute_mask(self, inputs, mask=None):
        if not self.packed:
            return super().compute_mask(inputs, mask)
        return [None, None] if self.return_attention_scores else None

    def split_inputs(self, inputs, parts, p_bias=None, **kwargs):
        """The inputs of `attend`, without attention bias, for each group of samples."""
        inputs, lengths = list(inputs), [length for _, length in parts.groups.shapes]
        split = []
        if p_bias == 'rotary':  # (1 or batch, length, size)
            positions = inputs.pop(0)
            positions = ([positions] * len(lengths) if positions.shape[0] == 1
                         else split_samples(positions, parts))
            split.append([x[:, :length] for x, length in zip(positions, lengths)])
        elif p_bias:  # (length, length, ...)
            positions = inputs.pop(0)
            split.append([positions[:length, :length] for length in lengths])
        split += [split_samples(prompt, parts) for prompt in inputs]
        return zip(*split) if split else [[]] * len(lengths)

    def attend(self, q, k, v, inputs, mask, pieces=None, a_bias=None, p_bias=None, prompts=False,
               first_only=False, group=0, **kwargs):
        """softmax([q kp, q k] / sqrt(d)) [vp, v].

        q, k, v: (batch, heads, length, size); with `first_only` one query, at position 0. inputs:
        attention bias, positions and prompts, as far as there are any; mask: (batch, length); pieces:
        into how many to cut the queries, see `query_pieces`, None for one; group: which of the batch's
        groups these samples are, for the draws of dropout.
        Returns the result, like q, and the scores among the sequence's own tokens,
        (batch, heads, length, length).
        """
        inputs, prompt_size = list(inputs), 0
        if prompts:
            inputs, prompts = inputs[:-2], [
                tf.transpose(prompt, [0, 2, 1, 3]) for prompt in inputs[-2:]]
            prompt_size = tf.shape(prompts[0])[2]
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
        length = tf.shape(q)[2]
        if compat.TF2 or p_bias not in (None, 'rotary'):
            pieces = None
        if pieces is not None:
            q = tf.pad(q, [[0, 0], [0, 0], [0, -length % pieces], [0, 0]])

        given = {'mask': mask, 'a_bias': a_bias, 'positions': None if p_bias == 'rotary' else positions}
        if prompts:
            given.update(keys=prompts[0], values=prompts[1])
        given = {name: tensor for name, tensor in given.items() if tensor is not None}
        core = AttentionCore(self.normalization, p_bias, self.key_size**0.5 if self.attention_scale else 1)
        name = '%s-%s' % (self.name, group) if self.keyed_dropout else None
        if q.dtype.size < 4 and name and self.attention_dropout:
            # Scores are the most that a step keeps of long texts: all but what was drawn is made again.
            shape = tf.concat([tf.shape(q)[:3], [prompt_size + tf.shape(k)[2]]], 0)
            keep, factor = draw(shape, q.dtype, self.attention_dropout, name)
            # Chosen here: in the backward pass Keras no longer knows whether this is training.
            output = K.in_train_phase(lambda: core_recomputed(core, *given)(keep, q, k, v, *given.values()),
                                      lambda: core.mix(core.weigh(q, k, given)[1], v, given))
            output.set_shape(q.shape[:3] + v.shape[3:])
            scores = core.weigh(q, k, given)[0] if self.return_attention_scores else None
        else:
            scores, weights = core.weigh(q, k, given, pieces)
            weights, factor = dropout(weights, self.attention_dropout, name)
            output = core.mix(weights, v, given, pieces)
        return (output if pieces is None else output[:, :, :length]) * factor, scores

    def get_config(self):
        config = super().get_config()
        config.update(packed=self.packed, groups=self.groups, keyed_dropout=self.keyed_dropout)
        return config


keras.utils.get_custom_objects().update(
    PromptEmbedding=PromptEmbedding, PromptMultiHeadAttention=PromptMultiHeadAttention)
