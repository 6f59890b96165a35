"""Files in and out: JSON with the line that is wrong, nothing half written."""
import codecs
import contextlib
import errno
import glob
import hashlib
import itertools
import json
import os
import shutil
import stat
import sys
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from safetensors.numpy import save

from fltuning.errors import UserError


def read_text(path: str) -> str:
    """The text of a file in UTF-8; of standard input if `path` is '-'. Raises UserError."""
    try:
        with open(0 if path == '-' else path, encoding='utf-8-sig', closefd=path != '-') as reader:
            text = reader.read()
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b'\n') + 1
        raise UserError('%s: line %d: expected UTF-8: %s' % (path, line, error.reason))
    if not text.strip():
        raise UserError('%s: the file is empty' % path)
    return text


def read_lines(path: str) -> Iterator[Tuple[int, bytes]]:
    """(number, bytes with the line's end) of a file, or of standard input if `path` is '-', as they come."""
    number = 0
    try:
        with open(0 if path == '-' else path, 'rb', closefd=path != '-') as reader:
            for block in reader:
                for line in block.splitlines(True):
                    if not number and line.startswith(codecs.BOM_UTF8):
                        line = line[len(codecs.BOM_UTF8):]
                    number += 1
                    yield number, line
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also for what cannot be written again."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError('nested too deeply')
    if '\\u' in text:  # half a surrogate pair is no character: UTF-8 has no bytes for it
        json.dumps(value, ensure_ascii=False).encode('utf-8')
    return value


def read_json(path: str) -> Any:
    """The whole of a JSON file. Raises UserError with the line that is not JSON."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        line = getattr(error, 'lineno', 1)
        raise UserError('%s: line %d: not JSON: %s' % (path, line, error))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def remove_leftovers(path: str) -> None:
    """The temporary files beside `path` of processes that were killed."""
    for left in glob.glob(glob.escape(path) + '.*.tmp'):
        pid = left[len(path) + 1:].split('.')[0]
        if pid.isdigit() and not is_running(int(pid)):
            os.remove(left)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary path beside `path`, which takes its place if all goes well.

    Links are followed, and what is not a regular file (a device, a pipe) is written into. Raises UserError
    for an OSError inside, about the file that the error names, or else about `path`.
    """
    target, temporary = os.path.realpath(path), None
    try:
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            yield target
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        remove_leftovers(target)
        temporary = '%s.%d.%s.tmp' % (target, os.getpid(), os.urandom(4).hex())
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, 'rb') as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else None
        raise UserError('%s: %s' % (path if named in (None, temporary, target) else named,
                                    error.strerror))
    finally:
        if temporary and os.path.exists(temporary):
            os.remove(temporary)


def write_text(path: str, text: str) -> None:
    with replacing(path) as temporary:
        with open(temporary, 'w', encoding='utf-8', newline='\n') as writer:
            writer.write(text)


def write_json(path: str, value: Any) -> None:
    write_text(path, to_json(value, indent=2) + '\n')


def write_tensors(path: str, tensors: Dict[str, Any], metadata: Dict[str, str]) -> None:
    """A safetensors file. Written here: safetensors' own way leaves a file behind where it is killed."""
    content = save(tensors, metadata)
    with replacing(path) as temporary:
        with open(temporary, 'wb') as writer:
            writer.write(content)


def copy_file(source: str, target: str) -> None:
    """Raises UserError about the one of the two that is at fault."""
    try:
        reader = open(source, 'rb')
        reader.read(1)  # e.g. of a folder
        reader.seek(0)
    except OSError as error:
        raise UserError('%s: %s' % (source, error.strerror))
    with reader, replacing(target) as temporary:
        with open(temporary, 'wb') as writer:
            shutil.copyfileobj(reader, writer)


def set_aside(path: str) -> str:
    """Give a file the name `path`.old, or .old.2 and so on where an earlier one has that; returns its name."""
    names = itertools.chain(['.old'], map('.old.{}'.format, itertools.count(2)))
    kept = next(path + name for name in names if not os.path.exists(path + name))
    os.replace(path, kept)
    return os.path.basename(kept)


def make_folder(path: str, setting: Optional[str] = None) -> None:
    """Raises UserError, naming the setting that the path is from."""
    try:
        os.makedirs(path or '.', exist_ok=True)
    except OSError as error:
        raise UserError('%s%s: %s' % (setting + ': ' if setting else '', error.filename or path,
                                      error.strerror))


def to_json(value: Any, indent: Optional[int] = None) -> str:
    """JSON, of finite numbers only: NaN is none. Raises ValueError."""
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)


def json_line(**fields: Any) -> str:
    return to_json(fields) + '\n'


@contextlib.contextmanager
def writing(path: str) -> Iterator[Callable[[str], None]]:
    """A function that writes text to a file, which appears whole or not at all.

    To standard output, if `path` is '-', it writes at once. Raises UserError; BrokenPipeError where
    nobody reads that any more.
    """
    if path != '-':
        with replacing(path) as temporary:
            with open(temporary, 'w', encoding='utf-8', newline='\n') as writer:
                yield writer.write
        return
    if sys.stdout is None:
        raise UserError('standard output is closed: name a file to write to')
    binary = getattr(sys.stdout, 'buffer', None)  # a notebook's has none

    def write(text: str) -> None:
        try:
            if binary is None:
                sys.stdout.write(text)
                sys.stdout.flush()
            else:
                binary.write(text.encode('utf-8'))
                binary.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError('standard output: %s' % error.strerror)
    yield write


def file_digest(path: str, algorithm: str = 'sha256') -> str:
    """In hexadecimal digits, of a file of any size. Raises UserError if it cannot be read."""
    digest = hashlib.new(algorithm)
    try:
        with open(path, 'rb') as reader:
            for block in iter(lambda: reader.read(1 << 20), b''):
                digest.update(block)
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    return digest.hexdigest()
