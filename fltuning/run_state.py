"""weights/TASK.state: what a run that was stopped goes on from."""
from typing import Any, Callable, Dict, Tuple

from fltuning import deltas
from fltuning.deltas import Values
from fltuning.history import Place


def save(path: str, values: Values, selected: Values, belongs_to: Dict[str, Any]) -> None:
    """values: of the trainer's state; selected: of the weights that are kept; belongs_to: what it belongs to,
    the history and the times."""
    values = dict(values, **{'best/' + name: value for name, value in selected.items()})
    deltas.save_delta(path, values, belongs_to, deltas.STATE)


def load(path: str, trainer: Any, ours: Dict[str, Any], of_before: Dict[str, Any],
         frozen_sha256: Callable[[], str]) -> Tuple[Values, Dict[str, Any]]:
    """Sets a trainer's state; returns the weights that are kept, and what the file says beside.

    ours: what the state must belong to; of_before: values of settings that earlier files lack.
    Raises UserError, and sets nothing, if it belongs to something else or is damaged.
    """
    from fltuning.weights import check_values
    values, theirs = deltas.read_delta(path, deltas.STATE)
    theirs = {**of_before, 'backbone_dropout': ours['backbone_dropout'], 'place': list(Place()),
              'seconds': 0.0, 'train_seconds': 0.0, **theirs}
    deltas.check_identity(path, theirs, ours, frozen_sha256)
    deltas.check_fields(path, theirs, deltas.STATE_FIELDS)
    check_values(path, trainer.state + [('best/' + name, weight) for name, weight in trainer.weights], values)
    trainer.set_state(values)
    return {name: values['best/' + name] for name, _ in trainer.weights}, theirs
