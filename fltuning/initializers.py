"""The seed of all random numbers, and initial values that are the same on both stacks."""
import os
import random

from fltuning import compat  # before TensorFlow
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras

# What new weights are drawn from. Not NumPy's global state, of which Keras 2.3.1 draws as well.
weights_random = np.random.RandomState(0)


def truncated_normal(shape, stddev):
    """Normal values from `weights_random`, none further than two standard deviations from 0."""
    values = weights_random.normal(0, 1, shape)
    while (np.abs(values) > 2).any():
        values = np.where(np.abs(values) > 2, weights_random.normal(0, 1, shape), values)
    return values * stddev


class PromptInitializer(keras.initializers.Initializer):
    """Truncated normal from `weights_random`, so that both stacks start from the same weights.

    (tf-keras gives every weight that shares an initializer the same values.)
    """

    def __init__(self, stddev=0.02):
        self.stddev = stddev

    def __call__(self, shape, dtype=None, **kwargs):
        return K.constant(truncated_normal(shape, self.stddev), dtype=dtype)

    def get_config(self):
        return {'stddev': self.stddev}


def set_seed(seed: int) -> None:
    """Start every source of random numbers anew, and have GPUs add up in one order only."""
    os.environ['TF_DETERMINISTIC_OPS'] = '1'
    if compat.TF2:
        tf.config.experimental.enable_op_determinism()
    random.seed(seed)
    np.random.seed(seed)
    weights_random.seed(seed)
    tf.compat.v1.set_random_seed(seed)


keras.utils.get_custom_objects()['PromptInitializer'] = PromptInitializer
