"""One program at a time in a folder: a lock file that says who holds it."""
import contextlib
import fcntl
import os
import socket
import time
from typing import Iterator

from fltuning.errors import UserError


@contextlib.contextmanager
def locked(path: str, setting: str = 'output_dir', patience: float = 0) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that exists.

    The system lets go of it when the process ends, however it ends, so none is left to be removed by
    hand; what it says, process id and host, is for whoever meets it. Raises UserError if another process
    holds it, naming that and the setting that the folder is from; for `patience` seconds it waits.
    """
    until = time.monotonic() + patience
    while True:
        descriptor = open_lock(path, setting)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode('utf-8', 'replace').strip()
            os.close(descriptor)
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
            raise UserError('%s: %s: another run is writing here%s; wait for it, or name another folder'
                            % (setting, path, ' (%s)' % holder if holder else ''))
        except OSError:  # a file system without locks: as before there were any
            pass
        if is_same_file(descriptor, path):
            break
        os.close(descriptor)  # removed by its holder between our opening and our locking it
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, ('process %d on %s\n' % (os.getpid(), socket.gethostname())).encode('utf-8'))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # while it is still locked
        os.close(descriptor)


def open_lock(path, setting):
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError('%s: %s: %s' % (setting, path, error.strerror))


def is_same_file(descriptor, path):
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
