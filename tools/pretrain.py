"""Masked-language-model pretraining of a small backbone, or of an existing one on texts of one's own.

Texts are packed into sequences without padding, masks are drawn anew in every step, and the MLM head
is computed at masked positions only. What comes out is in Google's layout, MLM head included, and
loads like any other backbone.
"""
import argparse
import os

from fltuning import precision
from fltuning.errors import Parser
from fltuning.files import make_folder
from fltuning.locks import locked
from fltuning.settings import positive_number, share, whole_number
from fltuning.extras import import_extra


def parse_flags(argv=None):
    parser = Parser(prog='scripts/pretrain', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    size, count = whole_number(0), whole_number(1)
    parser.add_argument('--texts', nargs='+', required=True,
                        help='files of plain text, .xz too, folders of them, or of CLUE data')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument('--output_dir', help='the folder to write')
    target.add_argument('--evaluate', metavar='FOLDER', default='',
                        help='train nothing, measure this backbone on the held-out texts, at sequences of maxlen')
    parser.add_argument('--backbone', default='auto', choices=['auto', 'nezha', 'roberta', 'roformer'],
                        help='its kind; auto: that of init_checkpoint, or roberta')
    parser.add_argument('--init_checkpoint', default='',
                        help='folder of a backbone to go on from, vocabulary and sizes included')
    for name, default, text in [
            ('layers', 4, 'Transformer layers'), ('hidden_size', 256, 'width'),
            ('heads', 4, 'attention heads'), ('intermediate_size', 1024, 'width of the FFN'),
            ('max_position', 512, 'positions'), ('vocab_size', 6000, 'tokens, at most'),
            ('batch_size', 64, 'sequences a batch'),
            ('steps', 20000, 'batches'), ('grad_accum_steps', 1, 'batches per update'),
            ('length_warmup', 0, 'steps in which sequences grow from 16 tokens to maxlen, with as many '
                                 'tokens a batch: absolute positions are learnt far sooner'),
            ('eval_every', 500, 'steps from one held-out evaluation to the next'),
            ('save_every', 500, 'steps from one state to the next, a multiple of eval_every')]:
        parser.add_argument('--' + name, type=count if default else size, default=default,
                            help=text)
    parser.add_argument('--maxlen', type=whole_number(8), default=128, help='tokens a sequence')
    parser.add_argument('--learning_rate', type=positive_number, default=5e-4, help='the highest')
    parser.add_argument('--warmup', type=share, default=0.05, help='share of steps in which it rises')
    parser.add_argument('--dropout', type=share, default=0.0,
                        help='while pretraining; 0 where no text is seen twice')
    parser.add_argument('--held_out', type=size, default=200,
                        help='one text in so many is held out; 1: all, to evaluate on them')
    parser.add_argument('--seed', type=size, default=42, help='one seed, one result')
    parser.add_argument('--precision', default='float32', choices=precision.NAMES,
                        help='of products; weights and their updates are float32; a low one needs the stack tf2')
    parser.add_argument('--no_whole_words', dest='whole_words', action='store_false',
                        help='mask tokens, not words as jieba finds them')
    parser.add_argument('--resume', action='store_true', help='go on where a run was stopped')
    settings = parser.parse_args(argv)
    if settings.save_every % settings.eval_every:
        parser.error('--save_every %d: expected a multiple of --eval_every %d'
                     % (settings.save_every, settings.eval_every))
    if settings.evaluate and (settings.init_checkpoint or settings.resume):
        parser.error('--evaluate: trains nothing: not with --init_checkpoint, --resume')
    return settings


def run(argv=None):
    settings = parse_flags(argv)
    for name in ['matplotlib'] * (not settings.evaluate) + ['jieba'] * settings.whole_words:
        import_extra(name, 'pretrain')  # what is missing is said now, not after hours
    precision.use(settings.precision)
    if settings.evaluate:
        from tools.pretraining import evaluate  # which loads TensorFlow
        evaluate(settings)
        return
    make_folder(settings.output_dir, 'output_dir')
    with locked(os.path.join(settings.output_dir, 'pretrain.lock')):
        from tools.pretraining import Pretraining  # which loads TensorFlow
        Pretraining(settings).run()
