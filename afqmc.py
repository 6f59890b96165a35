"""AFQMC: do two questions of a bank's customers mean the same?"""
from fltuning.classification import Classification
from fltuning.task import Published
from train import main


class AFQMC(Classification):
    name = 'afqmc'
    labels = ['0', '1']
    test_files = {'test.json': 'afqmc_predict.json'}
    archive = 'afqmc_public.zip'
    published = {
        'train.json': Published(34334, '319cf775353af9473140abca4052b89a'),
        'dev.json': Published(4316, '307154b59cb6c3e68a0f39c310bbd364'),
        'test.json': Published(3861, '94b925f23a9615dd08199c4013f761f4'),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 32, 10, 2e-4


if __name__ == '__main__':
    main(AFQMC)
