"""One model, in which several sets of trained weights take turns."""
import contextlib
import threading
import weakref
from typing import Any, Iterator

from fltuning import compat  # noqa: F401  (before TensorFlow)

from fltuning import steps, weights
from fltuning.deltas import Values
from fltuning.graphs import Graph


class SharedModel:
    """A Keras model, built once for all sets of trained weights of its shape.

    May be used from several threads. Make it inside `graph.build()`.
    """

    def __init__(self, model: Any, transformer: Any, graph: Graph):
        self.model, self.transformer, self.graph = model, transformer, graph
        self.weights = weights.named_weights(model)
        self.run = steps.predict_function(model)
        weights.set_values(self.weights, weights.get_values(self.weights))  # on `tf1` adds to the graph
        self.users = weakref.WeakSet()  # those that have weights of their own for it
        self.values = None  # that are set
        self.running = 0  # calls that compute with them
        self.gate, self.turn = threading.Lock(), threading.Condition()

    @contextlib.contextmanager
    def holding(self, values: Values) -> Iterator[None]:
        """Inside, the model has these values. Calls with the same ones run at once, others take turns."""
        with self.graph.use():
            with self.gate:  # who waits holds up those that come later, or might wait forever
                with self.turn:
                    while self.running and self.values is not values:
                        self.turn.wait()
                    if self.values is not values:
                        self.values = None
                        weights.set_values(self.weights, values)
                        self.values = values
                    self.running += 1
            try:
                yield
            finally:
                with self.turn:
                    self.running -= 1
                    self.turn.notify_all()
