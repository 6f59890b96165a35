"""FL-Tuning and P-Tuning V2 inside bert4keras's frozen Transformers.

Two ways to tune a frozen Transformer, each alone, both together, or neither:

- FL-Tuning (arXiv 2206.15312, section 3): every feed-forward network gains `ffn_prompt_size`
  trainable hidden units beside its frozen ones,
  FFN(x) = act(x W1 + b1) W2 + b2 + act(x P1 + p1) P2 + p2.
- P-Tuning V2 (arXiv 2110.07602): every attention sees `prompt_size` trainable keys and values in
  front of the sequence's own, without positions of theirs, never masked.

bert4keras makes every layer through `Transformer.apply`, so one mixin that overrides it serves
every backbone: `class MyTransformer(PromptTuning, AnyTransformer): pass`.
"""
from typing import Any, Optional

from fltuning import compat  # noqa: F401  (before TensorFlow)
import bert4keras.models
from bert4keras.backend import keras
from bert4keras.layers import FeedForward, MultiHeadAttention
from bert4keras.models import BERT, NEZHA, RoFormer

from fltuning import checkpoints
from fltuning.attention import PromptEmbedding, PromptMultiHeadAttention
from fltuning.errors import UserError
from fltuning.initializers import PromptInitializer
from fltuning.mixed import MixedTransformer
from fltuning.packed import PackedTransformer
from fltuning.transformer import CheckedTransformer
from fltuning.tuned import TunedTransformer


class PromptTuning(PackedTransformer, TunedTransformer, CheckedTransformer, MixedTransformer):
    """Mixin that gives a bert4keras Transformer its prompts.

    prompt_size: trainable key/value pairs in each attention (P-Tuning V2); 0 for none.
    ffn_prompt_size: trainable hidden units in each feed-forward network (FL-Tuning); 0 for none.
    layers_to_transform: indices of the layers that get them, from 0; None for all.
    prompt_dropout: dropout of the keys and values in training.
    packed, first_only, keyed_dropout: how it is computed, see `PackedTransformer`.
    method, size: another way of tuning in their place, see `TunedTransformer`.
    precision, low_weights: in which numbers, see `MixedTransformer`.
    Raises ValueError if a size is negative or a layer is not there.

    >>> class PromptALBERT(PromptTuning, bert4keras.models.ALBERT): pass
    >>> albert = PromptALBERT(ffn_prompt_size=4, vocab_size=9, max_position=8, hidden_size=4,
    ...     num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, hidden_act='gelu')
    >>> albert.build()
    >>> albert.freeze()
    >>> [layer.name for layer in albert.model.layers if layer.trainable_weights]
    ['Transformer-AddFFN']
    """

    def __init__(self, *args, prompt_size: int = 0, ffn_prompt_size: int = 0,
                 layers_to_transform: Optional[list] = None, prompt_dropout: float = 0.1, **kwargs):
        self.prompt_size, self.ffn_prompt_size = prompt_size, ffn_prompt_size
        self.prompt_dropout = prompt_dropout
        for name in ('prompt_size', 'ffn_prompt_size'):
            if getattr(self, name) != int(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError('%s: expected a whole number from 0, got %r'
                                 % (name, getattr(self, name)))
        self.prompt_layers = []  # names of the layers that are trained
        self.has_prompts = False  # the layer that is being built
        super().__init__(*args, **kwargs)
        layers = list(range(self.num_hidden_layers))
        self.layers_to_transform = (layers if layers_to_transform is None
                                    else sorted(set(layers_to_transform)))
        if not set(self.layers_to_transform) <= set(layers):
            raise ValueError('layers_to_transform: expected layers of 0 to %d, got %s'
                             % (len(layers) - 1, self.layers_to_transform))

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        """Every layer of the Transformer passes here: (inputs, its class, arguments of its call)."""
        if inputs is not None and layer is MultiHeadAttention:
            return self.apply_attention(inputs, arguments, **kwargs)
        if inputs is not None and layer is FeedForward and self.ffn_prompt_size and self.has_prompts:
            return self.apply_feed_forward(inputs, **kwargs)
        return super().apply(inputs, layer, arguments, **kwargs)

    def apply_main_layers(self, inputs, index):
        self.has_prompts = index in self.layers_to_transform
        return super().apply_main_layers(inputs, index)

    def apply_prompt(self, inputs, layer, **kwargs):
        """Like `apply`, and remembers the layer as one that is trained."""
        if kwargs['name'] not in self.prompt_layers:
            self.prompt_layers.append(kwargs['name'])
        return super().apply(inputs, layer, **kwargs)

    def apply_feed_forward(self, inputs, name, **kwargs):
        """FFN(x) + FFN_prompt(x), the paper's equation 6: (..., hidden) -> (..., hidden)."""
        prompt = dict(kwargs, units=self.ffn_prompt_size, kernel_initializer=PromptInitializer())
        outputs = [super().apply(inputs, FeedForward, name=name, **kwargs),
                   self.apply_prompt(inputs, FeedForward, name=name.replace('FeedForward', 'AddFFN'),
                                     **prompt)]
        return super().apply(outputs, keras.layers.Add, name=name + '-Sum')

    def apply_attention(self, inputs, arguments, name, heads, head_size, **kwargs):
        """Attention with `prompt_size` trainable keys and values before the sequence's own."""
        arguments, inputs = dict(arguments or {}), list(inputs)
        if self.residual_attention_scores:
            kwargs['return_attention_scores'] = True
        if self.prompt_size and self.has_prompts:
            arguments['prompts'] = True
            for part, size in [('Key', kwargs.get('key_size') or head_size), ('Value', head_size)]:
                inputs.append(self.apply_prompt(
                    self.inputs[0], PromptEmbedding, prompt_size=self.prompt_size, heads=heads,
                    head_size=size, dropout=self.prompt_dropout, keyed_dropout=self.keyed_dropout,
                    embeddings_initializer=PromptInitializer(),
                    name='%s-%s-PromptEmbedding' % (name, part)))
        return super().apply(inputs, PromptMultiHeadAttention, arguments, name=name, heads=heads,
                             head_size=head_size, **kwargs)

    def freeze(self) -> None:
        """Leave only the prompts trainable. Call it after the checkpoint is loaded."""
        prompts = [self.prefixed(name) for name in self.prompt_layers]
        for name, layer in self.layers.items():
            layer.trainable = name in prompts


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


def build_transformer_model(config_path: Optional[str] = None, checkpoint_path: Optional[str] = None,
                            model: Any = 'bert', backbone: str = 'auto', **kwargs: Any) -> Any:
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
                backbone = checkpoints.detect_backbone(config_path, checkpoint_path)
        if config_path:  # as arguments, since Hugging Face's says things otherwise
            config = checkpoints.read_config(config_path)
            checkpoints.check_sizes(config, *map(kwargs.get, (
                'prompt_size', 'ffn_prompt_size', 'layers_to_transform', 'method', 'size')))
            kwargs, config_path = dict(config, **kwargs), None
        if backbone not in BACKBONES:
            raise UserError('backbone: expected auto, %s, got %s'
                            % (', '.join(sorted(BACKBONES)), backbone))
        model = BACKBONES[backbone]
    return bert4keras.models.build_transformer_model(
        config_path, checkpoint_path, model=model, **kwargs)
