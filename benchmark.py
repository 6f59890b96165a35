"""How fast the default path is against the plain padded one, on the real texts of each task.

A backbone of base size with random weights; every figure is a ratio of steps that took turns in one
run, on the same batches. The floor is the time that the multiply-adds of the true tokens would take
at the speed of a large matrix product, measured in the same run.
"""
import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import os
import sys
import time

import compat
import numpy as np
import tensorflow as tf
from bert4keras.backend import K

import loop
import snippets
import train
from data import write_text
from datasets import load_task
from errors import Parser, UserError, run_tool
from random_backbone import write_random_backbone

TASKS = ['afqmc', 'c3', 'chid', 'cluener', 'cmnli', 'cmrc2018', 'csl', 'iflytek', 'ocnli', 'tnews',
         'wsc']
PARTS = ['input', 'tasks', 'memory', 'growth', 'merged']
Path = collections.namedtuple('Path', 'step predict')


def parse_flags(argv=None):
    parser = Parser(prog='scripts/benchmark', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    number = train.whole_number(1)
    parser.add_argument('--data_path', default='clue_dataset', help='folder with a folder a task')
    parser.add_argument('--dict_path', default='', help='a vocabulary for Chinese text')
    parser.add_argument('--tasks', nargs='+', default=TASKS, choices=TASKS, metavar='TASK')
    parser.add_argument('--parts', nargs='+', default=PARTS, choices=PARTS)
    parser.add_argument('--backbone', default='roberta', choices=['roberta', 'nezha', 'roformer'])
    parser.add_argument('--layers', type=number, default=12)
    parser.add_argument('--hidden_size', type=number, default=768)
    parser.add_argument('--prompt_size', type=train.whole_number(0), default=0)
    parser.add_argument('--ffn_prompt_size', type=train.whole_number(0), default=160)
    parser.add_argument('--repeats', type=number, default=5, help='batches a figure is the median of')
    parser.add_argument('--output_dir', default='', help='where results/benchmark.json goes')
    return parser.parse_args(argv)


def write_base_config(folder, flags):
    """bert_config.json of the size to measure; weights are Keras's random ones."""
    heads = max(flags.hidden_size // 64, 1)
    paths = write_random_backbone(os.path.join(folder, 'tiny'), num_hidden_layers=1, hidden_size=4,
                                  num_attention_heads=1, intermediate_size=4)
    with open(paths['config_path']) as reader:
        config = json.load(reader)
    config.update(
        hidden_size=flags.hidden_size, num_hidden_layers=flags.layers, num_attention_heads=heads,
        intermediate_size=4 * flags.hidden_size, vocab_size=21128)
    path = os.path.join(folder, 'bert_config.json')
    write_text(path, json.dumps(config))
    return path


def make_task(name, flags):
    tokenizer, keep_tokens = snippets.load_tokenizer(flags.dict_path)
    tokenizer.keep_tokens = keep_tokens
    return load_task(name, tokenizer)


def build_path(task, flags, config_path, padded):
    settings = argparse.Namespace(backbone=flags.backbone, prompt_size=flags.prompt_size,
                                  ffn_prompt_size=flags.ffn_prompt_size,
                                  layers_to_transform=None, padded=padded)
    model, _ = train.build_model(task, settings, {'config_path': config_path, 'checkpoint_path': None},
                                 task.tokenizer.keep_tokens)
    optimizer = snippets.get_optimizer(task.learning_rate, 0, 1000)
    return Path(loop.train_function(model, task, optimizer), loop.predict_function(model))


def timed(function, *args):
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


def peak_function():
    """f() -> multiply-adds a second of a large float32 matrix product, just now."""
    rows, size = 2048, 3072
    values = [np.random.rand(*shape).astype('float32') for shape in [(rows, size), (size, size)]]
    if compat.TF2:
        tensors = [tf.constant(value) for value in values]
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
    folder = train.find_data(task, data_path)
    return task.load(folder, task.find_train_files(folder), True, limit)


def padding(batches):
    """Padded places over true tokens of lists of `Encoded`."""
    lengths = list(map(lengths_of, batches))
    return sum(max(batch) * len(batch) for batch in lengths) / float(sum(map(sum, lengths)))


def typical_batches(task, encoded, count):
    """`count` batches of a shuffled epoch, at even steps from those with least to most padding."""
    order = np.random.RandomState(0).permutation(len(encoded))
    batches = [batch for batch in loop.batches(encoded, task.batch_size, order)
               if len(batch) == task.batch_size]
    if not batches:
        raise UserError('%s: %d samples, less than a batch of %d' % (
            task.name, len(encoded), task.batch_size))
    batches.sort(key=lambda batch: padding([batch]))
    return [batches[int((i + 0.5) * len(batches) / count)] for i in range(count)]


def measure_task(task, flags, config_path):
    """Training steps and prediction of one task, padded and default taking turns."""
    K.clear_session()
    train.set_seed(0)
    samples = load_samples(task, flags.data_path, None)
    encoded = list(map(task.encode, samples))
    batches = typical_batches(task, encoded, flags.repeats)
    paths = {'padded': build_path(task, flags, config_path, True),
             'default': build_path(task, flags, config_path, False)}
    # For prediction, batches as they stand in the file, at even steps; some 9,000 tokens.
    count = max(1, int(round(9000.0 * len(encoded) / sum(lengths_of(encoded)) / task.batch_size)))
    in_order = list(loop.batches(task.to_predict(samples), task.batch_size))
    to_predict = [task.encode(sample) for i in range(count)
                  for sample in in_order[int((i + 0.5) * len(in_order) / count)]]

    def predict(name):
        loop.predict(paths[name].predict, task, to_predict, padded=name == 'padded')

    # The peak takes its turns, too: the machine is not the same from minute to minute.
    times, peak, speeds = collections.defaultdict(list), peak_function(), []
    for name in paths:  # the first step also allocates
        paths[name].step(*task.collate(min(batches, key=lambda b: max(lengths_of(b)))))
    for batch in batches:
        inputs, labels = task.collate(batch)
        speeds.append(peak())
        for name in paths:
            times[name].append(timed(paths[name].step, inputs, labels))
    for name in paths:
        paths[name].predict(task.collate(to_predict[:2])[0])
    for _ in range(flags.repeats):
        speeds.append(peak())
        for name in paths:
            times['predict ' + name].append(timed(predict, name))
    tokens, speed = [sum(lengths_of(batch)) for batch in batches], float(np.median(speeds))
    floors = [multiply_adds(lengths_of(batch), flags, task.first_only, True) / speed
              for batch in batches]
    padded, default = np.array(times['padded']), np.array(times['default'])
    return dict(
        task=task.name, batch_size=task.batch_size, padding=padding(batches),
        peak_gflops=2 * speed / 1e9,
        train={
            'ratio': float(np.median(padded) / np.median(default)),
            'samples_per_second': {k: task.batch_size / float(np.median(times[k])) for k in paths},
            'tokens_per_second': {k: float(np.median(np.array(tokens) / times[k])) for k in paths},
            'share_of_floor': float(np.median(np.array(floors) / default)),
            'seconds': {k: times[k] for k in paths}},
        predict={
            'padding': padding(loop.batches(to_predict, task.batch_size)),
            'ratio': float(np.median(times['predict padded'])
                           / np.median(times['predict default'])),
            'samples_per_second': {k: len(to_predict) / float(np.median(times['predict ' + k]))
                                   for k in paths},
            'share_of_floor': float(
                multiply_adds(lengths_of(to_predict), flags, task.first_only, False) / speed
                / np.median(times['predict default'])),
            'seconds': {k: times['predict ' + k] for k in paths}})


def measure_memory(name, flags, config_path):
    """MB that a process holds at most in a training step; each path in a process of its own."""
    memory, context = {}, multiprocessing.get_context('spawn')
    for path in ('padded', 'default'):
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            step = pool.submit(step_memory, name, flags, config_path, path == 'padded')
            try:
                memory[path] = step.result()
            except concurrent.futures.process.BrokenProcessPool:
                raise UserError('%s, %s: the process was ended: too little memory?' % (name, path))
    return {'task': name, 'peak_memory_mb': memory}


def step_memory(name, flags, config_path, padded):
    task = make_task(name, flags)
    encoded = list(map(task.encode, load_samples(task, flags.data_path, None)))
    inputs, labels = max(map(task.collate, typical_batches(task, encoded, flags.repeats)),
                         key=lambda batch: batch[0][0].size)
    build_path(task, flags, config_path, padded).step(inputs, labels)
    return train.peak_memory()


def measure_input(task, flags):
    """Samples a second of reading, tokenizing and batching, by themselves."""
    samples, seconds = [], {}
    seconds['read'] = timed(lambda: samples.extend(load_samples(task, flags.data_path, None)))
    encoded = []
    seconds['tokenize'] = timed(lambda: encoded.extend(map(task.encode, samples)))
    seconds['batch'] = timed(lambda: [
        task.collate(batch) for batch in loop.batches(encoded, task.batch_size)])
    return {'task': task.name, 'samples': len(samples), 'seconds': seconds,
            'samples_per_second': len(samples) / (seconds['tokenize'] + seconds['batch'])}


def measure_growth(task, flags, config_path, lengths=(32, 64, 128, 256, 512), sizes=(1, 4, 16, 64)):
    """Seconds of a default training step without padding, by length and batch size."""
    K.clear_session()
    step = build_path(task, flags, config_path, False).step
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
    with open(config_path) as reader:
        config = json.load(reader)
    wider = os.path.join(os.path.dirname(config_path), 'merged_config.json')
    write_text(wider, json.dumps(dict(
        config, intermediate_size=config['intermediate_size'] + flags.ffn_prompt_size)))
    plain = argparse.Namespace(**dict(vars(flags), prompt_size=0, ffn_prompt_size=0))
    paths = [build_path(task, plain, path, True) for path in (config_path, wider)]
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


def run(argv=None):
    flags = parse_flags(argv)
    config_path = write_base_config(os.path.join(flags.output_dir, 'results', 'benchmark'), flags)
    make = lambda name: make_task(name, flags)  # noqa: E731
    report = {'settings': vars(flags), 'versions': train.versions(), 'cores': os.cpu_count(),
              'tasks': [], 'memory': [], 'input': [], 'growth': []}
    path = os.path.join(flags.output_dir, 'results', 'benchmark.json')
    if 'input' in flags.parts:
        for name in flags.tasks:
            report['input'].append(measure_input(make(name), flags))
            print('%-9s input %9.0f samples/s' % (name, report['input'][-1]['samples_per_second']))
    if 'tasks' in flags.parts:
        print('%-60s prediction\ntask      padding  times  samples/s (padded)  tokens/s  of floor  '
              'padding  times' % '          training')
        for name in flags.tasks:
            result = measure_task(make(name), flags, config_path)
            report['tasks'].append(result)
            step = result['train']
            print('%-9s %7.2f %6.2f %10.2f (%6.2f) %9.0f %9.2f %8.2f %6.2f' % (
                name, result['padding'], step['ratio'], step['samples_per_second']['default'],
                step['samples_per_second']['padded'], step['tokens_per_second']['default'],
                step['share_of_floor'], result['predict']['padding'], result['predict']['ratio']))
            sys.stdout.flush()
            write_text(path, json.dumps(report, indent=2) + '\n')
        means = [np.exp(np.mean([np.log(r[part]['ratio']) for r in report['tasks']]))
                 for part in ('train', 'predict')]
        print('geometric mean: train %.2f, predict %.2f' % tuple(means))
    if 'memory' in flags.parts:
        for name in flags.tasks:
            report['memory'].append(measure_memory(name, flags, config_path))
            print('%-9s peak MB: %5d (padded %5d)' % (name, *[
                report['memory'][-1]['peak_memory_mb'][key] for key in ('default', 'padded')]))
            sys.stdout.flush()
            write_text(path, json.dumps(report, indent=2) + '\n')
    if 'growth' in flags.parts:
        report['growth'] = measure_growth(make('afqmc'), flags, config_path)
        for row in report['growth']:
            print('length %3d: %s' % (row['length'], '  '.join(
                'batch %d: %.2f s' % item for item in sorted(row['seconds'].items()))))
    if 'merged' in flags.parts:
        report['merged'] = measure_merged(make('afqmc'), flags, config_path)
        print('merged model: %.3f times the plain backbone\'s time of prediction'
              % report['merged']['ratio'])
    write_text(path, json.dumps(report, indent=2) + '\n')
    print('wrote %s' % path)


if __name__ == '__main__':
    run_tool('scripts/benchmark', run)
