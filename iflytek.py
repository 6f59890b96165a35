"""IFLYTEK: which of 119 kinds is an app of, going by its description?"""
from fltuning.classification import Classification
from fltuning.task import Published
from train import main


class IFLYTEK(Classification):
    name = 'iflytek'
    labels = [str(label) for label in range(119)]
    text_fields = ['sentence']
    test_files = {'test.json': 'iflytek_predict.json'}
    archive = 'iflytek_public.zip'
    published = {
        'train.json': Published(12133, 'fc9a21700c32ee3efee3fc283e9ac560'),
        'dev.json': Published(2599, '79b7d95bddeb11cd54198fd077992704'),
        'test.json': Published(2600, 'ea764519ddb4369767d07664afde3325'),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 5e-5
    few_clue = 'iflytek'


if __name__ == '__main__':
    main(IFLYTEK)
