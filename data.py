"""Files in and out: records that know their place, padded batches, no half-written files."""
import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import queue
import threading

import numpy as np
from safetensors.numpy import save

from errors import UserError


class Record(dict):
    """A JSON object that knows its place, so that a wrong field is reported with file and line."""

    def __init__(self, fields, where):
        if not isinstance(fields, dict):
            raise UserError('%s: expected an object, got %s' % (where, shorten(fields)))
        super(Record, self).__init__(fields)
        self.where = where

    def error(self, name, expected):
        """A UserError about the field `name`."""
        got = 'got ' + shorten(self[name]) if name in self else 'the field is missing'
        return UserError('%s: field "%s": expected %s, %s' % (self.where, name, expected, got))

    def get_text(self, name, may_be_empty=False):
        """The string in field `name`."""
        value = self.get(name)
        if not isinstance(value, str) or not (value.strip() or may_be_empty):
            raise self.error(name, 'a text')
        return value

    def get_choice(self, name, choices):
        """The index in `choices` of field `name`, whose numbers may be written as text or not."""
        value = self.get(name)
        if (isinstance(value, bool) or not isinstance(value, (str, int))
                or str(value) not in choices):
            raise self.error(name, 'one of ' + ', '.join(choices))
        return choices.index(str(value))

    def get_integer(self, name):
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, 'a whole number')
        return value

    def get_id(self, name='id', default=None):
        """An identifier, text or whole number, as it is in the file."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.error(name, 'a text or a whole number')
        return value

    def get_list(self, name, kind=None):
        """The non-empty list in field `name`; with `kind`, all of that type."""
        value = self.get(name)
        if not isinstance(value, list) or not value:
            raise self.error(name, 'a list')
        if kind and not all(isinstance(item, kind) for item in value):
            raise self.error(name, 'a list of ' + ('texts' if kind is str else kind.__name__))
        return value

    def get_record(self, name):
        if not isinstance(self.get(name), dict):
            raise self.error(name, 'an object')
        return Record(self[name], '%s: field "%s"' % (self.where, name))

    def get_records(self, name):
        """The objects in the list in field `name`."""
        return [Record(item, '%s: %s[%d]' % (self.where, name, i))
                for i, item in enumerate(self.get_list(name))]


def shorten(value, limit=40):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[:limit] + '...'


def read_text(path):
    """The text of a file in UTF-8; of standard input if `path` is '-'. Raises UserError."""
    try:
        with io.open(0 if path == '-' else path, encoding='utf-8-sig', closefd=path != '-') as reader:
            text = reader.read()
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b'\n') + 1
        raise UserError('%s: line %d: expected UTF-8: %s' % (path, line, error.reason))
    if not text.strip():
        raise UserError('%s: the file is empty' % path)
    return text


def parse_json(text):
    """The value of a JSON text. Raises ValueError, also for what cannot be written again."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError('nested too deeply')
    if '\\u' in text:  # half a surrogate pair is no character: UTF-8 has no bytes for it
        json.dumps(value, ensure_ascii=False).encode('utf-8')
    return value


def read_json(path):
    """The whole of a JSON file. Raises UserError with the line that is not JSON."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        line = getattr(error, 'lineno', 1)
        raise UserError('%s: line %d: not JSON: %s' % (path, line, error))


def read_json_lines(path):
    """The records of a file with one JSON object a line; blank lines are passed over."""
    records = []
    for number, line in enumerate(read_text(path).split('\n'), 1):
        if line.strip():
            where = '%s: line %d' % (path, number)
            try:
                records.append(Record(parse_json(line), where))
            except ValueError as error:
                raise UserError('%s: not JSON: %s' % (where, error))
    return records


def is_running(pid):
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path`, which takes its place if all goes well."""
    temporary = '%s.%d.tmp' % (path, os.getpid())
    for left in glob.glob(glob.escape(path) + '.*.tmp'):  # of processes that were killed
        if left.split('.')[-2].isdigit() and not is_running(int(left.split('.')[-2])):
            os.remove(left)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        yield temporary
        with open(temporary, 'rb') as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def find_strings(value):
    """The strings in a JSON value, in their order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in find_strings(item)] if isinstance(value, list) else []


def write_text(path, text):
    with replacing(path) as temporary:
        with io.open(temporary, 'w', encoding='utf-8', newline='\n') as writer:
            writer.write(text)


def write_tensors(path, tensors, metadata):
    """A safetensors file. Written here: safetensors' own way leaves a file behind where it is killed."""
    content = save(tensors, metadata)
    with replacing(path) as temporary:
        with open(temporary, 'wb') as writer:
            writer.write(content)


def json_line(**fields):
    return json.dumps(fields, ensure_ascii=False) + '\n'


def file_sha256(path):
    digest = hashlib.sha256()
    try:
        with open(path, 'rb') as reader:
            for block in iter(lambda: reader.read(1 << 20), b''):
                digest.update(block)
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    return digest.hexdigest()


def pad(rows, dtype='int32'):
    """Sequences of different lengths as one array, zeros behind them: (rows, longest)."""
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max()), dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded


def prefetch(generator, size=4):
    """The same items, made in a thread while the device computes."""
    items, stop = queue.Queue(size), threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                return items.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work():
        try:
            for item in generator:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration))
        except BaseException as error:  # raised again where the items are used
            put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = items.get()
            if error is StopIteration:
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
