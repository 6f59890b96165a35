"""The measurements of scripts/benchmark: steps that take turns on the same batches."""
import argparse
import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import time
from typing import Callable, NamedTuple

from fltuning import compat  # before TensorFlow
import numpy as np
import tensorflow as tf
from bert4keras.backend import K

import snippets
from fltuning import checkpoints, methods, steps
from fltuning.errors import UserError
from fltuning.files import read_json, write_json
from fltuning.initializers import set_seed
from fltuning.loss_scale import LossScale
from fltuning.precision import ONEDNN
from fltuning.provenance import peak_memory
from tasks import find_data, load_task
from tools.random_backbone import write_random_backbone


class Path(NamedTuple):
    """One way of computing a task."""
    step: Callable  # f(inputs, labels) -> loss
    predict: Callable  # f(inputs) -> outputs


def write_base_config(folder, flags):
    """bert_config.json of the size to measure; weights are Keras's random ones."""
    heads = max(flags.hidden_size // 64, 1)
    paths = write_random_backbone(os.path.join(folder, 'tiny'), num_hidden_layers=1, hidden_size=4,
                                  num_attention_heads=1, intermediate_size=4)
    config = read_json(paths['config_path'])
    config.update(
        hidden_size=flags.hidden_size, num_hidden_layers=flags.layers, num_attention_heads=heads,
        intermediate_size=4 * flags.hidden_size, vocab_size=21128)
    path = os.path.join(folder, 'bert_config.json')
    write_json(path, config)
    return path


def make_task(name, flags):
    tokenizer, keep_tokens = snippets.load_tokenizer(flags.dict_path)
    tokenizer.keep_tokens = keep_tokens
    return load_task(name, tokenizer)


def build_path(task, flags, config_path, padded, precision, **method):
    """method: settings of one in place of the flags' sizes."""
    sizes = method or dict(prompt_size=flags.prompt_size, ffn_prompt_size=flags.ffn_prompt_size)
    settings = snippets.ModelSettings(backbone=flags.backbone, padded=padded, precision=precision, **sizes)
    model, _ = snippets.build_model(
        task, settings, {'config_path': config_path, 'checkpoint_path': None}, task.tokenizer.keep_tokens)
    optimizer = snippets.get_optimizer(task.learning_rate, 0, 1000)
    scale = LossScale() if precision == 'float16' else None
    return Path(steps.train_function(model, task.head(), optimizer, loss_scale=scale),
                steps.predict_function(model))


def timed(function, *args):
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


def peak_function(precision):
    """f() -> multiply-adds a second of a large matrix product in this precision, just now."""
    rows, size = 2048, 3072
    values = [np.random.rand(*shape).astype('float32') for shape in [(rows, size), (size, size)]]
    if compat.TF2:
        tensors = [tf.cast(value, precision) for value in values]
        product = tf.function(lambda: tf.reduce_sum(tf.matmul(*tensors)))
    else:
        variables = [K.variable(value) for value in values]
        function = K.function([], [K.sum(tf.matmul(*variables))])
        product = lambda: function([])  # noqa: E731
    product()
    return lambda: rows * size * size / np.median([timed(product) for _ in range(3)])


def multiply_adds(lengths, flags, first_only, training):
    """Multiply-adds that sequences of these true lengths need."""
    hidden, prompts = flags.hidden_size, flags.prompt_size
    lengths, total = np.asarray(lengths, 'float64'), 0
    training = training and (prompts or flags.ffn_prompt_size)  # a head alone is not counted
    for layer in range(flags.layers):
        first, last = layer == 0, layer == flags.layers - 1
        queries = np.ones_like(lengths) if last and first_only else lengths
        tokens, rows = lengths.sum(), queries.sum()
        projections = 2 * hidden**2 * (tokens + rows)
        scores = 2 * hidden * (queries * (lengths + prompts)).sum()
        frozen, trained = rows * 8 * hidden**2, rows * 2 * hidden * flags.ffn_prompt_size
        total += projections + scores + frozen + trained
        if not training:
            continue
        total += trained  # the gradient of its weights
        if not first:  # of its input: of a product of two activations, both have one
            total += projections + 2 * scores + frozen + trained
        elif prompts:  # down to the prompts: values, softmax, keys
            total += frozen + trained + hidden * (
                rows * hidden + (queries * (lengths + 3 * prompts)).sum())
        else:  # down to the trained hidden units
            total += trained / 2
    return total


def lengths_of(encoded):
    return [len(row) for one in encoded for row in one.rows]


def load_samples(task, data_path, limit):
    folder = find_data(task.name, data_path)
    return task.load(folder, task.find_train_files(folder), True, limit)


def padding(batches):
    """Padded places over true tokens of lists of `Encoded`."""
    lengths = list(map(lengths_of, batches))
    return sum(max(batch) * len(batch) for batch in lengths) / float(sum(map(sum, lengths)))


def typical_batches(task, encoded, count):
    """`count` batches of a shuffled epoch, at even steps from those with least to most padding."""
    order = np.random.RandomState(0).permutation(len(encoded))
    batches = [batch for batch in steps.batches(encoded, task.batch_size, order)
               if len(batch) == task.batch_size]
    if not batches:
        raise UserError('%s: %d samples, less than a batch of %d' % (
            task.name, len(encoded), task.batch_size))
    batches.sort(key=lambda batch: padding([batch]))
    return [batches[int((i + 0.5) * len(batches) / count)] for i in range(count)]


class Work(NamedTuple):
    """What is measured of one task."""
    batches: list  # of `Encoded`, for training steps
    to_predict: list  # `Encoded`s


def make_work(task, flags):
    """Batches of the task's own texts; the same in every process."""
    samples = load_samples(task, flags.data_path, None)
    encoded = list(map(task.encode, samples))
    # For prediction, batches as they stand in the file, at even steps; some 9,000 tokens.
    count = max(1, int(round(9000.0 * len(encoded) / sum(lengths_of(encoded)) / task.batch_size)))
    in_order = list(steps.batches(task.to_predict(samples), task.batch_size))
    to_predict = [task.encode(sample) for i in range(count)
                  for sample in in_order[int((i + 0.5) * len(in_order) / count)]]
    return Work(typical_batches(task, encoded, flags.repeats), to_predict)


class Runner:
    """One path of a task at work. The times are of steps, by number of the batch, and of predictions."""

    def __init__(self, task, work, flags, config_path, padded, precision):
        self.task, self.work, self.padded = task, work, padded
        self.path, self.peak = build_path(task, flags, config_path, padded, precision), peak_function(precision)

    def warm_up(self):
        """The first of each also allocates, as do those that are larger than all before."""
        self.path.step(*self.task.collate(max(self.work.batches, key=lambda b: max(lengths_of(b)) * len(b))))
        self.predict()

    def step(self, number):
        return timed(self.path.step, *self.task.collate(self.work.batches[number]))

    def predict(self):
        return timed(steps.predict, self.path.predict, self.task, self.work.to_predict, None, 8192, self.padded)


_runner = None  # of a process that has one


def start_runner(name, flags, config_path, precision):
    global _runner
    set_seed(0)
    task = make_task(name, flags)
    _runner = Runner(task, make_work(task, flags), flags, config_path, False, precision)


def call_runner(method, *args):
    return getattr(_runner, method)(*args)


class RemoteRunner:
    """A `Runner` in a process of its own: whether oneDNN is on is a matter of the process.

    It is built while the caller goes on; the first call waits for that.
    """

    def __init__(self, pool, name, flags, config_path, precision):
        self.pool = pool
        with onednn_of(precision):
            self.built = pool.submit(start_runner, name, flags, config_path, precision)

    def __getattr__(self, method):
        self.built.result()
        return lambda *args: self.pool.submit(call_runner, method, *args).result()


def onednn_of(precision):
    """Inside, processes that are started have oneDNN off for float32, and for others as this one has it."""
    on = os.environ[ONEDNN] if precision != 'float32' else '0'
    return compat.environment(**{ONEDNN: on})


def paths_of(flags):
    """{name: (padded, precision)} of the two that are compared."""
    if flags.precision == 'float32':
        return {'padded': (True, 'float32'), 'default': (False, 'float32')}
    return {'float32': (False, 'float32'), flags.precision: (False, flags.precision)}


@contextlib.contextmanager
def runners(task, work, flags, config_path):
    """{name: runner} of `paths_of`, those of several precisions in processes of their own."""
    paths = paths_of(flags)
    if flags.precision == 'float32':
        yield {name: Runner(task, work, flags, config_path, *path) for name, path in paths.items()}
        return
    with contextlib.ExitStack() as stack:
        pools = {name: stack.enter_context(concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context('spawn'))) for name in paths}
        yield {name: RemoteRunner(pools[name], task.name, flags, config_path, precision)
               for name, (_, precision) in paths.items()}


def measure_task(task, flags, config_path):
    """Training steps and prediction of one task, its two paths taking turns."""
    K.clear_session()
    set_seed(0)
    work, times = make_work(task, flags), collections.defaultdict(list)
    # The peak takes its turns, too: the machine is not the same from minute to minute.
    speeds = collections.defaultdict(list)
    with runners(task, work, flags, config_path) as paths:
        for runner in paths.values():
            runner.warm_up()
        for part, count in [('train', len(work.batches)), ('predict', flags.repeats)]:
            for number in range(count):
                for name, runner in paths.items():
                    speeds[name].append(runner.peak())
                    times[part, name].append(runner.step(number) if part == 'train' else runner.predict())
    plain, ours = paths_of(flags)
    if flags.precision == 'float32':  # one and the same product
        speeds[ours] += speeds[plain]
    speed = float(np.median(speeds[ours]))
    tokens = [sum(lengths_of(batch)) for batch in work.batches]
    floors = [multiply_adds(lengths_of(batch), flags, task.first_only, True) / speed
              for batch in work.batches]
    median = {key: float(np.median(seconds)) for key, seconds in times.items()}
    return dict(
        task=task.name, batch_size=task.batch_size, padding=padding(work.batches),
        peak_gflops=2 * speed / 1e9, plain_peak_gflops=2 * float(np.median(speeds[plain])) / 1e9,
        train={
            'ratio': median['train', plain] / median['train', ours],
            'samples_per_second': {k: task.batch_size / median['train', k] for k in (plain, ours)},
            'tokens_per_second': {k: float(np.median(np.array(tokens) / times['train', k]))
                                  for k in (plain, ours)},
            'share_of_floor': float(np.median(np.array(floors) / times['train', ours])),
            'seconds': {k: times['train', k] for k in (plain, ours)}},
        predict={
            'padding': padding(steps.batches(work.to_predict, task.batch_size)),
            'ratio': median['predict', plain] / median['predict', ours],
            'samples_per_second': {k: len(work.to_predict) / median['predict', k] for k in (plain, ours)},
            'share_of_floor': multiply_adds(lengths_of(work.to_predict), flags, task.first_only, False)
            / speed / median['predict', ours],
            'seconds': {k: times['predict', k] for k in (plain, ours)}})


def measure_memory(name, flags, config_path):
    """MB that a process holds at most in a training step; each path in a process of its own."""
    memory, context = {}, multiprocessing.get_context('spawn')
    for path, (padded, precision) in paths_of(flags).items():
        with onednn_of(precision), concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            step = pool.submit(step_memory, name, flags, config_path, padded, precision)
            try:
                memory[path] = step.result()
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError('%s, %s: the process was ended: too little memory?' % (name, path))
    return {'task': name, 'peak_memory_mb': memory}


def step_memory(name, flags, config_path, padded, precision):
    task = make_task(name, flags)
    encoded = list(map(task.encode, load_samples(task, flags.data_path, None)))
    inputs, labels = max(map(task.collate, typical_batches(task, encoded, flags.repeats)),
                         key=lambda batch: batch[0][0].size)
    build_path(task, flags, config_path, padded, precision).step(inputs, labels)
    return peak_memory()


def measure_input(task, flags):
    """Samples a second of reading, tokenizing and batching, by themselves."""
    samples, seconds = [], {}
    seconds['read'] = timed(lambda: samples.extend(load_samples(task, flags.data_path, None)))
    encoded = []
    seconds['tokenize'] = timed(lambda: encoded.extend(map(task.encode, samples)))
    seconds['batch'] = timed(lambda: [
        task.collate(batch) for batch in steps.batches(encoded, task.batch_size)])
    return {'task': task.name, 'samples': len(samples), 'seconds': seconds,
            'samples_per_second': len(samples) / (seconds['tokenize'] + seconds['batch'])}


def measure_growth(task, flags, config_path, lengths=(32, 64, 128, 256, 512), sizes=(1, 4, 16, 64)):
    """Seconds of a default training step without padding, by length and batch size."""
    K.clear_session()
    step = build_path(task, flags, config_path, False, flags.precision).step
    random_state, rows = np.random.RandomState(0), []
    tokens = len(task.tokenizer.keep_tokens)
    for length in lengths:
        row = {'length': length, 'seconds': {}}
        for size in sizes:
            if length * size > 8192:
                continue
            ids = random_state.randint(1, tokens, (size, length)).astype('int32')
            batch = [ids, np.zeros_like(ids)], np.zeros((size, 1), 'int32')
            step(*batch)
            row['seconds'][size] = float(np.median([timed(step, *batch) for _ in range(3)]))
        rows.append(row)
    return rows


def measure_merged(task, flags, config_path):
    """Prediction with merged hidden units, a wider FFN, against the plain backbone's: same padding."""
    K.clear_session()
    config = read_json(config_path)
    wider = os.path.join(os.path.dirname(config_path), 'merged_config.json')
    write_json(wider, dict(
        config, intermediate_size=config['intermediate_size'] + flags.ffn_prompt_size))
    plain = argparse.Namespace(**dict(vars(flags), prompt_size=0, ffn_prompt_size=0))
    paths = [build_path(task, plain, path, True, flags.precision) for path in (config_path, wider)]
    encoded = list(map(task.encode, load_samples(task, flags.data_path, 2000)))
    times = []
    for batch in typical_batches(task, encoded, 3 * flags.repeats):
        inputs = task.collate(batch)[0]
        if not times:  # the first one also allocates
            [path.predict(inputs) for path in paths]
        times.append([timed(path.predict, inputs) for path in paths])
    plain, merged = np.array(times).T
    return {'task': task.name, 'ratio': float(np.median(merged / plain)),
            'seconds': {'plain': plain.tolist(), 'merged': merged.tolist()}}


def measure_methods(task, flags, config_path):
    """For each method: its steps, padded and default, against FL-Tuning's default one, taking turns."""
    config = checkpoints.read_config(config_path)
    encoded = list(map(task.encode, load_samples(task, flags.data_path, 2000)))
    batches = typical_batches(task, encoded, flags.repeats)
    for name in methods.METHODS:
        K.clear_session()
        set_seed(0)
        settings, reference = [methods.resolve(one, None, None, None, config, flags.backbone)
                               for one in (name, 'fl')]
        paths = {'reference': build_path(task, flags, config_path, False, flags.precision, **reference),
                 'padded': build_path(task, flags, config_path, True, flags.precision, **settings),
                 'default': build_path(task, flags, config_path, False, flags.precision, **settings)}
        times = {path: [] for path in paths}
        for number, batch in enumerate(batches[-1:] + batches):
            inputs, labels = task.collate(batch)
            for path in paths:
                seconds = timed(paths[path].step, inputs, labels)
                if number:  # the first one also allocates
                    times[path].append(seconds)
        size = methods.size_of(name, *[settings[key] for key in ('size', 'prompt_size', 'ffn_prompt_size')])
        ratios = {path: float(np.median(np.array(times[path]) / times['reference']))
                  for path in ('padded', 'default')}
        yield {'method': name, 'size': size, 'ratio': ratios, 'seconds': times,
               'trained': methods.trained_parameters(name, size, config, flags.backbone)}
