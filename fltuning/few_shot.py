"""Few-shot: a draw of so many records a class, apart from the seed of the training."""
import os
from typing import List, Optional, Sequence

import numpy as np

from fltuning.errors import UserError
from fltuning.task import Task

SPLITS = ['0', '1', '2', '3', '4', 'few_all']  # of FewCLUE
PUBLIC_TEST = 'test_public.json'  # FewCLUE's test set with labels
SHOWN = 5  # classes that are named


def draw(task: Task, folder: str, files: Sequence[str], count: int, seed: int, limit: Optional[int] = None,
         stream: int = 0) -> List[int]:
    """The numbers of `count` records of each class, sorted; of all records in tasks without classes.

    Numbers are those of the records of the files, one file after the other, from 0, without those that
    the task leaves out; with `limit`, those of the first samples. Each class is shuffled by a generator of
    its own, a function of seed, stream and class, and the first of it are taken: so the records of a
    smaller draw are among those of a larger one. Of a class with fewer all are taken, and a line says so.
    stream: 0 for train, 1 for dev.
    """
    classes: dict = {}  # {index of the class, or None: numbers of its records}
    last = -1
    for number, sample in task.number_records(
            task.read_files(folder, files, True, limit, write=lambda text: None)):
        if number > last:
            classes.setdefault(task.class_of(sample), []).append(number)
            last = number
    has_classes = None not in classes
    names = range(len(task.labels)) if has_classes else [None]
    drawn = []
    for place, name in enumerate(names):
        order = np.random.RandomState([seed, stream, place]).permutation(classes.get(name, []))
        drawn += [int(number) for number in order[:count]]
    few = [(len(classes.get(name, [])), name) for name in names if len(classes.get(name, [])) < count]
    if few:
        print('%s: fewer than %d records %s: %s; all of those are taken' % (
            os.path.join(folder, ', '.join(files)), count, 'of some labels' if has_classes else 'in all',
            tell_few(few, task.labels)))
    return sorted(drawn)


def tell_few(few, labels):
    """
    >>> tell_few([(3, 1), (0, 2)], ['a', 'b', 'c'])
    '3 of b, 0 of c'
    """
    shown = ['%d' % count if name is None else '%d of %s' % (count, labels[name])
             for count, name in few[:SHOWN]]
    return ', '.join(shown) + (' and %d labels more' % (len(few) - SHOWN) if len(few) > SHOWN else '')


def check_few_clue(task: Task, folder: str) -> None:
    """Raises UserError unless a folder has FewCLUE's files of the task's split."""
    for name in task.train_files + task.dev_files:
        if not os.path.exists(os.path.join(folder, name)):
            raise UserError('few_shot_split: no file %s; expected the files of FewCLUE there: put them into a '
                            'folder of their own, DIR/%s, and name it by --data_path DIR'
                            % (os.path.join(folder, name), task.few_clue))


def load_public_test(task: Task, folder: str, limit: Optional[int] = None) -> list:
    """The samples of FewCLUE's public test set; none where it is not there, or has no labels."""
    path = os.path.join(folder, PUBLIC_TEST)
    if not os.path.exists(path):
        return []
    if not task.is_labelled(next(iter(task.read_records(path)))):
        print('%s: without labels: not scored' % path)
        return []
    return task.load(folder, [PUBLIC_TEST], True, limit)
