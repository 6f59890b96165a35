"""What a method's size is worth: the change of its score with each doubling of its hidden units, prefixes or rank."""
from typing import Dict, List, NamedTuple, Optional

import numpy as np

from tools import statistics
from tools.results import Results, Variant
from tools.statistics import Interval


class Doubling(NamedTuple):
    """The change of the score with each doubling in the mean over tasks, over these sizes."""
    interval: Interval
    tasks: int
    sizes: List[int]


def series(results: Results, backbone: str) -> List[List[Variant]]:
    """The variants with this backbone of each method that has several sizes, the smallest first."""
    shown = [variant for variant in results.shown(backbone) if variant.size]
    found = [[variant for variant in variants if variant in shown] for variants in results.series('size').values()]
    return [variants for variants in found if len(variants) > 1]


def whole(results: Results, task: str, backbone: str, variants: List[Variant]) -> List[Variant]:
    """Those with as many runs as any; runs that diverged count, as long as one did not."""
    runs = {variant: len(results.runs(task, backbone, variant)) for variant in variants}
    return [variant for variant in variants if runs[variant] == max(runs.values())
            and results.scores(task, backbone, variant)]


def slopes(results: Results, task: str, backbone: str, variants: List[Variant]) -> List[float]:
    """A change with each doubling for each seed (or draw) that has a score in all of these sizes.

    It is the slope of the line nearest to its scores, by least squares, over the logarithm of the size to base 2.
    """
    scores = [results.scores(task, backbone, variant) for variant in variants]
    places = logarithms(variants)
    return statistics.by_draw({pair: float(places @ [found[pair] for found in scores] / (places @ places))
                               for pair in set.intersection(*map(set, scores))})


def logarithms(variants: List[Variant]) -> np.ndarray:
    """Of the sizes to base 2, less their mean."""
    found = np.log2([variant.size for variant in variants])
    return found - found.mean()


def per_doubling(results: Results, backbone: str, variants: List[Variant],
                 tasks: Optional[List[str]] = None) -> Optional[Doubling]:
    """Over the sizes that are whole on all tasks with runs; None where these are not two, or no seed has them all."""
    able: Dict[str, List[Variant]] = {task: whole(results, task, backbone, variants) for task in tasks or results.tasks}
    able = {task: found for task, found in able.items() if found}
    used = [variant for variant in variants if able and all(variant in found for found in able.values())]
    if len(used) < 2:
        return None
    values = statistics.judged({task: slopes(results, task, backbone, used) for task in able})
    if not values:
        return None
    places = logarithms(used)
    steps = [results.resolution(task, backbone) / float(np.sqrt(places @ places)) for task in values]
    return Doubling(statistics.over_tasks(list(values.values()), steps), len(values),
                    [variant.size for variant in used])
