"""Records in, predictions out, some thousand at a time: memory does not grow with the input."""
import collections
import copy
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Union

from fltuning.errors import NotFinite, UserError
from fltuning.records import Record
from fltuning.task import Task

WINDOW = 4096  # samples that are sorted by length together
FIRST = 256  # of them in the first window; each that follows has twice as many, so the first lines come soon


class Item(NamedTuple):
    """What is to be said of one record."""
    record: Record
    id: Any  # its own, or its number; None where a record may hold several
    samples: list
    error: str  # in place of samples


def read_items(task: Task, records: Iterable[Union[Record, UserError]], skip_bad: bool) -> Iterator[Item]:
    """An `Item` a record. Raises UserError for a bad one, unless `skip_bad`."""
    for record in records:
        number, samples, error = task.next_id, [], ''
        try:
            if isinstance(record, UserError):
                raise record
            samples = task.to_predict(list(task.parse([record], False)))
        except UserError as wrong:
            if not skip_bad:
                raise
            error = str(wrong)
            task.next_id = number + task.one_each  # as if it had been good
        yield Item(record, name_of(task, record, number), samples, error)


def name_of(task: Task, record: Union[Record, UserError], number: int) -> Any:
    name = record.get('id') if isinstance(record, Record) else None
    if isinstance(name, (str, int)) and not isinstance(name, bool):
        return name
    return number if task.one_each else None


def fill_windows(items: Iterable[Item], size: int) -> Iterator[List[Item]]:
    """Lists of items with `size` samples or a few more; the first ones are shorter.

    An error comes after the items before it.
    """
    now = min(FIRST, size)
    window, room, failure = [], now, None
    try:
        for item in items:
            window.append(item)
            room -= max(len(item.samples), 1)
            if room <= 0:
                yield window
                now = min(2 * now, size)
                window, room = [], now
    except UserError as error:
        failure = error
    if window:
        yield window
    if failure:
        raise failure


def predict_windows(task: Task, predict: Callable[[Task, list], list], records: Iterable,
                    skip_bad: bool = False,
                    remark: Callable[[str], Any] = lambda text: None) -> Iterator[List[Dict[str, Any]]]:
    """Lists of predictions, in the order of the records, as they come.

    predict(task, encoded): the results of a list of `Encoded`. records: `Record`s, or the UserErrors
    that stand for bad ones. A bad record, or a prediction that is not finite, raises UserError, after
    what came before it; with `skip_bad` it gives {'id', 'error'}. remark: told of what `task.remarks` has.
    """
    task = copy.copy(task)  # ids and counts are those of this call, not of another thread's
    task.next_id, task.counts = 0, collections.Counter()
    for window in fill_windows(read_items(task, records, skip_bad), WINDOW):
        encoded = [task.encode(sample) for item in window for sample in item.samples]
        try:
            results = predict(task, encoded)
        except NotFinite:  # of which record?
            results = None
        lines, end = [], 0
        for item in window:
            begin, end = end, end + len(item.samples)
            error = item.error
            if not error and results is None:
                try:
                    found = predict(task, encoded[begin:end])
                except NotFinite as wrong:
                    error = '%s: %s' % (item.record.where, wrong)
                    if not skip_bad:
                        if lines:
                            yield lines
                        raise NotFinite(error)
            elif not error:
                found = results[begin:end]
            if error:
                lines.append({'id': item.id, 'error': error})
            elif found:
                lines.extend(task.predictions(item.samples, found))
        yield lines
    for text in task.remarks():
        remark(text)
