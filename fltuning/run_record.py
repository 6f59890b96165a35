"""The record of a run, results/TASK_run.json, beside those of other runs: earlier ones, and of other seeds."""
import os
import statistics
from typing import Any, Dict, List, Optional, Tuple

from fltuning.errors import UserError
from fltuning.files import file_digest, read_json, set_aside


def keep_former(path: str, ours: Dict[str, Any], of_before: Dict[str, Any]) -> None:
    """The record of an earlier run of another configuration stays, under another name.

    ours: {name: value} of all that numbers depend on; of_before: values of settings that an earlier record
    may lack.
    """
    if not os.path.exists(path):
        return
    try:
        former = read_json(path)
        theirs = dict(of_before, **former['settings'])
        theirs = {name: theirs.get(name, former.get(name)) for name in ours}
    except (UserError, AttributeError, KeyError, TypeError):
        theirs = {}
    changed = [name for name in ours if theirs.get(name) != ours[name]]
    if changed:
        print('%s: written by a run with another %s: moved to %s; its weights and predictions are replaced'
              % (path, ', '.join(changed), set_aside(path)))


def checksums(paths: List[str], output_dir: str) -> Dict[str, str]:
    """{file in the output folder, as weights/TASK.weights: SHA-256}."""
    return {os.path.relpath(path, output_dir or '.').replace(os.sep, '/'): file_digest(path)
            for path in paths}


def pack_counts(counts: List[int]) -> str:
    """Small numbers as a short text: a digit each, where that is enough.

    >>> pack_counts([1, 0, 2]), pack_counts([1, 12]), unpack_counts('102'), unpack_counts('1 12 ')
    ('102', '1 12 ', [1, 0, 2], [1, 12])
    """
    form = '%d' if max(counts, default=0) < 10 else '%d '
    return ''.join(form % count for count in counts)


def unpack_counts(text: str) -> List[int]:
    """What `pack_counts` made. Raises ValueError."""
    return [int(count) for count in (text.split() if ' ' in text else text)]


def pack_points(points: Optional[Tuple[List[int], List[int]]], score: float) -> Optional[Dict[str, str]]:
    """What `Task.points` says, as it stands in a record: {got, possible}; None where that is not this score."""
    if points is None or not is_score(points, score):
        return None
    return {'got': pack_counts(points[0]), 'possible': pack_counts(points[1])}


def unpack_points(packed: Dict[str, str]) -> Tuple[List[int], List[int]]:
    """What `pack_points` made. Raises KeyError, ValueError."""
    got, possible = unpack_counts(packed['got']), unpack_counts(packed['possible'])
    if len(got) != len(possible):
        raise ValueError('points of %d texts of %d' % (len(got), len(possible)))
    return got, possible


def is_score(points: Tuple[List[int], List[int]], score: float) -> bool:
    """Whether a score is the ratio of the sums of these points.

    >>> is_score(([1, 0], [1, 1]), 0.5), is_score(([1, 0], [1, 1]), 0.4), is_score(([0], [0]), 0.0)
    (True, False, True)
    """
    return abs(sum(points[0]) / max(sum(points[1]), 1) - score) < 1e-9


def seed_folder(output_dir: str, seed: int) -> str:
    """Where weights/ and results/ of one of several seeds go."""
    return os.path.join(output_dir, 'seed_%d' % seed)


def summarize(records: List[Dict[str, Any]]) -> Dict[str, Any]:
    """What runs of several seeds have in common, and the scores of their selected weights.

    {metric: {values, one a seed; mean; deviation, of the sample, None of a single one}}
    """
    def scores(dicts):
        return {metric: describe([scores[metric] for scores in dicts]) for metric in dicts[0]}

    first = records[0]
    found = {
        'task': first['task'], 'stack': first['stack'], 'seeds': [record['seed'] for record in records],
        'runs': ['seed_%d/results/%s_run.json' % (record['seed'], record['task']) for record in records],
        'dev': scores([record['selected']['dev'] for record in records])}
    if 'test_public' in first:
        found['test_public'] = scores([record['test_public'] for record in records])
    return found


def describe(values: List[float]) -> Dict[str, Any]:
    """
    >>> describe([0.5, 0.75])['mean'], describe([0.5])['deviation']
    (0.625, None)
    """
    return {'values': values, 'mean': statistics.mean(values),
            'deviation': statistics.stdev(values) if len(values) > 1 else None}


def tell(scores: Dict[str, Dict[str, Any]]) -> str:
    """
    >>> tell({'accuracy': describe([0.5, 0.75]), 'f1': describe([1.0])})
    'accuracy 0.6250 ± 0.1768, f1 1.0000'
    """
    return ', '.join('%s %.4f%s' % (
        metric, found['mean'], '' if found['deviation'] is None else ' ± %.4f' % found['deviation'])
        for metric, found in scores.items())
