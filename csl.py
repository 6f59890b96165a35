"""CSL: are these the keywords of this abstract?"""
from tasks import Classification
from train import main


class CSL(Classification):
    name = 'csl'
    labels = ['0', '1']
    test_files = {'test.json': 'csl_predict.json'}
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 8e-5

    def parse(self, records, labelled):
        return [self.Text(
            id=None if labelled else self.get_id(record),
            first='；'.join(record.get_list('keyword', str)), second=record.get_text('abst'),
            label=record.get_choice('label', self.labels) if labelled else None)
            for record in records]


if __name__ == '__main__':
    main(CSL)
