"""One task from its files to its submission: the flags, the training, the predictions, the record."""
import argparse
import collections
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import time

import compat
import bert4keras
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras

import checkpoints
import deltas
import loop
import snippets
from data import file_sha256, write_text
from errors import Parser, UserError, run_tool
from functions import weights_random

ROOT = os.path.dirname(os.path.abspath(__file__))
# Settings that no number depends on; of the backbone's and the data's files the contents count.
WHEREABOUTS = ('config_path', 'checkpoint_path', 'dict_path', 'data_path', 'output_dir', 'resume')


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


def layer_numbers(text):
    """'0-5,11' -> [0, 1, 2, 3, 4, 5, 11]; '' -> None, all layers."""
    numbers = []
    for part in filter(None, text.replace(' ', '').split(',')):
        found = re.match(r'(\d+)(?:-(\d+))?$', part)
        if not found or int(found.group(2) or part) < int(found.group(1)):
            raise argparse.ArgumentTypeError('expected layers such as 0-5,11, got %s' % text)
        numbers += range(int(found.group(1)), int(found.group(2) or part) + 1)
    return sorted(set(numbers)) or None


def backbone_flags():
    """(flag, options, default, help) of the flags that say which backbone to use."""
    return [
        ('--backbone', dict(choices=['auto', 'roberta', 'nezha', 'roformer']),
         snippets.backbone, 'kind of the backbone; auto reads it off the checkpoint'),
        ('--config_path', {}, snippets.config_path,
         'bert_config.json of the backbone, or its Hugging Face folder'),
        ('--checkpoint_path', {}, snippets.checkpoint_path,
         'TensorFlow checkpoint of the backbone; of a Hugging Face folder it need not be named'),
        ('--dict_path', {}, snippets.dict_path, 'vocab.txt of the backbone, likewise')]


def add_flags(parser, flags):
    for flag, options, default, text in flags:
        # As text, so that what stands in snippets.py is checked like what is typed.
        parser.add_argument(flag, default=default if default is None else str(default), help=text,
                            **options)


def parse_flags(task, argv=None):
    """The settings of a run: flags over snippets.py and the task's defaults."""
    parser = Parser(
        prog=task.name + '.py', allow_abbrev=False,
        description=(sys.modules[task.__module__].__doc__ or '').strip(),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    size, count = whole_number(0), whole_number(1)
    add_flags(parser, backbone_flags() + [
        ('--data_path', {}, snippets.data_path, 'folder with a folder for each task'),
        ('--prompt_size', dict(type=size), snippets.prompt_size,
         'P-Tuning V2: trainable keys and values in every attention'),
        ('--ffn_prompt_size', dict(type=size), snippets.ffn_prompt_size,
         'FL-Tuning: trainable hidden units in every feed-forward network'),
        ('--layers_to_transform', dict(type=layer_numbers), snippets.layers_to_transform,
         'the layers that get either, from 0, e.g. 0-5,11; empty for all'),
        ('--epochs', dict(type=count), task.epochs, 'passes over the training data'),
        ('--batch_size', dict(type=count), task.batch_size, 'samples a batch'),
        ('--maxlen', dict(type=whole_number(8)), task.maxlen, 'tokens a sequence at most'),
        ('--learning_rate', dict(type=positive_number), task.learning_rate,
         'of the first step; falls to 0, linearly'),
        ('--grad_accum_steps', dict(type=count), task.grad_accum_steps, 'batches an update'),
        ('--seed', dict(type=size), snippets.seed, 'two runs with one seed are equal'),
        ('--limit', dict(type=count), None, 'only the first N samples of each split: a trial run'),
        ('--output_dir', {}, snippets.output_dir, 'where weights/ and results/ go; here, unless said'),
    ])
    parser.add_argument('--bucket', action='store_true',
                        help='group samples of like lengths: faster, other batches than by chance')
    parser.add_argument('--resume', action='store_true',
                        help='go on where a run that was stopped left off, with the same numbers')
    parser.add_argument('--padded', action='store_true',
                        help='the plain path: on padding too, predicting samples as they stand; the '
                             'same numbers, slower; for comparison')
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


def find_backbone(settings, kind=None):
    """{setting: path} of the backbone; of the small bundled one where none is set.

    kind: of the bundled one, unless settings.backbone says it; 'roberta' unless either does.
    """
    paths = {name: getattr(settings, name)
             for name in ('config_path', 'checkpoint_path', 'dict_path')}
    if not any(paths.values()):
        kind = settings.backbone if settings.backbone != 'auto' else kind or 'roberta'
        paths['config_path'] = os.path.join(ROOT, 'pretrained', kind)
        # Not among predictions that go to standard output.
        print('no backbone is set: using the small one in pretrained/%s; set config_path in snippets.py'
              % kind, file=sys.stderr)
    return checkpoints.find_files(**paths)


def build_model(task, settings, paths, keep_tokens, layers=None):
    """(model, transformer) of a task: frozen backbone, prompts, head.

    layers: {name: layer}, frozen ones of another transformer to share.
    """
    transformer = snippets.load_backbone(
        paths['config_path'], paths['checkpoint_path'], keep_tokens, settings.backbone,
        prompt_size=settings.prompt_size, ffn_prompt_size=settings.ffn_prompt_size,
        layers_to_transform=settings.layers_to_transform, prompt_dropout=snippets.prompt_dropout,
        packed=not settings.padded, first_only=task.first_only and not settings.padded,
        keyed_dropout=True, layers=layers)
    inputs = transformer.inputs + task.extra_inputs()
    return keras.models.Model(inputs, task.outputs(transformer.output, inputs)), transformer


def count(weights):
    return int(sum(np.prod(K.int_shape(weight)) for weight in weights))


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


def peak_memory():
    """MB that this process held at most."""
    try:
        with open('/proc/self/status') as reader:
            status = dict(line.split(':', 1) for line in reader)
        return int(status['VmHWM'].split()[0]) // 1024
    except (OSError, KeyError):  # not Linux, where this may be what the process that started it held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
            2**20 if sys.platform == 'darwin' else 2**10)


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


class Run(object):
    """A task's run from its files to its submission."""

    def __init__(self, task_class, settings):
        self.began, self.settings = time.time(), settings
        self.folder = find_data(task_class, settings.data_path)
        self.paths = find_backbone(settings)
        self.tokenizer, self.keep_tokens = snippets.load_tokenizer(self.paths['dict_path'])
        snippets.check_backbone(maxlen=settings.maxlen,
                                layers_to_transform=settings.layers_to_transform, **self.paths)
        self.task = task_class(self.tokenizer, settings.maxlen)
        self.read()
        make_folders(settings.output_dir)
        self.build()
        self.written = []

    def path(self, folder, name):
        return os.path.join(self.settings.output_dir, folder, name)

    def read(self):
        """All files, before anything is trained or written."""
        task, limit = self.task, self.settings.limit
        train = task.load(self.folder, task.find_train_files(self.folder), True, limit)
        self.dev = task.to_predict(task.load(self.folder, task.dev_files, True, limit))
        self.tests = collections.OrderedDict()
        for name, result in task.test_files.items():
            if os.path.exists(os.path.join(self.folder, name)):
                self.tests[result] = task.to_predict(task.load(self.folder, [name], False, limit))
            else:
                print('%s: no file %s: %s will not be written' % (self.folder, name, result))
        self.train_encoded, self.dev_encoded = [
            list(map(task.encode, part)) for part in (train, self.dev)]

    def build(self):
        """The model, its steps, and what its weights and this run belong to."""
        settings, task = self.settings, self.task
        K.clear_session()
        set_seed(settings.seed)
        self.model, transformer = build_model(task, settings, self.paths, self.keep_tokens)
        steps = -(-len(self.train_encoded) // settings.batch_size) * settings.epochs
        self.optimizer = snippets.get_optimizer(settings.learning_rate, 0, steps,
                                                grad_accum_steps=settings.grad_accum_steps)
        self.step = loop.train_function(self.model, task, self.optimizer, settings.seed)
        self.outputs = loop.predict_function(self.model)
        self.weights = deltas.named_weights(self.model)
        self.backbone = deltas.fingerprint(self.model, self.tokenizer._token_dict)
        self.belongs_to = deltas.identity(task, transformer, self.backbone)
        data = {name: file_sha256(os.path.join(self.folder, name))
                for name in sorted(os.listdir(self.folder)) if name.endswith('.json')}
        # All that the numbers of a run depend on.
        self.state_belongs_to = dict(
            {name: value for name, value in vars(settings).items() if name not in WHEREABOUTS},
            task=task.name, stack=compat.STACK, backbone_sha256=self.backbone, data_sha256=data)
        trained, frozen = [count(weights) for weights in (
            self.model.trainable_weights, self.model.non_trainable_weights)]
        self.record = {
            'task': task.name, 'settings': dict(vars(settings), **self.paths),
            'seed': settings.seed, 'versions': versions(), 'git_commit': git_commit(),
            'backbone_kind': transformer.backbone, 'backbone_sha256': self.backbone,
            'data_sha256': data,
            'samples': {'train': len(self.train_encoded), 'dev': len(self.dev)},
            'parameters': {'trained': trained, 'all': trained + frozen}, 'history': []}
        self.best = self.best_results = None

    def predict(self, encoded, description):
        return loop.predict(self.outputs, self.task, encoded, description,
                            padded=self.settings.padded)

    def train(self):
        """The epochs that are left. The best one's weights are kept, and the state of the last."""
        settings, task, history = self.settings, self.task, self.record['history']
        state_path = self.path('weights', task.name + '.state')
        if settings.resume:
            self.load_state(state_path)
        for epoch in range(len(history), settings.epochs):
            start = time.time()
            loss = loop.train_epoch(self.step, task, self.train_encoded, settings, epoch)
            results = self.predict(self.dev_encoded, 'dev')
            scores = task.score(self.dev, results)
            history.append(dict(scores, epoch=epoch + 1, loss=loss,
                                seconds=round(time.time() - start, 2)))
            if self.best is None or scores[task.metric] > self.best['dev'][task.metric]:
                self.best = {'epoch': epoch + 1, 'dev': scores}
                self.best_values, self.best_results = deltas.get_values(self.weights), results
                self.save_best()
            self.save_state(state_path)
            print('epoch %d: loss %.4f, dev %s, best %.4f' % (
                epoch + 1, loss, ', '.join('%s %.4f' % item for item in scores.items()),
                self.best['dev'][task.metric]))
        if deltas.fingerprint(self.model, self.tokenizer._token_dict) != self.backbone:
            raise AssertionError('the frozen weights changed in training')

    def save_best(self):
        deltas.save_delta(self.path('weights', self.task.name + '.weights'), self.best_values, dict(
            self.belongs_to, seed=self.settings.seed, versions=self.record['versions'], **self.best))

    def state(self):
        """[(name, variable)]: with seed and epoch, all that the steps to come depend on."""
        names = {id(weight): name for name, weight in self.weights}
        slots = self.optimizer.named_slots([names[id(w)] for w in self.model.trainable_weights])
        return [('weights/' + name, weight) for name, weight in self.weights] + slots

    def save_state(self, path):
        values = deltas.get_values(self.state())
        values.update(('best/' + name, value) for name, value in self.best_values.items())
        deltas.save_delta(path, values, dict(self.state_belongs_to, best=self.best,
                                             history=self.record['history']), deltas.STATE)

    def load_state(self, path):
        """Go on after the last epoch of an earlier run; without its state, from the start."""
        if not os.path.exists(path):
            print('%s: no state of an earlier run: starting anew' % path)
            return
        values, theirs = deltas.read_delta(path, deltas.STATE)
        deltas.check_identity(path, theirs, self.state_belongs_to)
        best = [('best/' + name, weight) for name, weight in self.weights]
        deltas.check_values(path, self.state() + best, values)
        deltas.set_values(self.state(), values)
        self.best_values = {name: values['best/' + name] for name, _ in self.weights}
        self.record['history'].extend(theirs['history'])
        self.best = theirs['best']
        self.save_best()  # a run that was stopped may have left a better one, of an epoch to come
        print('%s: going on after epoch %d of %d'
              % (path, len(theirs['history']), self.settings.epochs))

    def finish(self):
        """Predictions of the best epoch's weights, and the record of the run."""
        task, best = self.task, self.best
        deltas.set_values(self.weights, self.best_values)
        self.written.append(self.path('weights', task.name + '.weights'))
        if self.best_results is None:
            self.best_results = self.predict(self.dev_encoded, 'dev')
        errors = task.errors(self.dev, self.best_results)
        if errors is not None:
            self.write(task.name + '_dev_errors.tsv', ''.join(
                '\t'.join(' '.join(str(cell).split()) for cell in row) + '\n'
                for row in [('text', 'gold', 'predicted', 'probability')] + list(errors)))
        for name, samples in self.tests.items():
            results = self.predict(list(map(task.encode, samples)), name)
            self.write(name, task.submission(samples, results))
        self.record.update(
            best=best, seconds=round(time.time() - self.began, 2),
            peak_memory_mb=peak_memory())
        self.write(task.name + '_run.json',
                   json.dumps(self.record, ensure_ascii=False, indent=2) + '\n')
        trained, parameters = [self.record['parameters'][name] for name in ('trained', 'all')]
        print('%s: best dev %s %.4f in epoch %d; trained %s of %s parameters (%.2f %%); wrote %s' % (
            task.name, task.metric, best['dev'][task.metric], best['epoch'], format(trained, ','),
            format(parameters, ','), 100.0 * trained / parameters, ', '.join(self.written)))

    def write(self, name, text):
        self.written.append(self.path('results', name))
        write_text(self.written[-1], text)


def run(task_class, argv=None):
    """Train a task, keep the best epoch, predict its test files. Returns the record of the run."""
    job = Run(task_class, parse_flags(task_class, argv))
    job.train()
    job.finish()
    return job.record


def main(task_class):
    """`python TASK.py`."""
    run_tool(task_class.name + '.py', lambda: run(task_class) and None)
