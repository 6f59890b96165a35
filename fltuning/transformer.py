"""What this project asks of every bert4keras Transformer besides its prompts."""
from fltuning import compat  # noqa: F401  (before TensorFlow)
import numpy as np
from bert4keras.backend import K
from bert4keras.layers import LayerNormalization

from fltuning import checkpoints
from fltuning.errors import UserError

BERT_EPSILON = 1e-12  # of layer norms; bert4keras 0.11.5 states it for some and leaves others to K.epsilon()


class CheckedTransformer:
    """Mixin: layer norms as the backbone was trained with, checkpoints that are checked.

    layer_norm_eps: epsilon of all layer norms.
    """

    def __init__(self, *args, layer_norm_eps=BERT_EPSILON, **kwargs):
        self.layer_norm_eps = layer_norm_eps
        self.loaded_from = None  # the checkpoint
        super().__init__(*args, **kwargs)

    def apply(self, inputs=None, layer=None, arguments=None, **kwargs):
        if isinstance(layer, type) and issubclass(layer, LayerNormalization):
            if kwargs.get('epsilon', BERT_EPSILON) == BERT_EPSILON:  # T5's, say, is another one
                kwargs['epsilon'] = self.layer_norm_eps
        return super().apply(inputs, layer, arguments, **kwargs)

    def load_weights_from_checkpoint(self, checkpoint, mapping=None):
        """As in bert4keras; raises UserError if a variable is missing or has another shape."""
        mapping = mapping or self.variable_mapping()
        weights = {layer: self.layers[self.prefixed(layer)].trainable_weights
                   for layer in mapping if self.prefixed(layer) in self.layers}
        variables = checkpoint if isinstance(checkpoint, dict) else checkpoints.read_variables(
            checkpoint, {name for layer in weights for name in mapping[layer]})
        for layer in weights:
            for weight, name in zip(weights[layer], mapping[layer]):
                self.check_variable(checkpoint, variables, name, K.int_shape(weight))
        super().load_weights_from_checkpoint(variables, mapping)
        self.loaded_from = checkpoint

    def checkpoint_values(self, names):
        """{name: float32 array} of the checkpoint that was loaded, as its weights were before they were
        rounded to a low precision."""
        variables = self.loaded_from
        if not isinstance(variables, dict):
            variables = checkpoints.read_variables(variables, set(names))
        return {name: np.asarray(self.load_variable(variables, name), 'float32') for name in names}

    def check_variable(self, checkpoint, variables, name, expected):
        if name not in variables:
            if not self.ignore_invalid_weights:
                raise UserError('%s: no variable %s, which this model needs' % (checkpoint, name))
        elif not self.autoresize_weights:
            shape = self.load_variable(variables, name).shape
            if shape != expected:
                raise UserError('%s: variable %s has shape %s, the config makes it %s'
                                % (checkpoint, name, shape, expected))
