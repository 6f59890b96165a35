"""CMRC 2018: the span of a passage that answers a question."""
import collections
import json
import re

import numpy as np
from bert4keras.snippets import lowercase_and_normalize

from data import Record, read_json
from tasks import ReadingComprehension
from train import main

STRIDE = 128  # characters from one window to the next
# What the official scoring script leaves out before it compares.
PUNCTUATION = set('-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』')
# What it compares: Chinese characters, and other text as NLTK splits it: marks stand alone, but
# not within numbers and abbreviations (1,000 3.5 u.s). English contractions stay whole here.
HAN, MARKS = '\u4e00-\u9fa5', r';@#$%&?!()<>{}"«»‘„‒–—―\[\]'
FULL_STOP = r'\.(?=[\])}>"\']*\s*(?:[%s]|$))' % HAN
SEGMENT = re.compile(r'[%s%s]|\.{2,}|,(?!\d)|%s|(?:(?!%s|\.\.)[^\s,%s%s]|,(?=\d))+'
                     % (HAN, MARKS, FULL_STOP, FULL_STOP, HAN, MARKS))
# answers: the texts listed; places: (start, end) of each in the normalized passage that is in it.
Question = collections.namedtuple('Question', 'id passage answers places')


class CMRC2018(ReadingComprehension):
    name = 'cmrc2018'
    test_files = {'trial.json': 'cmrc2018_trial_predict.json',
                  'test.json': 'cmrc2018_predict.json'}
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 512, 16, 2, 20, 2e-4
    metric = 'exact_match'
    moved = absent = 0  # answers of the file last read that are elsewhere, or nowhere

    def read_records(self, path):
        """The paragraphs of a file in SQuAD's layout."""
        return [paragraph for article in Record(read_json(path), path).get_records('data')
                for paragraph in article.get_records('paragraphs')]

    def read(self, path, labelled):
        self.moved = self.absent = 0
        windows = super(CMRC2018, self).read(path, labelled)
        if self.moved or self.absent:
            print('%s: %d answers are not where answer_start says: taken from the nearest place '
                  'that has them; %d are in no place: only scored against'
                  % (path, self.moved, self.absent))
        return windows

    def parse(self, records, labelled):
        """The windows of a passage for every answer listed that is in it, or once without labels.

        An answer that is in no place (answer_start -1) is scored against, but says nothing about
        where to look: its windows would be labelled as without an answer.
        """
        windows = []
        for paragraph in records:
            passage = Passage(paragraph.get_text('context'))
            for record in paragraph.get_records('qas'):
                listed = record.get_records('answers') if labelled else []
                found = [passage.find(answer) for answer in listed]
                self.moved += sum(place is not None
                                  and passage.places[place[0]] != answer['answer_start']
                                  for place, answer in zip(found, listed))
                self.absent += found.count(None)
                found = [place for place in found if place]
                question = Question(
                    self.get_id(record), passage, tuple(answer['text'] for answer in listed),
                    tuple((start, start + len(text)) for start, text in found))
                for answer in found or [self.NO_ANSWER if labelled else None]:
                    windows.extend(self.windows(record, question, answer))
        return windows

    def windows(self, record, question, answer):
        """The windows of a passage, until its end, with the answer where it is whole."""
        passage = question.passage
        # Of the published files, trial.json has two questions that are empty.
        asked = normalize(record.get_text('question', may_be_empty=True))
        size = self.maxlen - len(asked) - 3
        if size < 1:
            raise record.error('question', 'fewer than maxlen %d - 3 characters' % self.maxlen)
        for begin in range(0, len(passage.text), min(STRIDE, size)):
            text = passage.text[begin:begin + size]
            inside = answer
            if answer and answer[1]:
                start = answer[0] - begin
                whole = 0 <= start and start + len(answer[1]) <= len(text)
                inside = (start, answer[1]) if whole else self.NO_ANSWER
            yield self.Window(question, asked, text, begin, inside)
            if begin + size >= len(passage.text):
                break

    def to_predict(self, samples):
        """Each window once, whatever answers are listed."""
        windows = collections.OrderedDict(
            ((s.question, s.begin), s._replace(answer=None)) for s in samples)
        return list(windows.values())

    def spans(self, samples, results):
        """{question id: answer text}, as it stands in the passage."""
        return collections.OrderedDict(
            (question.id, question.passage.original(*span))
            for question, span in self.best_spans(samples, results).items())

    def score(self, samples, results):
        """Exact match and F1 of the official script, and how many spans are at a listed place.

        CLUE reports the exact match. The original scored the place alone.
        """
        exact, f1, at_place = [], [], []
        for question, span in self.best_spans(samples, results).items():
            text = question.passage.original(*span)
            exact.append(max(bare(text) == bare(answer) for answer in question.answers))
            f1.append(max(overlap(text, answer) for answer in question.answers))
            at_place.append(span in question.places)
        return collections.OrderedDict(
            (name, float(np.mean(values)))
            for name, values in [('exact_match', exact), ('f1', f1), ('position_match', at_place)])

    def submission(self, samples, results):
        return json.dumps(self.spans(samples, results), ensure_ascii=False, indent=4)

    def predictions(self, samples, results):
        """{id, answer, probability}: that of the span among all in the window it is from."""
        best = self.best_windows(samples, results)
        return [collections.OrderedDict(
            id=question.id, answer=question.passage.original(start, end),
            probability=float(np.exp(score)))
            for question, (score, start, end) in best.items()]


class Passage(object):
    """A passage and its normalized text.

    places: for each character of the normalized text, the place of the one it was made of.
    """

    def __init__(self, context):
        self.context = context
        pieces = [normalize(character) for character in context]
        self.text = ''.join(pieces)
        self.places = [i for i, piece in enumerate(pieces) for _ in piece]

    def find(self, answer):
        """(start, text) of an answer in the normalized text, nearest to where its record says.

        None if the record says, with answer_start -1, that it is in no place.
        """
        text, offset = normalize(answer.get_text('text')), answer.get_integer('answer_start')
        starts = [found.start() for found in re.finditer('(?=%s)' % re.escape(text), self.text)]
        if not starts:
            if offset == -1:
                return None
            raise answer.error('text', 'a text that is in the passage')
        return min(starts, key=lambda start: abs(self.places[start] - offset)), text

    def original(self, start, end):
        """The passage as it was written, from `start` up to `end` of the normalized text."""
        return self.context[self.places[start]:self.places[end - 1] + 1] if end > start else ''


def normalize(text):
    """Lower case and without accents, each character by itself: it may depend on no other."""
    return ''.join(map(lowercase_and_normalize, text))


def bare(text):
    """What the official script compares for the exact match."""
    return ''.join(c for c in text.lower().strip() if c not in PUNCTUATION)


def overlap(text, answer):
    """The official F1: longest common run of Chinese characters and other words."""
    ours, theirs = SEGMENT.findall(bare(text)), SEGMENT.findall(bare(answer))
    longest, lengths = 0, {}
    for i, segment in enumerate(ours):
        lengths = {j: lengths.get(j - 1, 0) + 1
                   for j, other in enumerate(theirs) if other == segment}
        longest = max([longest] + list(lengths.values()))
    return 2.0 * longest / (len(ours) + len(theirs)) if longest else 0.0


if __name__ == '__main__':
    main(CMRC2018)
