"""The cells of a grid, in the order in which they are to run, as far as their learning rates are known."""
import collections
import os
import subprocess
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from fltuning.errors import UserError
from fltuning.files import make_folder, read_json, write_json
from fltuning.locks import locked
from fltuning.memory import gibibytes
from tasks import ROOT, load_task
from tools import cells, parts
from tools.cells import Cell
from tools.grids import Grid


class Group(NamedTuple):
    """What a rate is chosen for."""
    task: str
    backbone: str
    method: str
    size: Optional[int]
    layers: str


def group_of(labels: Dict[str, Any]) -> Group:
    return Group(*[labels[key] for key in Group._fields])


class Plan:
    """A grid's cells.

    With a search, the cells of a group that train on the whole come up when all of those that choose its
    rate are there. known: {name: result}, of cells that are finished.
    """

    def __init__(self, grid: Grid, folder: str, whole: Optional[Grid] = None):
        """whole: the grid that `grid` is a part of (grids.narrow)."""
        self.grid, self.folder, self.all_of_it = grid, folder, whole or grid
        make_folder(folder, 'output_dir')
        self.parts = {name: self.prepare(name) for name in grid.tasks}
        self.hashes = {name: self.backbone_hash(name) for name in self.all_of_it.backbones}
        self.check_backbones()
        self.check_settings()
        self.groups = [
            Group(task, backbone, method, size, layers) for task in grid.tasks for backbone in grid.backbones
            for method in grid.methods for layers in grid.layers_of(method) for size in grid.sizes_of(method)]
        self.known: Dict[str, Dict[str, Any]] = {}
        self.failed: Dict[str, str] = {}
        self.rates: Dict[Group, Any] = {}  # the one that was chosen; None: none can be
        self.wholes: Dict[Group, List[Cell]] = {}
        self.searches: Dict[Group, List[Cell]] = collections.OrderedDict()
        if grid.search is not None:
            self.searches.update((group, [self.cell(group, rate, grid.search, grid.draws[0], 'search')
                                          for rate in grid.rates]) for group in self.groups)

    def prepare(self, name: str) -> Dict[str, parts.Part]:
        plan = self.grid.tasks[name]
        try:
            return parts.prepare(name, self.grid.data_path, os.path.join(self.folder, 'data'), plan.train,
                                 plan.dev, self.grid.search is not None)
        except UserError as error:
            raise self.grid.places['tasks'].error(str(error))

    def backbone_hash(self, name: str) -> str:
        try:
            return cells.backbone_hash(self.all_of_it.backbones[name].folder)
        except UserError as error:
            raise self.grid.places.get('backbones', self.grid.places['']).error(str(error))

    def check_backbones(self) -> None:
        """Two names of the same files would be the same cells twice."""
        first: Dict[tuple, str] = {}
        for name, backbone in self.grid.backbones.items():
            other = first.setdefault((self.hashes[name], backbone.random), name)
            if other != name:
                raise self.grid.places['backbones'].error('%s and %s are the same files' % (other, name))

    def check_settings(self) -> None:
        """As each run would check its flags."""
        from train import parse_flags  # here: the settings can be set
        for name, plan in self.grid.tasks.items():
            try:
                parse_flags(type(load_task(name)), cells.flag_texts(plan.settings))
            except UserError as error:
                raise self.grid.places.get('settings', self.grid.places['tasks']).error('%s: %s' % (name, error))

    def cell(self, group: Group, rate: Optional[float], seed: int, draw: Optional[int], stage: str) -> Cell:
        grid, task = self.grid, load_task(group.task)
        backbone, sha256 = self.all_of_it.backbones[group.backbone], self.hashes[group.backbone]
        folder = backbone.folder
        if backbone.random:
            folder = os.path.join(self.folder, 'backbones', '%s-%d' % (sha256[:16], seed))
            sha256 = {'random': sha256, 'seed': seed}
        defaults = dict(batch_size=task.batch_size, maxlen=task.maxlen, epochs=task.epochs,
                        classes=len(task.labels) or 1)
        return cells.make_cell(
            group, grid.stack, (backbone.folder, folder, sha256), grid.share, rate, seed, draw,
            grid.tasks[group.task].settings, self.parts[group.task]['split' if stage == 'search' else 'whole'],
            stage, task.metric, defaults)

    def whole(self, group: Group) -> List[Cell]:
        """The cells of a group that train on the whole, as far as their rate is known."""
        grid = self.grid
        if group in self.wholes:
            return self.wholes[group]
        if grid.search is None:
            rates = grid.rates
        else:
            if group not in self.rates:
                self.choose(group)
            if self.rates.get(group) is None:
                return []
            rates = [self.rates[group]]
        self.wholes[group] = [self.cell(group, rate, seed, draw, 'whole')
                              for seed in grid.seeds for draw in grid.draws for rate in rates]
        return self.wholes[group]

    def choose(self, group: Group) -> None:
        """The rate with the best score on the split, of equal ones the first."""
        found = [self.known.get(cell.name) for cell in self.searches[group]]
        failed = [cell.name in self.failed for cell in self.searches[group]]
        if any(failed):
            self.rates[group] = None
        elif all(found):
            scores = [score(result, 'last') for result in found]  # the best of several would be a lucky one
            best = max(scores)
            self.rates[group] = None if best < 0 else self.grid.rates[scores.index(best)]

    def cells(self) -> List[Cell]:
        """Those that are known by now, in order: all searches first, then seed by seed, draw by draw.

        So the first seed's table is complete before the second's begins.
        """
        ready = [cell for group in self.groups for cell in self.whole(group)]
        seeds, draws = self.grid.seeds, self.grid.draws
        ready.sort(key=lambda cell: (seeds.index(cell.labels['seed']), draws.index(cell.labels['draw'])))
        return [cell for found in self.searches.values() for cell in found] + ready

    def memory(self) -> int:
        """Of the largest cell, about."""
        return max(self.sample(group).estimate.memory for group in self.groups)

    def sample(self, group: Group) -> Cell:
        """A cell of a group, whatever its rate."""
        return self.cell(group, self.grid.rates[0], self.grid.seeds[0], self.grid.draws[0], 'whole')

    def count(self) -> int:
        """Cells in all, also those that wait for a rate, less those whose rate could not be chosen."""
        lost = sum(rate is None for rate in self.rates.values()) * len(self.grid.seeds) * len(self.grid.draws)
        return self.grid.count() - lost

    def waiting(self) -> Iterator[Cell]:
        """One for each that waits for its rate, to guess its time by."""
        for group in self.searches:
            if group not in self.rates:
                yield from (self.cell(group, self.grid.rates[0], seed, draw, 'whole')
                            for seed in self.grid.seeds for draw in self.grid.draws)

    def check_memory(self, free: Optional[int]) -> None:
        """Raises UserError, with the line, for a cell whose numbers alone do not fit."""
        for group in self.groups:
            cell = self.sample(group)
            if free is not None and cell.estimate.least > free:
                places = self.grid.places
                key = next(key for key in ('sizes', 'backbones', 'methods') if key in places and (
                    key != 'sizes' or group.size))
                raise places[key].error('%s: needs at least %s of memory, %s are free' % (
                    cell.title(), gibibytes(cell.estimate.least), gibibytes(free)))

    def read_known(self) -> None:
        """The results that are there. Raises UserError for a file that is no result."""
        while True:  # those that choose a rate bring up others
            new = [cell.name for cell in self.cells() if cell.name not in self.known
                   and os.path.exists(cells.result_path(self.folder, cell.name))]
            if not new:
                break
            for name in new:
                self.known[name] = cells.read_result(cells.result_path(self.folder, name))

    def write(self) -> None:
        """grid.json: what the grid is, which cells in the folder belong to it, and how they are called in it.

        Those of other parts of the grid that were run before are kept, unless they ran on other data or with other
        settings than they would now: they are not to be compared with these.
        """
        grid, path = self.all_of_it, os.path.join(self.folder, 'grid.json')
        found = {
            'name': grid.name, 'select': grid.select, 'count': grid.count(), 'rates': grid.rates,
            'search': grid.search, 'titles': grid.titles, 'tasks': list(grid.tasks), 'backbones': list(grid.backbones),
            'contexts': {task: {name: self.context(task, name) for name in grid.backbones} for task in grid.tasks}}
        with locked(path + '.lock', patience=60):
            ours = set(self.groups)
            before = read_json(path) if os.path.exists(path) else {}
            before = before if isinstance(before, dict) and 'contexts' in before else {}
            others = {name: labels for name, labels in before.get('cells', {}).items() if group_of(labels) not in ours}
            known = {name: labels for name, labels in others.items() if self.is_ours(name, labels, before['contexts'])}
            left = [name for name in others if name not in known
                    and os.path.exists(cells.result_path(self.folder, name))]
            if left:
                print('%s: %d cells that are there are left out: now they would be on other data, with other settings, '
                      'or are not of this grid' % (path, len(left)))
            kept = {group_of(labels) for labels in known.values()}
            known.update((cell.name, cell.labels) for cell in self.cells())
            without = [lost for lost in before.get('without_rate', []) if group_of(lost) in kept]
            without += [dict(group._asdict(), why=self.why_no_rate(group))
                        for group in self.groups if self.rates.get(group, 0) is None]
            write_json(path, dict(found, cells=known, without_rate=without))

    def context(self, task: str, backbone: str) -> str:
        """A hash of what the grid says of all cells of a task and a backbone, and of how their rates are chosen."""
        grid = self.all_of_it
        return cells.configuration_name(dict(
            stack=grid.stack, share=grid.share, rates=grid.rates, search=grid.search, draw=grid.draws[0],
            task=grid.tasks[task]._asdict(), random=grid.backbones[backbone].random, backbone=self.hashes[backbone]))

    def is_ours(self, name: str, labels: Dict[str, Any], contexts: Dict[str, Dict[str, str]]) -> bool:
        """Whether a cell of another part that was run before would be the same now.

        contexts: those it ran in. What the grid does not say, its data and what stands in the task's file, is in the
        cell's name; it can be told where the task is one of this part, whose data is at hand.
        """
        grid, group = self.all_of_it, group_of(labels)
        if group.task not in grid.tasks or group.backbone not in grid.backbones or group.method not in grid.methods:
            return False
        if (contexts.get(group.task, {}).get(group.backbone) != self.context(group.task, group.backbone)
                or group.size not in grid.sizes_of(group.method) or group.layers not in grid.layers_of(group.method)
                or labels['stage'] == 'whole' and not (labels['seed'] in grid.seeds and labels['draw'] in grid.draws)):
            return False
        return group.task not in self.parts or name == self.cell(
            group, labels['rate'], labels['seed'], labels['draw'], labels['stage']).name

    def why_no_rate(self, group: Group) -> str:
        failed = any(cell.name in self.failed for cell in self.searches[group])
        return 'a run that was to choose its rate failed' if failed else cells.DIVERGED

    def write_random_backbones(self) -> None:
        """The files of backbones with random weights, which TensorFlow writes."""
        for name, backbone in self.grid.backbones.items():
            if backbone.random:
                seeds = {self.grid.search, *self.grid.seeds} - {None}
                folders = ['%s-%d' % (self.hashes[name][:16], seed) for seed in sorted(seeds)]
                write_random(backbone.folder, os.path.join(self.folder, 'backbones'), folders, self.grid.stack)


def write_random(source: str, target: str, folders: List[str], stack: str) -> None:
    missing = [os.path.join(target, folder) for folder in folders
               if not os.path.exists(os.path.join(target, folder, 'vocab.txt'))]
    if missing:
        code = 'from tools.random_backbone import copy_random; import sys; copy_random(*sys.argv[1:])'
        done = subprocess.run([os.path.join(ROOT, 'scripts', 'python'), '--stack', stack, '-c', code, source]
                              + missing, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError('%s: no random weights of its shapes: %s'
                            % (source, (done.stderr.splitlines() or ['?'])[-1]))


def score(result: Dict[str, Any], select: str) -> float:
    """A cell's score on dev: after its last step, or at its best; -1 where the training diverged."""
    if result['diverged']:
        return -1.0
    metric = result['labels']['metric']
    return evaluate(result['run']['best' if select == 'best' else 'history'], metric)


def evaluate(found: Any, metric: str) -> float:
    """Of an entry of a run's history, or its last, or its best."""
    entry = found[-1] if isinstance(found, list) else found
    return entry['dev'][metric] if 'dev' in entry else entry[metric]
