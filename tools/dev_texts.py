"""How much a difference between two methods depends on which texts dev happens to have.

Intervals over seeds say how far other seeds would move a difference on this dev set. Its texts are a sample, too:
each run's points of each text (`dev_points` of its record) show how much other texts would move it. Runs and texts
are crossed, every run with every text, so what comes of the texts is what an analysis of variance leaves them beside
their interaction with runs. The half-widths of both parts add as the sides of a right angle, as Zou and Donner
(Statistics in Medicine, 2008) combine limits: such an interval is never narrower than that over seeds.
"""
import math
from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from tools import statistics
from tools.results import Results, Variant
from tools.statistics import Interval


class Texts(NamedTuple):
    """variance: of the mean difference, as far as it comes of the texts; count: of texts."""
    variance: float
    count: int


def text_scores(points: Tuple[List[int], List[int]]) -> np.ndarray:
    """The score of a run as a mean over texts: (texts,). Of a ratio of sums, as F1 is, to first order.

    >>> text_scores(([1, 0, 1, 1], [1, 1, 1, 1])).tolist()
    [1.0, 0.0, 1.0, 1.0]
    >>> text_scores(([2, 0], [2, 2])).tolist(), text_scores(([2, 0], [3, 1])).tolist()
    ([1.0, 0.0], [0.75, 0.25])
    """
    got, possible = (np.asarray(values, 'float64') for values in points)
    if not possible.sum():
        return np.zeros_like(got)
    score = got.sum() / possible.sum()
    return score + (got - score * possible) / possible.mean()


def texts_variance(differences: np.ndarray) -> Texts:
    """differences: (runs, texts), two texts or more; in a run's row its score less another's, as a mean over texts."""
    differences = np.asarray(differences, 'float64')
    runs, texts = differences.shape
    by_text = differences.mean(0)
    between = float(by_text.var(ddof=1))
    if runs > 1:
        rest = differences - by_text - differences.mean(1, keepdims=True) + differences.mean()
        between -= float((rest ** 2).sum()) / ((runs - 1) * (texts - 1)) / runs  # of their interaction with runs
    return Texts(max(between, 0.0) / texts, texts)


def widen(interval: Interval, parts: List[Texts]) -> Interval:
    """An interval over seeds of a mean over tasks, with what comes of the texts of each. It must have bounds."""
    assert interval.low is not None and interval.high is not None
    squares = [statistics.half_width(part.variance, part.count - 1) ** 2 for part in parts]
    half = math.hypot((interval.high - interval.low) / 2, math.sqrt(sum(squares)) / len(parts))
    return Interval(interval.value, interval.value - half, interval.value + half)


def of_task(results: Results, task: str, backbone: str, first: Variant, second: Variant) -> Optional[Texts]:
    """Of the difference of two methods; None where runs have no points of texts, not of the same, or of one alone."""
    ours, theirs = ({row.pair: row.points for row in results.runs(task, backbone, variant) if row.score is not None}
                    for variant in (first, second))
    found = {pair: (ours[pair], theirs[pair]) for pair in ours if pair in theirs}
    if not found or any(points is None for points in sum(found.values(), ())):
        return None
    counts = {len(points[0]) for points in sum(found.values(), ())}
    if len(counts) > 1 or counts == {1}:
        return None
    return texts_variance(np.array(statistics.by_draw(
        {pair: text_scores(us) - text_scores(them) for pair, (us, them) in found.items()})))


def difference(results: Results, task: str, backbone: str, first: Variant, second: Variant) -> Optional[Interval]:
    """`Results.difference`, for other texts, too."""
    interval, part = results.difference(task, backbone, first, second), of_task(results, task, backbone, first, second)
    return widen(interval, [part]) if interval and interval.low is not None and part else None


def overall(results: Results, backbone: str, first: Variant, second: Variant) -> Optional[Tuple[Interval, int]]:
    """`Results.overall`, for other texts, too; None unless the points of all its tasks are there."""
    found = results.overall(backbone, first, second)
    parts = [of_task(results, task, backbone, first, second) for task in results.compared(backbone, first, second)]
    if found is None or found[0].low is None or None in parts:
        return None
    return widen(found[0], [part for part in parts if part]), found[1]
