"""OCNLI: like CMNLI, in original Chinese."""
import os
import re

from cmnli import CMNLI
from errors import UserError
from train import main


class OCNLI(CMNLI):
    name = 'ocnli'
    test_files = {'test.json': 'ocnli_50k_predict.json'}
    learning_rate = 5e-4

    def find_train_files(self, folder):
        """train.50k.json, or else the largest train.*k.json that is there."""
        sizes = [int(found.group(1)) for found in
                 (re.match(r'train\.(\d+)k\.json$', name) for name in os.listdir(folder)) if found]
        if not sizes:
            raise UserError('%s: no train.50k.json, nor another train.*k.json' % folder)
        name = 'train.%dk.json' % max(sizes)
        print('ocnli: trains on %s' % name)
        return [name]


if __name__ == '__main__':
    main(OCNLI)
