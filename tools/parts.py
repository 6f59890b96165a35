"""The data of a grid's cells: so many records of a task, whole, and split to choose a learning rate on.

They are written into folders that are named by what is in them, without test files: no cell predicts those.
"""
import collections
import contextlib
import hashlib
import io
import os
import re
import zlib
from typing import Any, Dict, List, NamedTuple, Optional

from fltuning.classification import Classification
from fltuning.errors import UserError
from fltuning.files import file_digest, parse_json, read_json, read_lines, to_json, write_text
from fltuning.reading_comprehension import ReadingComprehension
from fltuning.records import find_strings
from fltuning.task import Task
from tasks import find_data, load_task, sample_folder

SPLIT = 5  # a fifth of the records, those of the same text together, is to choose the rate on
IDIOM = re.compile('#idiom[0-9]+#')


class Part(NamedTuple):
    """A data folder with one of the task in it.

    commonest: the share of dev's commonest label, of a classification task. tokens: of a sample, about.
    sample: whether it is of the bundled sample, which scores nothing.
    """
    data_path: str
    sha256: str
    records: Dict[str, int]
    commonest: Optional[float]
    tokens: float
    sample: bool = False


def prepare(name: str, data_path: str, folder: str, train: Optional[int] = None, dev: Optional[int] = None,
            split: bool = False) -> Dict[str, Part]:
    """{'whole': Part} of a task, with 'split' if a rate is to be chosen; written below `folder`.

    train, dev: the first records of each that are used; None for all. A record is a line; a dialogue of c3,
    a paragraph of cmrc2018; where there are fewer, that is printed. Split's dev set is a fifth of the train
    records; whether one is in it depends on its longest string alone, since in csl and wsc several records share a
    text. Raises UserError.
    """
    task, source = load_task(name), find_data(name, data_path)
    with contextlib.redirect_stdout(io.StringIO()):  # what the reader has to say, each run says again
        train_files = task.find_train_files(source)
        # Each record is checked before it is written elsewhere.
        task.load(source, train_files, True, train)
        task.load(source, task.dev_files, True, dev)
    found, wanted = read_records(task, source, train_files)[:train], {}
    wanted['whole'] = found, read_records(task, source, task.dev_files)[:dev]
    for kind, number, pairs in zip(('train', 'dev'), (train, dev), wanted['whole']):
        if number and len(pairs) < number:
            print('%s: %s: %d records are there, of the %d that are asked for' % (name, kind, len(pairs), number))
    if split:
        chosen = [is_chosen(record) for _, record in found]
        first = task.dev_files[0]
        wanted['split'] = ([pair for pair, there in zip(found, chosen) if not there],
                           [(first, record) for (_, record), there in zip(found, chosen) if there])
        if not all(wanted['split']):
            raise UserError('%s: %d records are too few to choose a rate on a fifth of them'
                            % (source, len(found)))
    answers = read_answers(source, train_files + task.dev_files) if name == 'chid' else None
    is_sample = os.path.samefile(source, sample_folder(name))
    return {part: write_part(task, folder, train_files, pairs, answers)._replace(sample=is_sample)
            for part, pairs in wanted.items()}


def is_chosen(record: Any) -> bool:
    longest = max(find_strings(record), key=len, default='')
    return zlib.crc32(longest.encode('utf-8')) % SPLIT == 0


def read_records(task: Task, folder: str, files: List[str]) -> list:
    """[(file, JSON value)] of all records, in their order."""
    found: list = []
    for file in files:
        path = os.path.join(folder, file)
        if isinstance(task, ReadingComprehension):
            values = [paragraph for article in read_json(path)['data'] for paragraph in article['paragraphs']]
        elif task.name == 'c3':
            values = read_json(path)
        else:
            values = [parse_json(line.decode('utf-8')) for _, line in read_lines(path) if line.strip()]
        found += [(file, value) for value in values]
    return found


def read_answers(folder: str, files: List[str]) -> Dict[str, Any]:
    """{blank: place of the right idiom}, of chid."""
    return {tag: answer for file in files
            for tag, answer in read_json(os.path.join(folder, answer_file(file))).items()}


def answer_file(file: str) -> str:
    return os.path.splitext(file)[0] + '_answer.json'


def file_text(task: Task, values: list) -> str:
    if isinstance(task, ReadingComprehension):
        return to_json({'data': [{'paragraphs': [value]} for value in values]}) + '\n'
    if task.name == 'c3':
        return to_json(values) + '\n'
    return ''.join(to_json(value) + '\n' for value in values)


def write_part(task: Task, folder: str, train_files: List[str], pairs: tuple,
               answers: Optional[Dict[str, Any]]) -> Part:
    """pairs: of train and dev, [(file, record)] each."""
    texts: Dict[str, str] = {}
    for files, records in zip((train_files, task.dev_files), pairs):
        for file in files:
            values = [value for name, value in records if name == file]
            texts[file] = file_text(task, values)
            if answers is not None:
                tags = [tag for value in values for text in value['content'] for tag in IDIOM.findall(text)]
                texts[answer_file(file)] = to_json({tag: answers[tag] for tag in tags}) + '\n'
    digest = hashlib.sha256(to_json(sorted(texts.items())).encode('utf-8')).hexdigest()
    data_path = os.path.join(folder, digest[:16])
    for file, text in texts.items():
        path = os.path.join(data_path, task.name, file)
        if not os.path.exists(path) or file_digest(path) != hashlib.sha256(text.encode('utf-8')).hexdigest():
            write_text(path, text)
    with contextlib.redirect_stdout(io.StringIO()):
        dev = task.load(os.path.join(data_path, task.name), task.dev_files, True)
    commonest = None
    if isinstance(task, Classification):
        commonest = max(collections.Counter(sample.label for sample in dev).values()) / len(dev)
    lengths = [sum(map(len, find_strings(record))) for _, record in pairs[0][:200]]
    return Part(data_path, digest, {'train': len(pairs[0]), 'dev': len(pairs[1])}, commonest,
                min(task.maxlen, sum(lengths) / len(lengths) + 3) * task.rows_per_sample)
