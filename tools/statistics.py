"""Intervals that hold what they say with three to five seeds: of differences, over tasks, of ratios.

With so few runs, a percentile bootstrap is too narrow: it misses the true difference far more often than the
5 % that it claims (tools/calibration.py measures it, docs/grids.md has the figures). Differences are therefore judged
by Student's t, over tasks by Welch and Satterthwaite; spreads by the quantiles of Fisher's F.

All scores are of pairs of runs with the same seed and draw, so what a seed does to both cancels.
"""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate with its interval; low and high are None where there are too few runs for one."""
    value: float
    low: Optional[float]
    high: Optional[float]

    def verdict(self, neutral: float = 0.0) -> str:
        """'above', 'below' or 'undecided': where the interval lies.

        >>> Interval(1.0, 0.5, 1.5).verdict(), Interval(1.0, -0.5, 2.5).verdict()
        ('above', 'undecided')
        """
        if self.low is None or self.high is None or self.low <= neutral <= self.high:
            return 'undecided'
        return 'above' if self.low > neutral else 'below'


def half_width(variance_of_mean: float, freedom: float, level: float = LEVEL) -> float:
    return float(stats.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance_of_mean)


def variance_of(values: np.ndarray, resolution: float) -> float:
    """Of single values, no smaller than what rounding to the resolution gives."""
    return max(float(values.var(ddof=1)), resolution ** 2 / 12)


def mean_interval(values: Sequence[float], resolution: float = 0.0, level: float = LEVEL) -> Interval:
    """Of the mean, by Student's t.

    resolution: the smallest step between two values, e.g. 1 / records: the deviation is taken as no smaller
    than what rounding to it gives, so that runs that happen to agree do not pass for certainty.
    """
    values = np.asarray(values, 'float64')
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, None, None)
    variance = variance_of(values, resolution) / len(values)
    width = half_width(variance, len(values) - 1, level)
    return Interval(mean, mean - width, mean + width)


def judged(found: Dict[str, Sequence[float]]) -> Dict[str, Sequence[float]]:
    """{task: values} of the tasks with two or more, which have an interval; of those with one where none has.

    >>> judged({'a': [1, 2], 'b': [3], 'c': []}), judged({'b': [3], 'c': []})
    ({'a': [1, 2]}, {'b': [3]})
    """
    least = min(2, max(map(len, found.values()), default=2)) or 1
    return {task: values for task, values in found.items() if len(values) >= least}


def over_tasks(differences: Sequence[Sequence[float]], resolutions: Optional[Sequence[float]] = None,
               level: float = LEVEL) -> Interval:
    """Of the mean over these tasks of the mean of each, by Welch's and Satterthwaite's t.

    differences: one sequence a task. It says something of these tasks, not of others.
    """
    resolutions = resolutions or [0.0] * len(differences)
    means, variances, freedoms = [], [], []
    for values, resolution in zip(differences, resolutions):
        values = np.asarray(values, 'float64')
        means.append(float(values.mean()))
        if len(values) > 1:
            variances.append(variance_of(values, resolution) / len(values))
            freedoms.append(len(values) - 1)
    mean = float(np.mean(means))
    if len(variances) < len(means):
        return Interval(mean, None, None)
    total = sum(variances)
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total ** 2 / sum(v ** 2 / f for v, f in zip(variances, freedoms))
    width = half_width(total / len(means) ** 2, freedom, level)
    return Interval(mean, mean - width, mean + width)


def ratio_interval(logs: Sequence[Sequence[float]], resolutions: Optional[Sequence[float]] = None,
                   level: float = LEVEL) -> Interval:
    """Of the geometric mean over tasks of ratios, given as logarithms, one sequence a task."""
    found = over_tasks(logs, resolutions, level)
    return Interval(*(None if value is None else math.exp(value) for value in found))


def spread_ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]],
                 resolutions: Optional[Sequence[float]] = None, level: float = LEVEL, draws: int = 20000) -> Interval:
    """Of the ratio of standard deviations, first to second, over tasks in geometric mean.

    resolutions: of each task as in `mean_interval`; without them no deviation may be 0.
    The interval is that of normal scores: quantiles of the mean of log F, drawn with a fixed seed.
    """
    logs = [0.5 * math.log(variance_of(np.asarray(ours), resolution) / variance_of(np.asarray(theirs), resolution))
            for ours, theirs, resolution in zip(first, second, resolutions or [0.0] * len(first))]
    random = np.random.RandomState(0)
    null = np.mean([0.5 * np.log(random.f(len(ours) - 1, len(theirs) - 1, draws))
                    for ours, theirs in zip(first, second)], 0)
    low, high = np.quantile(null, [0.5 - level / 2, 0.5 + level / 2])
    value = float(np.mean(logs))
    return Interval(math.exp(value), math.exp(value - high), math.exp(value - low))


def bootstrap_interval(values: Sequence[float], level: float = LEVEL, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean: shown beside the others, and not what decides."""
    values = np.asarray(values, 'float64')
    if len(values) < 2:
        return Interval(float(values.mean()), None, None)
    picked = np.random.RandomState(seed).randint(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picked].mean(1), [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(values.mean()), float(low), float(high))


def by_draw(scores: Dict[Any, Any]) -> List[Any]:
    """{(draw, seed): number or array} as independent values: of several draws each draw's mean, of one all seeds.

    Runs on the same drawn samples are not independent of each other.
    """
    draws = sorted({draw for draw, _ in scores}, key=str)
    if len(draws) < 2:
        return [scores[key] for key in sorted(scores, key=str)]
    return [np.mean([scores[key] for key in sorted(scores, key=str) if key[0] == name], 0) for name in draws]


def differences(ours: Dict[Any, float], theirs: Dict[Any, float]) -> List[float]:
    """Ours less theirs, of the runs that both have."""
    return by_draw({key: ours[key] - theirs[key] for key in ours if key in theirs})


def power(seeds: int, difference: float, level: float = LEVEL) -> float:
    """How often `mean_interval` finds a difference of normal runs, by the noncentral t."""
    limit = stats.t.ppf(0.5 + level / 2, seeds - 1)
    shift = difference / math.sqrt(2 / seeds)
    return float(stats.nct.sf(limit, seeds - 1, shift) + stats.nct.cdf(-limit, seeds - 1, shift))
