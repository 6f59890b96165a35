"""CMNLI: does a sentence follow from another, contradict it, or neither?"""
from fltuning.classification import Classification
from fltuning.task import Published
from train import main


class CMNLI(Classification):
    name = 'cmnli'
    labels = ['entailment', 'neutral', 'contradiction']
    test_files = {'test.json': 'cmnli_predict.json'}
    archive = 'cmnli_public.zip'
    published = {
        'train.json': Published(391783, '7d02308650cd2a0e183bf599ca9bb263'),
        'dev.json': Published(12241, '0b16a50a297a9afb1ce5385ee4dd3d9c'),
        'test.json': Published(13880, '804cb0bb67266983d59d1c855e6b03b0'),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 32, 30, 1e-4
    left_out = ['-']  # on which the annotators did not agree

    def text_of(self, sample):
        return sample.first


if __name__ == '__main__':
    main(CMNLI)
