"""Grids of experiments: tasks x backbones x methods x sizes x layers x rates x seeds x draws, from a YAML file.

Everything that can be wrong with such a file is found here, before anything runs, and named by file and line.
"""
import argparse
import glob
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional

from fltuning.errors import UserError
from fltuning.settings import layer_numbers, percent, positive_number, share, share_or_count, whole_number
from tasks import NAMES, ROOT
from tools.methods import METHODS, is_sized
from tools.yaml_places import Place

READY = os.path.join(ROOT, 'experiments')
BUNDLED = ['roberta', 'nezha', 'roformer']
MOST = 100000  # cells of a grid

count, number = whole_number(1), whole_number(0)


def layers_text(text: str) -> str:
    layer_numbers(text)
    return text.replace(' ', '')


def name_text(text: str) -> str:
    if not re.match(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$', text):
        raise argparse.ArgumentTypeError('expected a name of letters, digits and _ . -, got %s' % text)
    return text


# {setting: its check}, those of a run that are the same in all cells of a task.
SETTINGS = {
    'epochs': count, 'batch_size': count, 'maxlen': whole_number(8), 'grad_accum_steps': count, 'limit': count,
    'prompt_dropout': share, 'bucket': bool, 'padded': bool,
    'few_shot': count, 'few_shot_dev': count, 'early_stopping': count, 'warmup': share_or_count,
    'eval_every': count, 'precision': name_text,
}
DATA = {'train': count, 'dev': count}  # records of each that are used
AXES = {'methods': str, 'sizes': count, 'layers': layers_text, 'rates': positive_number, 'seeds': number,
        'draws': number}
KEYS = ['name', 'stack', 'data_path', 'tasks', 'backbones', 'methods', 'sizes', 'share', 'layers', 'rates',
        'search', 'seeds', 'draws', 'select', 'settings',
        'titles']


class TaskPlan(NamedTuple):
    """How a grid uses a task. train, dev: records at most; settings: {flag: value} of every cell of it."""
    train: Optional[int]
    dev: Optional[int]
    settings: Dict[str, Any]


class Backbone(NamedTuple):
    """folder: of its files; random: weights of its shapes are drawn anew for each seed instead."""
    folder: str
    random: bool


class Grid(NamedTuple):
    """A grid as its file says.

    search: the seed of the runs that choose a rate; None: each rate is run. select: the score of a run, that
    after its last step or its best. titles: {name: what the report calls it}.
    """
    name: str
    stack: str
    data_path: str
    tasks: Dict[str, TaskPlan]
    backbones: Dict[str, Backbone]
    methods: List[str]
    sizes: List[Optional[int]]
    share: float
    layers: List[str]
    rates: List[Optional[float]]
    search: Optional[int]
    seeds: List[int]
    draws: List[Optional[int]]
    select: str
    titles: Dict[str, str]
    places: Dict[str, Place]  # {key: where it stands}, for what turns out to be wrong later

    def sizes_of(self, method: str) -> List[Optional[int]]:
        return self.sizes if is_sized(method) else [None]

    def layers_of(self, method: str) -> List[str]:
        return self.layers if METHODS[method].in_layers else ['']

    def count(self) -> int:
        """Cells at most, those that choose a rate among them."""
        groups = sum(len(self.sizes_of(method)) * len(self.layers_of(method)) for method in self.methods) * (
            len(self.tasks) * len(self.backbones))
        seeds = len(self.seeds) * len(self.draws)
        return groups * (len(self.rates) * seeds if self.search is None else len(self.rates) + seeds)


def ready_grids() -> List[str]:
    return sorted(os.path.basename(path)[:-4] for path in glob.glob(os.path.join(glob.escape(READY), '*.yml')))


def find_grid(name: str) -> str:
    """The path of a grid, given as a path or as the name of a ready one."""
    if os.path.exists(name):
        return name
    if name in ready_grids():
        return os.path.join(READY, name + '.yml')
    raise UserError('%s: no such file, and no ready grid: expected a YAML file or one of %s'
                    % (name, ', '.join(ready_grids())))


def read_grid(path: str, stack: Optional[str] = None, data_path: Optional[str] = None) -> Grid:
    """The grid of a file; stack and data_path go before those in it. Raises UserError with file and line."""
    top = Place.read(path)
    keys = top.mapping(KEYS)
    for key in ('tasks', 'methods', 'seeds'):
        if key not in keys:
            raise top.error('no %s: expected a list of them' % key)
    settings = read_settings(keys['settings'], SETTINGS) if 'settings' in keys else {}
    axes = {key: keys[key].values(check) for key, check in AXES.items() if key in keys}
    for item in keys['methods'].items():
        item.choice(METHODS)
    grid = Grid(
        name=keys['name'].check(name_text) if 'name' in keys else os.path.splitext(os.path.basename(path))[0],
        stack=stack or (keys['stack'].choice(['tf1', 'tf2']) if 'stack' in keys else 'tf1'),
        data_path=find_data_path(data_path, keys.get('data_path'), os.path.dirname(path)),
        tasks=read_tasks(keys['tasks'], settings),
        backbones=(read_backbones(keys['backbones'], os.path.dirname(path)) if 'backbones' in keys
                   else {'roberta': bundled('roberta')}),
        methods=axes['methods'], sizes=axes.get('sizes', [None]),
        share=keys['share'].check(percent) if 'share' in keys else 3.0,
        layers=axes.get('layers', ['']), rates=axes.get('rates', [None]),
        search=read_search(keys), seeds=axes['seeds'], draws=axes.get('draws', [None]),
        select=keys['select'].choice(['last', 'best']) if 'select' in keys else 'last',
        titles=read_titles(keys['titles']) if 'titles' in keys else {},
        places=dict(keys, **{'': top}))
    check_together(grid)
    return grid


def narrow(grid: Grid, chosen: Dict[str, Optional[List[str]]]) -> Grid:
    """The part of a grid with some of its tasks, backbones or methods: {'tasks': names or None for all}.

    Its cells are the same. Raises UserError for a name that is not in the grid.
    """
    for axis, names in chosen.items():
        there = getattr(grid, axis)
        for name in names or []:
            if name not in there:
                raise UserError('--%s: %s is not in the grid %s: expected some of %s'
                                % (axis, name, grid.name, ', '.join(there)))
        if names:
            kept = [name for name in there if name in names]
            grid = grid._replace(**{axis: {name: there[name] for name in kept} if isinstance(there, dict) else kept})
    return grid


def find_data_path(given: Optional[str], place: Optional[Place], beside: str) -> str:
    """Of the flag, else of the file, else the one in snippets.py."""
    if given is None and place is None:
        from snippets import data_path  # here: it can be set
        return data_path
    if given is None:
        given = place.text()
        inside = os.path.join(beside, given)
        if given != 'clue_dataset' and os.path.isdir(inside):
            return inside
    if given != 'clue_dataset' and not os.path.isdir(given):
        message = 'no folder %s; expected one with a folder for each task' % given
        raise place.error(message) if place else UserError('data_path: ' + message)
    return given


def read_settings(place: Place, allowed: Dict[str, Any]) -> Dict[str, Any]:
    return {key: value.check(allowed[key]) for key, value in place.mapping(list(allowed)).items()}


def read_titles(place: Place) -> Dict[str, str]:
    """{task, backbone, method or `grid`: what the report calls it}."""
    return {name: value.text() for name, value in place.mapping().items()}


def read_tasks(place: Place, settings: Dict[str, Any]) -> Dict[str, TaskPlan]:
    """A list of names, or names with numbers of records and settings of their own."""
    import yaml
    if isinstance(place.node, yaml.MappingNode):
        entries = [(place_of_key(place, name), name, value) for name, value in place.mapping().items()]
    else:
        names = place.values(str)
        entries = [(item, name, None) for item, name in zip(place.items(), names)]
    found = {}
    for where, name, value in entries:
        if name not in NAMES:
            raise where.error('unknown task %s: expected one of %s' % (name, ', '.join(NAMES)))
        own = {} if value is None or value.is_empty() else read_settings(value, dict(SETTINGS, **DATA))
        data = {key: own.pop(key, None) for key in DATA}
        found[name] = TaskPlan(settings=dict(settings, **own), **data)
    if not found:
        raise place.error('expected at least one')
    return found


def place_of_key(place: Place, name: str) -> Place:
    return next(Place(place.path, key, place.name) for key, _ in place.node.value if key.value == name)


def bundled(kind: str, random: bool = False) -> Backbone:
    return Backbone(os.path.join(ROOT, 'pretrained', kind), random)


def read_backbones(place: Place, beside: str) -> Dict[str, Backbone]:
    """A list of bundled ones, or {name: folder}; {random: folder or bundled one} instead of a folder."""
    import yaml
    if not isinstance(place.node, yaml.MappingNode):
        place.values(str)
        return {item.choice(BUNDLED): bundled(item.text()) for item in place.items()}
    found = {}
    for name, value in place.mapping().items():
        try:
            name_text(name)
        except argparse.ArgumentTypeError as error:
            raise value.error(str(error))
        random = isinstance(value.node, yaml.MappingNode)
        if random:
            inner = value.mapping(['random'])
            if not inner:
                raise value.error('expected a folder, or random: and a folder')
            value = inner['random']
        found[name] = find_folder(value, beside)._replace(random=random)
    if not found:
        raise place.error('expected at least one')
    return found


def find_folder(place: Place, beside: str) -> Backbone:
    text = place.text()
    if text in BUNDLED:
        return bundled(text)
    for folder in (os.path.join(beside, text), text):
        if os.path.isdir(folder):
            return Backbone(os.path.abspath(folder), False)
    raise place.error('no folder %s; expected one with bert_config.json, or one of %s'
                      % (text, ', '.join(BUNDLED)))


def read_search(keys: Dict[str, Place]) -> Optional[int]:
    """`search: true`, or `search: {seed: 3}`."""
    import yaml
    if 'search' not in keys:
        return None
    place = keys['search']
    if isinstance(place.node, yaml.MappingNode):
        inner = place.mapping(['seed'])
        return inner['seed'].check(number) if 'seed' in inner else 0
    return 0 if place.is_true() else None


def check_together(grid: Grid) -> None:
    """What is wrong with values that are right one by one."""
    places = grid.places
    if grid.search is not None and len(grid.rates) < 2:
        raise places.get('rates', places['search']).error(
            'search chooses among rates: expected at least two of them')
    if 'sizes' in places and 'share' in places:
        raise places['share'].error('sizes are given too: expected one of the two')
    for key, has in (('sizes', is_sized), ('layers', lambda method: METHODS[method].in_layers)):
        able = list(filter(has, METHODS))
        if key in places and not set(grid.methods) & set(able):
            raise places[key].error('no method here has %s: expected one of %s' % (key, ', '.join(able)))
    layers = [layer_numbers(text) for text in grid.layers]
    for place, (text, found) in enumerate(zip(grid.layers, layers)):
        if found in layers[:place]:
            raise places['layers'].error('%s: these layers are there twice' % text)
    for plan in grid.tasks.values():
        if grid.stack == 'tf1' and plan.settings.get('precision', 'float32') != 'float32':
            raise places.get('settings', places['tasks']).error(
                'precision %s: the stack tf1 computes in float32 only; tf2 has it' % plan.settings['precision'])
    few_shot = [name for name, plan in grid.tasks.items() if plan.settings.get('few_shot')]
    if 'draws' in places and len(few_shot) < len(grid.tasks):
        raise places['draws'].error('draws are of few_shot samples: expected few_shot in settings')
    if grid.count() > MOST:
        raise places[''].error('%s cells: expected %s at most' % (format(grid.count(), ','), format(MOST, ',')))
