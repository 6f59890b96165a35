"""Is a run what its record says? It is run again, in a temporary folder, and compared (`scripts/verify`).

With the recorded settings and number of threads, on the recorded stack. Exit code: 0 if all that is compared
is equal, 1 if something differs, of which the first is named, 2 if the record is none or the run cannot be
made.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from typing import Any, Dict, Iterator, List, Optional

from fltuning.errors import Parser, UserError
from fltuning.files import file_digest, read_json
from fltuning.records import Record, shorten
from tasks import NAMES, ROOT, find_data, load_task
from train import RunSettings

# Settings that are not those of the record; the sizes that a share stands for are.
ELSEWHERE = ['output_dir', 'tensorboard', 'resume', 'seeds', 'share']
NOT_SCORES = ['epoch', 'step', 'loss', 'dev', 'seconds']


def read_record(path: str) -> Record:
    """Raises UserError unless a file is the record of a run, naming the first field that is not."""
    value = read_json(path)
    if isinstance(value, dict) and isinstance(value.get('run'), dict):
        value = value['run']  # of a cell of scripts/reproduce
    record = Record(value, path)
    for name in ('settings', 'data_sha256'):
        record.get_record(name)
    if record.get('task') not in NAMES:
        raise record.error('task', 'one of ' + ', '.join(NAMES))
    known = set(RunSettings.of_before()) | set(RunSettings().record())
    for name in record['settings']:
        if name not in known:
            raise record.error('settings', 'settings of this version, which has no %s' % name)
    for entry in record.get_records('history'):
        entry.get_integer('epoch')
        if not isinstance(entry.get('loss'), float):
            raise entry.error('loss', 'a number')
    if stack_of(record) not in ('tf1', 'tf2'):
        raise record.error('stack', 'tf1 or tf2')
    record.get_integer('seed')
    return record


def stack_of(record: Dict[str, Any]) -> Any:
    """The stack of a record; earlier ones have it among the versions."""
    versions = record.get('versions')
    return record.get('stack') or (versions.get('stack') if isinstance(versions, dict) else None)


def make_command(record: Record, paths: Dict[str, str], output_dir: str) -> List[str]:
    """What runs a record's run again.

    paths: settings that are to replace the recorded ones.
    """
    settings = dict(record['settings'], **paths)
    # Sums depend on the number of threads; 0 is as many as there happen to be cores.
    settings.update({'threads': record.get('threads', settings.get('threads', 0)), 'output_dir': output_dir},
                    **{name: None for name in ELSEWHERE if name != 'output_dir'})
    flags = RunSettings.flags(settings)
    if stack_of(record) == ('tf1' if sys.version_info < (3, 8) else 'tf2'):
        return [sys.executable, os.path.join(ROOT, record['task'] + '.py')] + flags
    return [os.path.join(ROOT, 'scripts', 'run'), record['task'], '--stack', stack_of(record)] + flags


def changed_data(record: Record, folder: str) -> Iterator[str]:
    """Yields what is no longer as recorded of the data files."""
    for name, expected in sorted(record['data_sha256'].items()):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            yield '%s: the file is not there any more' % path
        elif file_digest(path) != expected:
            yield '%s: the file is another one than that of the run' % path


def scores(entry: Dict[str, Any]) -> Dict[str, float]:
    """The dev scores of an entry of a history; earlier ones have them beside the loss alone."""
    return entry.get('dev') or {name: value for name, value in entry.items() if name not in NOT_SCORES}


def differences(theirs: Dict[str, Any], ours: Dict[str, Any]) -> Iterator[str]:
    """Yields what differs between a record and that of the run made again, the earliest first.

    What the record lacks, since it is of an earlier version, is not compared.
    """
    of_before = RunSettings.of_before()
    recorded = dict(of_before, **theirs['settings'])
    for name in of_before:
        if recorded[name] != ours['settings'][name]:
            yield 'setting %s: %s was recorded, now %s' % (name, recorded[name], ours['settings'][name])
    for name in ('backbone_sha256', 'samples', 'few_shot', 'trained_parameters'):
        if name in theirs and theirs[name] != ours.get(name):
            yield '%s: %s was recorded, now %s' % (name, shorten(theirs[name]), shorten(ours.get(name)))
    for old, new in zip(theirs['history'], ours['history']):
        place = 'epoch %d' % old['epoch'] + (', step %s' % old['step'] if 'step' in old else '')
        compared = {'epoch': 'epoch', 'step': 'step', 'loss': 'loss'}
        for name in compared:
            if name in old and old[name] != new[name]:
                yield '%s: %s %s was recorded, now %s' % (place, name, old[name], new[name])
        for name, value in scores(old).items():
            if scores(new).get(name) != value:
                yield '%s: dev %s %s was recorded, now %s' % (place, name, value, scores(new).get(name))
    counts = [len(record['history']) for record in (theirs, ours)]
    if counts[0] != counts[1]:
        yield 'history: %d entries were recorded, now %d' % tuple(counts)
    for name, value in theirs.get('sha256', {}).items():
        if ours['sha256'].get(name) != value:
            yield '%s: another file%s' % (name, '' if name in ours['sha256'] else ': it is not written now')
    if theirs.get('stopped') != ours.get('stopped'):
        yield 'stopped: %s was recorded, now %s' % (theirs.get('stopped'), ours.get('stopped'))
    for name in ('test_public', 'best'):
        if name in theirs and any(ours.get(name, {}).get(key) != value for key, value in theirs[name].items()):
            yield '%s: %s was recorded, now %s' % (name, theirs[name], ours.get(name))
    for name, value in theirs.get('dev_points', {}).items():
        if ours.get('dev_points', {}).get(name) != value:
            yield 'dev_points: those of the %s evaluation are others than were recorded' % name


def notes(theirs: Dict[str, Any], ours: Dict[str, Any]) -> Iterator[str]:
    """Yields what a difference may come from, and what was not compared."""
    if theirs.get('git_commit') != ours['git_commit']:
        yield 'the code is of %s, that of the record %s' % (ours['git_commit'], theirs.get('git_commit'))
    for name, version in sorted((theirs.get('versions') or {}).items()):
        if ours['versions'].get(name) != version:
            yield '%s is %s, that of the record %s' % (name, ours['versions'].get(name), version)
    if 'sha256' not in theirs:
        yield 'the record has no checksums of weights and results: these are not compared'
    if not all('step' in entry for entry in theirs['history']):
        yield 'the record counts no steps: epochs are compared'


def parse_flags(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = Parser(prog='scripts/verify', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('record', metavar='RUN.json', help='results/TASK_run.json of a run, or a cell of a grid')
    for name in ('data_path', 'config_path', 'checkpoint_path', 'dict_path'):
        parser.add_argument('--' + name, help='where it is now, if not where the record says')
    return parser.parse_args(argv)


def run(argv: Optional[List[str]] = None) -> int:
    flags = parse_flags(argv)
    record = read_record(flags.record)
    paths = {name: value for name, value in vars(flags).items() if name != 'record' and value is not None}
    if 'config_path' in paths:  # the other files of another place are there, too
        paths = dict({'checkpoint_path': '', 'dict_path': ''}, **paths)
    settings = dict(record['settings'], **paths)
    task = load_task(record['task'])
    folder = find_data(task.name, settings.get('data_path', 'clue_dataset'),
                       settings.get('few_shot_split') and task.few_clue)
    for message in changed_data(record, folder):
        print('differs: ' + message)
        return 1
    with tempfile.TemporaryDirectory() as output_dir:
        command = make_command(record, paths, output_dir)
        print('running it again: %s' % ' '.join(command), file=sys.stderr)
        code = subprocess.call(command, stdout=2)  # standard error: what verify finds is alone on the other
        path = os.path.join(output_dir, 'results', task.name + '_run.json')
        # A run that diverged, and is recorded as such, ends with an error after its record is written.
        if not os.path.exists(path) or code and 'stopped' not in record:
            raise UserError('%s: the run could not be made again: exit code %d' % (flags.record, code))
        again = read_json(path)
    for note in notes(record, again):
        print('note: ' + note)
    first = next(differences(record, again), None)
    if first:
        print('differs: ' + first)
        return 1
    print('equal: %d evaluations%s' % (len(record['history']), ', %d files' % len(record['sha256'])
                                       if 'sha256' in record else ''))
    return 0
