"""What all kinds of CLUE task share: samples -> batches -> head -> loss -> score -> submission.

A task script subclasses a kind, says where its files are and how they are read and encoded, and
sets its hyperparameters. Reading, batching, scoring and submissions need no TensorFlow: what a kind
adds to a backbone stands apart, in heads.py.
"""
import array
import collections
import collections.abc
import itertools
import os
from typing import (
    Any, Callable, Container, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple,
    TYPE_CHECKING)

import numpy as np

from fltuning import submissions
from fltuning.errors import UserError
from fltuning.records import Record, read_json_lines, shorten

if TYPE_CHECKING:
    from fltuning.heads import Head


class Encoded(NamedTuple):
    """A sample as numbers."""
    rows: List[np.ndarray]  # token ids, (length,) each
    label: Any  # as the kind defines it


class EncodedList(collections.abc.Sequence):
    """`Encoded`s, their token ids end to end in one array: an object a row would take ten times the memory.

    >>> rows = EncodedList([Encoded([np.array([2, 7, 3], 'int32')], 1)], 'H')
    >>> rows[0]
    Encoded(rows=[array([2, 7, 3], dtype=int32)], label=1)
    """

    def __init__(self, encoded: Iterable[Encoded], typecode: str = 'i'):
        """typecode: of `array.array`; 'H' where token ids are below 65,536."""
        self.ids = array.array(typecode)
        self.ends, self.rows = array.array('q', [0]), array.array('q', [0])  # where each row, sample ends
        self.labels: list = []
        for sample in encoded:
            for row in sample.rows:
                self.ids.frombytes(row.astype(typecode).tobytes())
                self.ends.append(len(self.ids))
            self.rows.append(len(self.ends) - 1)
            self.labels.append(sample.label)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]  # IndexError past the end
        return Encoded([np.array(self.ids[self.ends[row]:self.ends[row + 1]], 'int32')
                        for row in range(self.rows[i], self.rows[i + 1])], self.labels[i])


class Published(NamedTuple):
    """What CLUE published of a file."""
    records: int
    md5: Optional[str] = None  # None where no genuine copy, or several different ones, are known


class Task:
    """What all kinds share. A subclass sets these, a task script may change them.

    name: of the task, of its script and of its folder of data.
    test_files: {file to predict: file in CLUE's submission format}.
    not_submitted: those of the latter that CLUE does not score.
    archive: CLUE's download; published: {file: `Published`}; unit: what is counted there.
    metric: the score that CLUE reports, by which the best epoch is chosen.
    rows_per_sample: rows of token ids that belong to one sample.
    first_only: the head reads the vector of [CLS] alone.
    label_ndim, label_dtype: of the labels of a batch.
    output_name: what the model's output is, in exports.
    transformers_class: ending of the class in `transformers` that has this head; None for no such.
    one_each: a record makes one sample, which has its id.
    next_id: of a record without one; None, they must have one.
    few_clue: the task's folder in FewCLUE, where that has the task.
    """

    name = ''
    labels: List[str] = []
    train_files, dev_files = ['train.json'], ['dev.json']
    test_files: Dict[str, str] = {}
    not_submitted: Sequence[str] = ()
    archive = ''
    published: Dict[str, Published] = {}
    unit = 'lines'
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 128, 32, 1, 10, 1e-4
    metric = 'accuracy'
    rows_per_sample = 1
    first_only = True
    label_ndim, label_dtype = 2, 'int32'
    output_name = 'scores'
    transformers_class: Optional[str] = None
    one_each = True
    next_id: Optional[int] = None
    few_clue: Optional[str] = None
    split: Optional[str] = None  # of FewCLUE, where its files are read: see `use_few_clue`
    seen: Optional[Dict[str, str]] = None  # {id: where it is}, while a file to predict is read

    def __init__(self, tokenizer=None, maxlen: Optional[int] = None):
        """tokenizer: a `FastTokenizer`; without one, files are read, but nothing is encoded."""
        self.tokenizer = tokenizer
        self.maxlen = maxlen or self.maxlen
        self.counts: collections.Counter = collections.Counter()  # of what `remarks` tells

    # For the task script to write.

    def parse(self, records: Iterable[Record], labelled: bool) -> Iterable:
        """The samples of some `Record`s, one after the other. Raises UserError naming file, line and field."""
        raise NotImplementedError

    def encode(self, sample) -> Encoded:
        """One sample as `Encoded`."""
        raise NotImplementedError

    # For the kind to write.

    def class_of(self, sample) -> Optional[int]:
        """The index in `labels` of a labelled sample's class; None in tasks without classes."""
        return None

    def record_key(self, sample) -> Any:
        """What the samples of one record (in `unit`s) have in common; None where each has its own."""
        return None

    def head(self) -> 'Head':
        """What is put on the backbone, from heads.py: to be imported here, since it loads TensorFlow."""
        raise NotImplementedError

    def decode(self, outputs: np.ndarray, batch: List[Encoded]) -> list:
        """What the model says of each sample of a batch, given its output array."""
        raise NotImplementedError

    def score(self, samples: list, results: list) -> Dict[str, float]:
        """{metric: value}, the first the one CLUE reports; values from 0 to 1."""
        raise NotImplementedError

    def answers(self, samples: list, results: list) -> Optional[Iterable[Tuple[Any, int, int]]]:
        """(its text, points, points that there were to get) of each answer: `metric` is the points' ratio of sums.

        What is of one text has it in common, so that it can be counted as one; None where each has its own.
        None for a score that is no such ratio.
        """
        return None

    def submission(self, samples: list, results: list) -> str:
        """The text of a result file in CLUE's format."""
        raise NotImplementedError

    def check_answer(self, sample, record: Record) -> None:
        """Raises UserError unless the answer on a line of a result file is one that the task allows."""
        raise NotImplementedError

    def predictions(self, samples: list, results: list) -> List[Dict[str, Any]]:
        """What a user wants to know of each sample: JSON-able dicts with ids and probabilities."""
        raise NotImplementedError

    # Shared.

    def text_of(self, sample) -> Any:
        """What identifies the text that a sample shares with others; None where each has its own."""
        return None

    def points(self, samples: list, results: list) -> Optional[Tuple[List[int], List[int]]]:
        """(points, points to get) of each text of some samples, in order: what `answers` says, summed over each.

        How much the score would change on other texts is seen from them.
        """
        answers, sums = self.answers(samples, results), {}
        if answers is None:
            return None
        for number, (text, points, most) in enumerate(answers):
            both = sums.setdefault(number if text is None else (text,), [0, 0])
            both[0] += points
            both[1] += most
        return [got for got, _ in sums.values()], [possible for _, possible in sums.values()]

    def read(self, path: str, labelled: bool, limit: Optional[int] = None) -> list:
        """The samples of one file, the first `limit` if given. See `read_samples`."""
        samples = list(itertools.islice(self.read_samples(path, labelled), limit))
        self.remark(path)
        return samples

    def read_samples(self, path: str, labelled: bool) -> Iterator:
        """The samples of one file, as it is read, and no further than they are asked for.

        Raises UserError naming file, line and field; also for an id that comes twice in a file to predict.
        """
        self.counts.clear()
        self.seen = None if labelled else {}
        try:
            yield from self.parse_file(path, labelled)
        finally:
            self.seen = None

    def parse_file(self, path: str, labelled: bool) -> Iterable:
        """The samples of one file, whose labels may be in another."""
        return self.parse(self.read_records(path), labelled)

    def read_records(self, path: str, keep_bad: bool = False) -> Iterable[Record]:
        """The records of a file: one JSON object a line, unless a task has another format.

        keep_bad: what is no record gives the UserError that says so, instead of raising it.
        """
        return read_json_lines(path, keep_bad)

    def remarks(self) -> Iterator[str]:
        """What a user should know of the file last read, or encoded, from `counts`."""
        return iter(())

    def remark(self, path: str, write: Callable[[str], Any] = print) -> None:
        for text in self.remarks():
            write('%s: %s' % (path, text))
        self.counts.clear()

    def record(self, value: Any, where: str) -> Record:
        """One value of such a file as `Record`; `where` is how errors call it."""
        return Record(value, where)

    def count_records(self, samples: list, path: str) -> int:
        """The records behind the samples of a file, in `unit`s."""
        return len(samples)

    def get_id(self, record: Record):
        """A record's id; where it may be left out, `next_id`."""
        default = self.next_id
        if default is not None:
            self.next_id = default + 1
        name = record.get_id(default=default)
        self.see('id', name, record)
        return name

    def see(self, field: str, name: Any, record: Record) -> None:
        """Raises UserError if a file to predict has an id twice: its result file could not tell which."""
        if self.seen is not None:
            if str(name) in self.seen:
                raise UserError('%s: field "%s": expected each id once, got %s, which is there already (%s)'
                                % (record.where, field, shorten(name), self.seen[str(name)]))
            self.seen[str(name)] = record.where

    def find_train_files(self, folder: str) -> List[str]:
        return self.train_files

    def use_few_clue(self, split: str) -> None:
        """Have this task read FewCLUE's files of a split: '0' to '4', or 'few_all'.

        Raises UserError if FewCLUE has no such task.
        """
        if self.few_clue is None:
            raise UserError('few_shot_split: FewCLUE has no %s' % self.name)
        self.split = split
        self.train_files, self.dev_files = ['train_%s.json' % split], ['dev_%s.json' % split]
        self.test_files = {'test.json': few_clue_result(self.few_clue, split)}

    def is_labelled(self, record: Record) -> bool:
        """Has a record of FewCLUE's public test set a label?"""
        return 'label' in record

    def to_predict(self, samples: list) -> list:
        """The samples to ask the model about: the same, unless a kind has labels in its inputs."""
        return samples

    def collate(self, batch: List[Encoded]) -> Tuple[List[np.ndarray], np.ndarray]:
        """([token ids, segment ids], labels) of a batch.

        Token ids are (rows, length), where a sample has one row, or one for each choice; segment ids
        are 0 everywhere, as in the original.
        """
        token_ids = pad([row for encoded in batch for row in encoded.rows])
        labels = np.array([[e.label] for e in batch for _ in e.rows], self.label_dtype)
        return [token_ids, np.zeros_like(token_ids)], labels

    def read_files(self, folder: str, files: Sequence[str], labelled: bool, limit: Optional[int] = None,
                   write: Callable[[str], Any] = print) -> Iterator:
        """The samples of some files of a folder; with `limit` the first, and no more is read."""
        left = limit
        for name in files:
            path = os.path.join(folder, name)
            for sample in itertools.islice(self.read_samples(path, labelled), left):
                yield sample
                left = left and left - 1
            self.remark(path, write)
            if left == 0:
                break

    def number_records(self, samples: Iterable) -> Iterator[Tuple[int, Any]]:
        """(number of its record, sample) of each, from 0."""
        number, last = -1, None
        for sample in samples:
            key = self.record_key(sample)
            number += key is None or key != last
            last = key
            yield number, sample

    def of_records(self, samples: Iterable, records: Optional[Container[int]]) -> Iterable:
        """The samples of the records with these numbers; all of them, if None."""
        if records is None:
            return samples
        return (sample for number, sample in self.number_records(samples) if number in records)

    def load(self, folder: str, files: Sequence[str], labelled: bool, limit: Optional[int] = None,
             records: Optional[Container[int]] = None) -> list:
        """The samples of some files of a folder, of these records. See `read_files` and `of_records`."""
        samples = list(self.of_records(self.read_files(folder, files, labelled, limit), records))
        self.check_any(samples, folder, files)
        return samples

    def load_encoded(self, folder: str, files: Sequence[str], labelled: bool, limit: Optional[int] = None,
                     records: Optional[Container[int]] = None) -> EncodedList:
        """The same as `EncodedList`; the samples themselves are not kept."""
        small = len(self.tokenizer._token_dict) <= 1 << 16
        samples = self.of_records(self.read_files(folder, files, labelled, limit), records)
        encoded = EncodedList(map(self.encode, samples), 'H' if small else 'i')
        self.check_any(encoded, folder, files)
        return encoded

    def check_any(self, samples: Sequence, folder: str, files: Sequence[str]) -> None:
        if not samples:
            raise UserError('%s: no sample: every record is left out'
                            % os.path.join(folder, ', '.join(files)))

    def errors(self, samples: list, results: list) -> Optional[Iterable[tuple]]:
        """Rows (text, gold, predicted, probability) of the samples that are wrong, or None."""
        return None

    def check_submission(self, test_path: str, text: str) -> Iterator[str]:
        """What is wrong with the text of a result file, a message each, given its test file."""
        return submissions.check_lines(list(self.read_samples(test_path, False)), text, self.check_answer)


def few_clue_result(folder: str, split: str) -> str:
    """The name of a result file as FewCLUE has it.

    >>> few_clue_result('tnews', '0'), few_clue_result('cluewsc', 'few_all')
    ('tnewsf_predict_0.json', 'cluewscf_predict_all.json')
    """
    return '%sf_predict_%s.json' % (folder, split.replace('few_', ''))


def pad(rows: Sequence[np.ndarray], dtype: str = 'int32') -> np.ndarray:
    """Sequences of different lengths as one array, zeros behind them: (rows, longest).

    >>> pad([[1, 2, 3], [4]])
    array([[1, 2, 3],
           [4, 0, 0]], dtype=int32)
    """
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max()), dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return padded
