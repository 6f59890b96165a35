"""CLUENER: names of ten types in a text."""
from fltuning.entities import EntityRecognition
from fltuning.task import Published
from train import main


class CLUENER(EntityRecognition):
    name = 'cluener'
    labels = ['address', 'book', 'company', 'game', 'government', 'movie', 'name', 'organization',
              'position', 'scene']
    test_files = {'test.json': 'cluener_predict.json'}
    archive = 'cluener_public.zip'
    published = {
        'train.json': Published(10748, '6cf6f466b20c1681ed12e6b18e6345df'),
        'dev.json': Published(1343, 'ecf3cf49219eb6a5a32fe958da713f04'),
        'test.json': Published(1345, '311aa1bca3fb1580e5106ad688fed629'),
    }
    maxlen, batch_size, epochs, learning_rate = 256, 32, 30, 1e-4


if __name__ == '__main__':
    main(CLUENER)
