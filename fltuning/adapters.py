"""The layers of LoRA, IA3 and BitFit: small trained ones beside frozen ones, which stay as they are."""
from fltuning import compat  # before TensorFlow
from bert4keras.backend import K, keras
from bert4keras.layers import FeedForward, Layer

from fltuning.kernels import make_dense_fast
from fltuning.initializers import PromptInitializer


class LowRank(Layer):
    """LoRA (arXiv 2106.09685): x A B, (..., inputs) -> (..., units), of rank `rank`.

    B is 0 at first. The paper's factor alpha / rank is 1: alpha is the rank.
    """

    def __init__(self, rank, units, **kwargs):
        super().__init__(**kwargs)
        self.rank = rank
        self.units = units

    def build(self, input_shape):
        super().build(input_shape)
        self.down = self.add_weight(name='down', shape=(int(input_shape[-1]), self.rank),
                                    initializer=PromptInitializer())
        self.up = self.add_weight(name='up', shape=(self.rank, self.units), initializer='zeros')

    def call(self, inputs):
        return K.dot(K.dot(inputs, self.down), self.up)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[:-1]) + (self.units,)

    def get_config(self):
        return dict(super().get_config(), rank=self.rank, units=self.units)


class Vector(Layer):
    """A trained vector, (1, size), whatever the input: a 'scale', 1 at first, or a 'bias', 0 at first."""

    def __init__(self, size, kind, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.kind = kind

    def build(self, input_shape):
        super().build(input_shape)
        self.vector = self.add_weight(name=self.kind, shape=(self.size,),
                                      initializer='ones' if self.kind == 'scale' else 'zeros')

    def call(self, inputs):
        return K.expand_dims(self.vector, 0)

    def compute_mask(self, inputs, mask=None):
        return None

    def compute_output_shape(self, input_shape):
        return (1, self.size)

    def get_config(self):
        return dict(super().get_config(), size=self.size, kind=self.kind)


class AddBias(Layer):
    """x + b, b trained and 0 at first: any shape."""

    def build(self, input_shape):
        super().build(input_shape)
        self.bias = self.add_weight(name='bias', shape=(int(input_shape[-1]),), initializer='zeros')

    def call(self, inputs):
        return inputs + self.bias


class TunedFeedForward(FeedForward):
    """bert4keras's FeedForward, whose hidden layer a trained vector may change.

    Inputs: x or, where it is called with `change`, [x, a `Vector`'s (1, units)]. change: 'scale', hidden
    values are multiplied; 'bias', it is added to theirs, before the activation.
    The change is a matter of the call, so models with and without may share a frozen layer.
    """

    def build(self, input_shape):
        with compat.policy_of(self):
            super().build(input_shape[0] if isinstance(input_shape, list) else input_shape)
        make_dense_fast(self, *['i%d_dense' % i for i in range(len(self.activation))], 'o_dense')

    def call(self, inputs, change=None):
        if change is None:
            return super().call(inputs)
        x, vector = inputs
        hidden = self.i0_dense(x)
        if change == 'scale':
            hidden = hidden * vector
        else:  # anew, since the layer has its bias and its activation in one
            dense = self.i0_dense
            hidden = dense.activation(K.bias_add(K.dot(x, dense.kernel), dense.bias + vector[0]))
        return self.o_dense(hidden)

    def compute_mask(self, inputs, mask=None):
        return mask[0] if isinstance(mask, list) else mask

    def compute_output_shape(self, input_shape):
        return input_shape[0] if isinstance(input_shape, list) else input_shape


keras.utils.get_custom_objects().update(
    LowRank=LowRank, Vector=Vector, AddBias=AddBias, TunedFeedForward=TunedFeedForward)
