"""What a method's size is worth: the change of its score with each doubling of its hidden units, prefixes or rank."""
from typing import List, Optional, Tuple

import numpy as np

from tools import statistics
from tools.results import Results, Variant
from tools.statistics import Interval


def series(results: Results, backbone: str) -> List[List[Variant]]:
    """The variants with this backbone of each method that has several sizes, the smallest first."""
    shown = results.shown(backbone)
    found = [[variant for variant in variants if variant in shown] for variants in results.series('size').values()]
    return [variants for variants in found if len(variants) > 1]


def slopes(results: Results, task: str, backbone: str, variants: List[Variant]) -> Tuple[List[float], float]:
    """(changes of the score with each doubling of the size, the change that one record of dev makes).

    A change a seed (or draw) that has a score in every size that is here on this task: the slope of the line nearest to
    its scores, by least squares, over the logarithm of the size to base 2.
    """
    scores = {variant.size: results.scores(task, backbone, variant) for variant in variants}
    scores = {size: found for size, found in scores.items() if found}
    if len(scores) < 2:
        return [], 0.0
    places = np.log2(sorted(scores))
    places -= places.mean()
    shared = set.intersection(*map(set, scores.values()))
    found = {pair: float(places @ [scores[size][pair] for size in sorted(scores)] / (places @ places))
             for pair in shared}
    return statistics.by_draw(found), results.resolution(task, backbone) / float(np.sqrt(places @ places))


def per_doubling(results: Results, backbone: str, variants: List[Variant],
                 tasks: Optional[List[str]] = None) -> Optional[Tuple[Interval, int]]:
    """(the change with each doubling in the mean over tasks, their number); None where no seed has two sizes."""
    found = {task: slopes(results, task, backbone, variants) for task in tasks or results.tasks}
    values = statistics.judged({task: changes for task, (changes, _) in found.items()})
    if not values:
        return None
    return statistics.over_tasks(list(values.values()), [found[task][1] for task in values]), len(values)
