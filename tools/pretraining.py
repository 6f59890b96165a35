"""A run of pretraining: corpus, steps, held-out measures, the backbone at its end."""
import collections
import hashlib
import json
import math
import os
import sys
import time

from fltuning import compat  # before TensorFlow
import numpy as np

import snippets
from fltuning import checkpoints, deltas, steps, weights
from fltuning.errors import UserError
from fltuning.files import file_digest, replacing, write_json, write_text
from fltuning.graphs import Graph
from fltuning.initializers import set_seed
from fltuning.loss_scale import LossScale
from fltuning.provenance import versions
from fltuning.steps import prefetch
from fltuning.tokenizer import FastTokenizer, load_tokens
from fltuning.extras import import_extra
from tools.pretraining_data import (
    Sampler, encode_corpus, find_text_files, make_vocab, mask_tokens, read_all, read_corpus, sequences,
    special_ids, write_corpus)
from tools.pretraining_model import Objective, build, write_backbone

STATE = 'fl-tuning-pretraining-2'
STATE_FIELDS = {
    'done': ('a whole number from 0', deltas.is_count), 'history': deltas.STATE_FIELDS['history'],
    'seconds': ('a number from 0', lambda value: type(value) in (int, float) and value >= 0)}
UNSAID = {'layer_norm_eps': 1e-12}  # what configs, and states of earlier versions, may leave out


def prepare(settings):
    """(tokens, Corpus, config, what the corpus is made of); it is made once and kept in
    `output_dir`/corpus.npz. Sets settings.backbone where it is auto."""
    cache = os.path.join(settings.output_dir, 'corpus.npz')
    tokens, config = None, None
    if settings.init_checkpoint:
        tokens, config, _ = read_backbone(settings, 'init_checkpoint')
    files = [file for path in settings.texts for file, _ in find_text_files(path)]
    made_of = json.dumps([list(map(file_digest, files)), settings.vocab_size, settings.whole_words,
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


def read_backbone(settings, name):
    """(tokens, config, path of the checkpoint) of the backbone that the setting `name` names.

    Sets settings.backbone where it is auto.
    """
    source = checkpoints.find_files(getattr(settings, name), setting=name)
    checkpoints.check_backbone(**source)
    config = checkpoints.read_config(source['config_path'])
    if settings.backbone == 'auto':
        settings.backbone = checkpoints.detect_backbone(source['config_path'], source['checkpoint_path'])
    config.pop('use_relative_position', None)
    return list(load_tokens(source['dict_path'])), config, source['checkpoint_path']


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


class Evaluation:
    """Held-out loss and accuracy at masked positions, whole-word masking off, the same every time.

    All of them hold [MASK]: in the 80/10/10 of training a tenth of the answers stands in the input.
    count: sequences to measure on, at even distances in the held-out text.
    """

    def __init__(self, held_out, tokenizer, vocab_size, settings, count=256):
        ids, _ = held_out
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


def evaluate(settings):
    """Measure a finished backbone on the held-out texts. Returns and prints what it found.

    Raises UserError if it has no MLM head, or the texts held out are less than a sequence.
    """
    tokens, config, checkpoint = read_backbone(settings, 'evaluate')
    check_sizes(settings, config)
    tokenizer = FastTokenizer({token: i for i, token in enumerate(tokens)})
    corpus = encode_corpus(settings, tokens, train=False)
    found = Evaluation(corpus.held_out, tokenizer, config['vocab_size'], settings)
    if not found.batches:
        raise UserError('%s: less than a sequence of %d tokens is held out; try a lower --held_out, or 1 for all'
                        % (', '.join(settings.texts), settings.maxlen))
    with Graph().build():
        model, transformer = build(settings.backbone, config, checkpoint, precision=settings.precision)
        if any(name.startswith('MLM-') for name in transformer.anew):
            raise UserError('%s: has no MLM head: nothing to measure' % settings.evaluate)
        measured = found.measure(steps.predict_function(model))
    measured['tokens'] = sum(len(labels) for _, labels in found.batches)
    print('%s: at %d masked tokens of held-out text: loss %.4f, accuracy %.4f'
          % (settings.evaluate, measured['tokens'], measured['loss'], measured['accuracy']))
    return measured


class Pretraining:

    def __init__(self, settings):
        self.settings = settings
        self.check_folder()
        self.tokens, self.corpus, self.config, self.made_of = prepare(settings)
        self.tokenizer = FastTokenizer({token: i for i, token in enumerate(self.tokens)})
        self.graph = Graph()
        with self.graph.build():
            self.build()
        self.sampler = Sampler(self.corpus.train, self.tokenizer, self.config['vocab_size'], settings)
        self.evaluation = Evaluation(self.corpus.held_out, self.tokenizer, self.config['vocab_size'], settings)
        self.history, self.seconds, self.done = [], 0.0, 0

    def build(self):
        """The model, from a checkpoint or anew, and its steps."""
        settings = self.settings
        set_seed(settings.seed)
        initial = settings.init_checkpoint and checkpoints.find_files(
            settings.init_checkpoint)['checkpoint_path']
        self.model, self.transformer = build(settings.backbone, self.config, initial,
                                             settings.dropout, settings.precision)
        self.optimizer = snippets.get_optimizer(
            settings.learning_rate, int(settings.warmup * settings.steps), settings.steps,
            grad_accum_steps=settings.grad_accum_steps)
        self.loss_scale = LossScale() if settings.precision == 'float16' else None
        self.step = steps.train_function(self.model, Objective, self.optimizer, settings.seed, self.loss_scale)
        self.predict = steps.predict_function(self.model)

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
        found.update(dict(UNSAID, **self.config))  # its sizes may be those of init_checkpoint
        return dict(found, corpus=self.made_of, stack=compat.STACK)

    def state(self):
        pairs = [('%s/%d' % (name, i), weight)
                   for name, layer in sorted(self.transformer.layers.items())
                   for i, weight in enumerate(getattr(layer, 'trainable_weights', []))]
        names = {id(weight): name for name, weight in pairs}
        return pairs + self.optimizer.named_slots(
            [names[id(weight)] for weight in self.model.trainable_weights]) + (
                self.loss_scale.named if self.loss_scale else [])

    def save(self):
        deltas.save_delta(self.path('pretrain.state'), weights.get_values(self.state()), dict(
            self.belongs_to(), done=self.done, history=self.history, seconds=self.seconds), STATE)

    def load(self):
        path = self.path('pretrain.state')
        if not os.path.exists(path):
            print('%s: no state of an earlier run: starting anew' % path)
            return
        values, theirs = deltas.read_delta(path, STATE)
        for name, value in UNSAID.items():
            theirs.setdefault(name, value)
        theirs.setdefault('precision', 'float32')
        deltas.check_identity(path, theirs, json.loads(json.dumps(self.belongs_to())))
        weights.check_values(path, self.state(), values)
        weights.set_values(self.state(), values)
        deltas.check_fields(path, theirs, STATE_FIELDS)
        self.done, self.history, self.seconds = [theirs[key] for key in ('done', 'history', 'seconds')]
        print('%s: going on after step %d of %d' % (path, self.done, self.settings.steps))

    def run(self):
        with self.graph.use():
            return self.train()

    def train(self):
        settings = self.settings
        if settings.resume:
            self.load()
        began, losses = time.time() - self.seconds, []
        with steps.progress(settings.steps, 'pretraining') as bar:
            bar.unit = 'step'
            bar.update(self.done)
            for batch in prefetch(self.sampler.batch(step) for step in range(self.done, settings.steps)):
                loss = self.step(*batch)
                self.done += 1
                if loss is not None:  # of a step that was left out
                    losses.append(loss)
                    if not math.isfinite(loss):
                        raise UserError('step %d: the loss is %s; the state of an earlier step is kept; try a '
                                        'lower --learning_rate or a longer --warmup, in another folder'
                                        % (self.done, loss))
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
        return self.finish()

    def note(self, losses, seconds):
        found = dict(step=self.done, seconds=round(seconds, 1))
        if losses:
            found['train_loss'] = float(np.mean(losses))
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
        write_json(self.path('bert_config.json'), self.config)
        write_backbone(self.transformer, settings.output_dir)
        tokens = int(settings.steps) * settings.batch_size * settings.maxlen
        report = dict(
            settings=vars(settings), versions=versions(), history=self.history,
            seconds=round(self.seconds, 1), tokens_seen=tokens,
            corpus_tokens={'train': len(self.corpus.train[0]), 'held_out': len(self.corpus.held_out[0])},
            held_out=None, baselines=None)
        if self.evaluation.batches:
            report['held_out'] = self.evaluation.measure(self.predict)
            report['baselines'] = self.evaluation.baselines(self.corpus.train,
                                                            self.config['vocab_size'])
        write_json(self.path('pretrain.json'), report)
        draw(self.history, report['baselines'], self.path('pretrain.png'))
        print('wrote %s: %s' % (settings.output_dir, 'bert_config.json, bert_model.ckpt, vocab.txt, '
                                'pretrain.json, pretrain.png'))
        return report


def draw(history, baselines, path):
    """The curve: losses and held-out accuracy by step."""
    import_extra('matplotlib', 'pretrain').use('Agg')
    from matplotlib import pyplot
    steps = [epoch['step'] for epoch in history]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.plot(steps, [epoch.get('train_loss', math.nan) for epoch in history], label='train')
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
