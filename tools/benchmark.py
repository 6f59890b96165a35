"""How fast the default path is against the plain padded one, on the real texts of each task.

With --precision bfloat16 or float16 (stack tf2), how fast it is in that against itself in float32.

A backbone of base size with random weights; every figure is a ratio of steps that took turns in one
run, on the same batches. The floor is the time that the multiply-adds of the true tokens would take
at the speed of a large matrix product, measured in the same run.
"""
import argparse
import os
import sys

import numpy as np

from fltuning import precision
from fltuning.errors import Parser
from fltuning.files import write_json
from fltuning.provenance import cpu_name, versions
from fltuning.settings import whole_number
from tasks import NAMES

PARTS = ['input', 'tasks', 'memory', 'growth', 'merged', 'methods']
MORE_PARTS = ['profile']  # where they are asked for


def parse_flags(argv=None):
    parser = Parser(prog='scripts/benchmark', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    number = whole_number(1)
    parser.add_argument('--data_path', default='clue_dataset', help='folder with a folder a task')
    parser.add_argument('--dict_path', default='', help='a vocabulary for Chinese text')
    parser.add_argument('--tasks', nargs='+', default=NAMES, choices=NAMES, metavar='TASK')
    parser.add_argument('--parts', nargs='+', default=PARTS, choices=PARTS + MORE_PARTS,
                        help='all of them but profile, unless said: where a training step goes, by kind of '
                             'operation, of the first task')
    parser.add_argument('--backbone', default='roberta', choices=['roberta', 'nezha', 'roformer'])
    parser.add_argument('--precision', default='float32', choices=precision.NAMES)
    parser.add_argument('--layers', type=number, default=12)
    parser.add_argument('--hidden_size', type=number, default=768)
    parser.add_argument('--prompt_size', type=whole_number(0), default=0)
    parser.add_argument('--ffn_prompt_size', type=whole_number(0), default=160)
    parser.add_argument('--repeats', type=number, default=5, help='batches a figure is the median of')
    parser.add_argument('--output_dir', default='', help='where results/benchmark.json goes')
    return parser.parse_args(argv)


def run(argv=None):
    flags = parse_flags(argv)
    precision.use(flags.precision)
    from tools import measure  # which loads TensorFlow
    config_path = measure.write_base_config(os.path.join(flags.output_dir, 'results', 'benchmark'), flags)
    make = lambda name: measure.make_task(name, flags)  # noqa: E731
    plain, ours = measure.paths_of(flags)
    report = {'settings': vars(flags), 'versions': versions(), 'cores': os.cpu_count(), 'cpu': cpu_name(),
              'tasks': [], 'memory': [], 'input': [], 'growth': []}
    path = os.path.join(flags.output_dir, 'results', 'benchmark.json')
    if 'input' in flags.parts:
        for name in flags.tasks:
            report['input'].append(measure.measure_input(make(name), flags))
            print('%-9s input %9.0f samples/s' % (name, report['input'][-1]['samples_per_second']))
    if 'tasks' in flags.parts:
        print('%-60s prediction\ntask      padding  times  samples/s (%-7s) tokens/s  of floor  '
              'padding  times' % ('          training', plain))
        for name in flags.tasks:
            result = measure.measure_task(make(name), flags, config_path)
            report['tasks'].append(result)
            step = result['train']
            print('%-9s %7.2f %6.2f %10.2f (%6.2f) %9.0f %9.2f %8.2f %6.2f' % (
                name, result['padding'], step['ratio'], step['samples_per_second'][ours],
                step['samples_per_second'][plain], step['tokens_per_second'][ours],
                step['share_of_floor'], result['predict']['padding'], result['predict']['ratio']))
            sys.stdout.flush()
            write_json(path, report)
        means = [np.exp(np.mean([np.log(r[part]['ratio']) for r in report['tasks']]))
                 for part in ('train', 'predict')]
        print('geometric mean: train %.2f, predict %.2f' % tuple(means))
    if 'memory' in flags.parts:
        for name in flags.tasks:
            report['memory'].append(measure.measure_memory(name, flags, config_path))
            print('%-9s peak MB: %5d (%s %5d)' % (name, *[
                report['memory'][-1]['peak_memory_mb'][ours], plain,
                report['memory'][-1]['peak_memory_mb'][plain]]))
            sys.stdout.flush()
            write_json(path, report)
    if 'growth' in flags.parts:
        report['growth'] = measure.measure_growth(make('afqmc'), flags, config_path)
        for row in report['growth']:
            print('length %3d: %s' % (row['length'], '  '.join(
                'batch %d: %.2f s' % item for item in sorted(row['seconds'].items()))))
    if 'merged' in flags.parts:
        report['merged'] = measure.measure_merged(make('afqmc'), flags, config_path)
        print('merged model: %.3f times the plain backbone\'s time of prediction'
              % report['merged']['ratio'])
    if 'methods' in flags.parts:
        report['methods'] = []
        print('method            size      trained  step, of FL-Tuning\'s: padded, default')
        for row in measure.measure_methods(make('afqmc'), flags, config_path):
            report['methods'].append(row)
            print('%-14s %7s %12s %31.2f %8.2f' % (
                row['method'], row['size'] or '', format(row['trained'], ','), row['ratio']['padded'],
                row['ratio']['default']))
            sys.stdout.flush()
    if 'profile' in flags.parts:
        from tools import profiling
        report['profile'] = profiling.measure_profile(flags.tasks[0], flags, config_path)
        print(profiling.table(report['profile']))
    write_json(path, report)
    print('wrote %s' % path)
