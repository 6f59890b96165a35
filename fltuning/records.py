"""Records that know their place, so that a wrong field is reported with file and line."""
import json
from collections.abc import Mapping
from typing import Any, Callable, Iterator, Union

import numpy as np

from fltuning.errors import UserError
from fltuning.files import parse_json, read_lines


class Record(dict):
    """A JSON object that knows its place, so that a wrong field is reported with file and line."""

    def __init__(self, fields, where):
        if not isinstance(fields, dict):
            raise UserError('%s: expected an object, got %s' % (where, shorten(fields)))
        super().__init__(fields)
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
        """The index in `choices` of field `name`: a text, or the number or truth value it stands for."""
        value = self.get(name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if not isinstance(value, (str, int)) or text not in choices:
            raise self.error(name, 'one of ' + ', '.join(choices))
        return choices.index(text)

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
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):  # e.g. a key that is no text
        text = repr(value)
    return text if len(text) <= limit else text[:limit] + '...'


def plain(value: Any, where: str) -> Any:
    """A value as JSON has it: NumPy's numbers are numbers; tuples and arrays are lists.

    Raises UserError for what JSON does not have: bytes, sets, objects, half a surrogate pair.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        try:
            value.encode('utf-8')
        except UnicodeEncodeError:
            raise UserError('%s: expected Unicode text, got half a surrogate pair in %s'
                            % (where, shorten(value)))
        return str(value)
    try:
        if isinstance(value, Mapping):
            for name in value:
                if not isinstance(name, str):
                    raise UserError('%s: expected texts as names of fields, got %s'
                                    % (where, shorten(name)))
            return {plain(name, where): plain(item, '%s: field "%s"' % (where, name))
                    for name, item in value.items()}
        if isinstance(value, np.ndarray):
            return plain(value.tolist(), where)
        if isinstance(value, (list, tuple)):
            return [plain(item, where) for item in value]
    except RecursionError:
        raise UserError('%s: nested too deeply' % where)
    raise UserError('%s: expected a text, a number, a list or an object, got %s of type %s'
                    % (where, shorten(value), type(value).__name__))


def read_json_lines(path: str, keep_bad: bool = False) -> Iterator[Union[Record, UserError]]:
    """The records of a file with one JSON object a line, as it is read; blank lines are passed over.

    keep_bad: a line that is no record gives the UserError that says so, instead of raising it.
    """
    blank = True
    for number, line in read_lines(path):
        record = attempt(keep_bad, parse_line, path, number, line)
        if record is not None:
            blank = False
            yield record
    if blank:
        raise UserError('%s: the file is empty' % path)


def attempt(keep_bad: bool, make: Callable, *arguments: Any) -> Any:
    """What `make` makes of these; where `keep_bad`, the UserError that it raises."""
    try:
        return make(*arguments)
    except UserError as error:
        if not keep_bad:
            raise
        return error


def parse_line(path, number, line):
    """The `Record` of the bytes of a line; None of a blank one."""
    where = '%s: line %d' % (path, number)
    try:
        text = line.decode('utf-8').rstrip('\r\n')
        return Record(parse_json(text), where) if text.strip() else None
    except UnicodeDecodeError as error:
        raise UserError('%s: expected UTF-8: %s' % (where, error.reason))
    except ValueError as error:
        raise UserError('%s: not JSON: %s' % (where, error))


def find_strings(value):
    """The strings in a JSON value, in their order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for item in value for text in find_strings(item)] if isinstance(value, list) else []
