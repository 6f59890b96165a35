"""What a cell will take, about: memory and work, and seconds from what finished cells took."""
import collections
import statistics
from typing import Any, Dict, Iterable, NamedTuple, Optional

from tools.methods import added_parameters, count_parameters

PROGRAM = 600 << 20  # bytes of TensorFlow without a model
START = 15.0  # seconds until a run's first step, and after its last
SPEED = 4e10  # floating-point operations a second and thread, until some cells have shown it


class Estimate(NamedTuple):
    """least: bytes of the model's numbers alone; memory: bytes, about; work: floating-point operations."""
    least: int
    memory: int
    work: float


def estimate(config: Dict[str, Any], method: str, size: Optional[int], share: float, settings: Dict[str, Any],
             part: Any) -> Estimate:
    """Of a cell. settings: batch_size, maxlen, epochs and classes of the task with those of the cell.

    A token costs two operations a parameter of the layers forwards, and as many where gradients go back.
    """
    hidden, inner, layers = (config[name] for name in ('hidden_size', 'intermediate_size', 'num_hidden_layers'))
    parameters, added = count_parameters(config), added_parameters(method, size, share, config)
    least = 4 * parameters + 16 * added  # of what is trained a gradient and two moments besides
    kept = 4 * layers * (12 * hidden + 3 * inner) * part.tokens  # of a sample, for its gradients
    train, dev = [min(part.records[name], settings.get('limit') or part.records[name])
                  for name in ('train', 'dev')]
    if settings.get('few_shot'):
        train = min(train, settings['few_shot'] * settings['classes'])
        dev = min(dev, (settings.get('few_shot_dev') or dev) * settings['classes'])
    evaluations = settings['epochs']
    if settings.get('eval_every'):
        steps = -(-train // settings['batch_size']) * settings['epochs']
        evaluations += steps // settings['eval_every']
    sample = 2.0 * part.tokens * (layers * (4 * hidden * hidden + 2 * hidden * inner) + added)
    return Estimate(least, PROGRAM + least + int(settings['batch_size'] * kept),
                    sample * (2 * train * settings['epochs'] + dev * evaluations))


class Clock:
    """Seconds of cells to come: what their work would take, times how much longer finished ones took.

    Those of the same task and method, where there are any: how long a batch waits for other things than its
    operations is a matter of its length, and of what is trained.
    """

    def __init__(self):
        self.ratios = collections.defaultdict(lambda: collections.deque(maxlen=200))

    def add(self, cell: Any, result: Dict[str, Any]) -> None:
        """Of a cell that has finished."""
        ratio = result['seconds'] / guess(cell.estimate.work, result['threads'])
        for kind in (kind_of(cell), None):
            self.ratios[kind].append(ratio)

    def seconds(self, cell: Any, threads: int) -> float:
        known = self.ratios.get(kind_of(cell)) or self.ratios.get(None) or [1.0]
        return guess(cell.estimate.work, threads) * statistics.median(known)

    def left(self, cells: Iterable[Any], threads: int, processes: int) -> float:
        """Of cells that run side by side."""
        return sum(self.seconds(cell, threads) for cell in cells) / max(1, processes)


def kind_of(cell: Any) -> tuple:
    return cell.labels['task'], cell.labels['method']


def guess(work: float, threads: int) -> float:
    """Seconds, before anything is known of the machine."""
    return START + work / SPEED / threads


def duration(seconds: float) -> str:
    """
    >>> duration(59), duration(3599), duration(7300)
    ('59 s', '60 min', '2 h 2 min')
    """
    if seconds < 60:
        return '%d s' % seconds
    minutes = round(seconds / 60)
    return '%d min' % minutes if minutes <= 60 else '%d h %d min' % divmod(minutes, 60)
