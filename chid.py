"""ChID: which of ten idioms belongs into a blank? Blanks of one line are answered together."""
import collections
import json
import os
import re

import numpy as np
from scipy.optimize import linear_sum_assignment

from data import Record, read_json
from tasks import Encoded, MultipleChoice
from train import main

BLANK = re.compile('#idiom[0-9]+#')
MASK = '\ue000'  # stands for one [MASK] while a text is cut


class CHID(MultipleChoice):
    """Samples: one a blank; `line` is the blank's line in its file, `tag` its name."""

    Sample = collections.namedtuple('Sample', 'line tag left right candidates label')
    name = 'chid'
    test_files = {'test1.0.json': 'chid10_predict.json', 'test1.1.json': 'chid11_predict.json'}
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 64, 16, 2, 30, 8e-5
    rows_per_sample = 10

    def read(self, path, labelled):
        if not labelled:
            return self.parse(self.read_records(path), False)
        answer_path = os.path.splitext(path)[0] + '_answer.json'
        answers = Record(read_json(answer_path), answer_path)
        return self.parse(self.read_records(path), True, answers)

    def parse(self, records, labelled, answers=None):
        samples = []
        for line, record in enumerate(records):
            candidates = record.get_list('candidates', str)
            if len(candidates) != self.rows_per_sample or not all(map(str.strip, candidates)):
                raise record.error('candidates', '%d idioms' % self.rows_per_sample)
            for text in record.get_list('content', str):
                for blank in BLANK.finditer(text):
                    tag, label = blank.group(), None
                    if labelled:
                        label = answers.get_integer(tag)
                        if not 0 <= label < len(candidates):
                            raise answers.error(tag, 'the place of a candidate, 0 to 9')
                    samples.append(self.Sample(line, tag, text[:blank.start()],
                                               text[blank.end():], candidates, label))
        return samples

    def encode(self, sample):
        """A row a candidate: [CLS] candidate [SEP] left [unused1] right [SEP].

        The text is cut from both ends, the longer first, in characters; every other blank is
        four [MASK].
        """
        candidates = [self.tokenizer.ids(candidate) for candidate in sample.candidates]
        room = self.maxlen - max(map(len, candidates)) - 2
        left, right = [BLANK.sub(MASK * 4, text) for text in (sample.left, sample.right)]
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

    def choices(self, sample):
        return sample.tag, sample.candidates

    def choose(self, samples, results):
        """The best assignment of idioms to the blanks of a line: an idiom is used once."""
        lines = collections.OrderedDict()
        for i, sample in enumerate(samples):
            lines.setdefault(sample.line, []).append(i)
        chosen = [None] * len(samples)
        for blanks in lines.values():
            scores = np.array([log_softmax(results[i]) for i in blanks])  # (blanks, candidates)
            while len(blanks) > scores.shape[1]:  # more blanks than idioms: each may come again
                scores = np.concatenate([scores, scores], 1)
            for row, column in zip(*linear_sum_assignment(-scores)):
                chosen[blanks[row]] = int(column) % self.rows_per_sample
        return chosen

    def submission(self, samples, results):
        chosen = self.choose(samples, results)
        return json.dumps(collections.OrderedDict(
            (sample.tag, choice) for sample, choice in zip(samples, chosen)), indent=4)


def log_softmax(scores):
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())


if __name__ == '__main__':
    main(CHID)
