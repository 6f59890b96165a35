"""A model in training: its graph, its optimizer, its weights and its state."""
from typing import Any, Callable, Dict, List, Optional, Tuple

from fltuning import compat  # noqa: F401  (before TensorFlow)
import numpy as np
from bert4keras.backend import K

from fltuning import steps, weights
from fltuning.deltas import Values
from fltuning.errors import NotFinite
from fltuning.graphs import Graph
from fltuning.initializers import set_seed
from fltuning.loss_scale import LossScale
from fltuning.threads import use_threads


class Trainer:
    """A model and its optimizer, in a graph of their own.

    make_model() gives (Keras model, transformer), make_optimizer() a `PromptAdam`; head: the task's,
    see heads.py. Weights are set anew from `seed`.
    threads: to compute with, 0 for one a core.
    """

    def __init__(self, make_model: Callable[[], tuple], make_optimizer: Callable[[], Any], head,
                 seed: int, threads: int = 0):
        use_threads(threads)
        self.graph = Graph()
        with self.graph.build():
            set_seed(seed)
            self.model, self.transformer = make_model()
            self.optimizer = make_optimizer()
            self.loss_scale = LossScale() if self.transformer.precision == 'float16' else None
            self.step = steps.train_function(self.model, head, self.optimizer, seed, self.loss_scale)
            self.outputs = steps.predict_function(self.model)
            self.weights = weights.named_weights(self.model)
            self.frozen = weights.named_weights(self.model, trainable=False)
            self.state = self.named_state()

    def named_state(self) -> List[Tuple[str, Any]]:
        """[(name, variable)]: with seed and epoch, all that the steps to come depend on."""
        names = {id(weight): name for name, weight in self.weights}
        slots = self.optimizer.named_slots([names[id(w)] for w in self.model.trainable_weights])
        scale = self.loss_scale.named if self.loss_scale else []
        return [('weights/' + name, weight) for name, weight in self.weights] + slots + scale

    def count(self) -> Tuple[int, int]:
        """How many numbers are trained, and how many there are."""
        trained, frozen = [weights.count(weight for _, weight in pairs)
                           for pairs in (self.weights, self.frozen)]
        return trained, trained + frozen

    def fingerprint(self, token_dict: Dict[str, int]) -> str:
        with self.graph.use():
            return weights.fingerprint(self.transformer, token_dict)

    def frozen_sha256(self, token_dict: Dict[str, int]) -> str:
        with self.graph.use():
            return weights.frozen_sha256(self.model, token_dict)

    def train_epoch(self, task, encoded: list, settings, epoch: int, **options: Any) -> float:
        """One pass over the training data, or its rest; returns the mean loss. See steps.py."""
        with self.graph.use():
            return steps.train_epoch(self.step, task, encoded, settings, epoch, **options)

    def count_used(self) -> int:
        """The batches so far whose gradients were used; in float16 those that overflow are not."""
        with self.graph.use():
            return int(K.get_value(self.optimizer.iterations))

    def predict(self, task, encoded: list, description: Optional[str] = None,
                padded: bool = False) -> list:
        with self.graph.use():
            return steps.predict(self.outputs, task, encoded, description, padded=padded)

    def get_values(self) -> Values:
        """{name: array} of what is trained."""
        with self.graph.use():
            return weights.get_values(self.weights)

    def set_values(self, values: Values) -> None:
        with self.graph.use():
            weights.set_values(self.weights, values)

    def get_state(self) -> Values:
        """{name: array} of what the steps to come depend on. Raises NotFinite if any of it is not."""
        with self.graph.use():
            values = weights.get_values(self.state)
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise NotFinite('%s is not finite' % name)
        return values

    def set_state(self, values: Values) -> None:
        with self.graph.use():
            weights.set_values(self.state, values)
