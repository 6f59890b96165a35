"""Training and prediction, batch by batch: the step, the order of the samples, the progress."""
import math
import queue
import sys
import threading

from fltuning import compat  # before TensorFlow
import numpy as np
import tensorflow as tf
from tqdm import tqdm
from bert4keras.backend import K

from fltuning.dropout import dropout_key
from fltuning.errors import NotFinite
from fltuning.history import Place


def train_function(model, head, optimizer, seed=0, loss_scale=None):
    """f(inputs, labels) -> loss: one step on one batch, its dropout a function of seed and step.

    head: has `loss(labels, outputs)`, and `label_ndim` and `label_dtype` of the labels.
    loss_scale: a `LossScale`. With it, a step whose gradients are not finite changes no weight and does
        not count as one; where its loss is not finite either, None is returned. Raises NotFinite where no
        scale helps.
    """
    weights, key = model.trainable_weights, dropout_key()

    def set_key():
        K.set_value(key, np.array([seed, K.get_value(optimizer.iterations)], 'int32'))

    if not compat.TF2:
        labels = K.placeholder(ndim=head.label_ndim, dtype=head.label_dtype)
        loss = head.loss(labels, model.output)
        update = tf.group(*optimizer.get_updates(loss, weights))
        session, tensors = K.get_session(), model.inputs + [labels, K.learning_phase()]

        def run(inputs, labels):
            set_key()
            return float(session.run([loss, update], dict(zip(tensors, list(inputs) + [labels, 1])))[0])
        return run

    optimizer._create_all_weights(weights)  # now: a state may be loaded before the first step

    @tf.function(input_signature=[
        [tf.TensorSpec(x.shape, x.dtype) for x in model.inputs],
        tf.TensorSpec([None] * head.label_ndim, head.label_dtype)])
    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = head.loss(labels, model(inputs, training=True))
            scaled = loss * loss_scale.scale if loss_scale else loss
        gradients = tape.gradient(scaled, weights)
        if loss_scale:
            gradients, finite = loss_scale.unscaled(gradients)
            tf.cond(finite, lambda: update(gradients), tf.no_op)
            loss_scale.update(finite)
        else:
            update(gradients)
        return loss

    def update(gradients):
        return optimizer.apply_gradients(zip(gradients, weights))

    def run(inputs, labels):
        set_key()
        loss = float(step([tf.constant(x, 'float32') for x in inputs], labels))
        if loss_scale:
            loss_scale.check()
        return loss if loss_scale is None or math.isfinite(loss) else None
    return run


def predict_function(model):
    """f(inputs) -> output array, dropout off; may be called from several threads at once."""
    if not compat.TF2:
        session, tensors = K.get_session(), model.inputs + [K.learning_phase()]
        # Not K.function, which makes its callable in the first call.
        return lambda inputs: session.run(model.output, dict(zip(tensors, list(inputs) + [0])))

    @tf.function(input_signature=[[tf.TensorSpec(x.shape, x.dtype) for x in model.inputs]])
    def outputs(inputs):
        return model(inputs, training=False)

    return lambda inputs: outputs([tf.constant(x, 'float32') for x in inputs]).numpy()


def prefetch(generator, size=4):
    """The same items, made in a thread while the device computes."""
    items, stop = queue.Queue(size), threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work():
        try:
            for item in generator:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration))
        except BaseException as error:  # raised again where the items are used
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = items.get()
            if error is StopIteration:
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()


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


def train_epoch(step, task, encoded, settings, epoch, begin=None, pause=None):
    """One pass over the training data; returns the mean loss. Raises NotFinite.

    begin: the `Place` in the epoch to go on from.
    pause: f(place), called after each batch but the last; where it says True, the pass ends there.
    """
    lists = list(batches(encoded, settings.batch_size, epoch_order(encoded, settings, epoch)))
    begin = begin or Place()
    total, seen = begin.total, begin.samples
    with progress(len(encoded), 'epoch %d/%d' % (epoch + 1, settings.epochs)) as bar:
        if seen:
            bar.update(seen)
        for number, (batch, size) in enumerate(prefetch(
                (task.collate(batch), len(batch)) for batch in lists[begin.batches:]), begin.batches + 1):
            where = 'epoch %d, step %d of %d' % (epoch + 1, number, len(lists))
            try:
                loss = step(*batch)
            except NotFinite as error:
                raise NotFinite('%s: %s' % (where, error))
            bar.update(size)
            if loss is None:  # of a step that was left out: it counts for nothing
                loss, size = 0.0, 0
            if not math.isfinite(loss):
                raise NotFinite('%s: the loss is %s' % (where, loss))
            total += loss * size
            seen += size
            if seen:
                bar.set_postfix(loss='%.4f' % (total / seen), refresh=False)
            if pause and number < len(lists) and pause(Place(number, total, seen)):
                break
    if not seen:
        raise NotFinite('epoch %d: no batch has a finite loss' % (epoch + 1))
    return total / seen


def token_batches(encoded, max_tokens):
    """Lists of places in `encoded`, longest samples first, each of at most `max_tokens` padded."""
    batch, width, rows = [], 0, 0
    for i in sorted(range(len(encoded)), key=lambda i: -longest(encoded[i])):
        rows += len(encoded[i].rows)
        width = width or longest(encoded[i])
        if batch and rows * width > max_tokens:
            yield batch
            batch, width, rows = [], longest(encoded[i]), len(encoded[i].rows)
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
            outputs = run(inputs)
            if not (outputs < np.inf).all():  # NaN is not; -inf rules a span out
                raise NotFinite('%s: the model\'s output is not a number, with its weights or those of '
                                'the backbone' % (description or 'prediction'))
            found = task.decode(outputs, [encoded[i] for i in places])
            for i, result in zip(places, found):
                results[i] = result
            bar.update(len(places))
    return results
