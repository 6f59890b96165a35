"""CMRC 2018: the span of a passage that answers a question."""
import collections
import re

import numpy as np

from fltuning.reading_comprehension import ReadingComprehension
from fltuning.task import Published
from train import main

# What the official scoring script leaves out before it compares.
PUNCTUATION = set('-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』')
# What it compares: Chinese characters, and other text as NLTK splits it: marks stand alone, but
# not within numbers and abbreviations (1,000 3.5 u.s). English contractions stay whole here.
HAN, MARKS = '\u4e00-\u9fa5', r';@#$%&?!()<>{}"«»‘„‒–—―\[\]'
FULL_STOP = r'\.(?=[\])}>"\']*\s*(?:[%s]|$))' % HAN
SEGMENT = re.compile(r'[%s%s]|\.{2,}|,(?!\d)|%s|(?:(?!%s|\.\.)[^\s,%s%s]|,(?=\d))+'
                     % (HAN, MARKS, FULL_STOP, FULL_STOP, HAN, MARKS))


class CMRC2018(ReadingComprehension):
    name = 'cmrc2018'
    test_files = {'trial.json': 'cmrc2018_trial_predict.json', 'test.json': 'cmrc2018_predict.json'}
    not_submitted = ['cmrc2018_trial_predict.json']  # CLUE scores no trial questions
    archive = 'cmrc2018_public.zip'
    published = {
        'train.json': Published(10142, '7fb714b479c7f40fbb16acabd7af0ede'),
        'dev.json': Published(3219, '853b80709ff2d071f9fce196521b843c'),
        'trial.json': Published(1002, 'cac70d832b971405fa283d0494540759'),
        'test.json': Published(2000, 'fbf9d6e7dea4b00b7310126401109be8'),
    }
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 512, 16, 2, 20, 2e-4

    def score(self, samples, results):
        """Exact match and F1 of the official script, and how many spans are at a listed place.

        CLUE reports the exact match. The original scored the place alone.
        """
        exact, f1, at_place = [], [], []
        for question, span in self.best_spans(samples, results).items():
            text = question.passage.original(*span)
            exact.append(is_exact(text, question))
            f1.append(max(overlap(text, answer) for answer in question.answers))
            at_place.append(span in question.places)
        return collections.OrderedDict(
            (name, float(np.mean(values)))
            for name, values in [('exact_match', exact), ('f1', f1), ('position_match', at_place)])

    def answers(self, samples, results):
        return [(question.passage, int(is_exact(question.passage.original(*span), question)), 1)
                for question, span in self.best_spans(samples, results).items()]


def is_exact(text, question):
    return any(bare(text) == bare(answer) for answer in question.answers)


def bare(text):
    """What the official script compares for the exact match."""
    return ''.join(c for c in text.lower().strip() if c not in PUNCTUATION)


def overlap(text, answer):
    """The official F1: longest common run of Chinese characters and other words."""
    ours, theirs = SEGMENT.findall(bare(text)), SEGMENT.findall(bare(answer))
    longest, lengths = 0, {}
    for _i, segment in enumerate(ours):
        lengths = {j: lengths.get(j - 1, 0) + 1
                   for j, other in enumerate(theirs) if other == segment}
        longest = max([longest] + list(lengths.values()))
    return 2.0 * longest / (len(ours) + len(theirs)) if longest else 0.0


if __name__ == '__main__':
    main(CMRC2018)
