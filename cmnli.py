"""CMNLI: does a sentence follow from another, contradict it, or neither?"""
from tasks import Classification
from train import main


class CMNLI(Classification):
    name = 'cmnli'
    labels = ['entailment', 'neutral', 'contradiction']
    test_files = {'test.json': 'cmnli_predict.json'}
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 1e-4

    def parse(self, records, labelled):
        """Lines labelled '-', on which the annotators did not agree, are left out."""
        return [self.Text(
            id=None if labelled else self.get_id(record),
            first=record.get_text('sentence1'), second=record.get_text('sentence2'),
            label=record.get_choice('label', self.labels) if labelled else None)
            for record in records if not labelled or record.get('label') != '-']


if __name__ == '__main__':
    main(CMNLI)
