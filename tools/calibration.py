"""How often a report decides, on simulated grids with a difference of known size between two methods."""
import collections
import math
from typing import Any, Dict

import numpy as np

from tools.results import Point, Results, Row, Variant
from tools.statistics import bootstrap_interval, differences

FL, OTHER = Variant('fl', None, '', None), Variant('ptuning_v2', None, '', None)
SHAPES = ['normal', 'skewed', 'collapse']


def noise(random: Any, shape: str, size: tuple) -> np.ndarray:
    """Of mean 0 and, but for collapse, deviation 1.

    skewed: a long tail towards low scores; collapse: one run in ten falls by five deviations.
    """
    values = random.normal(size=size)
    if shape == 'skewed':
        return (math.exp(0.28125) - np.exp(0.75 * values)) / math.sqrt(math.exp(1.125) - math.exp(0.5625))
    if shape == 'collapse':
        return values - 5.0 * (random.uniform(size=size) < 0.1)
    return values


def simulated(random: Any, seeds: int, tasks: int, difference: float, shape: str, deviation: float = 0.01) -> Results:
    """A grid of two methods; FL-Tuning's mean is ahead by `difference` deviations of a run."""
    scores = 0.6 + deviation * noise(random, shape, (2, tasks, seeds))
    scores[0] += deviation * difference
    return Results([
        Row('task%d' % task, 'roberta', variant, seed, None, 'accuracy', float(scores[k, task, seed]),
            (Point(1, 0.5),), 1, 1, 1.0, 1, 2000, None)
        for k, variant in enumerate((FL, OTHER)) for task in range(tasks) for seed in range(seeds)])


def calibrate(grids: int, seeds: int, tasks: int = 4, difference: float = 0.0, shape: str = 'normal', seed: int = 0
              ) -> Dict[str, float]:
    """{rule: share of the grids in which it decides; rule + ' wrong': for the wrong method}.

    'task': what the table of differences says of the first task; 'over tasks': of all; 'marks': whether it tells
    the second best from the best; 'percentile': what a percentile bootstrap would have said of the first task.
    """
    random, said = np.random.RandomState(seed), collections.Counter()
    for _ in range(grids):
        results = simulated(random, seeds, tasks, difference, shape)
        pairs = differences(*(results.scores('task0', 'roberta', variant) for variant in (FL, OTHER)))
        for rule, interval in [
                ('task', results.difference('task0', 'roberta', FL, OTHER)),
                ('over tasks', results.overall('roberta', FL, OTHER)[0]),
                ('percentile', bootstrap_interval(pairs, draws=500, seed=random.randint(2 ** 31 - 1)))]:
            said[rule] += interval.verdict() != 'undecided'
            said[rule + ' wrong'] += interval.verdict() == 'below'
        said['marks'] += 'close' not in results.marks('task0', 'roberta').values()
    return {rule: number / grids for rule, number in said.items()}


def report(grids: int) -> str:
    """A table in Markdown."""
    lines = ['| scores | seeds | difference | a task decided | over 4 tasks | of these wrong | percentile bootstrap |',
             '| --- | --- | --- | --- | --- | --- | --- |']
    for shape in SHAPES:
        for seeds in (3, 5):
            for difference in (0.0, 3.0):
                found = calibrate(grids, seeds, difference=difference, shape=shape)
                wrong = found['task wrong'] + found['over tasks wrong'] if difference else None
                lines.append('| %s | %d | %g | %.1f %% | %.1f %% | %s | %.1f %% |' % (
                    shape, seeds, difference, 100 * found['task'], 100 * found['over tasks'],
                    '' if wrong is None else '%.1f %%' % (100 * wrong), 100 * found['percentile']))
    return '\n'.join(lines) + '\n'
