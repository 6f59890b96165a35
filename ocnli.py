"""OCNLI: like CMNLI, in original Chinese: entailment, contradiction, or neither?"""
import os
import re

from fltuning.classification import Classification
from fltuning.errors import UserError
from fltuning.task import Published
from train import main


class OCNLI(Classification):
    name = 'ocnli'
    labels = ['entailment', 'neutral', 'contradiction']
    left_out = ['-']  # on which the annotators did not agree
    test_files = {'test.json': 'ocnli_50k_predict.json'}
    archive = 'ocnli_public.zip'
    published = {
        'train.50k.json': Published(50437, 'd38ec492ef086a894211590a18ab7596'),
        'dev.json': Published(2950, '3481b456bee57a3c9ded500fcff6834c'),
        'test.json': Published(3000, '680ff24e6b3419ff8823859bc17936aa'),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 5e-4
    few_clue = 'ocnli'

    def find_train_files(self, folder):
        """train.50k.json, or else the largest train.*k.json that is there."""
        if self.split:
            return self.train_files
        sizes = [int(found.group(1)) for found in
                 (re.match(r'train\.(\d+)k\.json$', name) for name in os.listdir(folder)) if found]
        if not sizes:
            raise UserError('%s: no train.50k.json, nor another train.*k.json' % folder)
        name = 'train.%dk.json' % max(sizes)
        print('ocnli: trains on %s' % name)
        return [name]

    def text_of(self, sample):
        return sample.first


if __name__ == '__main__':
    main(OCNLI)
