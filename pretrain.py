"""Masked-language-model pretraining of a small backbone, or of an existing one on texts of one's own.

Texts are packed into sequences without padding, masks are drawn anew in every step, and the MLM head
is computed at masked positions only. What comes out is in Google's layout, MLM head included, and
loads like any other backbone.
"""
import argparse
import collections
import hashlib
import json
import os
import sys
import time

import compat
import numpy as np
import tensorflow as tf
from bert4keras.backend import K, keras

import checkpoints
import deltas
import loop
import snippets
import train
from data import file_sha256, prefetch, replacing, write_text
from errors import Parser, UserError, run_tool
from functions import truncated_normal
from models import BACKBONES, PromptTuning, detect_backbone
from pretraining_data import (
    Sampler, encode_corpus, find_text_files, import_extra, make_vocab, mask_tokens, read_all,
    read_corpus, sequences, special_ids, write_corpus)

STATE = 'fl-tuning-pretraining-1'


# ------------------------------------------------------------------ the model


class MaskedTokens(object):
    """Mixin: a Transformer whose MLM head sees the masked positions alone.

    positions: Keras input (masked,), places in the flat (batch * length).
    Output: (masked, vocabulary), logits.
    """

    def __init__(self, *args, **kwargs):
        self.positions = kwargs.pop('positions')
        super(MaskedTokens, self).__init__(*args, **dict(kwargs, with_mlm='linear', packed=True))

    def apply_final_layers(self, inputs):
        self.packing = None
        # As one row of a batch, since bert4keras's layers expect (batch, length, hidden).
        rows = keras.layers.Lambda(lambda x: tf.gather(x[0], tf.cast(x[1], 'int32'))[None],
                                   output_shape=lambda shapes: (1, None, self.hidden_size),
                                   name='Masked-Positions')([inputs, self.positions])
        logits = super(PromptTuning, self).apply_final_layers(rows)
        return keras.layers.Lambda(lambda x: x[0], output_shape=lambda shape: shape[1:],
                                   name='Masked-Logits')(logits)


class Objective(object):
    """What `loop.train_function` asks of a task: the mean cross-entropy at masked positions."""
    label_ndim, label_dtype = 1, 'int32'

    @staticmethod
    def loss(labels, outputs):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs)
        # A batch of unknown tokens has no masked position.
        return K.sum(losses) / tf.cast(tf.maximum(tf.size(losses), 1), losses.dtype)


def build(backbone, config, checkpoint_path=None, dropout=0.0):
    """(model, transformer), all of it trained; starting from a checkpoint, or anew."""
    positions = keras.layers.Input(batch_shape=(None,), name='Input-Masked-Positions')
    kind = type('MaskedTokens' + backbone, (MaskedTokens, BACKBONES[backbone]), {})
    config = dict(config, max_position=config.get('max_position_embeddings', 512),
                  dropout_rate=dropout, attention_dropout_rate=dropout,
                  segment_vocab_size=config.get('type_vocab_size', 2))
    transformer = kind(positions=positions, keyed_dropout=True, **config)
    transformer.build(additional_input_layers=[positions])
    initialize(transformer, config.get('initializer_range', 0.02))
    if not checkpoint_path or 'Embedding-Position' in load(transformer, checkpoint_path):
        initialize_positions(transformer)
    return transformer.model, transformer


def load(transformer, checkpoint_path):
    """A checkpoint's values; positions, which other kinds lack, and an MLM head may start anew.

    Returns the names of the layers that do.
    """
    there, mapping = checkpoints.list_variables(checkpoint_path), transformer.variable_mapping()
    missing = [layer for layer, names in mapping.items() if layer in transformer.layers
               and layer.startswith(('Embedding-Position', 'MLM-')) and set(names) - set(there)]
    if missing:
        print('%s: starting anew: %s' % (checkpoint_path, ', '.join(missing)))
    transformer.load_weights_from_checkpoint(checkpoint_path, {
        layer: names for layer, names in mapping.items() if layer not in missing})
    return missing


def initialize(transformer, stddev):
    """The same initial values on both stacks, which draw them in ways of their own."""
    pairs = []
    for name, weight in sorted(variables(transformer).items()):
        shape = K.int_shape(weight)
        value = truncated_normal(shape, stddev) if len(shape) > 1 else np.full(
            shape, float(name.endswith('gamma')))
        pairs.append((weight, value))
    K.batch_set_value(pairs)


def initialize_positions(transformer):
    """Sinusoids, as strong as the tokens: neighbours are alike before any of them was trained."""
    layers = transformer.layers
    for weight in layers['Embedding-Position'].weights if 'Embedding-Position' in layers else []:
        tokens = K.get_value(layers['Embedding-Token'].weights[0])
        K.set_value(weight, sinusoids(*K.int_shape(weight)) * tokens.std() * 2**0.5)


def sinusoids(positions, size):
    """(positions, size)"""
    angles = np.arange(positions)[:, None] / 10000 ** (np.arange(size // 2) * 2 / size)
    return np.stack([np.sin(angles), np.cos(angles)], 2).reshape(positions, size)


def variables(transformer):
    """{Google's name: variable} of all weights that a checkpoint holds."""
    return {name: weight for layer, names in transformer.variable_mapping().items()
            if layer in transformer.layers
            for name, weight in zip(names, transformer.layers[layer].trainable_weights)}


def write_backbone(transformer, folder):
    found = variables(transformer)
    values = K.batch_get_value(list(found.values()))
    checkpoints.write_checkpoint(os.path.join(folder, 'bert_model.ckpt'),
                                 dict(zip(found, map(np.asarray, values))))


# ------------------------------------------------------------------ the run


def prepare(settings):
    """(tokens, Corpus, config, what the corpus is made of); it is made once and kept in
    `output_dir`/corpus.npz. Sets settings.backbone where it is auto."""
    cache = os.path.join(settings.output_dir, 'corpus.npz')
    tokens, config = None, None
    if settings.init_checkpoint:
        source = checkpoints.find_files(settings.init_checkpoint)
        snippets.check_backbone(**source)
        tokens = list(snippets.load_tokens(source['dict_path']))
        config = checkpoints.read_config(source['config_path'])
        if settings.backbone == 'auto':
            settings.backbone = detect_backbone(source['config_path'], source['checkpoint_path'])
        config.pop('use_relative_position', None)
    files = [file for path in settings.texts for file, _ in find_text_files(path)]
    made_of = json.dumps([list(map(file_sha256, files)), settings.vocab_size, settings.whole_words,
                          settings.held_out])
    if os.path.exists(cache):
        theirs, corpus = read_corpus(cache, made_of)
        if tokens and tokens != theirs:
            raise UserError('%s: made with another vocabulary than that of %s; name another '
                            'output_dir, or remove it' % (cache, settings.init_checkpoint))
        tokens = theirs
    else:
        tokens = tokens or make_vocab(map(' '.join, read_all(settings.texts)), settings.vocab_size)
        if len(tokens) > 65535:
            raise UserError('%d tokens: expected at most 65,535' % len(tokens))
        corpus = encode_corpus(settings, tokens)
    settings.backbone = settings.backbone.replace('auto', 'roberta')
    config = config or new_config(settings, len(tokens))
    if settings.backbone == 'nezha':
        config['use_relative_position'] = True
    check_sizes(settings, config)
    if len(corpus.train[0]) < settings.maxlen:
        raise UserError('%s: %d tokens, fewer than one sequence of %d'
                        % (', '.join(settings.texts), len(corpus.train[0]), settings.maxlen))
    if not os.path.exists(cache):
        write_corpus(cache, made_of, tokens, corpus)
    return tokens, corpus, config, made_of + digest(tokens)


def digest(tokens):
    return hashlib.sha256('\n'.join(tokens).encode('utf-8')).hexdigest()[:16]


def check_sizes(settings, config):
    """Raises UserError if no backbone of these sizes can be built."""
    positions = config.get('max_position_embeddings', 512)
    if settings.backbone == 'roberta' and settings.maxlen > positions:
        raise UserError('maxlen %d: the backbone has %d positions' % (settings.maxlen, positions))
    if config['hidden_size'] % (2 * config['num_attention_heads']):
        raise UserError('hidden_size %d: expected a multiple of twice the %d heads'
                        % (config['hidden_size'], config['num_attention_heads']))


def new_config(settings, vocab_size):
    """bert_config.json of a backbone that starts anew; its dropout is that of tuning."""
    return collections.OrderedDict(
        attention_probs_dropout_prob=0.1, hidden_act='gelu', hidden_dropout_prob=0.1,
        hidden_size=settings.hidden_size, initializer_range=0.02,
        intermediate_size=settings.intermediate_size, max_position_embeddings=settings.max_position,
        num_attention_heads=settings.heads, num_hidden_layers=settings.layers, type_vocab_size=2,
        vocab_size=vocab_size)


class Evaluation(object):
    """Held-out loss and accuracy at masked positions, whole-word masking off, the same every time.

    All of them hold [MASK]: in the 80/10/10 of training a tenth of the answers stands in the input.
    count: sequences to measure on, at even distances in the held-out text.
    """

    def __init__(self, corpus, tokenizer, vocab_size, settings, count=256):
        ids, _ = corpus.held_out
        part = ids, np.ones(len(ids), bool)
        size = settings.maxlen - 2
        random, self.batches, self.before = np.random.RandomState(0), [], []
        starts = np.arange(0, len(ids) - size, size)
        starts = starts[::-(-len(starts) // count) or 1]
        self.kept = special_ids(tokenizer)
        for i in range(0, len(starts), 32):
            rows, begins = sequences(part, tokenizer, settings.maxlen, starts[i:i + 32])
            masked, places, labels = mask_tokens(rows, begins, random, tokenizer, vocab_size,
                                                 self.kept, shares=(1, 0))
            self.batches.append(([masked, np.zeros_like(masked), places], labels))
            self.before.append(rows.reshape(-1)[places - 1])

    def measure(self, predict):
        """{loss, accuracy}"""
        losses, right = [], []
        for inputs, labels in self.batches:
            logits = predict(inputs).astype('float64')
            best = logits.max(-1, keepdims=True)
            losses.append(np.log(np.exp(logits - best).sum(-1)) + best[:, 0]
                          - logits[np.arange(len(labels)), labels])
            right.append(logits.argmax(-1) == labels)
        return {'loss': float(np.concatenate(losses).mean()),
                'accuracy': float(np.concatenate(right).mean())}

    def baselines(self, part, vocab_size):
        """Accuracy at the same places of the commonest token, and of the commonest after the true
        token before, both counted in the training text; of tokens that are ever masked."""
        ids = part[0]
        counts = np.bincount(ids, minlength=vocab_size)
        counts[self.kept] = 0
        labels = np.concatenate([labels for _, labels in self.batches])
        # A row for each token that stands before a place, not for all, and a part of the text at a time.
        asked, row = np.unique(np.concatenate(self.before), return_inverse=True)
        rows = np.full(vocab_size, len(asked))
        rows[asked] = np.arange(len(asked))
        pairs, step = np.zeros((len(asked) + 1) * vocab_size, 'int64'), 1 << 24
        for i in range(0, len(ids) - 1, step):
            second = ids[i + 1:i + 1 + step]
            pairs += np.bincount(rows[ids[i:i + len(second)]] * vocab_size + second,
                                 minlength=len(pairs))
        pairs = pairs.reshape(-1, vocab_size)
        pairs[:, self.kept] = 0
        following = np.where(pairs.any(-1), pairs.argmax(-1), counts.argmax())
        return {'unigram': float(np.mean(labels == counts.argmax())),
                'bigram': float(np.mean(labels == following[row]))}


class Pretraining(object):

    def __init__(self, settings):
        self.settings = settings
        try:
            os.makedirs(settings.output_dir, exist_ok=True)
        except OSError as error:
            raise UserError('output_dir: %s: %s' % (settings.output_dir, error.strerror))
        self.check_folder()
        self.tokens, self.corpus, self.config, self.made_of = prepare(settings)
        self.tokenizer = snippets.FastTokenizer({token: i for i, token in enumerate(self.tokens)})
        K.clear_session()
        train.set_seed(settings.seed)
        initial = settings.init_checkpoint and checkpoints.find_files(
            settings.init_checkpoint)['checkpoint_path']
        self.model, self.transformer = build(settings.backbone, self.config, initial,
                                             settings.dropout)
        self.optimizer = snippets.get_optimizer(
            settings.learning_rate, int(settings.warmup * settings.steps), settings.steps,
            grad_accum_steps=settings.grad_accum_steps)
        self.step = loop.train_function(self.model, Objective, self.optimizer, settings.seed)
        self.predict = loop.predict_function(self.model)
        self.sampler = Sampler(self.corpus.train, self.tokenizer, self.config['vocab_size'], settings)
        self.evaluation = Evaluation(self.corpus, self.tokenizer, self.config['vocab_size'], settings)
        self.history, self.seconds, self.done = [], 0.0, 0

    def path(self, name):
        return os.path.join(self.settings.output_dir, name)

    def check_folder(self):
        """Raises UserError if the folder holds a backbone that this run would take the place of."""
        folder, ours = self.settings.output_dir, os.path.exists(self.path('pretrain.state'))
        if os.path.exists(self.path('bert_model.ckpt.index')) and not (ours and self.settings.resume):
            raise UserError('output_dir: %s: there is a backbone already; name another folder%s'
                            % (folder, ', or --resume' if ours else ''))

    def belongs_to(self):
        found = {name: value for name, value in vars(self.settings).items()
                 if name not in ('output_dir', 'resume', 'save_every', 'texts', 'init_checkpoint')}
        found.update(self.config)  # its sizes may be those of init_checkpoint
        return dict(found, corpus=self.made_of, stack=compat.STACK)

    def state(self):
        weights = [('%s/%d' % (name, i), weight)
                   for name, layer in sorted(self.transformer.layers.items())
                   for i, weight in enumerate(getattr(layer, 'trainable_weights', []))]
        names = {id(weight): name for name, weight in weights}
        return weights + self.optimizer.named_slots(
            [names[id(weight)] for weight in self.model.trainable_weights])

    def save(self):
        deltas.save_delta(self.path('pretrain.state'), deltas.get_values(self.state()), dict(
            self.belongs_to(), done=self.done, history=self.history, seconds=self.seconds), STATE)

    def load(self):
        path = self.path('pretrain.state')
        if not os.path.exists(path):
            print('%s: no state of an earlier run: starting anew' % path)
            return
        values, theirs = deltas.read_delta(path, STATE)
        deltas.check_identity(path, theirs, json.loads(json.dumps(self.belongs_to())))
        deltas.check_values(path, self.state(), values)
        deltas.set_values(self.state(), values)
        self.done, self.history, self.seconds = [theirs[key] for key in ('done', 'history', 'seconds')]
        print('%s: going on after step %d of %d' % (path, self.done, self.settings.steps))

    def run(self):
        settings = self.settings
        if settings.resume:
            self.load()
        began, losses = time.time() - self.seconds, []
        steps = range(self.done, settings.steps)
        with loop.progress(settings.steps, 'pretraining') as bar:
            bar.unit = 'step'
            bar.update(self.done)
            for batch in prefetch((self.sampler.batch(step) for step in steps)):
                losses.append(self.step(*batch))
                self.done += 1
                bar.set_postfix(loss='%.3f' % np.mean(losses[-50:]), refresh=False)
                bar.update(1)
                last = self.done == settings.steps
                if last or self.done % settings.eval_every == 0:
                    self.note(losses, time.time() - began)
                    losses = []
                # Only with an evaluation: the losses between two of them are in no state.
                if last or self.done % settings.save_every == 0 and not losses:
                    self.seconds = time.time() - began
                    self.save()
        self.finish()

    def note(self, losses, seconds):
        found = dict(step=self.done, train_loss=float(np.mean(losses)), seconds=round(seconds, 1))
        if self.evaluation.batches:
            found.update(self.evaluation.measure(self.predict))
        self.history.append(found)
        print('step %d: %s' % (self.done, ', '.join(
            '%s %.4g' % item for item in sorted(found.items()) if item[0] != 'step')))
        sys.stdout.flush()

    def finish(self):
        """The backbone: its checkpoint last, without which the others are none."""
        settings = self.settings
        write_text(self.path('vocab.txt'), '\n'.join(self.tokens) + '\n')
        checkpoints.write_json(self.path('bert_config.json'), self.config)
        write_backbone(self.transformer, settings.output_dir)
        tokens = int(settings.steps) * settings.batch_size * settings.maxlen
        report = dict(
            settings=vars(settings), versions=train.versions(), history=self.history,
            seconds=round(self.seconds, 1), tokens_seen=tokens,
            corpus_tokens={'train': len(self.corpus.train[0]), 'held_out': len(self.corpus.held_out[0])},
            held_out=None, baselines=None)
        if self.evaluation.batches:
            report['held_out'] = self.evaluation.measure(self.predict)
            report['baselines'] = self.evaluation.baselines(self.corpus.train,
                                                            self.config['vocab_size'])
        write_text(self.path('pretrain.json'), json.dumps(report, ensure_ascii=False, indent=2) + '\n')
        draw(self.history, report['baselines'], self.path('pretrain.png'))
        print('wrote %s: %s' % (settings.output_dir, 'bert_config.json, bert_model.ckpt, vocab.txt, '
                                'pretrain.json, pretrain.png'))
        return report


def draw(history, baselines, path):
    """The curve: losses and held-out accuracy by step."""
    import_extra('matplotlib').use('Agg')
    from matplotlib import pyplot
    steps = [epoch['step'] for epoch in history]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.plot(steps, [epoch['train_loss'] for epoch in history], label='train')
    if baselines:
        left.plot(steps, [epoch['loss'] for epoch in history], label='held out')
        right.plot(steps, [epoch['accuracy'] for epoch in history], label='held out')
        for name, value in sorted(baselines.items()):
            right.axhline(value, linestyle=':', label=name, color='gray' if name == 'unigram' else 'k')
        right.legend()
    left.set(xlabel='step', ylabel='cross-entropy at masked positions')
    right.set(xlabel='step', ylabel='masked accuracy')
    left.legend()
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format='png', metadata={'Software': None})
    pyplot.close(figure)


def share(text):
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError('expected a number from 0 to below 1, got %s' % text)
    return value


def parse_flags(argv=None):
    parser = Parser(prog='scripts/pretrain', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    size, count = train.whole_number(0), train.whole_number(1)
    parser.add_argument('--texts', nargs='+', required=True,
                        help='files of plain text, .xz too, folders of them, or of CLUE data')
    parser.add_argument('--output_dir', required=True, help='the folder to write')
    parser.add_argument('--backbone', default='auto', choices=['auto'] + sorted(BACKBONES),
                        help='its kind; auto: that of init_checkpoint, or roberta')
    parser.add_argument('--init_checkpoint', default='',
                        help='folder of a backbone to go on from, vocabulary and sizes included')
    for name, default, text in [
            ('layers', 4, 'Transformer layers'), ('hidden_size', 256, 'width'),
            ('heads', 4, 'attention heads'), ('intermediate_size', 1024, 'width of the FFN'),
            ('max_position', 512, 'positions'), ('vocab_size', 6000, 'tokens, at most'),
            ('batch_size', 64, 'sequences a batch'),
            ('steps', 20000, 'batches'), ('grad_accum_steps', 1, 'batches an update'),
            ('length_warmup', 0, 'steps in which sequences grow from 16 tokens to maxlen, with as many '
                                 'tokens a batch: absolute positions are learnt far sooner'),
            ('eval_every', 500, 'steps from one held-out evaluation to the next'),
            ('save_every', 500, 'steps from one state to the next, a multiple of eval_every')]:
        parser.add_argument('--' + name, type=count if default else size, default=default,
                            help=text)
    parser.add_argument('--maxlen', type=train.whole_number(8), default=128, help='tokens a sequence')
    parser.add_argument('--learning_rate', type=train.positive_number, default=5e-4, help='the highest')
    parser.add_argument('--warmup', type=share, default=0.05, help='share of steps in which it rises')
    parser.add_argument('--dropout', type=share, default=0.0,
                        help='while pretraining; 0 where no text is seen twice')
    parser.add_argument('--held_out', type=size, default=200, help='every so manieth text is held out')
    parser.add_argument('--seed', type=size, default=42, help='one seed, one result')
    parser.add_argument('--no_whole_words', dest='whole_words', action='store_false',
                        help='mask tokens, not words as jieba finds them')
    parser.add_argument('--resume', action='store_true', help='go on where a run was stopped')
    settings = parser.parse_args(argv)
    if settings.save_every % settings.eval_every:
        parser.error('--save_every %d: expected a multiple of --eval_every %d'
                     % (settings.save_every, settings.eval_every))
    return settings


def run(argv=None):
    settings = parse_flags(argv)
    for name in ['matplotlib'] + ['jieba'] * settings.whole_words:
        import_extra(name)  # what is missing is said now, not after hours
    Pretraining(settings).run()


if __name__ == '__main__':
    run_tool('scripts/pretrain', run)
