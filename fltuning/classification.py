"""Classification: one label a text, or pair of texts."""
import collections
from typing import NamedTuple, Optional

import numpy as np

from fltuning.files import json_line
from fltuning.submissions import check_label
from fltuning.task import Encoded, Task
from fltuning.text import cut


class Text(NamedTuple):
    """A text, or a pair of them."""
    id: object  # text or whole number; None where labelled
    first: str
    second: Optional[str]
    label: Optional[int]  # index of the class


class Classification(Task):
    """One label a text, or pair of texts, from the vector of [CLS].

    Samples: `Text`; results: probabilities, (classes,).
    labels: the labels in files and submissions, in the order of the classes.
    text_fields: the fields of a record that hold its texts, one or two.
    left_out: labels of records that are not trained on, nor scored.
    """

    Text = Text
    text_fields = ['sentence1', 'sentence2']
    left_out = ()
    output_name = 'probabilities'
    transformers_class = 'ForSequenceClassification'

    def parse(self, records, labelled):
        for record in records:
            if not labelled or record.get('label') not in self.left_out:
                yield Text(None if labelled else self.get_id(record), *self.texts(record),
                           label=record.get_choice('label', self.labels) if labelled else None)

    def texts(self, record):
        """(first text, second text or None) of a record."""
        first, second = (list(map(record.get_text, self.text_fields)) + [None])[:2]
        return first, second

    def encode(self, sample):
        """[CLS] first [SEP] or [CLS] first [SEP] second [SEP], cut to maxlen from the longer."""
        first = self.tokenizer.ids(sample.first)
        if sample.second is None:
            ids, = cut(self.maxlen, first)
        else:  # the [CLS] of the second counts while it is cut, and then goes
            first, second = cut(self.maxlen + 1, first, self.tokenizer.ids(sample.second))
            ids = first + second[1:]
        return Encoded([np.array(ids, 'int32')], sample.label or 0)

    def class_of(self, sample):
        return sample.label

    def head(self):
        from fltuning.heads import ClassHead
        return ClassHead(self)

    def decode(self, outputs, batch):
        return list(outputs)

    def score(self, samples, results):
        from sklearn.metrics import f1_score  # here: it takes a second to load
        gold = np.array([s.label for s in samples])
        predicted = np.array([r.argmax() for r in results])
        return collections.OrderedDict([
            ('accuracy', float((gold == predicted).mean())),
            ('macro_f1', float(f1_score(gold, predicted, average='macro')))])

    def answers(self, samples, results):
        return [(self.text_of(s), int(r.argmax() == s.label), 1) for s, r in zip(samples, results)]

    def submission(self, samples, results):
        # FewCLUE wants ids as its test files have them.
        return ''.join(json_line(id=s.id if self.split else str(s.id), label=self.labels[r.argmax()])
                       for s, r in zip(samples, results))

    def check_answer(self, sample, record):
        check_label(record, self.labels)

    def predictions(self, samples, results):
        """{id, label, probabilities: {label: probability}}"""
        return [{'id': s.id, 'label': self.labels[r.argmax()],
                 'probabilities': dict(zip(self.labels, map(float, r)))}
                for s, r in zip(samples, results)]

    def errors(self, samples, results):
        for sample, result in zip(samples, results):
            best = result.argmax()
            if best != sample.label:
                text = sample.first if sample.second is None else sample.first + ' | ' + sample.second
                yield text, self.labels[sample.label], self.labels[best], float(result[best])
