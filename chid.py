"""ChID: which of ten idioms belongs into a blank? Blanks of one line are answered together."""
import collections
import os
import re
from typing import Any, List, NamedTuple, Optional

import numpy as np

from fltuning.files import json_line, read_json, to_json
from fltuning.multiple_choice import MultipleChoice
from fltuning.records import Record
from fltuning.submissions import check_object
from fltuning.task import Encoded, Published
from train import main

IDIOM = re.compile('#idiom[0-9]+#')
FEW_CLUE_IDIOM = '#idiom#'
MASK = '\ue000'  # stands for one [MASK] while a text is cut


class Blank(NamedTuple):
    """A blank in a text, and the idioms to choose from."""
    line: str  # where it is, which its blanks have in common
    tag: Any  # its name, #idiom000001#; in FewCLUE the id of its record
    left: str
    right: str
    candidates: List[str]
    label: Optional[int]  # index of the right candidate


class CHID(MultipleChoice):
    """Samples: `Blank`s; those of one line are answered together."""

    name = 'chid'
    test_files = {'test1.0.json': 'chid10_predict.json', 'test1.1.json': 'chid11_predict.json'}
    archive = 'chid_public.zip'
    published = {
        'train.json': Published(84709),
        'dev.json': Published(3218),
        'test1.0.json': Published(3231),
        'test1.1.json': Published(3447),
    }
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 64, 16, 2, 30, 8e-5
    rows_per_sample, one_each = 10, False
    few_clue = 'chid'
    other_blank = IDIOM

    def use_few_clue(self, split):
        super().use_few_clue(split)
        self.rows_per_sample, self.other_blank = 7, re.compile(FEW_CLUE_IDIOM)

    def is_labelled(self, record):
        return 'answer' in record

    def parse_file(self, path, labelled):
        if self.split:
            return self.parse_few_clue(self.read_records(path), labelled)
        if not labelled:
            return self.parse(self.read_records(path), False)
        answer_path = os.path.splitext(path)[0] + '_answer.json'
        answers = Record(read_json(answer_path), answer_path)
        return self.parse(self.read_records(path), True, answers)

    def parse(self, records, labelled, answers=None):
        for record in records:
            candidates = self.candidates(record)
            blanks = [(text, blank) for text in record.get_list('content', str)
                      for blank in IDIOM.finditer(text)]
            if not blanks:
                self.counts['empty'] += 1
            for text, blank in blanks:
                tag, label = blank.group(), None
                self.see('content', tag, record)
                if labelled:
                    label = answers.get_integer(tag)
                    if not 0 <= label < len(candidates):
                        raise answers.error(tag, 'the place of a candidate, 0 to 9')
                yield Blank(record.where, tag, text[:blank.start()], text[blank.end():], candidates,
                            label)

    def parse_few_clue(self, records, labelled):
        """FewCLUE's: a text with one blank, #idiom#, seven candidates, and the answer beside them."""
        for record in records:
            candidates, text = self.candidates(record), record.get_text('content')
            left, blank, right = text.partition(FEW_CLUE_IDIOM)
            self.counts['no place'] += not blank
            label = record.get_integer('answer') if labelled else None
            if labelled and not 0 <= label < len(candidates):
                raise record.error('answer', 'the place of a candidate, 0 to %d' % (len(candidates) - 1))
            yield Blank(record.where, None if labelled else self.get_id(record), left, right, candidates, label)

    def candidates(self, record):
        candidates = record.get_list('candidates', str)
        if len(candidates) != self.rows_per_sample or not all(map(str.strip, candidates)):
            raise record.error('candidates', '%d idioms' % self.rows_per_sample)
        if self.tokenizer and max(map(len, map(self.tokenizer.ids, candidates))) > self.maxlen - 2:
            # No room for [CLS], two [SEP] and the mark of the blank.
            raise record.error('candidates', 'idioms of at most %d tokens' % (self.maxlen - 4))
        return candidates

    def remarks(self):
        if self.counts['empty']:
            yield ('%d lines have no blank (#idiom000001#): nothing is predicted for them'
                   % self.counts['empty'])
        if self.counts['no place']:
            yield ('%d lines have no %s: the blank is taken to be at the end'
                   % (self.counts['no place'], FEW_CLUE_IDIOM))

    def encode(self, sample):
        """A row a candidate: [CLS] candidate [SEP] left [unused1] right [SEP].

        The text is cut from both ends, the longer first, in characters; every other blank is
        four [MASK].
        """
        candidates = [self.tokenizer.ids(candidate) for candidate in sample.candidates]
        room = self.maxlen - max(map(len, candidates)) - 2
        left, right = [self.other_blank.sub(MASK * 4, text) for text in (sample.left, sample.right)]
        excess = max(len(left) + len(right) - room, 0)
        # The longer side is cut to the length of the other, then both by turns, the right first.
        from_left = min(max(len(left) - len(right), 0), excess)
        from_right = min(max(len(right) - len(left), 0), excess)
        rest = excess - from_left - from_right
        from_left, from_right = from_left + rest // 2, from_right + (rest + 1) // 2
        text = (self.tokenize_masked(left[from_left:])
                + [self.tokenizer.token_to_id('[unused1]')]
                + self.tokenize_masked(right[:len(right) - from_right])
                + [self.tokenizer._token_end_id])
        return Encoded([np.array(candidate + text, 'int32')[:self.maxlen]
                        for candidate in candidates], sample.label or 0)

    def tokenize_masked(self, text):
        ids = []
        for part in re.split('(%s)' % MASK, text):
            ids += ([self.tokenizer._token_mask_id] if part == MASK
                    else self.tokenizer.ids(part)[1:-1])
        return ids

    def count_records(self, samples, path):
        return len({sample.line for sample in samples})

    def record_key(self, sample):
        return sample.line

    def text_of(self, sample):
        return sample.line

    def choices(self, sample):
        return sample.tag, sample.candidates

    def choose(self, samples, results):
        """The best assignment of idioms to the blanks of a line: none is used again while others are left."""
        from scipy.optimize import linear_sum_assignment  # here: it takes a while to load
        lines = collections.OrderedDict()
        for i, sample in enumerate(samples):
            lines.setdefault(sample.line, []).append(i)
        chosen = [None] * len(samples)
        for blanks in lines.values():
            scores = np.array([log_softmax(results[i]) for i in blanks])  # (blanks, candidates)
            if len(blanks) > scores.shape[1]:  # each may come again, which costs more than all else together
                again = len(blanks) * (scores.max() - scores.min() + 1)
                rounds = -(-len(blanks) // scores.shape[1])
                scores = np.concatenate([scores - again * number for number in range(rounds)], 1)
            for row, column in zip(*linear_sum_assignment(-scores)):
                chosen[blanks[row]] = int(column) % self.rows_per_sample
        return chosen

    def submission(self, samples, results):
        chosen = self.choose(samples, results)
        if self.split:
            return ''.join(json_line(id=sample.tag, answer=choice) for sample, choice in zip(samples, chosen))
        return to_json(collections.OrderedDict(
            (sample.tag, choice) for sample, choice in zip(samples, chosen)), indent=4)

    def check_submission(self, test_path, text):
        expected = {s.tag: len(s.candidates) for s in self.read_samples(test_path, False)}
        return check_object(expected, check_place, text)


def check_place(candidates, answer):
    if type(answer) is not int or not 0 <= answer < candidates:
        return 'the place of a candidate, 0 to %d' % (candidates - 1)


def log_softmax(scores):
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


if __name__ == '__main__':
    main(CHID)
