"""Result files as CLUE wants them: checked against the test files, packed (`scripts/submit`)."""
import collections
import json
import os
import zipfile

import datasets
from data import Record, parse_json, replacing, shorten
from errors import Parser, UserError, run_tool

SHOWN = 5  # errors of a file that are shown
NOT_SUBMITTED = ['cmrc2018_trial_predict.json']  # CLUE scores no trial questions


def check_text(task, test_path, text):
    """Yields what is wrong with the text of a result file, given its test file."""
    samples = task.read(test_path, False)
    if not text.strip():
        yield 'the file is empty'
        return
    if text.startswith('\ufeff'):
        yield 'line 1: expected no byte order mark'
        text = text[1:]
    if task.name == 'chid':
        expected = collections.OrderedDict((s.tag, len(s.candidates)) for s in samples)
        errors = check_object(expected, check_place, text)
    elif task.name == 'cmrc2018':
        expected = collections.OrderedDict(datasets.read_questions(test_path))
        errors = check_object(expected, check_span, text)
    else:
        errors = check_lines(task, samples, text)
    for error in errors:
        yield error


def check_lines(task, samples, text):
    """A file with a record a line, in the order of the test file."""
    expected = collections.OrderedDict((str(sample.id), sample) for sample in samples)
    lines = text[:-1].split('\n') if text.endswith('\n') else text.split('\n')
    if len(lines) != len(expected):
        yield 'expected %d lines, as the test file has, got %d' % (len(expected), len(lines))
    found = collections.OrderedDict()  # {id: its line}
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
            check_answer(task, expected[name], record)
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


def check_answer(task, sample, record):
    """Raises UserError unless the answer on a line is one that the task allows."""
    if task.name == 'cluener':
        if record.get('text') != sample.text:
            raise record.error('text', 'the text of the test file, ' + shorten(sample.text))
        task.entities(record)
        return
    labels = [str(i) for i in range(len(sample.choices))] if task.name == 'c3' else task.labels
    if record.get('label') not in labels:
        quoted = ['"%s"' % label for label in labels]
        raise record.error('label', 'one of ' + ', '.join(quoted) if len(quoted) < 20
                           else '%s to %s' % (quoted[0], quoted[-1]))


def check_object(expected, check, text):
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
    found, line, end = {}, 1, 0
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


def check_place(candidates, answer):
    if type(answer) is not int or not 0 <= answer < candidates:
        return 'the place of a candidate, 0 to %d' % (candidates - 1)


def check_span(passage, answer):
    if not isinstance(answer, str) or not answer.strip() or answer not in passage:
        return 'a text that is in the passage'


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


def wrong_names(names, wanted):
    """Yields (file, message) for files that look like results but have no name of CLUE's."""
    for name in names:
        start, predict, _ = name.lower().partition('predict')
        if predict and not name.endswith('.tmp') and name not in wanted + NOT_SUBMITTED:
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


def run(argv=None):
    """Checks and packs. Returns the exit code: 1 if a file that is there is wrong."""
    parser = Parser(prog='scripts/submit', description=__doc__)
    parser.add_argument('--data_path', help='folder with a folder for each task; the one that '
                                            'snippets.py names, unless said')
    parser.add_argument('--output_dir', help='where results/ is and submit.zip goes; the one that '
                                             'snippets.py names, unless said')
    settings = parser.parse_args(argv)
    root = datasets.find_root(settings.data_path)
    if settings.output_dir is None:
        from snippets import output_dir  # not above: it takes seconds, and --help does not need it
        settings.output_dir = output_dir
    folder = os.path.join(settings.output_dir, 'results')
    zip_path = os.path.join(settings.output_dir, 'submit.zip')
    if not os.path.isdir(folder):
        raise UserError('no folder %s: expected the results that scripts/run TASK writes' % folder)
    names = sorted(os.listdir(folder))

    wanted, good, wrong, missing = [], collections.OrderedDict(), 0, 0
    for task in map(datasets.load_task, datasets.PUBLISHED):
        for test_file, name in task.test_files.items():
            if name in NOT_SUBMITTED:
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
                    print('wrong    %s: %s' % (path, ' '.join(error.splitlines())))
                if len(errors) > SHOWN:
                    print('wrong    %s: and %d more' % (path, len(errors) - SHOWN))
            else:
                good[name] = content
                print('ok       %s' % name)
                # Right answers to a part of the test file, or to another version, score 0 as well.
                _, remark, whole = datasets.check_file(
                    task, test_path, datasets.PUBLISHED[task.name][1][test_file])
                if not whole:
                    print('note     %s: its test file %s: %s' % (name, test_path, remark))
    for name, error in wrong_names(names, wanted):
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


if __name__ == '__main__':
    run_tool('scripts/submit', run)
