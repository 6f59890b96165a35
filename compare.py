"""Does pretraining help, and which method does best: tables from real data (`scripts/compare`).

FL-Tuning on a pretrained backbone and on random weights of the same architecture, and beside it
P-Tuning V2 and the head alone. Each has its learning rate chosen on a fifth of the training data, then
trains on all of it, once a seed; scores are those after the last epoch, so dev data chooses nothing.
What was run is kept, so a comparison that was stopped goes on.
"""
import argparse
import collections
import contextlib
import glob
import json
import os
import zlib

import numpy as np

import checkpoints
import compat
import snippets
import train
from data import file_sha256, find_strings, read_json, write_text
from datasets import find_root, load_task
from errors import Parser, UserError, run_tool
from loop import progress
from models import detect_backbone
from random_backbone import write_random_weights

# {task: records to train on}, of those whose files have a record a line; texts of csl are long.
TASKS = collections.OrderedDict(
    [('tnews', 4000), ('cluener', 4000), ('csl', 2000), ('afqmc', 4000), ('wsc', 4000)])
RATES = ['1e-4', '5e-4', '2e-3']
SPLIT = 5  # a fifth of the records, those of the same text together, is to choose the rate on

# weights: of the backbone, 'pretrained' or 'random'; setting: the size that is 3 %, None for the head.
Method = collections.namedtuple('Method', 'title weights setting')
METHODS = [Method('FL-Tuning', 'pretrained', 'ffn_prompt_size'),
           Method('FL-Tuning, random weights', 'random', 'ffn_prompt_size'),
           Method('P-Tuning V2', 'pretrained', 'prompt_size'),
           Method('head only', 'pretrained', None)]


def sizes(method, config_path, backbone, share):
    """{setting: size}, so that what is added in all layers is `share` percent of the backbone.

    A hidden unit of FL-Tuning has 2 * hidden + 1 parameters, a prompt of P-Tuning V2 2 * hidden.
    """
    config = checkpoints.read_config(config_path)
    parameters = sum(int(np.prod(shape)) for name, shape in checkpoints.variable_shapes(
        config, backbone).items() if '/pooler/' not in name and not name.startswith('cls/'))
    layer = 2 * config['hidden_size'] + (method.setting == 'ffn_prompt_size')
    found = dict(prompt_size=0, ffn_prompt_size=0)
    if method.setting:
        found[method.setting] = max(1, int(round(
            share / 100 * parameters / layer / config['num_hidden_layers'])))
    return found


def write_data(name, source, folder, records, dev):
    """`folder`/split and `folder`/whole: a data folder to choose the rate with, and one to train in.

    records: how many of the train files; a fifth of them is split's dev set, and whether one is in
    it depends on its longest string alone, since in csl and wsc several records share a text.
    dev: records of the dev file that are whole's dev set.
    """
    task = load_task(name)
    lines = []
    for file in task.find_train_files(os.path.join(source, name)):
        lines += read_lines(os.path.join(source, name, file))
        task.read(os.path.join(source, name, file), True)  # each record is checked before it is split
    lines, dev_file = lines[:records], task.dev_files[0]
    dev_lines = read_lines(os.path.join(source, name, dev_file))[:dev]
    chosen = [is_chosen(json.loads(line)) for line in lines]
    parts = {'split': [[line for line, there in zip(lines, chosen) if there == dev_part]
                       for dev_part in (False, True)], 'whole': (lines, dev_lines)}
    for part, (train_lines, part_dev) in parts.items():
        to = os.path.join(folder, part, name)
        os.makedirs(to, exist_ok=True)
        write_text(os.path.join(to, task.train_files[0]), ''.join(train_lines))
        write_text(os.path.join(to, dev_file), ''.join(part_dev))
    return {'train': len(lines), 'dev': len(dev_lines)}


def is_chosen(record):
    longest = max(find_strings(record), key=len)
    return zlib.crc32(longest.encode('utf-8')) % SPLIT == 0


def read_lines(path):
    try:
        with open(path, encoding='utf-8-sig') as reader:
            return [line.rstrip('\n') + '\n' for line in reader if line.strip()]
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    except UnicodeDecodeError as error:
        raise UserError('%s: expected UTF-8: %s' % (path, error.reason))


class Comparison(object):
    """found: {(task, method): its rate, the score of every rate, a score a seed}."""

    def __init__(self, flags):
        self.flags = flags
        self.methods = [method for method in METHODS
                        if not flags.methods or method.title in flags.methods]
        self.paths = train.find_backbone(argparse.Namespace(
            backbone=flags.backbone, config_path=flags.config_path, checkpoint_path='', dict_path=''))
        snippets.check_backbone(**self.paths)
        self.kind = detect_backbone(self.paths['config_path'], self.paths['checkpoint_path'])
        files = dict(self.paths)
        if not os.path.exists(files['checkpoint_path']):
            files['checkpoint_path'] += '.data-00000-of-00001'
        self.backbone_sha256 = {name: file_sha256(path) for name, path in files.items()}
        root = find_root(flags.data_path)
        try:
            os.makedirs(flags.output_dir, exist_ok=True)
        except OSError as error:
            raise UserError('output_dir: %s: %s' % (flags.output_dir, error.strerror))
        self.records = {}
        for name in flags.tasks:
            self.records[name] = write_data(name, root, self.path('data'), TASKS[name], flags.dev)
        self.found = self.read_earlier()

    def path(self, *names):
        return os.path.join(self.flags.output_dir, *names)

    def settings(self, name):
        """What a run depends on besides what its folder's name says."""
        flags = self.flags
        files = glob.glob(os.path.join(glob.escape(self.path('data')), '*', name, '*'))
        return dict({os.path.relpath(file, self.path('data')): file_sha256(file) for file in files},
                    backbone=self.kind, epochs=flags.epochs, share=flags.share, stack=compat.STACK,
                    **self.backbone_sha256)

    def asked(self):
        """What the cells of one table have in common besides `settings`."""
        flags = self.flags
        return dict(rates=flags.rates, split_seed=flags.split_seed, seeds=flags.seeds, dev=flags.dev)

    def read_earlier(self):
        """What an earlier comparison of the same kind found here: its other tasks and methods stay."""
        path = self.path('compare.json')
        try:
            runs = read_json(path)['runs'] if os.path.exists(path) else []
            return {(run['task'], run['method']): run for run in runs if run['asked'] == self.asked()
                    and run['settings'] == self.settings(run['task'])}
        except (KeyError, TypeError):
            raise UserError('%s: not a comparison of this program; name another output_dir' % path)

    def backbone(self, weights, seed):
        """{setting: path}; random weights are others for each seed."""
        if weights == 'pretrained':
            return self.paths
        folder = self.path('random', str(seed))
        os.makedirs(folder, exist_ok=True)
        paths = {'config_path': 'bert_config.json', 'checkpoint_path': 'bert_model.ckpt',
                 'dict_path': 'vocab.txt'}
        paths = {setting: os.path.join(folder, name) for setting, name in paths.items()}
        config = checkpoints.read_config(self.paths['config_path'])
        checkpoints.write_json(paths['config_path'], config)
        with open(self.paths['dict_path'], encoding='utf-8', newline='\n') as reader:
            write_text(paths['dict_path'], reader.read())
        write_random_weights(paths['checkpoint_path'], config, self.kind, seed)
        return paths

    def measure(self, name, method, rate, seed, part):
        """The dev score after the last epoch of one run; of an earlier one, if there was."""
        folder = self.path('runs', '%s %s %s %s %d' % (name, part, method.title, rate, seed))
        settings_path, ours = os.path.join(folder, 'settings.json'), self.settings(name)
        if os.path.exists(settings_path):
            theirs = read_json(settings_path)
            for key in sorted(set(ours) | set(theirs)):
                if theirs.get(key) != ours.get(key):
                    raise UserError('%s: %s is %s, here it is %s; name another output_dir'
                                    % (settings_path, key, theirs.get(key), ours.get(key)))
        record = os.path.join(folder, 'results', name + '_run.json')
        task = type(load_task(name))
        if not os.path.exists(record):
            settings = dict(
                self.backbone(method.weights, seed), backbone=self.kind, seed=seed,
                data_path=self.path('data', part), output_dir=folder, epochs=self.flags.epochs,
                learning_rate=rate, layers_to_transform='')
            settings.update(sizes(method, self.paths['config_path'], self.kind, self.flags.share))
            os.makedirs(folder, exist_ok=True)
            checkpoints.write_json(settings_path, ours)
            with open(os.path.join(folder, 'log.txt'), 'w', encoding='utf-8') as log:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    train.run(task, [text for pair in sorted(settings.items())
                                     for text in ('--' + pair[0], str(pair[1]))])
        return read_json(record)['history'][-1][task.metric]

    def run(self):
        flags = self.flags
        total = len(flags.tasks) * len(self.methods) * (len(flags.rates) + len(flags.seeds))
        with progress(total, 'compare') as bar:
            bar.unit = 'run'

            def measure(*run):
                score = self.measure(*run)
                bar.update(1)
                return score

            for name in flags.tasks:
                for method in self.methods:
                    chosen = {rate: measure(name, method, rate, flags.split_seed, 'split')
                              for rate in flags.rates}
                    rate = max(flags.rates, key=chosen.get)  # of equal ones the first
                    scores = [measure(name, method, rate, seed, 'whole') for seed in flags.seeds]
                    self.found[name, method.title] = dict(
                        task=name, method=method.title, records=self.records[name], rate=rate,
                        rates=chosen, scores=scores, asked=self.asked(),
                        settings=self.settings(name))
                    self.write()
        print(self.table(), end='')

    def write(self):
        checkpoints.write_json(self.path('compare.json'), dict(
            versions=train.versions(), git_commit=train.git_commit(),
            runs=[run for _, run in sorted(self.found.items())]))
        write_text(self.path('compare.md'), self.table())

    def table(self):
        """Markdown: mean and standard deviation over the seeds, in percent, and the rate."""
        methods = [method.title for method in METHODS
                   if any(method.title == title for _, title in self.found)]
        lines = ['| task | train, dev | metric | %s |' % ' | '.join(methods),
                 '| --- ' * (3 + len(methods)) + '|']
        for name in TASKS:
            runs = [self.found.get((name, title)) for title in methods]
            if any(runs):
                records = next(filter(None, runs))['records']
                lines.append('| %s |' % ' | '.join(
                    [name, '{train:,}, {dev:,}'.format(**records), load_task(name).metric]
                    + [cell(run) for run in runs]))
        return '\n'.join(lines) + '\n'


def cell(run):
    if not run:
        return ''
    scores = 100 * np.array(run['scores'])
    spread = ' ± %.1f' % scores.std(ddof=1) if len(scores) > 1 else ''
    return '%.1f%s (%s)' % (scores.mean(), spread, run['rate'])


def rate(text):
    train.positive_number(text)
    return text  # as it was written, since it names folders


def parse_flags(argv=None):
    parser = Parser(prog='scripts/compare', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    count = train.whole_number(1)
    parser.add_argument('--tasks', nargs='+', choices=list(TASKS), default=list(TASKS),
                        metavar='TASK', help='which')
    parser.add_argument('--methods', nargs='+', choices=[m.title for m in METHODS], metavar='METHOD',
                        help='only these columns: ' + '; '.join(m.title for m in METHODS))
    parser.add_argument('--backbone', default='roberta', choices=['roberta', 'nezha', 'roformer'],
                        help='which bundled backbone')
    parser.add_argument('--config_path', default='', help='folder of another backbone, of any kind')
    parser.add_argument('--data_path', help='folder with a folder for each task; the one that '
                                            'snippets.py names, unless said')
    parser.add_argument('--dev', type=count, default=2000, help='records of the dev file, at most')
    parser.add_argument('--epochs', type=count, default=5, help='of every run')
    parser.add_argument('--share', type=train.positive_number, default=3.0,
                        help='what the prompts are of the backbone, in percent')
    parser.add_argument('--rates', nargs='+', type=rate, default=RATES,
                        help='learning rates to choose from')
    parser.add_argument('--seeds', nargs='+', type=train.whole_number(0), default=[1, 2, 3],
                        help='a run each')
    parser.add_argument('--split_seed', type=train.whole_number(0), default=0,
                        help='of the runs that choose the rate')
    parser.add_argument('--output_dir', default='results/compare', help='where runs and tables go')
    settings = parser.parse_args(argv)
    for name in ('rates', 'seeds', 'tasks'):
        if len(set(getattr(settings, name))) < len(getattr(settings, name)):
            parser.error('--%s: one is given twice' % name)
    return settings


def run(argv=None):
    Comparison(parse_flags(argv)).run()


if __name__ == '__main__':
    run_tool('scripts/compare', run)
