"""How many threads TensorFlow computes with.

Sums are cut into a part for each thread, so another number of them gives other last bits (some 1e-7 of a
value): numbers of a seed are the same on one kind of machine with one number of threads.
"""
import os

from fltuning import compat  # before TensorFlow
import tensorflow as tf

from fltuning.errors import UserError


def count_threads(threads: int) -> int:
    """The number that `threads` stands for: 0 is as many as there are cores for this process."""
    if threads:
        return threads
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


_of_process = None  # what the first session of this process, on `tf1`, was made with


def use_threads(threads: int) -> None:
    """Have TensorFlow compute with so many from now on.

    It takes that once a process, before it first computes. Raises UserError where it is too late.
    """
    global _of_process
    if compat.TF2:
        config = tf.config.threading
        already = config.get_intra_op_parallelism_threads()
        if (already, config.get_inter_op_parallelism_threads()) == (threads, threads):
            return
        try:
            config.set_intra_op_parallelism_threads(threads)
            config.set_inter_op_parallelism_threads(threads)
            return
        except RuntimeError:
            pass
    else:
        if _of_process in (None, threads):
            _of_process = threads
            return
        already = _of_process
    raise UserError('threads %d: TensorFlow already computes with %d in this process'
                    % (threads, count_threads(already)))


def session_config():
    """`tf1`: the configuration of a session."""
    threads = _of_process or 0
    return tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads,
                                    inter_op_parallelism_threads=threads)
