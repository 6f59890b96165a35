"""Runs a grid of experiments, here or on a cluster; what is finished is never run again (`scripts/reproduce`).

A grid is a YAML file (docs/grids.md), or one of the ready ones in experiments/. Each cell of it is a process of
its own, `scripts/run TASK ...`, and leaves one file in OUTPUT_DIR/cells. Stopped and started again, it goes on.
"""
import argparse
import os
import re
import signal
import sys
from typing import Any, Dict, List, Optional

from fltuning.errors import Parser, UserError
from fltuning.memory import free_memory
from fltuning.settings import positive_number, whole_number
from tools.data import DATA_PATH_HELP

ENGINES = ['local', 'ray', 'slurm']
PARTS = ['tasks', 'backbones', 'methods']  # of a grid, by which a part of it may be chosen


def make_parser() -> Parser:
    parser = Parser(prog='scripts/reproduce', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    count = whole_number(1)
    parser.add_argument('grid', help='a YAML file, or the name of a ready grid')
    parser.add_argument('--output_dir', help='where results go; results/NAME of the grid, unless said')
    parser.add_argument('--engine', choices=ENGINES, default='local',
                        help='processes of this machine, tasks of a Ray cluster or a job array of SLURM')
    for axis in PARTS:
        parser.add_argument('--' + axis, nargs='+', metavar='NAME', help='only these of the grid')
    parser.add_argument('--dry_run', action='store_true', help='show the cells and about how long they take')
    parser.add_argument('--processes', type=count, help='cells at a time; as many as fit, unless said')
    parser.add_argument('--threads', type=count, help='of a cell; the cores divided among them, unless said')
    parser.add_argument('--tries', type=count, default=4, help='times that a cell whose process dies is started')
    parser.add_argument('--stack', choices=['tf1', 'tf2'], help="of the cells; the grid's, unless said")
    parser.add_argument('--data_path', help=DATA_PATH_HELP)
    parser.add_argument('--address', help='ray: of the cluster; it is started here, unless said')
    parser.add_argument('--gpus', type=positive_number, help='ray: of a cell; a whole one if there are any')
    parser.add_argument('--slurm', nargs='+', default=[], metavar='KEY=VALUE',
                        help="slurm: submitit's parameters, e.g. slurm_partition=gpu timeout_min=600")
    return parser


def slurm_options(pairs: List[str]) -> Dict[str, Any]:
    """
    >>> slurm_options(['slurm_partition=gpu', 'timeout_min=60', 'mem_gb=1.5'])
    {'slurm_partition': 'gpu', 'timeout_min': 60, 'mem_gb': 1.5}
    """
    for pair in pairs:
        if '=' not in pair.strip('='):
            raise UserError('--slurm: expected KEY=VALUE, got %s' % pair)
    return {key: int(value) if value.isdigit() else float(value) if re.match(r'\d+\.\d+$', value) else value
            for key, value in (pair.split('=', 1) for pair in pairs)}


def run(argv: Optional[List[str]] = None, command: Optional[List[str]] = None) -> int:
    """Returns the exit code: 1 if a cell failed. command: in place of scripts/run."""
    flags = make_parser().parse_args(argv)
    from tools.grids import find_grid, narrow, read_grid  # which needs PyYAML
    from tools.plan import Plan
    grid = read_grid(find_grid(flags.grid), flags.stack, flags.data_path)
    part = narrow(grid, {axis: getattr(flags, axis) for axis in PARTS})
    folder = os.path.abspath(flags.output_dir or os.path.join('results', grid.name))
    slurm = slurm_options(flags.slurm)
    plan = Plan(part, folder, grid)
    if flags.engine == 'local':
        plan.check_memory(free_memory())
    plan.read_known()
    if flags.dry_run:
        show(plan, flags, slurm)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end like Ctrl-C: at once, to go on later
    plan.write_random_backbones()
    engine = make_engine(plan, flags, slurm, command)
    try:
        plan.check_memory(engine.memory())
        failed = run_cells(plan, engine)
    finally:
        engine.stop()
    for name, error in failed.items():
        print('failed: %s: %s' % (name, error))
    print('%s: %d of %d cells are there%s; scripts/report %s shows them' % (
        grid.name, len(plan.known), plan.count(), ', %d failed' % len(failed) if failed else '',
        os.path.relpath(folder)))
    return 1 if failed else 0


def make_engine(plan: Any, flags: argparse.Namespace, slurm: Dict[str, Any], command: Optional[List[str]]) -> Any:
    from tools import engines
    options: Dict[str, Any] = dict(command=command, processes=flags.processes, threads=flags.threads, tries=flags.tries)
    if flags.engine == 'ray':
        options.update(address=flags.address, gpus=flags.gpus)
    elif flags.engine == 'slurm':
        options.update(options=slurm)
    kind = {'local': engines.LocalEngine, 'ray': engines.RayEngine, 'slurm': engines.SlurmEngine}[flags.engine]
    return kind(plan.folder, plan.memory(), **options)


def run_cells(plan: Any, engine: Any) -> Dict[str, str]:
    """Runs what is missing. Returns {title: error line} of the cells that failed."""
    from tools.cells import read_result, result_path
    from tools.estimates import Clock, duration
    clock, titles, handed = Clock(), {}, set()
    plan.write()
    cells = {cell.name: cell for cell in plan.cells()}
    for name, result in plan.known.items():
        clock.add(cells[name], result)
    print('%d of %d cells are there; %s: %d at a time, %d threads each' % (
        len(plan.known), plan.count(), engine.name, engine.processes, engine.threads), flush=True)
    try:
        while True:
            cells = {cell.name: cell for cell in plan.cells()}
            missing = [cell for name, cell in cells.items()
                       if name not in plan.known and name not in plan.failed and name not in handed]
            for cell in missing[:max(0, engine.room())]:
                engine.submit(cell)
                handed.add(cell.name)
            if not engine.active:
                break
            outcome = engine.wait()
            if outcome is None:
                continue
            cell = cells[outcome.name]
            handed.discard(cell.name)
            if outcome.status == 'done':
                result = read_result(result_path(plan.folder, cell.name))
                plan.known[cell.name] = result
                clock.add(cell, result)
                said = describe(result, plan.grid.select)
            else:
                plan.failed[cell.name] = outcome.error
                titles[cell.title()] = outcome.error
                said = 'FAILED: %s' % outcome.error
            left = [c for name, c in cells.items() if name not in plan.known and name not in plan.failed]
            left += plan.waiting()
            print('[%d/%d] %s: %s; about %s left' % (
                len(plan.known) + len(plan.failed), plan.count(), cell.title(), said,
                duration(clock.left(left, engine.threads, engine.processes))), flush=True)
            if cell.labels['stage'] == 'search' or len(left) == 0:
                plan.write()
    except KeyboardInterrupt:
        print('stopped: %d of %d cells are there; the same command goes on' % (len(plan.known), plan.count()),
              file=sys.stderr)
        raise
    plan.write()
    return titles


def describe(result: Dict[str, Any], select: str) -> str:
    from tools.plan import score
    if result['diverged']:
        return 'diverged, %.0f s' % result['seconds']
    return '%s %.4f, %.0f s' % (result['labels']['metric'], score(result, select), result['seconds'])


def show(plan: Any, flags: argparse.Namespace, slurm: Dict[str, Any]) -> None:
    """The cells, with the time of each, and of all as this machine would run them."""
    from tools.engines import JOBS, cores, how_many, slurm_parameters, slurm_script
    from tools.estimates import Clock, duration
    clock, cells = Clock(), plan.cells()
    for cell in cells:
        if cell.name in plan.known:
            clock.add(cell, plan.known[cell.name])
    processes = how_many(plan.memory(), flags.processes, 0, free_memory())
    threads = flags.threads or max(1, cores() // processes)
    waiting = list(plan.waiting())
    for name, cell in [(cell.name, cell) for cell in cells] + [('(rate to choose)', cell) for cell in waiting]:
        time = 'there' if name in plan.known else duration(clock.seconds(cell, threads))
        print('%-20s  %8s  %s' % (name, time, cell.title()))
    missing = [cell for cell in cells + waiting if cell.name not in plan.known]
    print('%s: %d cells, %d of them there; about %s for the others with %d at a time, %d threads each (%s)' % (
        plan.grid.name, plan.count(), len(cells) + len(waiting) - len(missing), duration(clock.left(
            missing, threads, processes)), processes, threads,
        'measured' if clock.ratios else 'a guess, until a cell has run here'))
    if flags.engine == 'slurm':
        print(slurm_script(plan.folder, len(missing), slurm_parameters(
            plan.memory(), flags.threads or 1, flags.processes or JOBS, slurm)))
