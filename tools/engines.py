"""Where the cells of a grid run: on this machine, on a Ray cluster, on SLURM.

An engine has `room()`, how many cells it takes now, `submit(cell)`, `active`, how many it has, `wait()` for the
next `Outcome`, None if there is none after some seconds, `stop()`, and says how many `processes` with how many
`threads` each it runs.
"""
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional

from fltuning.errors import UserError
from fltuning.extras import import_extra
from fltuning.memory import free_memory
from tasks import ROOT
from tools.cell_run import TRIES, Outcome, run_cell
from tools.cells import Cell

PATIENCE = 5.0  # seconds of one `wait`
JOBS = 100  # of an array at a time, unless said


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def visible_gpus() -> List[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES calls them."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        return [name for name in named.split(',') if name.strip() not in ('', '-1')]
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith('GPU ')]


def how_many(memory: int, processes: Optional[int] = None, gpus: int = 0, free: Optional[int] = None) -> int:
    """Processes that fit on this machine: one a GPU, else one a core, as far as their memory allows.

    >>> how_many(2 << 30, processes=3), how_many(8 << 30, gpus=4, free=20 << 30)
    (3, 2)
    """
    if processes:
        return processes
    fit = gpus or cores()
    if free is not None:
        fit = min(fit, free // max(1, memory))
    return max(1, fit)


class LocalEngine:
    """Processes of this machine, a thread here for each that waits for it."""

    name = 'local'

    def __init__(self, folder: str, memory: int, processes: Optional[int] = None, threads: Optional[int] = None,
                 command: Optional[List[str]] = None, tries: int = TRIES):
        """memory: of the largest cell; processes, threads: unless they are to fit the machine."""
        gpus = visible_gpus()
        self.processes = how_many(memory, processes, len(gpus), free_memory())
        self.threads = threads or max(1, cores() // self.processes)
        self.folder, self.command, self.tries = folder, command, tries
        self.active, self.stopping = 0, threading.Event()
        self.outcomes: queue.Queue = queue.Queue()
        self.waiting: queue.Queue = queue.Queue()
        self.workers = [threading.Thread(target=self.work, args=(gpus[i % len(gpus)] if gpus else None,), daemon=True)
                        for i in range(self.processes)]
        for worker in self.workers:
            worker.start()

    def memory(self) -> Optional[int]:
        return free_memory()

    def room(self) -> int:
        return self.processes - self.active

    def submit(self, cell: Cell) -> None:
        self.active += 1
        self.waiting.put(cell)

    def work(self, gpu: Optional[str]) -> None:
        environment = {} if gpu is None else {'CUDA_VISIBLE_DEVICES': gpu}
        while True:
            cell = self.waiting.get()
            if cell is None:
                return
            self.outcomes.put(guarded(cell.name, lambda cell=cell: run_cell(
                cell, self.folder, self.threads, self.command, self.tries, environment, self.stopping)))

    def wait(self) -> Optional[Outcome]:
        try:
            outcome = self.outcomes.get(timeout=PATIENCE)
        except queue.Empty:
            return None
        self.active -= 1
        return outcome

    def stop(self) -> None:
        """Ends what runs; each cell's epochs are kept, to go on after them."""
        self.stopping.set()
        for _ in self.workers:
            self.waiting.put(None)
        for worker in self.workers:
            worker.join()


def guarded(name: str, run: Callable[[], Outcome]) -> Outcome:
    """The outcome of a cell, also where something of ours fails, e.g. a full disk: the others go on."""
    try:
        return run()
    except Exception as error:
        return Outcome(name, 'failed', '%s: %s' % (type(error).__name__, error)
                       if not isinstance(error, UserError) else str(error))


def make_task(folder: str, threads: int, command: Optional[List[str]], tries: int) -> Callable:
    """A function of a cell for another process, maybe on another machine, which sees the same paths.

    It is made here, and not at the top of the file, so that it travels as code: this project is no package that
    those processes have.
    """
    root = ROOT

    def task(fields: tuple) -> tuple:
        import sys
        if root not in sys.path:
            sys.path.insert(0, root)
        from tools.cell_run import run_cell
        from tools.cells import Cell
        from tools.estimates import Estimate
        cell = Cell(*fields)._replace(estimate=Estimate(*fields[-1]))
        return tuple(run_cell(cell, folder, threads, command, tries))
    return task


def as_tuple(cell: Cell) -> tuple:
    """Of plain values: its class would have to be importable where it is read."""
    return tuple(cell[:-1]) + (tuple(cell.estimate),)


class RayEngine:
    """Tasks of a Ray cluster that do no more than wait for a cell's process: TensorFlow is not loaded in them.

    Ray wants one Python everywhere, so these are of the lab environment; the cell's own is its stack's.
    """

    name = 'ray'

    def __init__(self, folder: str, memory: int, processes: Optional[int] = None, threads: Optional[int] = None,
                 command: Optional[List[str]] = None, tries: int = TRIES, address: Optional[str] = None,
                 gpus: Optional[float] = None):
        """address: of a cluster; without one, Ray is started here. gpus: of a cell; a whole one unless said."""
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
        os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
        self.ray = ray = import_extra('ray', 'lab')
        options: Dict[str, Any] = dict(include_dashboard=False, object_store_memory=80 << 20, num_cpus=cores(),
                                       _node_ip_address='127.0.0.1')
        if address:
            options = {'address': address}
            if address.startswith('127.'):  # a cluster of this machine: Ray would look at its outer address
                options['_node_ip_address'] = address.split(':')[0]
        try:
            ray.init(log_to_driver=False, logging_level='ERROR', **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError('--address %s: no Ray cluster there: %s' % (address, error))
        resources = ray.cluster_resources()
        self.gpus = (1.0 if resources.get('GPU') else 0.0) if gpus is None else gpus
        self.threads = threads or 1
        self.check_nodes()
        most = resources.get('GPU', 0) / self.gpus if self.gpus else resources.get('CPU', 1) / self.threads
        self.processes = max(1, int(min(most, processes or most)))
        task = make_task(folder, self.threads, command, tries)
        self.task = ray.remote(task)
        self.options = dict(num_cpus=self.threads, num_gpus=self.gpus, max_retries=tries)
        self.names: Dict[Any, str] = {}

    def nodes(self) -> List[Dict[str, float]]:
        """What each of the cluster has."""
        return [node['Resources'] for node in self.ray.nodes() if node['Alive']]

    def check_nodes(self) -> None:
        """A task that no node has room for would wait without end, and without a word."""
        if not any(node.get('CPU', 0) >= self.threads and node.get('GPU', 0) >= self.gpus for node in self.nodes()):
            self.ray.shutdown()
            raise UserError('--threads %d, --gpus %g: no node of the cluster has so many cores and GPUs'
                            % (self.threads, self.gpus))

    def memory(self) -> Optional[int]:
        """Of the largest node."""
        return int(max(node.get('memory', 0) for node in self.nodes()))

    @property
    def active(self) -> int:
        return len(self.names)

    def room(self) -> int:
        return self.processes - self.active

    def submit(self, cell: Cell) -> None:
        # One that may take more than any node has gets a whole one: it was checked that it can do with that.
        task = self.task.options(memory=min(cell.estimate.memory, self.memory()), **self.options)
        self.names[task.remote(as_tuple(cell))] = cell.name

    def wait(self) -> Optional[Outcome]:
        ready, _ = self.ray.wait(list(self.names), num_returns=1, timeout=PATIENCE)
        if not ready:
            return None
        name = self.names.pop(ready[0])
        return guarded(name, lambda: Outcome(*self.ray.get(ready[0])))

    def stop(self) -> None:
        for reference in self.names:
            self.ray.cancel(reference)  # KeyboardInterrupt there, which ends the cell's process
        with contextlib.suppress(Exception):
            self.ray.wait(list(self.names), num_returns=len(self.names), timeout=15)
        self.ray.shutdown()


class SlurmEngine:
    """Job arrays of SLURM, through submitit."""

    name = 'slurm'

    def __init__(self, folder: str, memory: int, processes: Optional[int] = None, threads: Optional[int] = None,
                 command: Optional[List[str]] = None, tries: int = TRIES, options: Optional[Dict[str, Any]] = None,
                 cluster: str = 'slurm'):
        """options: of sbatch, e.g. slurm_partition; cluster: 'local' for processes of this machine, in tests."""
        submitit = import_extra('submitit', 'lab')
        self.threads, self.processes, self.tries = threads or 1, processes or JOBS, tries
        logs = os.path.join(os.path.abspath(folder), 'slurm')
        try:
            self.executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        except RuntimeError as error:
            raise UserError('--engine slurm: %s' % error)
        set_parameters(self.executor, slurm_parameters(memory, self.threads, self.processes, options))
        self.task = make_task(folder, self.threads, command, tries)
        self.waiting: List[Cell] = []
        self.jobs: Dict[str, Any] = {}
        self.cells: Dict[str, Cell] = {}
        self.deaths: Dict[str, int] = {}

    def memory(self) -> Optional[int]:
        return None  # SLURM refuses what no node has

    @property
    def active(self) -> int:
        return len(self.waiting) + len(self.jobs)

    def room(self) -> int:
        return sys.maxsize

    def submit(self, cell: Cell) -> None:
        self.waiting.append(cell)

    def wait(self) -> Optional[Outcome]:
        """All that was handed in since the last time goes into one array."""
        if self.waiting:
            jobs = self.executor.map_array(self.task, list(map(as_tuple, self.waiting)))
            self.jobs.update(zip([cell.name for cell in self.waiting], jobs))
            self.cells.update((cell.name, cell) for cell in self.waiting)
            self.waiting = []
        until = time.time() + PATIENCE
        while time.time() < until:
            for name, job in self.jobs.items():
                if job.done():
                    return self.outcome(name, self.jobs.pop(name))
            time.sleep(0.2)
        return None

    def outcome(self, name: str, job: Any) -> Optional[Outcome]:
        """A job that SLURM ended, e.g. at its time limit, is handed in again."""
        try:
            return Outcome(*job.result())
        except Exception as error:
            self.deaths[name] = self.deaths.get(name, 0) + 1
            if self.deaths[name] < self.tries:
                self.waiting.append(self.cells[name])
                return None
            return Outcome(name, 'failed', 'its job %s died %d times: %s' % (
                job.job_id, self.tries, str(error).strip().splitlines()[-1]))

    def stop(self) -> None:
        for job in self.jobs.values():
            job.cancel()


def slurm_parameters(memory: int, threads: int, processes: int, options: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """submitit's, of jobs that take so many bytes and threads, so many at a time; options: that the user gives."""
    return dict(dict(name='cells', cpus_per_task=threads, timeout_min=24 * 60, mem_gb=-(-memory >> 30) + 1,
                     slurm_array_parallelism=processes), **(options or {}))


def set_parameters(executor: Any, parameters: Dict[str, Any]) -> None:
    try:
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, TypeError) as error:
        raise UserError('--slurm: %s' % error)


def slurm_script(folder: str, cells: int, parameters: Dict[str, Any]) -> str:
    """The job script that submitit hands to sbatch, for a user to see before it is.

    parameters: `slurm_parameters`. Raises UserError for one that there is not.
    """
    submitit, slurm = import_extra('submitit', 'lab'), import_extra('submitit.slurm.slurm', 'lab')
    logs = os.path.join(os.path.abspath(folder), 'slurm')
    set_parameters(submitit.AutoExecutor(folder=logs, cluster='local'), parameters)
    given = {key: value for key, value in parameters.items() if not key.startswith('slurm_')}
    given.update((key[len('slurm_'):], value) for key, value in parameters.items() if key.startswith('slurm_'))
    # Its executor for SLURM can only be made where srun is; what it calls the parameters does not depend on that.
    named = object.__new__(slurm.SlurmExecutor)._convert_parameters(given)
    return slurm._make_sbatch_string(
        command='%s -u -m submitit.core._submit %s' % (sys.executable, logs), folder=logs, map_count=cells, **named)
