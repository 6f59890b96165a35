"""Training and prediction, batch by batch: the step, the order of the samples, the progress."""
import sys

import compat
import numpy as np
import tensorflow as tf
from bert4keras.backend import K
from tqdm import tqdm

from data import prefetch
from functions import dropout_key


def train_function(model, task, optimizer, seed=0):
    """f(inputs, labels) -> loss: one step on one batch, its dropout a function of seed and step."""
    weights, key = model.trainable_weights, dropout_key()

    def set_key():
        K.set_value(key, np.array([seed, K.get_value(optimizer.iterations)], 'int32'))

    if not compat.TF2:
        labels = K.placeholder(ndim=task.label_ndim, dtype=task.label_dtype)
        loss = task.loss(labels, model.output)
        step = K.function(model.inputs + [labels, K.learning_phase()], [loss],
                          updates=optimizer.get_updates(loss, weights))

        def run(inputs, labels):
            set_key()
            return float(step(list(inputs) + [labels, 1])[0])
        return run

    optimizer._create_all_weights(weights)  # now: a state may be loaded before the first step

    @tf.function(input_signature=[
        [tf.TensorSpec(x.shape, x.dtype) for x in model.inputs],
        tf.TensorSpec([None] * task.label_ndim, task.label_dtype)])
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = task.loss(labels, model(inputs, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
        return loss

    def run(inputs, labels):
        set_key()
        return float(step([tf.constant(x, 'float32') for x in inputs], labels))
    return run


def predict_function(model):
    """f(inputs) -> output array, dropout off."""
    if not compat.TF2:
        outputs = K.function(model.inputs + [K.learning_phase()], [model.output])
        return lambda inputs: outputs(list(inputs) + [0])[0]

    @tf.function(input_signature=[[tf.TensorSpec(x.shape, x.dtype) for x in model.inputs]])
    def outputs(inputs):
        return model(inputs, training=False)

    return lambda inputs: outputs([tf.constant(x, 'float32') for x in inputs]).numpy()


def progress(total, description):
    """A bar on a terminal, a line now and then in a log file."""
    return tqdm(total=total, desc=description, unit='sample', dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 30, disable=description is None)


def batches(encoded, size, order=None):
    order = range(len(encoded)) if order is None else order
    for begin in range(0, len(encoded), size):
        yield [encoded[i] for i in order[begin:begin + size]]


def longest(encoded):
    return max(map(len, encoded.rows))


def epoch_order(encoded, settings, epoch):
    """The order of an epoch, a function of seed and epoch alone.

    With `--bucket`, samples of like lengths stand together inside windows of 64 batches.
    """
    random_state = np.random.RandomState([settings.seed, epoch])
    order = random_state.permutation(len(encoded))
    if settings.bucket:
        size = settings.batch_size
        groups = []
        for begin in range(0, len(order), 64 * size):
            window = sorted(order[begin:begin + 64 * size], key=lambda i: longest(encoded[i]))
            groups += [window[i:i + size] for i in range(0, len(window), size)]
        random_state.shuffle(groups)
        order = [i for group in sorted(groups, key=len, reverse=True) for i in group]
    return order


def train_epoch(step, task, encoded, settings, epoch):
    """One pass over the training data; returns the mean loss."""
    lists = batches(encoded, settings.batch_size, epoch_order(encoded, settings, epoch))
    total, seen = 0.0, 0
    with progress(len(encoded), 'epoch %d/%d' % (epoch + 1, settings.epochs)) as bar:
        for batch, size in prefetch((task.collate(batch), len(batch)) for batch in lists):
            total += step(*batch) * size
            seen += size
            bar.set_postfix(loss='%.4f' % (total / seen), refresh=False)
            bar.update(size)
    return total / seen


def token_batches(encoded, max_tokens):
    """Lists of places in `encoded`, longest samples first, each of at most `max_tokens` padded."""
    batch, width = [], 0
    for i in sorted(range(len(encoded)), key=lambda i: -longest(encoded[i])):
        rows = len(encoded[i].rows)
        width = width or longest(encoded[i])
        if batch and (len(batch) + 1) * rows * width > max_tokens:
            yield batch
            batch, width = [], longest(encoded[i])
        batch.append(i)
    if batch:
        yield batch


def predict(run, task, encoded, description=None, max_tokens=8192, padded=False):
    """The results for a list of `Encoded`, in its order; `run` as from `predict_function`.

    description: of the progress bar; None for no bar.
    padded: the plain way, batches of `task.batch_size` samples as they stand.
    """
    results = [None] * len(encoded)
    with progress(len(encoded), description) as bar:
        if padded:
            lists = batches(range(len(encoded)), task.batch_size)
        else:
            lists = token_batches(encoded, max_tokens)
        for places, inputs in prefetch(
                (places, task.collate([encoded[i] for i in places])[0]) for places in lists):
            found = task.decode(run(inputs), [encoded[i] for i in places])
            for i, result in zip(places, found):
                results[i] = result
            bar.update(len(places))
    return results
