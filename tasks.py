"""The registry of tasks: each is a script of that name beside this file."""
import importlib
import os
from typing import Optional

from fltuning.errors import UserError
from fltuning.task import Task

CLUE = ['afqmc', 'c3', 'chid', 'cluener', 'cmnli', 'cmrc2018', 'csl', 'iflytek', 'ocnli', 'tnews', 'wsc']
OWN = []  # yours: see CONTRIBUTING.md
NAMES = CLUE + OWN
ROOT = os.path.dirname(os.path.abspath(__file__))


def load_task(name: str, tokenizer=None, maxlen: Optional[int] = None) -> Task:
    """A task by its name; without a tokenizer it reads files, but encodes nothing.

    Raises UserError if there is no such task.
    """
    if name not in NAMES:
        raise UserError('task %r: expected one of %s' % (name, ', '.join(NAMES)))
    return getattr(importlib.import_module(name), name.upper())(tokenizer, maxlen)


def find_root(data_path: Optional[str] = None) -> str:
    """The folder with a folder for each task; where none is given, the one in snippets.py."""
    if data_path is None:
        from snippets import data_path  # here: the tools' tests set it
    if data_path == 'clue_dataset':
        return os.path.join(ROOT, data_path)
    if not os.path.isdir(data_path):
        raise UserError('data_path: no folder %s; expected one with a folder for each task'
                        % data_path)
    return data_path


def find_data(name: str, data_path: str, other_name: Optional[str] = None) -> str:
    """The folder of a task's files; the bundled sample where the default folder lacks them.

    other_name: that it may have as well, and is looked for first.
    """
    own = data_path == 'clue_dataset'
    folder = os.path.join(ROOT if own else '', data_path, name)
    other = os.path.join(ROOT if own else '', data_path, other_name or name)
    if os.path.isdir(folder) or os.path.isdir(other):
        return other if os.path.isdir(other) else folder
    if not own:
        raise UserError('data_path: no folder %s; expected the files of %s there' % (folder, name))
    print('%s: no files in clue_dataset/%s: using the bundled sample, which shows how things go and '
          'scores nothing (see clue_dataset/README.md)' % (name, name))
    return sample_folder(name)


def sample_folder(name: str) -> str:
    """Of a task's bundled sample."""
    return os.path.join(ROOT, 'clue_dataset', 'sample', name)
