"""One cell from its command to its result file, wherever that happens: in any engine, on any machine."""
import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from fltuning.files import make_folder, read_json
from fltuning.provenance import cpu_model
from tasks import ROOT
from tools.cells import Cell, publish, read_result, remove_work, result_path, work_path

COMMAND = [os.path.join(ROOT, 'scripts', 'run')]
TRIES = 4  # of a cell whose process dies
POLL = 0.2  # seconds
# The process ends with the one that waits for it, also where that is killed; what it has done is not lost.
LAUNCH = '''
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except AttributeError:  # not Linux
    pass
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
'''


class Outcome(NamedTuple):
    """status: done, failed, or stopped (by the user). error: the line that says why it failed."""
    name: str
    status: str
    error: str = ''


def run_cell(cell: Cell, folder: str, threads: int = 1, command: Optional[List[str]] = None, tries: int = TRIES,
             environment: Optional[Dict[str, str]] = None, stop: Optional[threading.Event] = None) -> Outcome:
    """Run a cell unless its result is there, and write that; all that is left of it otherwise is its work folder.

    command: what takes the arguments of scripts/run. A process that dies by a signal is started again, `tries`
    times in all, and goes on after its last epoch; one that says what is wrong is not. Of two that have the
    same cell, on whichever machines share the folder, one waits and takes the other's result.
    """
    stop = stop or threading.Event()
    with held(os.path.join(work_path(folder, cell.name), 'lock'), stop) as lock:
        if stop.is_set():
            return Outcome(cell.name, 'stopped')
        if os.path.exists(result_path(folder, cell.name)):
            read_result(result_path(folder, cell.name))
            remove_work(folder, cell.name)
            return Outcome(cell.name, 'done')
        began = time.time()
        for number in range(1, tries + 1):
            code = 0
            if not os.path.exists(record_path(cell, folder)):
                code = run_process(cell, folder, threads, command or COMMAND, environment, lock, stop)
            if stop.is_set():
                return Outcome(cell.name, 'stopped')
            error = last_line(log_path(cell, folder)) if code else ''
            diverged = is_diverged(error) or has_stopped(cell, folder)
            if code == 0 or diverged:
                publish(cell, folder, diverged=diverged, error=error, tries=number, threads=threads,
                        seconds=round(time.time() - began, 1), host=host())
                remove_work(folder, cell.name)
                return Outcome(cell.name, 'done')
            if 0 < code < 128:
                return Outcome(cell.name, 'failed', error)
        return Outcome(cell.name, 'failed', 'its process died %d times: %s' % (tries, error))


def run_process(cell: Cell, folder: str, threads: int, command: List[str],
                environment: Optional[Dict[str, str]], lock: int, stop: threading.Event) -> int:
    """Its exit code; below 0 or from 128 for a signal."""
    arguments = cell.arguments(work_path(folder, cell.name), threads)
    with open(log_path(cell, folder), 'ab') as log:
        process = subprocess.Popen(
            [sys.executable, '-c', LAUNCH, str(os.getpid())] + command + arguments, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True, pass_fds=[lock],
            env=dict(os.environ, **(environment or {})))
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL)
                if stop.is_set():
                    return end(process)
        except BaseException:  # e.g. KeyboardInterrupt in a process of a cluster's
            end(process)
            raise


def end(process: subprocess.Popen) -> int:
    """Ask a process and those it started to end, and make them."""
    for number, patience in ((signal.SIGINT, 10), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(patience)
    raise AssertionError('waits without end')


@contextlib.contextmanager
def held(path: str, stop: threading.Event) -> Iterator[int]:
    """The descriptor of a lock file, once nobody else holds it, or `stop` is set.

    It goes to the cell's process too: where its parent was killed and it lives on, others wait for it.
    """
    while True:
        make_folder(os.path.dirname(path), 'output_dir')
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            break
        except FileNotFoundError:  # its holder just removed the folder
            pass
    try:
        while not stop.is_set():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stop.wait(POLL)
            except OSError:  # a file system without locks: as before there were any
                break
        yield descriptor
    finally:
        os.close(descriptor)


def record_path(cell: Cell, folder: str) -> str:
    return os.path.join(work_path(folder, cell.name), 'results', cell.configuration['task'] + '_run.json')


def log_path(cell: Cell, folder: str) -> str:
    return os.path.join(work_path(folder, cell.name), 'log.txt')


def last_line(path: str) -> str:
    """What a program said last."""
    try:
        with open(path, 'rb') as reader:
            reader.seek(max(0, os.path.getsize(path) - 4096))
            lines = reader.read().decode('utf-8', 'replace').splitlines()
    except OSError:
        lines = []
    lines = [line.strip() for line in lines if line.strip()]
    return lines[-1][:1000] if lines else 'it said nothing'


def is_diverged(error: str) -> bool:
    """Whether a run ended since its numbers were no longer finite: so it would again, and that is its result."""
    return 'try a lower --learning_rate' in error


def has_stopped(cell: Cell, folder: str) -> bool:
    """Whether the record of a run that was not published yet says so."""
    path = record_path(cell, folder)
    return os.path.exists(path) and 'stopped' in read_json(path)


def host() -> Dict[str, Any]:
    """The machine: a mark by which cells of one are told from those of another, and its processor."""
    return {'mark': hashlib.sha256(socket.gethostname().encode('utf-8')).hexdigest()[:8],
            'processor': cpu_model(), 'cores': os.cpu_count()}
