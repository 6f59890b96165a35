"""CLUEWSC: does a pronoun mean this thing?"""
import re

from fltuning.classification import Classification
from fltuning.task import Published
from train import main


class WSC(Classification):
    name = 'wsc'
    labels = ['false', 'true']
    test_files = {'test1.0.json': 'cluewsc10_predict.json', 'test.json': 'cluewsc11_predict.json'}
    archive = 'cluewsc2020_public.zip'
    published = {
        'train.json': Published(1244),
        'dev.json': Published(304),
        'test1.0.json': Published(290),
        'test.json': Published(2574),
    }
    maxlen, batch_size, epochs, learning_rate = 128, 128, 40, 3e-4
    few_clue = 'cluewsc'

    def texts(self, record):
        return self.mark(record), None

    def mark(self, record):
        """The text with _span1_ and [span2] marked."""
        text, target = record.get_text('text'), record.get_record('target')
        marks = []
        for number, before, behind in [(1, '_', '_'), (2, '[', ']')]:
            span = target.get_text('span%d_text' % number)
            begin = target.get_integer('span%d_index' % number)
            if begin < 0 or text[begin:begin + len(span)] != span:
                raise target.error('span%d_index' % number, 'where the text says "%s"' % span)
            # Where marks meet, ends come first, and of nested spans the outer one stays outside.
            marks += [(begin, 1, -len(span), number, before),
                      (begin + len(span), 0, len(span), -number, behind)]
        for place, _, _, _, mark in sorted(marks, reverse=True):  # from the end: places stay
            text = text[:place] + mark + text[place:]
        return text

    def text_of(self, sample):
        return re.sub(r'[_\[\]]', '', sample.first)  # without the marks


if __name__ == '__main__':
    main(WSC)
