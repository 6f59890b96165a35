"""Result files as CLUE wants them: what is wrong with one, a message each."""
import json
from typing import Any, Callable, Dict, Iterator

from fltuning.errors import UserError
from fltuning.files import parse_json
from fltuning.records import Record


def check_lines(samples: list, text: str, check_answer: Callable[[Any, Record], None]) -> Iterator[str]:
    """A file with a record a line, in the order of the test file.

    check_answer(sample, record) raises UserError where the answer is not one that is allowed.
    """
    expected = {str(sample.id): sample for sample in samples}
    lines = text[:-1].split('\n') if text.endswith('\n') else text.split('\n')
    if len(lines) != len(expected):
        yield 'expected %d lines, as the test file has, got %d' % (len(expected), len(lines))
    found: Dict[str, int] = {}  # {id: its line}
    for number, line in enumerate(lines, 1):
        where = 'line %d' % number
        try:
            record = Record(parse_json(line), where)
            name = str(record.get_id())
            if name not in expected:
                raise record.error('id', 'an id of the test file')
            if name in found:
                raise record.error('id', 'each id once (see line %d)' % found[name])
            found[name] = number
            check_answer(expected[name], record)
        except ValueError as error:
            yield '%s: not JSON: %s' % (where, error)
        except UserError as error:
            yield str(error)
    for number, name in enumerate(expected, 1):
        if name not in found:
            yield 'line %d: expected id "%s", which is on no line' % (number, name)
    for right, name in zip([name for name in expected if name in found], found):
        if name != right:
            yield ('line %d: expected id "%s", got "%s": CLUE compares line by line, in the order '
                   'of the test file' % (found[name], right, name))
            break


def check_label(record: Record, labels: list) -> None:
    """Raises UserError unless the field "label" is one of these texts."""
    if record.get('label') not in labels:
        quoted = ['"%s"' % label for label in labels]
        raise record.error('label', 'one of ' + ', '.join(quoted) if len(quoted) < 20
                           else '%s to %s' % (quoted[0], quoted[-1]))


def check_object(expected: Dict[str, Any], check: Callable[[Any, Any], Any], text: str) -> Iterator[str]:
    """A file that is one object, {blank or question: answer}, in any order.

    expected: {key: what `check` needs to know}; check(that, answer) says what else was expected.
    """
    try:
        parse_json(text)
    except ValueError as error:
        yield 'line %d: not JSON: %s' % (getattr(error, 'lineno', 1), error)
        return
    if not text.lstrip().startswith('{'):
        yield 'line 1: expected an object, {"%s": answer, ...}' % next(iter(expected))
        return
    pairs = json.loads(text, object_pairs_hook=list)  # a dict would lose a key that comes twice
    if len(pairs) != len(expected):
        yield 'expected %d answers, as the test file has, got %d' % (len(expected), len(pairs))
    found: Dict[str, int] = {}
    line, end = 1, 0
    for key, answer in pairs:
        start = max(text.find(json.dumps(key, ensure_ascii=False), end), end)
        line, end = line + text.count('\n', end, start), start + 1
        record = Record({key: answer}, 'line %d' % line)
        if key not in expected:
            yield '%s: "%s" is not in the test file' % (record.where, key)
        elif key in found:
            yield '%s: expected "%s" once (see line %d)' % (record.where, key, found[key])
        else:
            found[key] = line
            wanted = check(expected[key], answer)
            if wanted:
                yield str(record.error(key, wanted))
    for key in expected:
        if key not in found:
            yield 'expected an answer to "%s", which is not there' % key
