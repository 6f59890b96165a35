"""Reading comprehension: the answer to a question is a span of a passage, read through windows."""
import collections
import itertools
import re
from typing import NamedTuple, Optional, Tuple

import numpy as np

from fltuning.files import read_json, to_json
from fltuning.records import Record, attempt
from fltuning.submissions import check_object
from fltuning.task import Encoded, Task, pad
from fltuning.text import has_tokens, normalize

STRIDE = 128  # characters from one window to the next
NO_ANSWER = (0, '')


class Passage:
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
        if not has_tokens(text):
            raise answer.error('text', 'a text of more than marks and spaces')
        starts = [found.start() for found in re.finditer('(?=%s)' % re.escape(text), self.text)]
        if not starts:
            if offset == -1:
                return None
            raise answer.error('text', 'a text that is in the passage')
        return min(starts, key=lambda start: abs(self.places[start] - offset)), text

    def original(self, start, end):
        """The passage as it was written, from `start` up to `end` of the normalized text."""
        return self.context[self.places[start]:self.places[end - 1] + 1] if end > start else ''


class Question(NamedTuple):
    """What identifies a question, whichever window it is asked of."""
    id: object  # text or whole number
    passage: Passage
    answers: Tuple[str, ...]  # the texts listed
    places: Tuple[Tuple[int, int], ...]  # (start, end) of each that is in the normalized passage
    number: int = 0  # in its paragraph: of what is to be predicted alone, several may have one id


class Window(NamedTuple):
    """A question and a part of its passage, both normalized."""
    question: Question
    asked: str  # the question's text
    text: str  # the part
    begin: int  # where it begins in the normalized passage
    answer: Optional[Tuple[int, str]]  # (start, text) in it; None if unknown, (0, '') if not in it


class ReadingComprehension(Task):
    """The answer to a question is a span of a passage, which is read through windows.

    Samples: `Window`; results: (log-probability, start, end), the best span in the window, in
    characters of the normalized passage, the end excluded. A task script adds `score` and `answers`.
    """

    metric = 'exact_match'
    unit = 'questions'
    first_only = False
    label_ndim = 2
    one_each = False

    def read_records(self, path, keep_bad=False):
        """The paragraphs of a file in SQuAD's layout."""
        for article in Record(read_json(path), path).get_records('data'):
            for i, paragraph in enumerate(article.get_list('paragraphs')):
                yield attempt(keep_bad, Record, paragraph, '%s: paragraphs[%d]' % (article.where, i))

    def read_questions(self, path):
        """[(question id, passage)] of such a file."""
        return [(str(self.get_id(question)), paragraph.get_text('context'))
                for paragraph in self.read_records(path) for question in paragraph.get_records('qas')]

    def count_records(self, samples, path):
        return len(self.read_questions(path))

    def record_key(self, sample):
        return sample.question

    def remarks(self):
        moved, absent, cut = [self.counts[name] for name in ('moved', 'absent', 'cut')]
        if moved or absent:
            yield ('%d answers are not where answer_start says: taken from the nearest place '
                   'that has them; %d are in no place: only scored against' % (moved, absent))
        if cut:
            yield ('%d questions are longer than maxlen %d - 4 characters: cut to %d'
                   % (cut, self.maxlen, self.room // 2))

    @property
    def room(self):
        """Characters of a question and a part of its passage, beside [CLS] and two [SEP]."""
        return self.maxlen - 3

    def parse(self, records, labelled):
        """The windows of a passage for every answer listed that is in it, or once without labels.

        An answer that is in no place (answer_start -1) is scored against, but says nothing about
        where to look: its windows would be labelled as without an answer.
        """
        for paragraph in records:
            passage = Passage(paragraph.get_text('context'))
            if not has_tokens(passage.text):
                raise paragraph.error('context', 'a text of more than marks and spaces')
            for number, record in enumerate(paragraph.get_records('qas')):
                listed = record.get_records('answers') if labelled else []
                found = [passage.find(answer) for answer in listed]
                self.counts['moved'] += sum(
                    place is not None and passage.places[place[0]] != answer['answer_start']
                    for place, answer in zip(found, listed))
                self.counts['absent'] += found.count(None)
                found = [place for place in found if place]
                # Of the published files, trial.json has two questions that are empty.
                asked = normalize(record.get_text('question', may_be_empty=True))
                if len(asked) >= self.room:
                    self.counts['cut'] += 1
                    asked = asked[:self.room // 2]
                question = Question(
                    self.get_id(record), passage, tuple(answer['text'] for answer in listed),
                    tuple((start, start + len(text)) for start, text in found), number)
                for answer in found or [NO_ANSWER if labelled else None]:
                    yield from self.windows(asked, question, answer)

    def windows(self, asked, question, answer):
        """The windows of a passage, until its end, with the answer where it is whole."""
        passage, size = question.passage, self.room - len(asked)
        for begin in range(0, len(passage.text), min(STRIDE, size)):
            text = passage.text[begin:begin + size]
            inside = answer
            if answer and answer[1]:
                start = answer[0] - begin
                whole = start >= 0 and start + len(answer[1]) <= len(text)
                inside = (start, answer[1]) if whole else NO_ANSWER
            yield Window(question, asked, text, begin, inside)
            if begin + size >= len(passage.text):
                break

    def to_predict(self, samples):
        """Each window once, whatever answers are listed."""
        windows = collections.OrderedDict(
            ((s.question, s.begin), s._replace(answer=None)) for s in samples)
        return list(windows.values())

    def encode(self, sample):
        """[CLS] question [SEP] window [SEP]; the label is (start token, end token), [CLS] for none.

        Question, left, answer and right are tokenized apart, so an answer always has its tokens.
        """
        question = self.tokenizer.ids(sample.asked)
        start, answer = sample.answer or NO_ANSWER
        parts = [sample.text[:start], answer, sample.text[start + len(answer):]]
        tokens = [self.tokenizer.tokenize(part)[1:-1] for part in parts]
        ids = question + self.tokenizer.tokens_to_ids(list(itertools.chain(*tokens))) + question[-1:]
        label = (0, 0)
        if tokens[1]:
            begin = len(question) + len(tokens[0])
            label = (begin, begin + len(tokens[1]) - 1)
        spans = None
        if sample.answer is None:  # to be predicted: tokens back to characters
            spans = self.tokenizer.spans(self.tokenizer.rematch(sample.text, tokens[2]))
        return Encoded([np.array(ids, 'int32')], (label, len(question), spans, sample.begin))

    def collate(self, batch):
        """Inputs: token ids, segment ids, mask of [CLS] and the passage; labels: (batch, 2)."""
        token_ids = pad([encoded.rows[0] for encoded in batch])
        mask = np.zeros_like(token_ids)
        mask[:, 0] = 1
        for row, encoded in zip(mask, batch):
            row[encoded.label[1]:len(encoded.rows[0]) - 1] = 1
        labels = np.array([encoded.label[0] for encoded in batch], self.label_dtype)
        return [token_ids, np.zeros_like(token_ids), mask], labels

    def head(self):
        from fltuning.heads import AnswerHead
        return AnswerHead(self)

    def decode(self, outputs, batch):
        results = []
        for scores, encoded in zip(outputs[:, 0], batch):
            _, offset, spans, begin = encoded.label
            total = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            # [CLS], which stands for no answer, is ruled out, and so are tokens of no character.
            inside = scores[offset:offset + len(spans), offset:offset + len(spans)].copy()
            empty = spans[:, 0] < 0
            inside[empty], inside[:, empty] = -np.inf, -np.inf
            if not inside.size or inside.max() == -np.inf:
                results.append((-np.inf, begin, begin))
                continue
            start, end = np.unravel_index(inside.argmax(), inside.shape)
            chosen = spans[start:end + 1]  # of marks, the first need not come first
            results.append((float(inside[start, end] - total), begin + int(chosen[:, 0].min()),
                            begin + int(chosen[:, 1].max()) + 1))
        return results

    def best_windows(self, samples, results):
        """{question: result}: the best window of a question wins."""
        best = collections.OrderedDict()
        for sample, result in zip(samples, results):
            if sample.question not in best or result[0] > best[sample.question][0]:
                best[sample.question] = result
        return best

    def best_spans(self, samples, results):
        """{question: (start, end)}."""
        return collections.OrderedDict(
            (key, result[1:]) for key, result in self.best_windows(samples, results).items())

    def submission(self, samples, results):
        """{question id: answer text}, as it stands in the passage."""
        return to_json(collections.OrderedDict(
            (question.id, question.passage.original(*span))
            for question, span in self.best_spans(samples, results).items()), indent=4)

    def check_submission(self, test_path, text):
        self.seen = {}
        try:
            return check_object(dict(self.read_questions(test_path)), check_span, text)
        finally:
            self.seen = None

    def predictions(self, samples, results):
        """{id, answer, probability}: that of the span among all in the window it is from."""
        best = self.best_windows(samples, results)
        return [dict(
            id=question.id, answer=question.passage.original(start, end),
            probability=float(np.exp(score)))
            for question, (score, start, end) in best.items()]


def check_span(passage, answer):
    if not isinstance(answer, str) or not answer.strip() or answer not in passage:
        return 'a text that is in the passage'
