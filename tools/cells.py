"""Cells of a grid: what decides one's numbers, its name, its command, its result file."""
import hashlib
import json
import os
import shutil
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from fltuning.errors import UserError
from fltuning.files import file_digest, read_json, to_json, write_json
from tasks import load_task
from tools.estimates import Estimate, estimate
from tools.methods import METHODS, method_flags, read_config

FORMAT = 1  # of configurations and result files
DIVERGED = 'diverged at every rate'  # why a group has no rate, in grid.json; else a run failed
# Paths of a machine, which decide nothing, do not go into result files.
PATHS = ('config_path', 'checkpoint_path', 'dict_path', 'data_path', 'output_dir')
BACKBONE_FILES = ('bert_config.json', 'config.json', 'vocab.txt', 'bert_model.ckpt', 'model', 'pytorch_model')


class Cell(NamedTuple):
    """A run. All of it is JSON-able, so that it can go to another machine.

    configuration: all that decides its numbers; threads and the version of the code are written down with
        the result instead.
    labels: what it is called in tables: stage (search or whole), task, backbone, method, size, layers,
        rate, seed, draw; the metric, the numbers of records, dev's commonest label; `sample`, where data is the
        bundled one.
    flags: {flag: value} of scripts/run; True: a flag without a value.
    estimate: what it will take (tools/estimates.py).
    """
    configuration: Dict[str, Any]
    labels: Dict[str, Any]
    flags: Dict[str, Any]
    estimate: Estimate

    @property
    def name(self) -> str:
        """
        >>> Cell({'seed': 1}, {}, {}, Estimate(0, 0, 0)).name
        'fbe47f6d82b435a89f6e'
        """
        return configuration_name(self.configuration)

    def arguments(self, output_dir: str, threads: int) -> List[str]:
        """Of scripts/run."""
        flags = dict(self.flags, output_dir=output_dir, threads=threads)
        return [self.configuration['task'], '--stack', self.configuration['stack'], '--resume'] + flag_texts(flags)

    def title(self) -> str:
        """In a line of progress."""
        labels = self.labels
        parts = [labels['task'], labels['backbone'], labels['method']]
        parts += ['%s %s' % (name, labels[name]) for name in ('size', 'layers', 'rate', 'draw', 'seed')
                  if labels.get(name) not in (None, '')]
        return ' '.join(parts + ['(choosing a rate)'] * (labels['stage'] == 'search'))


def flag_texts(flags: Dict[str, Any]) -> List[str]:
    """
    >>> flag_texts({'epochs': 3, 'bucket': True, 'padded': False, 'limit': None})
    ['--bucket', '--epochs', '3']
    """
    return [text for name, value in sorted(flags.items()) if value is not None and value is not False
            for text in (['--' + name] if value is True else ['--' + name, str(value)])]


def configuration_name(configuration: Dict[str, Any]) -> str:
    """The name of a cell: a hash of its configuration as canonical JSON."""
    text = json.dumps(configuration, sort_keys=True, ensure_ascii=True, separators=(',', ':'), allow_nan=False)
    return hashlib.sha256(text.encode('ascii')).hexdigest()[:20]


def make_cell(group: Any, stack: str, backbone: Tuple[str, str, Any], share: float, rate: Optional[float],
              seed: int, draw: Optional[int], settings: Dict[str, Any], part: Any, stage: str, metric: str,
              defaults: Dict[str, Any]) -> Cell:
    """group: task, backbone, method, size, layers.

    backbone: (folder with its configuration, the one that the run takes it from, what says which it is);
    part: of the data (tools/parts.py); defaults: batch_size, maxlen, epochs and classes of the task.
    """
    described, folder, sha256 = backbone
    config = read_config(described)
    # What a user may have edited in snippets.py or the task decides numbers too, and goes into the name.
    settings = dict(own_settings(group.task, group.method, rate), **settings)
    sized = method_flags(group.method, group.size, share)
    flags = dict(settings, **sized)
    if rate is not None:
        flags['learning_rate'] = rate
    flags.update(seed=seed, draw_seed=draw, layers_to_transform=group.layers,
                 data_path=os.path.abspath(part.data_path), config_path=os.path.abspath(folder),
                 checkpoint_path='', dict_path='', backbone='auto')
    configuration = dict(
        format=FORMAT, task=group.task, stack=stack, sized=sized, layers=group.layers,
        rate=rate, seed=seed, draw=draw, settings=settings, data=part.sha256, backbone=sha256)
    drawn = settings.get('few_shot_dev') or settings.get('limit')  # dev is another one then
    labels = dict(group._asdict(), stage=stage, rate=rate, seed=seed, draw=draw, metric=metric,
                  records=part.records, commonest=None if drawn else part.commonest,
                  **({'sample': True} if part.sample else {}))
    return Cell(configuration, labels, flags, estimate(
        config, group.method, group.size, share, dict(defaults, **settings), part))


def own_settings(task: str, method: str, rate: Optional[float]) -> Dict[str, Any]:
    """{setting: value} that a task and snippets.py say, of those that decide numbers and no cell says itself."""
    from train import RunSettings, default_settings  # here: the settings can be set
    defaults, _ = default_settings(load_task(task))
    if rate is None:
        defaults['learning_rate'] = METHODS[method].rate or defaults['learning_rate']
    else:
        del defaults['learning_rate']
    decisive = RunSettings.of_before()
    return {name: value for name, value in defaults.items() if name in decisive
            and name not in ('backbone', 'prompt_size', 'ffn_prompt_size', 'layers_to_transform', 'seed')}


def backbone_hash(folder: str) -> str:
    """Of what is in a backbone's files. Raises UserError where there are none."""
    files = sorted(name for name in os.listdir(folder) if name.startswith(BACKBONE_FILES)
                   and not name.endswith('.tmp'))
    read_config(folder)  # UserError where there is none
    if not any('.ckpt' in name or name.endswith(('.safetensors', '.bin')) for name in files):
        raise UserError('%s: no weights; expected bert_model.ckpt, model.safetensors or pytorch_model.bin'
                        % folder)
    return hashlib.sha256(to_json([(name, file_digest(os.path.join(folder, name))) for name in files])
                          .encode('utf-8')).hexdigest()


def result_path(folder: str, name: str) -> str:
    return os.path.join(folder, 'cells', name + '.json')


def work_path(folder: str, name: str) -> str:
    return os.path.join(folder, 'work', name)


def read_result(path: str) -> Dict[str, Any]:
    """A result file. Raises UserError unless it is one, of the cell that its name says."""
    result = read_json(path)
    try:
        name = configuration_name(result['configuration'])
        right = result['format'] == FORMAT and isinstance(result['labels'], dict) and (
            result['diverged'] or isinstance(result['run']['history'], list))
    except (AttributeError, KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise UserError('%s: not a result of a cell of this version' % path)
    if os.path.basename(path) != name + '.json':
        raise UserError('%s: holds the result of %s.json: it was renamed or changed' % (path, name))
    return result


def publish(cell: Cell, folder: str, **more: Any) -> Dict[str, Any]:
    """Write the result file of a cell from the record of its run; whole or not at all. Returns it."""
    record = os.path.join(work_path(folder, cell.name), 'results', cell.configuration['task'] + '_run.json')
    run = read_json(record) if os.path.exists(record) else None
    if run:
        run['settings'] = {name: value for name, value in run['settings'].items() if name not in PATHS}
    result = dict(format=FORMAT, configuration=cell.configuration, labels=cell.labels, run=run, **more)
    write_json(result_path(folder, cell.name), result)
    return result


def remove_work(folder: str, name: str) -> None:
    shutil.rmtree(work_path(folder, name), ignore_errors=True)
