"""C3: which of up to four answers to a question about a dialogue or text is right?"""
import itertools
from typing import List, NamedTuple, Optional

import numpy as np

from fltuning.errors import UserError
from fltuning.files import read_json
from fltuning.multiple_choice import MultipleChoice
from fltuning.records import Record, attempt
from fltuning.task import Encoded, Published
from fltuning.text import cut
from train import main


class Sample(NamedTuple):
    """A question on a passage."""
    id: object  # text or whole number; None where labelled
    passage: str
    question: str
    choices: List[str]  # two to four; more where they are to be predicted
    label: Optional[int]  # index of the right choice


class C3(MultipleChoice):
    name = 'c3'
    train_files, dev_files = ['m-train.json', 'd-train.json'], ['m-dev.json', 'd-dev.json']
    test_files = {'test1.0.json': 'c310_predict.json', 'test1.1.json': 'c311_predict.json'}
    archive = 'c3_public.zip'
    published = {
        'm-train.json': Published(6013, 'db321e631eb3e6f508e438992652618f'),
        'd-train.json': Published(5856, '291b07679bef785aa66bb5343f1b49b2'),
        'm-dev.json': Published(1991, 'beb2f2e08c18cd8e9429c6a55de6b8db'),
        'd-dev.json': Published(1825, '446e75358789d3fbe8730089cadf5fb0'),
        'test1.0.json': Published(3892, 'ec5421a078f6f77e2779731895f1a230'),
        'test1.1.json': Published(1625, '18bd0cd75c81b85bf16c71a9730e03b7'),
    }
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 512, 4, 4, 50, 1e-4
    rows_per_sample, one_each = 4, False
    unit = 'questions'

    def read_records(self, path, keep_bad=False):
        """A file is a list of [turns, questions, id]."""
        dialogues = read_json(path)
        if not isinstance(dialogues, list):
            raise UserError('%s: expected a list of [turns, questions, id]' % path)
        return [attempt(keep_bad, self.record, dialogue, '%s: dialogue %d' % (path, number))
                for number, dialogue in enumerate(dialogues)]

    def record(self, value, where):
        if not isinstance(value, list) or len(value) < 2:
            raise UserError('%s: expected [turns, questions, id]' % where)
        return Record({'turns': value[0], 'questions': value[1]}, where)

    def parse(self, records, labelled):
        for dialogue in records:
            passage = '||'.join(dialogue.get_list('turns', str))
            for record in dialogue.get_records('questions'):
                choices = record.get_list('choice', str)
                # To be predicted, there may be more: some questions of test1.1 have up to ten.
                if len(choices) < 2 or labelled and len(choices) > self.rows_per_sample:
                    raise record.error('choice', 'two to four choices')
                label = record.get_choice('answer', choices) if labelled else None
                yield Sample(None if labelled else self.get_id(record), passage,
                             record.get_text('question'), choices, label)

    def encode(self, sample):
        """A row a choice: [CLS] passage [SEP] question [SEP] choice [SEP], longest cut."""
        choices = sample.choices + ['无效答案'] * (self.rows_per_sample - len(sample.choices))
        passage = self.tokenizer.ids(sample.passage)
        question = self.tokenizer.ids(sample.question)[1:]
        rows = []
        for choice in choices:
            parts = cut(self.maxlen, passage, question, self.tokenizer.ids(choice)[1:])
            rows.append(np.array(list(itertools.chain(*parts)), 'int32'))
        return Encoded(rows, sample.label or 0)

    def decode(self, outputs, batch):
        """Scores, (choices,), at least four."""
        ends = np.cumsum([len(encoded.rows) for encoded in batch])
        return np.split(outputs[:, 0], ends[:-1])

    def text_of(self, sample):
        return sample.passage

    def choose(self, samples, results):
        """The filled-up choices are never chosen."""
        return [int(scores[:len(sample.choices)].argmax())
                for sample, scores in zip(samples, results)]


if __name__ == '__main__':
    main(C3)
