"""AFQMC: do two questions of a bank's customers mean the same?"""
from data import read_json_lines
from tasks import Classification
from train import main


class AFQMC(Classification):
    name = 'afqmc'
    labels = ['0', '1']
    test_files = {'test.json': 'afqmc_predict.json'}
    maxlen, batch_size, epochs, learning_rate = 128, 32, 10, 2e-4

    def read(self, path, labelled):
        return [self.Text(
            id=None if labelled else record.get_id(),
            first=record.get_text('sentence1'), second=record.get_text('sentence2'),
            label=record.get_choice('label', self.labels) if labelled else None)
            for record in read_json_lines(path)]


if __name__ == '__main__':
    main(AFQMC)
