"""Result files as CLUE wants them: checked against the test files, packed (`scripts/submit`)."""
import os
import zipfile
from typing import Dict, List, Optional

import snippets
from fltuning.errors import Parser, UserError, one_line
from fltuning.few_shot import SPLITS
from fltuning.files import replacing
from fltuning.task import few_clue_result
from tasks import CLUE, OWN, find_root, load_task
from tools import data
from tools.data import DATA_PATH_HELP

SHOWN = 5  # errors of a file that are shown


def check_text(task, test_path, text):
    """Yields what is wrong with the text of a result file, given its test file."""
    if not text.strip():
        yield 'the file is empty'
        return
    if text.startswith('\ufeff'):
        yield 'line 1: expected no byte order mark'
        text = text[1:]
    yield from task.check_submission(test_path, text)


def check_file(task, test_path, path):
    """(the bytes of a result file, what is wrong with it, a message each)."""
    if not os.path.exists(test_path):
        return None, ['cannot be checked: no test file %s; see scripts/data (predictions of the '
                      'bundled sample are not for CLUE)' % test_path]
    try:
        with open(path, 'rb') as reader:
            content = reader.read()
        return content, list(check_text(task, test_path, content.decode('utf-8')))
    except OSError as error:
        return None, [error.strerror]
    except UnicodeDecodeError as error:
        return None, ['line %d: expected UTF-8' % (content.count(b'\n', 0, error.start) + 1)]
    except UserError as error:  # about the test file
        return None, ['cannot be checked: %s' % error]


def wrong_names(names, wanted, not_submitted):
    """Yields (file, message) for files that look like results but have no name of CLUE's."""
    for name in names:
        start, predict, _ = name.lower().partition('predict')
        if predict and not name.endswith('.tmp') and name not in wanted + not_submitted:
            near = [other for other in wanted if start and start.rstrip('_') in other]
            yield name, 'CLUE knows no such file: expected %s' % ' or '.join(near or wanted)


def pack(path, contents):
    """Writes {name: bytes} as a flat zip; the same contents give the same zip."""
    with replacing(path) as temporary:
        with zipfile.ZipFile(temporary, 'w') as writer:
            for name, content in contents.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16  # else unpacked files may be read by nobody
                writer.writestr(info, content)


def run(argv: Optional[List[str]] = None) -> int:
    """Checks and packs. Returns the exit code: 1 if a file that is there is wrong."""
    parser = Parser(prog='scripts/submit', description=__doc__)
    parser.add_argument('--data_path', help=DATA_PATH_HELP)
    parser.add_argument('--output_dir', default=snippets.output_dir,
                        help='where results/ is and submit.zip goes; the one that snippets.py names, '
                             'unless said')
    settings = parser.parse_args(argv)
    root = find_root(settings.data_path)
    folder = os.path.join(settings.output_dir, 'results')
    zip_path = os.path.join(settings.output_dir, 'submit.zip')
    if not os.path.isdir(folder):
        raise UserError('no folder %s: expected the results that scripts/run TASK writes' % folder)
    names = sorted(os.listdir(folder))

    wanted, wrong, missing = [], 0, 0
    good: Dict[str, bytes] = {}
    not_submitted = []
    for task in map(load_task, OWN):
        for name in set(task.test_files.values()) & set(names):
            not_submitted.append(name)
            print('left out %s: %s is no task of CLUE' % (name, task.name))
    for task in map(load_task, CLUE):
        not_submitted += [few_clue_result(task.few_clue, split) for split in SPLITS if task.few_clue]
        for test_file, name in task.test_files.items():
            if name in task.not_submitted:
                not_submitted.append(name)
                continue
            wanted.append(name)
            test_path = os.path.join(root, task.name, test_file)
            if name not in names:
                missing += 1
                print('missing  %s: %s' % (name, 'scripts/run %s writes it' % task.name
                                           if os.path.exists(test_path)
                                           else 'needs %s; see scripts/data' % test_path))
                continue
            path = os.path.join(folder, name)
            content, errors = check_file(task, test_path, path)
            if errors:
                wrong += 1
                for error in errors[:SHOWN]:
                    print('wrong    %s: %s' % (path, one_line(error)))
                if len(errors) > SHOWN:
                    print('wrong    %s: and %d more' % (path, len(errors) - SHOWN))
            else:
                good[name] = content
                print('ok       %s' % name)
                # Right answers to a part of the test file, or to another version, score 0 as well.
                _, remark, whole = data.check_file(task, test_path)
                if not whole:
                    print('note     %s: its test file %s: %s' % (name, test_path, remark))
    for name, error in wrong_names(names, wanted, not_submitted):
        wrong += 1
        print('wrong    %s: %s' % (os.path.join(folder, name), error))

    if wrong:
        print('%s is not written: %d wrong%s' % (
            zip_path, wrong,
            '; the one that is there is of an earlier run' if os.path.exists(zip_path) else ''))
        return 1
    if not good:
        raise UserError('%s: no result files; scripts/run TASK writes them' % folder)
    pack(zip_path, good)
    print('wrote %s: %d files, %d missing' % (zip_path, len(good), missing))
    return 0

