"""One task from its files to its submission: the flags, the training, the predictions, the record."""
import argparse
import collections
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time

import compat
import bert4keras
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras
from tqdm import tqdm

import deltas
import snippets
from data import file_sha256, prefetch, write_text
from errors import Parser, UserError, run_tool
from functions import dropout_key, weights_random
from tiny_backbone import write_tiny_backbone

ROOT = os.path.dirname(os.path.abspath(__file__))


def whole_number(minimum, maximum=2**31 - 1):
    def parse(text):
        if not text.lstrip('+-').isdigit() or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError('expected a whole number from %d, got %s'
                                             % (minimum, text))
        return int(text)
    return parse


def positive_number(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError('expected a number above 0, got %s' % text)
    return value


def parse_flags(task, argv=None):
    """The settings of a run: flags over snippets.py and the task's defaults."""
    parser = Parser(
        prog=task.name + '.py', allow_abbrev=False, description=(sys.modules[task.__module__].__doc__ or '').strip(),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    size, count = whole_number(0), whole_number(1)
    flags = [
        ('--backbone', dict(choices=['auto', 'roberta', 'nezha', 'roformer']),
         snippets.backbone, 'kind of the backbone; auto reads it off the checkpoint'),
        ('--config_path', {}, snippets.config_path, 'bert_config.json of the backbone'),
        ('--checkpoint_path', {}, snippets.checkpoint_path, 'TensorFlow checkpoint of the backbone'),
        ('--dict_path', {}, snippets.dict_path, 'vocab.txt of the backbone'),
        ('--data_path', {}, snippets.data_path, 'folder with a folder for each task'),
        ('--prompt_size', dict(type=size), snippets.prompt_size,
         'P-Tuning V2: trainable keys and values in every attention'),
        ('--ffn_prompt_size', dict(type=size), snippets.ffn_prompt_size,
         'FL-Tuning: trainable hidden units in every feed-forward network'),
        ('--epochs', dict(type=count), task.epochs, 'passes over the training data'),
        ('--batch_size', dict(type=count), task.batch_size, 'samples a batch'),
        ('--maxlen', dict(type=whole_number(8)), task.maxlen, 'tokens a sequence at most'),
        ('--learning_rate', dict(type=positive_number), task.learning_rate,
         'of the first step; falls to 0, linearly'),
        ('--grad_accum_steps', dict(type=count), task.grad_accum_steps, 'batches an update'),
        ('--seed', dict(type=size), snippets.seed, 'two runs with one seed are equal'),
        ('--limit', dict(type=count), None, 'only the first N samples of each split: a trial run'),
        ('--output_dir', {}, snippets.output_dir, 'where weights/ and results/ go; here, unless said'),
    ]
    for flag, options, default, text in flags:
        # As text, so that what stands in snippets.py is checked like what is typed.
        parser.add_argument(flag, default=default if default is None else str(default), help=text,
                            **options)
    parser.add_argument('--bucket', action='store_true',
                        help='group samples of like lengths: faster, other batches than by chance')
    parser.add_argument('--padded', action='store_true',
                        help='compute on padding too: the same numbers, slower; for comparison')
    return parser.parse_args(argv)


def set_seed(seed):
    """Start every source of random numbers anew, and have GPUs add up in one order only."""
    os.environ['TF_DETERMINISTIC_OPS'] = '1'
    if compat.TF2:
        tf.config.experimental.enable_op_determinism()
    random.seed(seed)
    np.random.seed(seed)
    weights_random.seed(seed)
    tf.compat.v1.set_random_seed(seed)


def find_data(task, data_path):
    """The folder of the task's files; the bundled sample where the default folder lacks them."""
    folder = os.path.join(data_path, task.name)
    if data_path != 'clue_dataset':
        if not os.path.isdir(folder):
            raise UserError('data_path: no folder %s; expected the files of %s there'
                            % (folder, task.name))
        return folder
    folder = os.path.join(ROOT, folder)
    if os.path.isdir(folder):
        return folder
    sample = os.path.join(ROOT, 'clue_dataset', 'sample', task.name)
    print('%s: no files in clue_dataset/%s: using the bundled sample, which shows how things go and '
          'scores nothing (see clue_dataset/README.md)' % (task.name, task.name))
    return sample


def find_backbone(settings, folder):
    """{setting: path} of the backbone; a tiny random one where none is set."""
    paths = {name: getattr(settings, name)
             for name in ('config_path', 'checkpoint_path', 'dict_path')}
    if any(paths.values()):
        return paths
    kind = 'roberta' if settings.backbone == 'auto' else settings.backbone
    print('no backbone is set: using a tiny %s of random weights, which knows no Chinese; set '
          'config_path, checkpoint_path and dict_path in snippets.py' % kind)
    characters = set()
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding='utf-8', errors='ignore') as reader:
            characters.update(reader.read().lower())
    return write_tiny_backbone(os.path.join(settings.output_dir, 'weights', 'tiny_' + kind),
                               characters, kind, stddev=0.1, hidden_dropout_prob=0.0,
                               attention_probs_dropout_prob=0.0)


def build_model(task, settings, paths, keep_tokens):
    """(model, transformer) of a task: frozen backbone, prompts, head."""
    transformer = snippets.load_backbone(
        paths['config_path'], paths['checkpoint_path'], keep_tokens, settings.backbone,
        settings.prompt_size, settings.ffn_prompt_size, snippets.prompt_dropout,
        packed=not settings.padded, first_only=task.first_only and not settings.padded,
        keyed_dropout=True)
    inputs = transformer.inputs + task.extra_inputs()
    return keras.models.Model(inputs, task.outputs(transformer.output, inputs)), transformer


def count(weights):
    return int(sum(np.prod(K.int_shape(weight)) for weight in weights))


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
                mininterval=0.1 if sys.stderr.isatty() else 30)


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


def predict(run, task, encoded, description, max_tokens=8192):
    """The results for a list of `Encoded`, in its order; `run` as from `predict_function`."""
    results = [None] * len(encoded)
    with progress(len(encoded), description) as bar:
        lists = token_batches(encoded, max_tokens)
        for places, inputs in prefetch(
                (places, task.collate([encoded[i] for i in places])[0]) for places in lists):
            found = task.decode(run(inputs), [encoded[i] for i in places])
            for i, result in zip(places, found):
                results[i] = result
            bar.update(len(places))
    return results


def make_folders(output_dir):
    for name in ('weights', 'results'):
        try:
            os.makedirs(os.path.join(output_dir, name), exist_ok=True)
        except OSError as error:
            raise UserError('output_dir: %s: %s' % (error.filename, error.strerror))


def versions():
    found = {'stack': compat.STACK, 'python': platform.python_version(), 'tensorflow': tf.__version__,
             'numpy': np.__version__}
    found.update(keras=getattr(keras, '__version__', tf.__version__),
                 bert4keras=bert4keras.__version__)
    return found


def git_commit():
    """The commit of the code, with '+' where files differ from it; None outside a checkout."""
    try:
        commit = subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=ROOT,
                                         stderr=subprocess.DEVNULL).decode().strip()
        dirty = subprocess.check_output(['git', 'status', '--porcelain', '-uno'], cwd=ROOT,
                                        stderr=subprocess.DEVNULL)
        return commit + ('+' if dirty else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def run(task_class, argv=None):
    """Train a task, keep the best epoch, predict its test files. Returns the record of the run."""
    began = time.time()
    settings = parse_flags(task_class, argv)
    folder = find_data(task_class, settings.data_path)
    paths = find_backbone(settings, folder)
    tokenizer, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    snippets.check_backbone(maxlen=settings.maxlen, **paths)
    task = task_class(tokenizer, settings.maxlen)

    # All files are read before anything is trained or written.
    train_files = task.find_train_files(folder)
    train = task.load(folder, train_files, True, settings.limit)
    dev = task.load(folder, task.dev_files, True, settings.limit)
    tests = collections.OrderedDict()
    for name, result in task.test_files.items():
        if os.path.exists(os.path.join(folder, name)):
            tests[result] = task.to_predict(task.load(folder, [name], False, settings.limit))
        else:
            print('%s: no file %s: %s will not be written' % (folder, name, result))
    dev = task.to_predict(dev)
    train_encoded, dev_encoded = [list(map(task.encode, part)) for part in (train, dev)]

    make_folders(settings.output_dir)

    K.clear_session()
    set_seed(settings.seed)
    model, transformer = build_model(task, settings, paths, keep_tokens)
    trained, frozen = count(model.trainable_weights), count(model.non_trainable_weights)
    backbone = deltas.fingerprint(model, tokenizer._token_dict)
    steps = -(-len(train) // settings.batch_size) * settings.epochs
    optimizer = snippets.get_optimizer(settings.learning_rate, 0, steps,
                                       grad_accum_steps=settings.grad_accum_steps)
    step, outputs = train_function(model, task, optimizer, settings.seed), predict_function(model)
    belongs_to = {
        'task': task.name, 'labels': getattr(task, 'labels', []),
        'prompt_size': settings.prompt_size, 'ffn_prompt_size': settings.ffn_prompt_size,
        'backbone_kind': transformer.backbone,
        'backbone_sha256': backbone}
    weights_path = os.path.join(settings.output_dir, 'weights', task.name + '.weights')
    record = {
        'task': task.name, 'settings': dict(vars(settings), **paths), 'seed': settings.seed,
        'versions': versions(), 'git_commit': git_commit(), 'backbone_kind': transformer.backbone,
        'backbone_sha256': backbone,
        'data_sha256': {name: file_sha256(os.path.join(folder, name))
                        for name in sorted(os.listdir(folder)) if name.endswith('.json')},
        'samples': {'train': len(train), 'dev': len(dev)},
        'parameters': {'trained': trained, 'all': trained + frozen}, 'history': []}

    best = None
    for epoch in range(settings.epochs):
        start = time.time()
        loss = train_epoch(step, task, train_encoded, settings, epoch)
        dev_results = predict(outputs, task, dev_encoded, 'dev')
        scores = task.score(dev, dev_results)
        record['history'].append(dict(scores, epoch=epoch + 1, loss=loss,
                                      seconds=round(time.time() - start, 2)))
        if best is None or scores[task.metric] > best['scores'][task.metric]:
            best = {'epoch': epoch + 1, 'scores': scores, 'dev_results': dev_results,
                    'values': deltas.get_values(deltas.named_weights(model))}
            deltas.save_delta(weights_path, best['values'], dict(
                belongs_to, seed=settings.seed, dev=scores, epoch=epoch + 1,
                versions=record['versions']))
        print('epoch %d: loss %.4f, dev %s, best %.4f' % (
            epoch + 1, loss, ', '.join('%s %.4f' % item for item in scores.items()),
            best['scores'][task.metric]))
    if deltas.fingerprint(model, tokenizer._token_dict) != backbone:
        raise AssertionError('the frozen weights changed in training')

    K.batch_set_value([(w, best['values'][name]) for name, w in deltas.named_weights(model)])
    written = [weights_path]
    errors = task.errors(dev, best['dev_results'])
    if errors is not None:
        written.append(os.path.join(settings.output_dir, 'results', task.name + '_dev_errors.tsv'))
        write_text(written[-1], ''.join(
            '\t'.join(' '.join(str(cell).split()) for cell in row) + '\n'
            for row in [('text', 'gold', 'predicted', 'probability')] + list(errors)))
    for name, samples in tests.items():
        results = predict(outputs, task, list(map(task.encode, samples)), name)
        written.append(os.path.join(settings.output_dir, 'results', name))
        write_text(written[-1], task.submission(samples, results))
    record.update(
        best={'epoch': best['epoch'], 'dev': best['scores']}, seconds=round(time.time() - began, 2),
        peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    written.append(os.path.join(settings.output_dir, 'results', task.name + '_run.json'))
    write_text(written[-1], json.dumps(record, ensure_ascii=False, indent=2) + '\n')
    print('%s: best dev %s %.4f in epoch %d; trained %s of %s parameters (%.2f %%); wrote %s' % (
        task.name, task.metric, best['scores'][task.metric], best['epoch'], format(trained, ','),
        format(trained + frozen, ','), 100.0 * trained / (trained + frozen), ', '.join(written)))
    return record


def main(task_class):
    """`python TASK.py`."""
    def program():
        run(task_class)
    run_tool(task_class.name + '.py', program)
