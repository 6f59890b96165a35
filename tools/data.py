"""CLUE's data sets: what is there, is it whole, where it comes from (`scripts/data`)."""
import contextlib
import io
import itertools
import os
from typing import List, Optional, Tuple

from fltuning.errors import Parser, UserError
from fltuning.files import file_digest
from fltuning.task import Task
from tasks import CLUE, find_root, load_task

DOWNLOADS = 'https://storage.googleapis.com/cluebenchmark/tasks/'
DATA_PATH_HELP = 'folder with a folder for each task; the one that snippets.py names, unless said'


def other_md5(task: Task, path: str) -> str:
    """What a file's MD5 is, where it is not the published one; '' where it is, or none is known."""
    expected = task.published[os.path.basename(path)].md5
    found = expected and file_digest(path, 'md5')
    return '' if found == expected else 'the MD5 is %s, as published it is %s' % (found, expected)


def check_file(task: Task, path: str, checksums: bool = True) -> Tuple[Optional[int], str, bool]:
    """(records or None, remark, whether the file is as published).

    checksums: whether one that reads and is complete must have the published MD5, too, where that is known.
    """
    if not os.path.exists(path):
        return None, 'missing', False
    said, published = io.StringIO(), task.published[os.path.basename(path)].records
    try:
        with contextlib.redirect_stdout(said):  # what the reader has to say goes into the table
            samples = task.read(path, os.path.basename(path) not in task.test_files)
    except UserError as error:
        return None, 'WRONG: %s' % error, False
    records = task.count_records(samples, path)
    if records != published:
        difference = '%s %s' % (format(abs(records - published), ','),
                                'fewer' if records < published else 'more')
        return records, 'WRONG: %s than published' % difference, False
    other = checksums and other_md5(task, path)
    if other:
        return records, 'OTHER: complete, but %s' % other, False
    notes = [line.replace(path + ': ', '') for line in said.getvalue().splitlines()]
    return records, '; '.join(['ok'] + notes), True


def check_task(task: Task, root: str) -> List[str]:
    """Prints a task's rows of the table. Returns hints on the files that are missing or wrong."""
    folder, wrong, missing = os.path.join(root, task.name), [], False
    for file, published in task.published.items():
        records, remark, right = check_file(task, os.path.join(folder, file))
        print_row(task.name, file, '-' if records is None else format(records, ','),
                  format(published.records, ','), task.unit, remark)
        if not right:
            wrong.append(file)
        missing = missing or remark == 'missing'
    hints = []
    if wrong:
        hints.append('%s: %s as published: from %s%s into %s' % (
            task.name, ', '.join(wrong), DOWNLOADS, task.archive, folder))
    if missing and os.path.isdir(folder):
        # A file under a wrong name is missing too.
        others = sorted(set(os.listdir(folder)) - set(task.published))
        hints.append('%s: also there: %s' % (task.name, ', '.join(others) or 'nothing'))
    return hints


def print_row(*fields: str) -> None:
    print(('%-9s %-15s %9s %9s %-9s  %s' % fields).rstrip(), flush=True)


def run(argv: Optional[List[str]] = None) -> int:
    """Prints the table. Returns the exit code: 0 if every file is there and as published."""
    parser = Parser(prog='scripts/data', description=__doc__)
    parser.add_argument('--data_path', help=DATA_PATH_HELP)
    parser.add_argument('--task', nargs='+', choices=CLUE, default=CLUE, metavar='NAME',
                        help='only these tasks')
    settings = parser.parse_args(argv)
    root = find_root(settings.data_path)
    print_row('task', 'file', 'records', 'published', 'counted', '')
    hints = [check_task(load_task(name), root) for name in settings.task]
    for hint in itertools.chain(*hints):
        print(hint)
    wrong = [name for name, found in zip(settings.task, hints) if found]
    print('%d of %d tasks are as CLUE published them%s' % (
        len(hints) - len(wrong), len(hints), '; not: ' + ', '.join(wrong) if wrong else ''))
    return 1 if wrong else 0
