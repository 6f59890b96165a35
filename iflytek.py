"""IFLYTEK: which of 119 kinds is an app of, going by its description?"""
from tnews import TNEWS
from train import main


class IFLYTEK(TNEWS):
    name = 'iflytek'
    labels = [str(label) for label in range(119)]
    test_files = {'test.json': 'iflytek_predict.json'}


if __name__ == '__main__':
    main(IFLYTEK)
