"""The ways of tuning besides the paper's two, in any bert4keras Transformer: who trains what, where."""
from fltuning import compat  # noqa: F401  (before TensorFlow)
from bert4keras.backend import keras
from bert4keras.layers import (
    FeedForward, LayerNormalization, RelativePositionEmbedding, SinusoidalPositionEmbedding)

from fltuning.adapters import AddBias, LowRank, TunedFeedForward, Vector
from fltuning.attention import PromptMultiHeadAttention
from fltuning.input_prompts import (
    DropPrompts, EncodedPrompts, InputPrompts, PromptIds, PromptRelativePositions,
    PromptSinusoidalPositions)
from fltuning.methods import AT_INPUT, BY_SIZES, METHODS
from fltuning.packing import Packing

# {method: what it changes of an attention, as `PromptMultiHeadAttention.call` has it}
ATTENTION = {'lora': ['query rows', 'value rows'], 'ia3': ['key scale', 'value scale'],
             'bitfit': ['query bias', 'key bias', 'value bias']}
FEED_FORWARD = {'ia3': 'scale', 'bitfit': 'bias'}  # {method: the change of `TunedFeedForward`}
TITLES = {'rows': 'LoRA', 'scale': 'IA3', 'bias': 'Bias'}  # endings of layers' names


class TunedTransformer:
    """Mixin, behind `PackedTransformer`, that sees each layer pass and puts a method's own beside it.

    method: of `methods.METHODS`, none of those that are sizes; None for none of them.
    size: the method's.
    Expects of the class that it is mixed into: `prompt_layers`, names of the layers that are trained,
    `apply_prompt`, by which one becomes such, `has_prompts`, whether the layer that is being built is
    tuned, and `layers_to_transform`.
    """

    def __init__(self, *args, method=None, size=None, **kwargs):
        if method and (method not in METHODS or method in BY_SIZES):
            raise ValueError('method: expected none or one of %s, got %s' % (
                ', '.join(name for name in METHODS if name not in BY_SIZES), method))
        if method and METHODS[method].unit and (not size or size < 1):
            raise ValueError('size: expected a whole number from 1, got %r' % size)
        self.method, self.size = method or None, size
        super().__init__(*args, **kwargs)

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        name = kwargs.get('name')
        if inputs is None or not isinstance(layer, type) or (
                name in self.prompt_layers and self.method != 'finetune'):
            return super().apply(inputs, layer, arguments, **kwargs)
        if layer is FeedForward:
            layer = TunedFeedForward
        if self.method in AT_INPUT:
            inputs, layer = self.with_prompts(inputs, layer, arguments, kwargs)
        elif self.method and self.has_prompts:
            if self.method == 'finetune' and name not in self.prompt_layers and kwargs.get('trainable', True):
                self.prompt_layers.append(name)
            if self.method in ATTENTION and issubclass(layer, PromptMultiHeadAttention):
                inputs, arguments = self.changed_attention(inputs, arguments, kwargs)
            elif self.method in FEED_FORWARD and layer is TunedFeedForward:
                change = FEED_FORWARD[self.method]
                arguments = dict(arguments or {}, change=change)
                inputs = [inputs, self.vector('%s-Inner-%s' % (name, TITLES[change]), kwargs['units'], change)]
        outputs = super().apply(inputs, layer, arguments, **kwargs)
        if self.method == 'bitfit' and self.has_prompts and issubclass(layer, (
                PromptMultiHeadAttention, FeedForward, LayerNormalization, keras.layers.Dense)):
            outputs = self.apply_prompt(outputs, AddBias, name=name + '-Bias')
        return outputs

    def vector(self, name, size, kind):
        return self.apply_prompt(self.inputs[0], Vector, size=size, kind=kind, name=name)

    def changed_attention(self, inputs, arguments, options):
        """(inputs, arguments) of an attention whose projections are changed."""
        sizes = {'value': options['heads'] * options['head_size']}
        keys, tensors = options['heads'] * (options.get('key_size') or options['head_size']), []
        for change in ATTENTION[self.method]:
            part, kind = change.split()
            name, size = '%s-%s-%s' % (options['name'], part.title(), TITLES[kind]), sizes.get(part, keys)
            tensors.append(self.vector(name, size, kind) if kind != 'rows' else self.apply_prompt(
                inputs[0], LowRank, rank=self.size, units=size, name=name))
        return (list(inputs[:3]) + tensors + list(inputs[3:]),
                dict(arguments or {}, changes=ATTENTION[self.method]))

    def with_prompts(self, inputs, layer, arguments, options):
        """(inputs, layer) of a layer of a Transformer with prompts at its input."""
        if options.get('name') == 'Embedding-Norm':
            inputs = self.apply_prompt(
                inputs, EncodedPrompts if self.method == 'ptuning' else InputPrompts, size=self.size,
                name='Input-Prompts')
        elif (issubclass(layer, PromptMultiHeadAttention) and arguments
              and arguments.get('a_bias')):
            raise ValueError('%s: not with a mask among tokens' % self.method)
        elif layer is Packing:
            inputs = super().apply(inputs, PromptIds, size=self.size, name='Input-Prompt-Ids')
        for plain, prompted in [(RelativePositionEmbedding, PromptRelativePositions),
                                (SinusoidalPositionEmbedding, PromptSinusoidalPositions)]:
            if layer is plain:  # under another name: models without prompts may share the plain one
                options.update(size=self.size, name=options['name'] + '-Prompts')
                layer = prompted
        return inputs, layer

    def apply_embeddings(self, inputs):
        """Embeddings, where all layers are tuned, are among them."""
        self.has_prompts = len(self.layers_to_transform) == self.num_hidden_layers
        outputs = super().apply_embeddings(inputs)
        self.has_prompts = False
        return outputs

    def apply_final_layers(self, inputs):
        self.has_prompts = False
        if self.method in AT_INPUT and not self.first_only:
            inputs = super().apply(inputs, DropPrompts, size=self.size, name='Drop-Prompts')
        return super().apply_final_layers(inputs)
