"""CSL: are these the keywords of this abstract?"""
from fltuning.classification import Classification
from fltuning.task import Published
from train import main


class CSL(Classification):
    name = 'csl'
    labels = ['0', '1']
    test_files = {'test.json': 'csl_predict.json'}
    archive = 'csl_public.zip'
    published = {
        'train.json': Published(20000, 'e927948b4e0eb4992fe9f45a77446bf5'),
        'dev.json': Published(3000, '6c2ab8dd3b4785829ead94b05a1cb957'),
        'test.json': Published(3000, 'ebfb89575355f00dcd9b18f8353547cd'),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 8e-5
    few_clue = 'csl'

    def texts(self, record):
        return '；'.join(record.get_list('keyword', str)), record.get_text('abst')

    def text_of(self, sample):
        return sample.second


if __name__ == '__main__':
    main(CSL)
