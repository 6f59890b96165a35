"""Interquartile mean and probability of improvement over tasks, with rliable's stratified bootstrap."""
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from fltuning.extras import import_extra
from tools import statistics
from tools.results import OURS, Results, Variant

DRAWS = 500  # the last digit shown moves by about one with them


def of_most(sets: Sequence[set]) -> list:
    """What is in more than half of them."""
    return sorted((name for name in set().union(*sets) if 2 * sum(name in one for one in sets) > len(sets)), key=str)


def matrices(results: Results, backbone: str) -> Tuple[Dict[Variant, np.ndarray], int, int]:
    """({variant: scores, (runs, tasks)}, runs, tasks): of what most variants have, and of those that have all of it.

    Of several draws each draw's mean is one run, as everywhere (`statistics.by_draw`).
    """
    scores = {variant: {task: results.scores(task, backbone, variant) for task in results.tasks}
              for variant in results.variants}
    scores = {variant: found for variant, found in scores.items() if any(found.values())}
    tasks = of_most([{task for task in found if found[task]} for found in scores.values()])
    runs = of_most([set.intersection(*(set(found[task]) for task in tasks)) for found in scores.values()]
                   ) if tasks else []
    found = {variant: np.array(statistics.by_draw({run: [found[task][run] for task in tasks] for run in runs}))
             for variant, found in scores.items()
             if runs and all(run in found[task] for task in tasks for run in runs)}
    return found, max(map(len, found.values()), default=0), len(tasks)


def robust_scores(results: Results, found: Dict[Variant, np.ndarray]) -> List[tuple]:
    """[(variant, (interquartile mean, low, high), that FL-Tuning is better, (value, low, high) or None)]."""
    library, metrics = import_extra('rliable.library', 'lab'), import_extra('rliable.metrics', 'lab')

    def estimate(scores: Dict[str, Any], aggregate: Any) -> tuple:
        before = np.random.get_state()
        np.random.seed(0)  # rliable draws from NumPy's own generator, whatever random_state it is given
        try:
            value, interval = library.get_interval_estimates(
                scores, lambda *parts: np.array([aggregate(*parts)]), reps=DRAWS)
        finally:
            np.random.set_state(before)
        return float(value['x'][0]), float(interval['x'][0][0]), float(interval['x'][1][0])

    rows = []
    for variant, scores in found.items():
        ours = results.ours(variant)
        better = None
        if ours in found and variant.method != OURS:
            better = estimate({'x': (found[ours], scores)}, metrics.probability_of_improvement)
        rows.append((variant, estimate({'x': scores}, metrics.aggregate_iqm), better))
    return rows
