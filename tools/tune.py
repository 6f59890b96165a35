"""Searches a method's settings on a task with Optuna, on cells like those of a grid (`scripts/tune`).

Each trial trains on four fifths of the train records and is scored on the rest, so dev data chooses nothing. The
study is in OUTPUT_DIR/study.db; stopped and started again, it goes on, and what was run is not run again.
"""
import argparse
import os
import signal
from typing import Any, Dict, List, Optional

from fltuning.errors import Parser, UserError
from fltuning.extras import import_extra
from fltuning.files import make_folder
from fltuning.locks import locked
from fltuning.settings import positive_number, whole_number
from tools.data import DATA_PATH_HELP

SPACE = ('rates', 'sizes', 'epochs', 'batch_sizes')


def make_parser() -> Parser:
    from tasks import NAMES
    from tools.methods import METHODS
    parser = Parser(prog='scripts/tune', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    count = whole_number(1)
    parser.add_argument('task', choices=NAMES, help='which')
    parser.add_argument('--method', choices=list(METHODS), default='fl', help='fl, unless said')
    parser.add_argument('--rates', nargs=2, type=positive_number, default=[1e-5, 1e-2], metavar=('LOW', 'HIGH'),
                        help='the space: learning rates between these, in their logarithm; 1e-5 1e-2, unless said')
    parser.add_argument('--sizes', nargs=2, type=count, metavar=('LOW', 'HIGH'),
                        help='the space: sizes between these, in their logarithm; a share of 3 %%, unless said')
    parser.add_argument('--epochs', nargs='+', type=count, default=[5], help='the space: one of these; 5')
    parser.add_argument('--batch_sizes', nargs='+', type=count, help="the space: one of these; the task's")
    parser.add_argument('--trials', type=count, default=20, help='in all, those of before among them')
    parser.add_argument('--sampler_seed', type=whole_number(0), default=0, help='of what is tried')
    parser.add_argument('--seed', type=whole_number(0), default=0, help='of every run')
    parser.add_argument('--stack', choices=['tf1', 'tf2'], default='tf1', help='of the runs')
    parser.add_argument('--backbone', default='roberta', help='a bundled one, or a folder')
    parser.add_argument('--data_path', help=DATA_PATH_HELP)
    parser.add_argument('--train', type=count, help='only the first N train records')
    parser.add_argument('--output_dir', help='where all goes; results/tune/TASK-METHOD, unless said')
    parser.add_argument('--processes', type=count, help='trials at a time; as many as fit, unless said')
    parser.add_argument('--threads', type=count, help='of a trial; the cores divided among them, unless said')
    return parser


def check(flags: argparse.Namespace) -> None:
    from tools.methods import is_sized
    for name in ('rates', 'sizes'):
        span = getattr(flags, name)
        if span and span[0] > span[1]:
            raise UserError('--%s: expected the lower one first, got %s %s' % (name, *span))
    if flags.sizes and not is_sized(flags.method):
        raise UserError('--sizes: %s has no size' % flags.method)


def run(argv: Optional[List[str]] = None, command: Optional[List[str]] = None) -> int:
    """Returns the exit code: 1 if no trial came to its end. command: in place of scripts/run."""
    flags = make_parser().parse_args(argv)
    check(flags)
    optuna = import_extra('optuna', 'lab')
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = os.path.abspath(flags.output_dir or os.path.join('results', 'tune', '%s-%s' % (flags.task, flags.method)))
    make_folder(folder, 'output_dir')
    trials = Trials(flags, folder)
    from tools.engines import LocalEngine
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with locked(os.path.join(folder, 'lock')):  # another search would take our trials for those of one that was stopped
        study = open_study(optuna, flags, folder, trials.identity())
        engine = LocalEngine(folder, trials.largest(), flags.processes, flags.threads, command)
        try:
            search(optuna, study, trials, engine, flags.trials)
        finally:
            engine.stop()
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        print('no trial came to its end; see %s' % os.path.join(folder, 'work'))
        return 1
    best = study.best_trial
    print('best of %d trials: %s %.4f with %s' % (len(done), trials.metric, best.value, ', '.join(
        '%s %s' % item for item in sorted(best.params.items()))))
    return 0


class Trials:
    """The cells of a study."""

    def __init__(self, flags: argparse.Namespace, folder: str):
        from tasks import load_task
        from tools import cells, grids, parts
        self.flags, task = flags, load_task(flags.task)
        self.metric, self.defaults = task.metric, dict(
            batch_size=task.batch_size, maxlen=task.maxlen, epochs=task.epochs, classes=len(task.labels) or 1)
        bundled = flags.backbone in grids.BUNDLED
        self.folder = grids.bundled(flags.backbone).folder if bundled else flags.backbone
        if not os.path.isdir(self.folder):
            raise UserError('--backbone: no folder %s; expected one, or one of %s'
                            % (self.folder, ', '.join(grids.BUNDLED)))
        self.backbone_sha256 = cells.backbone_hash(self.folder)
        data_path = grids.find_data_path(flags.data_path, None, '')
        self.part = parts.prepare(flags.task, data_path, os.path.join(folder, 'data'), flags.train, split=True)['split']

    def identity(self) -> Dict[str, Any]:
        """What the trials of one study have in common."""
        from tools.cells import own_settings
        flags = self.flags
        own = own_settings(flags.task, flags.method, 1.0)
        for name in ('epochs', 'batch_size') if flags.batch_sizes else ('epochs',):
            own.pop(name, None)  # of the space
        return dict(own, **{name: getattr(flags, name) for name in SPACE + ('task', 'method', 'seed', 'stack')},
                    data=self.part.sha256, backbone=self.backbone_sha256)

    def ask(self, study: Any) -> Any:
        """A trial with its parameters."""
        trial, flags = study.ask(), self.flags
        trial.suggest_float('rate', *flags.rates, log=True)
        if flags.sizes:
            trial.suggest_int('size', *flags.sizes, log=True)
        trial.suggest_categorical('epochs', flags.epochs)
        if flags.batch_sizes:
            trial.suggest_categorical('batch_size', flags.batch_sizes)
        return trial

    def cell(self, params: Dict[str, Any]) -> Any:
        from tools import cells
        from tools.plan import Group
        group = Group(self.flags.task, 'roberta', self.flags.method, params.get('size'), '')
        settings = {name: params[name] for name in ('epochs', 'batch_size') if name in params}
        return cells.make_cell(
            group, self.flags.stack, (self.folder, self.folder, self.backbone_sha256), 3.0, params['rate'],
            self.flags.seed, None, settings, self.part, 'search', self.metric, self.defaults)

    def largest(self) -> int:
        """Bytes of a trial at most, about."""
        flags = self.flags
        params = dict(rate=flags.rates[0], epochs=max(flags.epochs))
        params.update({'size': flags.sizes[1]} if flags.sizes else {})
        params.update({'batch_size': max(flags.batch_sizes)} if flags.batch_sizes else {})
        return self.cell(params).estimate.memory


def open_study(optuna: Any, flags: argparse.Namespace, folder: str, identity: Dict[str, Any]) -> Any:
    """The study in the folder, made where there is none. Raises UserError for one of another space or task."""
    path = os.path.join(folder, 'study.db')
    try:
        study = optuna.create_study(
            storage='sqlite:///' + path, study_name='tune', direction='maximize', load_if_exists=True)
        # Not the same dice again for a study that goes on.
        study.sampler = optuna.samplers.TPESampler(
            seed=(flags.sampler_seed * 1000003 + len(study.trials)) % 2**32, constant_liar=True)
        theirs = study.user_attrs.get('identity', identity)
    except Exception as error:  # of SQLite, through several layers
        raise UserError('%s: no study of Optuna: %s' % (path, str(error).splitlines()[0]))
    for name, value in identity.items():
        if theirs.get(name, value) != value:
            raise UserError('%s: a study with %s %s, here it is %s; name another output_dir'
                            % (path, name, theirs[name], value))
    study.set_user_attr('identity', identity)
    return study


def search(optuna: Any, study: Any, trials: Trials, engine: Any, number: int) -> None:
    """Trials until there are `number`. Those that a stopped search left are run first."""
    from tools.cells import read_result, result_path
    from tools.plan import score
    states, running = optuna.trial.TrialState, {}
    for trial in study.get_trials(deepcopy=False, states=[states.RUNNING]):
        study.tell(trial.number, state=states.FAIL)
        if 'rate' in trial.params:
            study.enqueue_trial(trial.params)

    def finished():
        return len(study.get_trials(deepcopy=False, states=[states.COMPLETE])) + failed
    failed = 0
    while finished() + len(running) < number or running:
        while engine.room() > 0 and finished() + len(running) < number:
            trial = trials.ask(study)
            cell = trials.cell(trial.params)
            if cell.name in running:  # the same again, which a small space may give
                study.tell(trial, state=states.FAIL)
                failed += 1
                continue
            running[cell.name] = trial, cell
            engine.submit(cell)
        outcome = engine.wait()
        if outcome is None:
            continue
        trial, cell = running.pop(outcome.name)
        shown = ', '.join('%s %s' % item for item in sorted(trial.params.items()))
        if outcome.status != 'done':
            study.tell(trial, state=states.FAIL)
            failed += 1
            print('trial %d: %s: FAILED: %s' % (trial.number, shown, outcome.error), flush=True)
            continue
        result = read_result(result_path(engine.folder, cell.name))
        value = max(0.0, score(result, 'last'))
        study.tell(trial, value)
        print('trial %d: %s: %s' % (trial.number, shown, 'diverged, counts as 0' if result['diverged']
                                    else '%s %.4f' % (trials.metric, value)), flush=True)
