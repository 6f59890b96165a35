"""The results of a grid's folder as rows, and what can be said of them: means, differences, ratios, in words."""
import collections
import glob
import math
import os
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from fltuning.errors import UserError
from fltuning.files import read_json, to_json
from fltuning.run_record import is_score, unpack_points
from tools import cells, statistics
from tools.methods import METHODS
from tools.statistics import Interval

OURS, RIVAL = 'fl', 'ptuning_v2'
SHARE_OF_BEST = 0.95


class Point(NamedTuple):
    """An evaluation on dev."""
    step: int
    score: float


class Row(NamedTuple):
    """A finished run. score: as the grid selects it; None where the training diverged. seconds: of training,
    without evaluation. commonest: the share of dev's commonest label; None where it is not known, or there are none.
    points: of each text of dev, got and to get (`Task.points`); None where the record has none.
    sample: whether the data is the bundled sample, which scores nothing."""
    task: str
    backbone: str
    variant: 'Variant'
    seed: int
    draw: Optional[int]
    metric: str
    score: Optional[float]
    history: Tuple[Point, ...]
    trained: Optional[int]
    parameters: Optional[int]
    seconds: Optional[float]
    memory: Optional[int]
    dev: int
    commonest: Optional[float]
    points: Optional[Tuple[List[int], List[int]]] = None
    sample: bool = False

    @property
    def pair(self) -> tuple:
        """What runs that are compared have in common."""
        return self.draw, self.seed


class Variant(NamedTuple):
    """A row of the tables: a method in one size, in some layers, at one rate if several are compared."""
    method: str
    size: Optional[int]
    layers: str
    rate: Optional[float]


class Results:
    """What is in a folder.

    choices: {(task, backbone, variant without rate): chosen rate}; without_rate: {such a key: why none could be};
    searches: {such a key: {rate: the run that was to choose}}.
    order: names of tasks and backbones as the tables are to have them.
    """

    def __init__(self, rows: List[Row], name: str = 'grid', expected: Optional[int] = None, there: int = 0,
                 titles: Optional[Dict[str, str]] = None, choices: Optional[dict] = None, select: str = 'last',
                 rates: Iterable[float] = (), without_rate: Optional[Dict[tuple, str]] = None,
                 order: Iterable[str] = (), searches: Optional[Dict[tuple, Dict[float, Row]]] = None):
        self.rows, self.name, self.expected, self.there = rows, name, expected, there
        self.titles, self.choices, self.select, self.rates = titles or {}, choices or {}, select, list(rates)
        self.searches = searches or {}
        self.several_draws = len({row.draw for row in rows}) > 1
        self.index: Dict[tuple, List[Row]] = {}
        self.dev: Dict[tuple, int] = {}  # its records
        for row in rows:
            self.index.setdefault(key_of(row), []).append(row)
            self.dev[row.task, row.backbone] = max(self.dev.get((row.task, row.backbone), 1), row.dev)
        self.without_rate = {key: why for key, why in (without_rate or {}).items() if key not in self.index}
        places = {name: number for number, name in enumerate(order)}
        self.tasks, self.backbones, variants = [unique(names) for names in zip(
            *list(self.index) + list(self.without_rate))] or [[], [], []]
        for names in (self.tasks, self.backbones):
            names.sort(key=lambda name: places.get(name, len(places)))
        methods = list(METHODS)
        self.variants = sorted(variants, key=lambda v: (
            methods.index(v.method) if v.method in methods else len(methods), v.size or 0, v.layers, v.rate or 0))

    def title(self, name: str) -> str:
        return self.titles.get(name, METHODS[name].title if name in METHODS else name)

    def task_titles(self) -> List[str]:
        return list(map(self.title, self.tasks))

    def variant_title(self, variant: Variant, without: str = '') -> str:
        """With what it differs in from others of its method, but for one field."""
        others = [other for other in self.variants if other.method == variant.method]
        parts = [self.title(variant.method)]
        for field, text in (('size', 'size %s' % variant.size), ('layers', 'layers %s' % (variant.layers or 'all')),
                            ('rate', 'rate %g' % variant.rate if variant.rate else 'default rate')):
            if field != without and len({getattr(other, field) for other in others}) > 1:
                parts.append(text)
        return ', '.join(parts)

    def runs(self, task: str, backbone: str, variant: Variant) -> List[Row]:
        return self.index.get((task, backbone, variant), [])

    def shown(self, backbone: str) -> List[Variant]:
        """Those that have runs with this backbone, or were to have some."""
        there = {variant for keys in (self.index, self.without_rate) for _, other, variant in keys if other == backbone}
        return [variant for variant in self.variants if variant in there]

    def is_blind(self, *key: Any) -> bool:
        """Whether the rate of such a key was chosen from runs that had not learnt anything."""
        runs = self.searches.get(key, {}).values()
        return key in self.choices and bool(runs) and not any(map(ended_past, runs))

    def series(self, field: str) -> Dict[Variant, List[Variant]]:
        """{a variant without this field of it: those that differ in it alone, in order}, of several."""
        found: Dict[Variant, List[Variant]] = {}
        for variant in self.variants:
            found.setdefault(variant._replace(**{field: None}), []).append(variant)
        return {rest: variants for rest, variants in found.items() if len(variants) > 1}

    def absent(self, task: str, backbone: str, variant: Variant) -> str:
        """What stands in a cell of a table instead of a number."""
        why = self.without_rate.get((task, backbone, variant))
        return '–' if why is None else 'diverged' if why == cells.DIVERGED else 'failed'

    def pairs(self, task: str, backbone: str) -> set:
        """What runs some variant has; those that diverged count."""
        return {row.pair for variant in self.variants for row in self.runs(task, backbone, variant)}

    def metric(self, task: str) -> str:
        return next((row.metric.replace('_', ' ') for row in self.rows if row.task == task), 'score')

    def share(self, task: str) -> Optional[float]:
        """Of the commonest label; None where it is not known, or there are no labels."""
        return next((row.commonest for row in self.rows if row.task == task and row.commonest is not None), None)

    def scores(self, task: str, backbone: str, variant: Variant) -> Dict[tuple, float]:
        """{(draw, seed): score} of the runs that did not diverge."""
        return {row.pair: row.score for row in self.runs(task, backbone, variant) if row.score is not None}

    def resolution(self, task: str, backbone: str) -> float:
        """The smallest step of a score: a record of dev."""
        return 1.0 / self.dev.get((task, backbone), 1)

    def ours(self, variant: Variant) -> Optional[Variant]:
        """FL-Tuning to compare a variant with: of the same size and layers, or else the only or first one."""
        found = [other for other in self.variants if other.method == OURS]
        same = [other for other in found if other[1:] == variant[1:]]
        return (same or found or [None])[0]

    # What is said of pairs of variants.

    def difference(self, task: str, backbone: str, first: Variant, second: Variant) -> Optional[Interval]:
        """Of the scores, first less second, over pairs of runs; None where there is no pair."""
        found = statistics.differences(self.scores(task, backbone, first), self.scores(task, backbone, second))
        return statistics.mean_interval(found, self.resolution(task, backbone)) if found else None

    def overall(self, backbone: str, first: Variant, second: Variant) -> Optional[Tuple[Interval, int]]:
        """(the difference over the tasks that have an interval, their number); over all where none has."""
        found = self.compared(backbone, first, second)
        if not found:
            return None
        return statistics.over_tasks(list(found.values()),
                                     [self.resolution(task, backbone) for task in found]), len(found)

    def compared(self, backbone: str, first: Variant, second: Variant) -> Dict[str, Sequence[float]]:
        """{task: differences, a value a pair of runs (or draw)} of the tasks that `overall` is over."""
        return statistics.judged({task: statistics.differences(
            self.scores(task, backbone, first), self.scores(task, backbone, second)) for task in self.tasks})

    def marks(self, task: str, backbone: str) -> Dict[Variant, str]:
        """{variant: 'best', or 'close' where the data do not tell it from the best}.

        The best is none that pairs prove worse than another; of the others that with the highest mean, among those
        with all runs if there are any, and else on the runs that they share.
        """
        scores = {variant: self.scores(task, backbone, variant) for variant in self.variants}
        scores = {variant: found for variant, found in scores.items() if found}

        def verdict(first, second):
            interval = self.difference(task, backbone, first, second)
            return interval.verdict() if interval else 'undecided'
        pairs = self.pairs(task, backbone)
        able = [variant for variant in scores if all(verdict(variant, other) != 'below' for other in scores)]
        able = [variant for variant in able if len(scores[variant]) == len(pairs)] or able
        if not able:
            return {}
        shared = pairs.intersection(*(scores[variant] for variant in able))
        best = max(able, key=lambda variant: np.mean(
            [score for pair, score in scores[variant].items() if pair in shared or not shared]))
        return {variant: 'best' if variant == best else 'close' for variant in scores
                if verdict(best, variant) == 'undecided'}

    def convergence(self, backbone: str, first: Variant, second: Variant) -> Dict[str, List[float]]:
        """{task: logs of second's steps to 95 % of its best over first's, a value a pair of runs (or draw)}.

        Of tasks and runs where something was learnt: one that never passes the commonest label is at its best at once.
        """
        found, unlearnt = {}, self.unlearnt(backbone)
        for task in self.tasks:
            if task in unlearnt:
                continue
            ours, theirs = [{row.pair: steps_to_best(row) for row in self.runs(task, backbone, variant)
                             if has_learnt(row)} for variant in (first, second)]
            logs = statistics.by_draw({pair: float(np.log(theirs[pair] / ours[pair]))
                                       for pair in ours if pair in theirs})
            if logs:
                found[task] = logs
        return found

    def convergence_ratio(self, backbone: str, first: Variant, second: Variant,
                          tasks: Optional[List[str]] = None) -> Optional[Tuple[Interval, int]]:
        """(the ratio in geometric mean over tasks, their number), no more certain than evaluations are dense."""
        found = self.convergence(backbone, first, second)
        found = statistics.judged({task: logs for task, logs in found.items() if tasks is None or task in tasks})
        if not found:
            return None
        spacing = [max(row.history[0].step / steps_to_best(row) for variant in (first, second)
                       for row in self.runs(task, backbone, variant) if has_learnt(row)) for task in found]
        return statistics.ratio_interval(list(found.values()), spacing), len(found)

    def spread(self, backbone: str, first: Variant, second: Variant) -> Optional[Tuple[Interval, int]]:
        """(the ratio of standard deviations over runs, first to second, the number of tasks)."""
        found = {task: [statistics.by_draw(self.scores(task, backbone, variant)) for variant in (first, second)]
                 for task in self.tasks}
        found = {task: pair for task, pair in found.items() if min(map(len, pair)) > 1}
        if not found:
            return None
        resolutions = [self.resolution(task, backbone) for task in found]
        return statistics.spread_ratio(*zip(*found.values()), resolutions=resolutions), len(found)

    def unlearnt(self, backbone: str) -> List[str]:
        """The tasks on which some method has an interval, and none is above the commonest label by more than it.

        One run, which has no interval, is above by what `is_past` says.
        """
        found = []
        for task in self.tasks:
            share, above = self.share(task), {}
            for variant in self.variants if share is not None else ():
                scores = statistics.by_draw(self.scores(task, backbone, variant))
                if len(scores) > 1:
                    interval = statistics.mean_interval(scores, self.resolution(task, backbone))
                    above[variant] = interval.verdict(share) == 'above'
                elif scores and is_past(scores[0], share, self.dev[task, backbone]):
                    above[variant] = True
            if above and not any(above.values()):
                found.append(task)
        return found


def is_past(score: float, share: float, dev: int) -> bool:
    """Whether a score is above a share by more than two standard errors of that share of so many records."""
    return score > share + 2 * math.sqrt(share * (1 - share) / dev)


def has_learnt(row: Row) -> bool:
    """Whether a run passed the commonest label; all do that score, where its share is not known."""
    best = max((point.score for point in row.history), default=0)
    return is_past(best, row.commonest or 0, row.dev)


def ended_past(row: Row) -> bool:
    """The same of its score, as a rate is chosen by it."""
    return is_past(row.score or 0, row.commonest or 0, row.dev)


def key_of(row: Row) -> tuple:
    return row.task, row.backbone, row.variant


def unique(values: Iterable) -> list:
    return list(collections.OrderedDict.fromkeys(values))


def steps_to_best(row: Row, share: float = SHARE_OF_BEST) -> int:
    """The first evaluated step at which a run has that share of its own best score."""
    best = max(point.score for point in row.history)
    return next(point.step for point in row.history if point.score >= share * best)


def load(folder: str) -> Results:
    """The results in a folder that scripts/reproduce wrote. Raises UserError."""
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), 'cells', '*.json')))
    if not paths:
        raise UserError('%s: no cells/*.json in it: expected a folder that scripts/reproduce wrote' % folder)
    path, grid = os.path.join(folder, 'grid.json'), {}
    if os.path.exists(path):
        grid = read_plan(path)
        paths = [path for path in paths if cell_name(path) in grid['cells']]
    results = [cells.read_result(path) for path in paths]
    if isinstance(grid.get('cells'), dict):  # how the grid calls them now, which those files may not
        results = [dict(result, labels=dict(result['labels'], **grid['cells'][cell_name(path)]))
                   for path, result in zip(paths, results)]
    select, rows, whole = grid.get('select', 'last'), [], []
    searches: Dict[tuple, Dict[float, Row]] = {}
    first: Dict[str, Tuple[str, str]] = {}
    for path, result in zip(paths, results):
        try:
            if result['labels']['stage'] == 'whole':
                check_data(first, path, result)
                rows.append(read_row(result, select, several_rates=grid.get('search') is None))
                whole.append(result)
            else:
                row = read_row(result, 'last', several_rates=False)
                searches.setdefault(key_of(row), {})[result['labels']['rate']] = row
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError('%s: not a result of a cell of this version' % path)
    choices = {key_of(row): result['labels']['rate']
               for row, result in zip(rows, whole)} if grid.get('search') is not None else {}
    without_rate = {(lost['task'], lost['backbone'], Variant(lost['method'], lost['size'], lost['layers'], None)):
                    lost['why'] for lost in grid.get('without_rate', [])}
    rows.sort(key=lambda row: (row.task, row.backbone, str(row.pair)))
    return Results(rows, grid.get('name', os.path.basename(os.path.abspath(folder))), grid.get('count'), len(results),
                   grid.get('titles'), choices, select, grid.get('rates') or (), without_rate,
                   grid.get('tasks', []) + grid.get('backbones', []), searches)


def check_data(first: Dict[str, Tuple[str, str]], path: str, result: Dict[str, Any]) -> None:
    """Raises UserError where runs of a task that would be compared are on different data.

    first: {task: (the path of its first run, what its data is)}, so far.
    """
    task, data = result['labels']['task'], result['configuration'].get('data')
    other, theirs = first.setdefault(task, (path, data))
    if theirs != data:
        raise UserError('%s and %s are runs of %s on different data, not to be compared: scripts/reproduce with their '
                        'grid says anew which belong together' % (other, os.path.basename(path), task))


def read_plan(path: str) -> Dict[str, Any]:
    """grid.json: the cells of the grid and how it calls them. Raises UserError with the field that is wrong."""
    grid = read_json(path)
    if not isinstance(grid, dict) or 'cells' not in grid:
        raise UserError('%s: not written by scripts/reproduce' % path)

    def texts(values):
        return all(isinstance(value, str) for value in values)

    def dicts_of(values, fields):
        return all(isinstance(value, dict) and fields <= set(value) for value in values)

    group = {'task', 'backbone', 'method', 'size', 'layers'}
    fields = [
        ('cells', (dict, list), lambda found: isinstance(found, list) or dicts_of(
            found.values(), group | {'stage', 'rate', 'seed', 'draw', 'metric', 'records', 'commonest'})),
        ('name', str, bool), ('select', str, ('last', 'best').__contains__), ('count', int, None),
        ('search', (int, type(None)), None), ('titles', dict, lambda found: texts(found.values())),
        ('rates', list, lambda found: all(isinstance(rate, (int, float, type(None))) for rate in found)),
        ('tasks', list, texts), ('backbones', list, texts),
        ('without_rate', list, lambda found: dicts_of(found, group | {'why'}))]
    for name, kind, check in fields:
        if name in grid and not (isinstance(grid[name], kind) and (check is None or check(grid[name]))):
            raise UserError('%s: %s: not written by scripts/reproduce: %s' % (path, name, to_json(grid[name])[:60]))
    return grid


def cell_name(path: str) -> str:
    return os.path.basename(path)[:-5]


def read_row(result: Dict[str, Any], select: str, several_rates: bool) -> Row:
    from tools.plan import score
    labels, run = result['labels'], result['run'] or {}
    variant = Variant(labels['method'], labels['size'], labels['layers'],
                      labels['rate'] if several_rates else None)
    scored, history, points = None, (), None
    if not result['diverged']:
        scored, history = score(result, select), tuple(history_points(run, labels))
        points = read_points(run, labels, select, scored)
    parameters = run.get('parameters') or {}
    return Row(
        labels['task'], labels['backbone'], variant, labels['seed'], labels['draw'], labels['metric'], scored, history,
        parameters.get('trained'), parameters.get('all'), run.get('train_seconds'), run.get('peak_memory_mb'),
        (run.get('samples') or labels['records'])['dev'], labels['commonest'], points, labels.get('sample', False))


def read_points(run: Dict[str, Any], labels: Dict[str, Any], select: str,
                score: float) -> Optional[Tuple[List[int], List[int]]]:
    """Of the evaluation that counts; None where draws have other dev texts each, or where the run selected another."""
    found = run.get('dev_points', {}).get('selected' if select == 'best' else 'last')
    if found is None or labels['draw'] is not None and 'dev' in run.get('few_shot', {}):
        return None
    points = unpack_points(found)
    return points if is_score(points, score) else None


def history_points(run: Dict[str, Any], labels: Dict[str, Any]) -> Iterable[Point]:
    """Of a run's evaluations; the steps of an epoch, where they are not said, by the number of samples."""
    from tools.plan import evaluate
    for entry in run.get('history', []):
        step = entry.get('step')
        if step is None:
            step = entry['epoch'] * -(-run['samples']['train'] // run['settings']['batch_size'])
        yield Point(step, evaluate(entry, labels['metric']))
