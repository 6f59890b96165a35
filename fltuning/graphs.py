"""Each model has a graph and a session of its own, so that none is touched by what is built later."""
import contextlib
import os
import threading
import weakref

from fltuning import compat  # before TensorFlow
import tensorflow as tf

from fltuning.errors import UserError
from fltuning.threads import session_config

# Keras names layers and counts graphs in global tables.
building = threading.RLock()
_process = None  # the first one that made a graph, here or in a process that this one is a copy of


def check_process() -> None:
    """Raises UserError in a forked copy of a process that has models.

    Threads are not copied: TensorFlow would wait for its own forever, and we for whoever held a lock.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    if _process != os.getpid():
        raise UserError(
            'process %d was forked from %d, which had loaded a model: TensorFlow does not work in such a '
            "copy; load models in the child processes only (gunicorn: without preload), or start them with "
            "multiprocessing.get_context('spawn')" % (os.getpid(), _process))


def registered_gradients():
    """`tf1`: {name: gradient}, where each use of `tf.custom_gradient` leaves a function."""
    from tensorflow.python.framework import ops
    return ops._gradient_registry._registry


def release(process, graph, session, gradients):
    """`tf1`: give back the memory of a graph and its session.

    TensorFlow's table of gradients and Keras's tables hold tensors of the graph, which hold the graph:
    they would keep it forever.
    """
    if process != os.getpid():  # a forked copy, in which closing would wait for threads that are not there
        return
    for name in gradients:
        registered_gradients().pop(name, None)
    from tensorflow.python.keras import backend
    for name in ('_GRAPH_LEARNING_PHASES', '_GRAPH_VARIABLES', '_GRAPH_TF_OPTIMIZERS'):
        getattr(backend, name, {}).pop(graph, None)
    session.close()


class Graph:
    """Where a model lives: on `tf1` a graph and a session; on `tf2`, where variables own their values,
    nothing.

    Whatever concerns the model is done inside `use()`, from any thread; what adds to it, inside
    `build()`, by one thread at a time; all of it in the process that made it.
    """

    def __init__(self):
        check_process()
        if not compat.TF2:
            self.graph = tf.Graph()
            self.session = tf.compat.v1.Session(graph=self.graph, config=session_config())
            self.gradients = set()  # names in TensorFlow's table of those that were made for it
            # When nobody has it any more; not at the end of the process, which needs no order.
            weakref.finalize(self, release, os.getpid(), self.graph, self.session,
                             self.gradients).atexit = False

    @contextlib.contextmanager
    def use(self):
        check_process()
        if compat.TF2:
            yield
        else:
            with self.graph.as_default(), self.session.as_default():
                yield

    @contextlib.contextmanager
    def build(self):
        check_process()
        with building, self.use():
            before = set() if compat.TF2 else set(registered_gradients())
            try:
                yield
            finally:
                if not compat.TF2:
                    self.gradients |= set(registered_gradients()) - before
