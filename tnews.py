"""TNEWS: which of 15 sections does a headline belong to?"""
from tasks import Classification
from train import main


class TNEWS(Classification):
    name = 'tnews'
    labels = [str(label) for label in range(100, 117) if label not in (105, 111)]
    test_files = {'test1.0.json': 'tnews10_predict.json', 'test.json': 'tnews11_predict.json'}
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 5e-5

    def parse(self, records, labelled):
        return [self.Text(
            id=None if labelled else self.get_id(record),
            first=record.get_text('sentence'), second=None,
            label=record.get_choice('label', self.labels) if labelled else None)
            for record in records]


if __name__ == '__main__':
    main(TNEWS)
