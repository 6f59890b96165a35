"""AFQMC: do two questions of a bank's customers mean the same?"""
from tasks import Classification
from train import main


class AFQMC(Classification):
    name = 'afqmc'
    labels = ['0', '1']
    test_files = {'test.json': 'afqmc_predict.json'}
    maxlen, batch_size, epochs, learning_rate = 128, 32, 10, 2e-4

    def parse(self, records, labelled):
        return [self.Text(
            id=None if labelled else self.get_id(record),
            first=record.get_text('sentence1'), second=record.get_text('sentence2'),
            label=record.get_choice('label', self.labels) if labelled else None)
            for record in records]


if __name__ == '__main__':
    main(AFQMC)
