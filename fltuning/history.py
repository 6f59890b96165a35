"""The history of a run: an entry each time that the dev set is scored, as JSON lines and for TensorBoard."""
import os
from typing import Any, Dict, List, NamedTuple, Optional

from fltuning.errors import UserError
from fltuning.files import json_line, write_text

Entry = Dict[str, Any]


class Place(NamedTuple):
    """A place within an epoch."""
    batches: int = 0  # that are done
    total: float = 0.0  # the sum of the losses of their samples
    samples: int = 0

    @property
    def loss(self) -> float:
        """The mean of the epoch so far."""
        return self.total / self.samples


class Events:
    """An event file for TensorBoard, by TensorFlow's own writer.

    It begins anew: of what other event files in the folder say, TensorBoard forgets all.
    """

    def __init__(self, folder: str):
        from fltuning import compat  # noqa: F401  (before TensorFlow)
        import tensorflow as tf
        self.v1, self.folder, self.failures = tf.compat.v1, folder, (OSError, tf.errors.OpError)
        try:
            os.makedirs(folder, exist_ok=True)
            with tf.Graph().as_default():  # it refuses eager execution
                self.writer = self.v1.summary.FileWriter(folder)
            self.writer.add_session_log(self.v1.SessionLog(status=self.v1.SessionLog.START), 0)
            self.writer.flush()
        except self.failures as error:
            raise self.error(error)

    def error(self, error: Exception) -> UserError:
        return UserError('tensorboard: %s: %s' % (self.folder, getattr(error, 'strerror', None) or error))

    def write(self, entry: Entry) -> None:
        values = dict({'loss': entry['loss']}, **{'dev/' + name: x for name, x in entry['dev'].items()})
        try:
            self.writer.add_summary(self.v1.Summary(value=[
                self.v1.Summary.Value(tag=name, simple_value=x) for name, x in values.items()]), entry['step'])
            self.writer.flush()
        except self.failures as error:
            raise self.error(error)

    def close(self) -> None:
        self.writer.close()


class History:
    """entries: {epoch, step, loss, dev, seconds} each, and the dev scores by their names beside them.

    Steps are batches from the begin of the run; loss is the mean of the epoch so far; seconds are those
    since the entry before, or since the training began. The first best entry by the metric is `best`.
    """

    def __init__(self, metric: str, batches: int, select: str = 'best', patience: Optional[int] = None):
        """batches: in an epoch; select: 'best' or 'last'; patience: entries in a row without a better one
        after which the run is through."""
        self.metric, self.batches, self.select, self.patience = metric, batches, select, patience
        self.entries: List[Entry] = []
        self.path: Optional[str] = None
        self.events: Optional[Events] = None

    def restore(self, entries: List[Entry]) -> None:
        """The entries of an earlier run; those of before had epochs alone, and no `step` and `dev`."""
        for entry in entries:
            scores = {name: value for name, value in entry.items()
                      if name not in ('epoch', 'step', 'loss', 'dev', 'seconds')}
            self.entries.append(dict(dict(step=entry['epoch'] * self.batches, dev=scores), **entry))

    def begin(self, path: str, tensorboard: str = '') -> None:
        """Write the entries that there are, and from now on each that is added.

        path: of a file with a JSON object a line; that of an earlier run stays until there is an entry.
        tensorboard: a folder for event files, if any.
        """
        if self.entries:
            write_text(path, ''.join(map(self.line, self.entries)))
        self.path = path
        if tensorboard:
            self.events = Events(tensorboard)
            for entry in self.entries:
                self.events.write(entry)

    def add(self, step: int, loss: float, scores: Dict[str, float], seconds: float) -> Entry:
        entry = dict(scores, epoch=-(-step // self.batches), step=step, loss=loss, dev=dict(scores),
                     seconds=round(seconds, 2))
        self.entries.append(entry)
        return entry

    def write(self) -> None:
        """The entry last added, whose state is kept by now: a run that goes on writes the file anew."""
        if len(self.entries) == 1:
            write_text(self.path, self.line(self.entries[0]))
        else:
            try:
                with open(self.path, 'a', encoding='utf-8') as writer:
                    writer.write(self.line(self.entries[-1]))
            except OSError as error:
                raise UserError('%s: %s' % (self.path, error.strerror))
        if self.events:
            self.events.write(self.entries[-1])

    def close(self) -> None:
        if self.events:
            self.events.close()

    @staticmethod
    def line(entry: Entry) -> str:
        return json_line(**{name: entry[name] for name in ('step', 'epoch', 'loss', 'dev', 'seconds')})

    @property
    def step(self) -> int:
        """Where the last entry is."""
        return self.entries[-1]['step'] if self.entries else 0

    @property
    def best(self) -> Optional[Entry]:
        return max(self.entries, key=lambda entry: entry['dev'][self.metric]) if self.entries else None

    @property
    def selected(self) -> Optional[Entry]:
        """That whose weights are kept."""
        return self.entries[-1] if self.entries and self.select == 'last' else self.best

    @property
    def is_over(self) -> bool:
        """Have there been as many entries without a better one as may be?"""
        if self.patience is None or not self.entries:
            return False
        return len(self.entries) - 1 - self.entries.index(self.best) >= self.patience

    def name(self, entry: Entry, epochs: Optional[int] = None) -> str:
        """How a user is told of an entry: an epoch's end by the epoch alone."""
        name = 'epoch %d' % entry['epoch'] + (' of %d' % epochs if epochs else '')
        return name + (', step %d' % entry['step'] if entry['step'] % self.batches else '')


def summary(entry: Entry) -> Entry:
    """{epoch, step, dev} of an entry."""
    return {name: entry[name] for name in ('epoch', 'step', 'dev')}
