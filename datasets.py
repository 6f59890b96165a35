"""CLUE's data sets: what is there, is it whole, where it comes from (`scripts/data`)."""
import contextlib
import importlib
import io
import os

from data import Record, read_json
from errors import Parser, UserError, run_tool

ROOT = os.path.dirname(os.path.abspath(__file__))
DOWNLOADS = 'https://storage.googleapis.com/cluebenchmark/tasks/'

# {task: (CLUE's download, {file: its records})}, as CLUE published them. A record is a question in
# c3 and cmrc2018 and a line in the others; in chid a line has several texts and blanks. Lines
# labelled '-', 50 of 3,000 in ocnli's dev.json, are left out by the readers and not counted here.
PUBLISHED = {
    'afqmc': ('afqmc_public.zip', {'train.json': 34334, 'dev.json': 4316, 'test.json': 3861}),
    'c3': ('c3_public.zip', {
        'm-train.json': 6013, 'd-train.json': 5856, 'm-dev.json': 1991, 'd-dev.json': 1825,
        'test1.0.json': 3892, 'test1.1.json': 1625}),
    'chid': ('chid_public.zip', {
        'train.json': 84709, 'dev.json': 3218, 'test1.0.json': 3231, 'test1.1.json': 3447}),
    'cluener': ('cluener_public.zip', {'train.json': 10748, 'dev.json': 1343, 'test.json': 1345}),
    'cmnli': ('cmnli_public.zip', {'train.json': 391783, 'dev.json': 12241, 'test.json': 13880}),
    'csl': ('csl_public.zip', {'train.json': 20000, 'dev.json': 3000, 'test.json': 3000}),
    'iflytek': ('iflytek_public.zip', {'train.json': 12133, 'dev.json': 2599, 'test.json': 2600}),
    'tnews': ('tnews_public.zip', {
        'train.json': 53360, 'dev.json': 10000, 'test1.0.json': 10000, 'test.json': 10000}),
    'wsc': ('cluewsc2020_public.zip', {
        'train.json': 1244, 'dev.json': 304, 'test1.0.json': 290, 'test.json': 2574}),
    'ocnli': ('ocnli_public.zip', {'train.50k.json': 50437, 'dev.json': 2950, 'test.json': 3000}),
    'cmrc2018': ('cmrc2018_public.zip', {
        'train.json': 10142, 'dev.json': 3219, 'trial.json': 1002, 'test.json': 2000}),
}
UNITS = {'c3': 'questions', 'cmrc2018': 'questions'}


def load_task(name, tokenizer=None, maxlen=None):
    """A task by its name; without a tokenizer it reads files, but encodes nothing."""
    return getattr(importlib.import_module(name), name.upper())(tokenizer, maxlen)


def find_root(data_path):
    """The folder with a folder for each task; where none is given, the one in snippets.py."""
    if data_path is None:
        from snippets import data_path  # not above: it takes seconds, and --help does not need it
    if data_path == 'clue_dataset':
        return os.path.join(ROOT, data_path)
    if not os.path.isdir(data_path):
        raise UserError('data_path: no folder %s; expected one with a folder for each task'
                        % data_path)
    return data_path


def read_questions(path):
    """[(question id, passage)] of a file in SQuAD's layout."""
    return [(str(question.get_id()), paragraph.get_text('context'))
            for article in Record(read_json(path), path).get_records('data')
            for paragraph in article.get_records('paragraphs')
            for question in paragraph.get_records('qas')]


def count(name, samples, path):
    """The records behind the samples of a file, of which chid and cmrc2018 make several."""
    if name == 'chid':
        return len({sample.line for sample in samples})
    return len(read_questions(path) if name == 'cmrc2018' else samples)


def check_file(task, path, published):
    """(records or None, remark, whether the file is as published)."""
    if not os.path.exists(path):
        return None, 'missing', False
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # what the reader has to say goes into the table
            samples = task.read(path, os.path.basename(path) not in task.test_files)
    except UserError as error:
        return None, 'WRONG: %s' % error, False
    records = count(task.name, samples, path)
    if records != published:
        difference = '%s %s' % (format(abs(records - published), ','),
                                'fewer' if records < published else 'more')
        return records, 'WRONG: %s than published' % difference, False
    notes = [line.replace(path + ': ', '') for line in said.getvalue().splitlines()]
    return records, '; '.join(['ok'] + notes), True


def check_task(name, root):
    """Prints a task's rows of the table. Returns hints on the files that are missing or wrong."""
    download, files = PUBLISHED[name]
    folder = os.path.join(root, name)
    task, wrong, missing = load_task(name), [], False
    for file, published in files.items():
        records, remark, right = check_file(task, os.path.join(folder, file), published)
        print_row(name, file, '-' if records is None else format(records, ','),
                  format(published, ','), UNITS.get(name, 'lines'), remark)
        if not right:
            wrong.append(file)
        missing = missing or remark == 'missing'
    hints = []
    if wrong:
        hints.append('%s: %s as published: from %s%s into %s' % (
            name, ', '.join(wrong), DOWNLOADS, download, folder))
    if missing and os.path.isdir(folder):
        # A file under a wrong name is missing too.
        others = sorted(set(os.listdir(folder)) - set(files))
        hints.append('%s: also there: %s' % (name, ', '.join(others) or 'nothing'))
    return hints


def print_row(*fields):
    print(('%-9s %-15s %9s %9s %-9s  %s' % fields).rstrip(), flush=True)


def run(argv=None):
    """Prints the table. Returns the exit code: 0 if every file is there, reads and is complete."""
    parser = Parser(prog='scripts/data', description=__doc__)
    parser.add_argument('--data_path', help='folder with a folder for each task; the one that '
                                            'snippets.py names, unless said')
    parser.add_argument('--task', nargs='+', choices=list(PUBLISHED), default=list(PUBLISHED),
                        metavar='NAME', help='only these tasks')
    settings = parser.parse_args(argv)
    root = find_root(settings.data_path)
    print_row('task', 'file', 'records', 'published', 'counted', '')
    hints = [check_task(name, root) for name in settings.task]
    for hint in sum(hints, []):
        print(hint)
    wrong = [name for name, found in zip(settings.task, hints) if found]
    print('%d of %d tasks are as CLUE published them%s' % (
        len(hints) - len(wrong), len(hints), '; not: ' + ', '.join(wrong) if wrong else ''))
    return 1 if wrong else 0


if __name__ == '__main__':
    run_tool('scripts/data', run)
