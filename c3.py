"""C3: which of up to four answers to a question about a dialogue or text is right?"""
import collections

import numpy as np

from data import Record, read_json
from errors import UserError
from tasks import Encoded, MultipleChoice
from tokenizer import cut
from train import main


class C3(MultipleChoice):
    Sample = collections.namedtuple('Sample', 'id passage question choices label')
    name = 'c3'
    train_files, dev_files = ['m-train.json', 'd-train.json'], ['m-dev.json', 'd-dev.json']
    test_files = {'test1.0.json': 'c310_predict.json', 'test1.1.json': 'c311_predict.json'}
    maxlen, batch_size, grad_accum_steps, epochs, learning_rate = 512, 4, 4, 50, 1e-4
    rows_per_sample = 4

    def read_records(self, path):
        """A file is a list of [turns, questions, id]."""
        dialogues = read_json(path)
        if not isinstance(dialogues, list):
            raise UserError('%s: expected a list of [turns, questions, id]' % path)
        return [self.record(dialogue, '%s: dialogue %d' % (path, number))
                for number, dialogue in enumerate(dialogues)]

    def record(self, value, where):
        if not isinstance(value, list) or len(value) < 2:
            raise UserError('%s: expected [turns, questions, id]' % where)
        return Record({'turns': value[0], 'questions': value[1]}, where)

    def parse(self, records, labelled):
        samples = []
        for dialogue in records:
            passage = '||'.join(dialogue.get_list('turns', str))
            for record in dialogue.get_records('questions'):
                choices = record.get_list('choice', str)
                # To be predicted, there may be more: some questions of test1.1 have up to ten.
                if len(choices) < 2 or labelled and len(choices) > self.rows_per_sample:
                    raise record.error('choice', 'two to four choices')
                label = record.get_choice('answer', choices) if labelled else None
                samples.append(self.Sample(None if labelled else self.get_id(record), passage,
                                           record.get_text('question'), choices, label))
        return samples

    def encode(self, sample):
        """A row a choice: [CLS] passage [SEP] question [SEP] choice [SEP], longest cut."""
        choices = sample.choices + ['无效答案'] * (self.rows_per_sample - len(sample.choices))
        passage = self.tokenizer.ids(sample.passage)
        question = self.tokenizer.ids(sample.question)[1:]
        rows = []
        for choice in choices:
            parts = cut(self.maxlen, passage, question, self.tokenizer.ids(choice)[1:])
            rows.append(np.array(sum(parts, []), 'int32'))
        return Encoded(rows, sample.label or 0)

    def decode(self, outputs, batch):
        """Scores, (choices,), at least four."""
        ends = np.cumsum([len(encoded.rows) for encoded in batch])
        return np.split(outputs[:, 0], ends[:-1])

    def choose(self, samples, results):
        """The filled-up choices are never chosen."""
        return [int(scores[:len(sample.choices)].argmax())
                for sample, scores in zip(samples, results)]


if __name__ == '__main__':
    main(C3)
