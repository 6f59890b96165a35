"""Entity recognition: entities of some types, anywhere in a text."""
import collections
import math
from typing import FrozenSet, NamedTuple, Optional, Tuple

import numpy as np

from fltuning.files import json_line
from fltuning.records import shorten
from fltuning.task import Encoded, Task, pad


def spans_between(places):
    """(first character, last, whether it is a span), (tokens, tokens) each, from one token to another.

    places: (tokens, 2), the first and the last character of each, -1 for [CLS] and [SEP], which have none. The
    characters of marks may come in another order than the tokens.
    """
    forward, found = np.triu(np.ones((len(places), len(places)), 'bool')), places[:, 0] >= 0
    first = np.minimum.accumulate(np.where(forward & found, places[:, 0], np.iinfo('int32').max), 1)
    last = np.maximum.accumulate(np.where(forward, places[:, 1], -1), 1)
    return first, last, forward & found & found[:, None]


class Text(NamedTuple):
    """A text and the entities in it."""
    id: object  # text or whole number; None where labelled
    text: str
    entities: Optional[FrozenSet[Tuple[str, int, int]]]  # (type, start, end), the end included


class EntityRecognition(Task):
    """Entities of some types, anywhere in a text: every (type, start, end) has a score.

    Samples: `Text`; results: dicts of (type, start, end) in characters, the end included, with the
    probability that the score stands for, sigmoid(score).
    labels: the types, in the order of the output.
    """

    Text = Text
    metric = 'f1'
    first_only = False
    label_ndim, label_dtype = 4, 'int8'

    def parse(self, records, labelled):
        for record in records:
            yield Text(None if labelled else self.get_id(record), record.get_text('text'),
                       self.entities(record) if labelled else None)

    def entities(self, record):
        """{(type, start, end)} of a label {type: {name: [[start, end], ...]}}, end included."""
        label, text, found = record.get_record('label'), record['text'], set()
        for kind in label:
            if kind not in self.labels:
                raise label.error(kind, 'one of the types ' + ', '.join(self.labels))
            names = label.get_record(kind)
            for name in names:
                for span in names.get_list(name, list):
                    if (len(span) != 2 or not all(type(place) is int for place in span)
                            or not 0 <= span[0] <= span[1] < len(text)
                            or text[span[0]:span[1] + 1] != name):
                        raise names.error(name, '[start, end] where the text says so')
                    found.add((kind, span[0], span[1]))
        return found

    def align(self, text):
        """Token ids of a text and, for each token, its first and last character: (tokens, 2)."""
        tokens = self.tokenizer.tokenize(text, maxlen=self.maxlen)
        return (self.tokenizer.tokens_to_ids(tokens),
                self.tokenizer.spans(self.tokenizer.rematch(text, tokens)))

    def encode(self, sample):
        """The label is a list of (type, start token, end token), without spans off token borders."""
        token_ids, spans = self.align(sample.text)
        starts, ends = [{place: i for i, place in enumerate(places) if place >= 0}
                        for places in spans.T.tolist()]
        label = [(self.labels.index(kind), starts[start], ends[end])
                 for kind, start, end in sorted(sample.entities or ())
                 if start in starts and end in ends]
        cut = len(token_ids) == self.maxlen
        self.counts['entities'] += len(sample.entities or ())
        self.counts['lost'] += len(sample.entities or ()) - len(label)
        self.counts['cut'] += sum(cut and end > spans.max() for _, _, end in sample.entities or ())
        return Encoded([np.array(token_ids, 'int32')], (label, spans))

    def remarks(self):
        lost, cut = self.counts['lost'], self.counts['cut']
        if lost:
            yield ('%d of %d entities cannot be found: %d begin or end inside a token, %d are past '
                   'maxlen %d' % (lost, self.counts['entities'], lost - cut, cut, self.maxlen))

    def collate(self, batch):
        """Labels: (batch, types, length, length), 1 at (start, end)."""
        token_ids = pad([encoded.rows[0] for encoded in batch])
        length = token_ids.shape[1]
        labels = np.zeros((len(batch), len(self.labels), length, length), self.label_dtype)
        for i, encoded in enumerate(batch):
            for kind, start, end in encoded.label[0]:
                labels[i, kind, start, end] = 1
        return [token_ids, np.zeros_like(token_ids)], labels

    def head(self):
        from fltuning.heads import EntityHead
        return EntityHead(self)

    def decode(self, outputs, batch):
        results = []
        for scores, encoded in zip(outputs, batch):
            places = encoded.label[1]
            scores = scores[:, :len(places), :len(places)]
            first, last, are_spans = spans_between(places)
            kinds, starts, ends = np.nonzero((scores > 0) & are_spans)
            found = kinds, first[starts, ends], last[starts, ends], scores[kinds, starts, ends]
            results.append({(self.labels[kind], begin, end): 1 / (1 + math.exp(-score))
                            for kind, begin, end, score in zip(*[numbers.tolist() for numbers in found])})
        return results

    def score(self, samples, results):
        """Micro F1 over (type, start, end)."""
        right = sum(len(s.entities & set(found)) for s, found in zip(samples, results))
        found = sum(map(len, results))
        gold = sum(len(s.entities) for s in samples)
        return collections.OrderedDict([
            ('f1', 2.0 * right / max(found + gold, 1)),
            ('precision', float(right) / max(found, 1)), ('recall', float(right) / max(gold, 1))])

    def answers(self, samples, results):
        """F1's: a right entity counts in what was found and in what is there."""
        return [(None, 2 * len(s.entities & set(found)), len(found) + len(s.entities))
                for s, found in zip(samples, results)]

    def submission(self, samples, results):
        return ''.join(json_line(id=s.id, text=s.text, label=self.spans(s, found))
                       for s, found in zip(samples, results))

    def check_answer(self, sample, record):
        if record.get('text') != sample.text:
            raise record.error('text', 'the text of the test file, ' + shorten(sample.text))
        self.entities(record)

    def spans(self, sample, found):
        """CLUE's {type: {name: [[start, end], ...]}}."""
        label = {}
        for kind, start, end in sorted(found):
            spans = label.setdefault(kind, {}).setdefault(sample.text[start:end + 1], [])
            spans.append([int(start), int(end)])
        return label

    def predictions(self, samples, results):
        """{id, text, label, probabilities}, both {type: {name: [one for each place]}}."""
        predictions = []
        for sample, found in zip(samples, results):
            label = self.spans(sample, found)
            predictions.append(dict(
                id=sample.id, text=sample.text, label=label, probabilities={
                    kind: {name: [found[kind, start, end] for start, end in places]
                           for name, places in names.items()} for kind, names in label.items()}))
        return predictions
