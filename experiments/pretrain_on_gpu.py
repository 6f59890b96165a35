#!/usr/bin/env python3
"""Pretraining of a small backbone on one GPU, in PyTorch: how those in pretrained/ were trained on.

The model, the masks and the text are those of `scripts/pretrain`, which makes the corpus and measures what
comes out; in bfloat16, with large batches, and with every fourth batch of sequences of 512 tokens. It needs
PyTorch and NumPy alone, but for the first and the last of its commands, which read and write checkpoints:

    scripts/pretrain --texts texts clue_dataset --init_checkpoint pretrained/roberta --steps 1 \\
        --output_dir weights/pre
    scripts/python -m experiments.pretrain_on_gpu unpack pretrained/roberta weights/roberta.npz
    python3 -m experiments.pretrain_on_gpu train weights/roberta.npz weights/new.npz \\
        --corpus weights/pre/corpus.npz --steps 9000
    scripts/python -m experiments.pretrain_on_gpu pack weights/new.npz weights/roberta
    scripts/pretrain --evaluate weights/roberta --texts texts clue_dataset
"""
import argparse
import json
import math
import os
import sys
import time
import zipfile

import numpy as np

CHOSEN, MASKED, RANDOM = 0.15, 0.8, 0.1  # as in tools/pretraining_data.py
ABOUT = 'vocab', 'config', 'kind'  # beside the weights
DISTANCE = 64  # past which NEZHA's relative positions are the same


def parse_flags(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    unpack_, pack_, train_ = [commands.add_parser(name) for name in ('unpack', 'pack', 'train')]
    unpack_.add_argument('backbone', help='a folder')
    unpack_.add_argument('weights', help='the .npz to write')
    pack_.add_argument('weights', help='a .npz')
    pack_.add_argument('folder', help='to write: bert_config.json, bert_model.ckpt, vocab.txt')
    train_.add_argument('weights', help='the .npz to begin with')
    train_.add_argument('output', help='the .npz to write')
    train_.add_argument('--corpus', required=True, help='corpus.npz of scripts/pretrain')
    length = train_.add_mutually_exclusive_group(required=True)
    length.add_argument('--steps', type=int, help='updates')
    length.add_argument('--seconds', type=float, help='as many updates as fit')
    train_.add_argument('--tokens', type=int, default=32768, help='of a batch')
    train_.add_argument('--learning_rate', type=float, default=7e-4, help='at 1.5e-3 the bundled NEZHA diverged')
    train_.add_argument('--warmup', type=float, default=0.05)
    train_.add_argument('--lengths', type=int, nargs='+', default=[128, 128, 128, 512], help='of sequences, in turn')
    train_.add_argument('--seed', type=int, default=42)
    return parser.parse_args(argv)


def refuse(message):
    print('pretrain_on_gpu: %s' % message, file=sys.stderr)
    sys.exit(2)


def read(path, *names):
    """{name: array} of a .npz that must have these."""
    try:
        arrays = dict(np.load(path))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        refuse('%s: expected a .npz: %s' % (path, getattr(error, 'strerror', None) or error))
    missing = [name for name in names if name not in arrays]
    if missing:
        refuse('%s: has no %s' % (path, ', '.join(missing)))
    return arrays


def write(path, arrays):
    """{name: array} as a .npz, whole or not at all."""
    with open(path + '.new', 'wb') as writer:
        np.savez(writer, **arrays)
    os.replace(path + '.new', path)


def unpack(settings):
    from fltuning import checkpoints
    from fltuning.files import read_text
    paths = checkpoints.find_files(settings.backbone)
    path = paths['checkpoint_path']
    kind = checkpoints.detect_backbone(paths['config_path'], path)
    wanted = [name for name in checkpoints.variable_shapes(checkpoints.read_config(paths['config_path']), kind)
              if '/pooler/' not in name]
    values = checkpoints.read_variables(path, wanted)
    missing = [name for name in wanted if name not in values]
    if missing:
        refuse('%s: has no %s' % (path, ', '.join(missing)))
    write(settings.weights, dict(values, kind=kind, vocab=read_text(paths['dict_path']),
                                 config=read_text(paths['config_path'])))


def pack(settings):
    from fltuning import checkpoints
    from fltuning.files import make_folder, write_text
    arrays = read(settings.weights, *ABOUT)
    make_folder(settings.folder)
    write_text(os.path.join(settings.folder, 'vocab.txt'), str(arrays['vocab']))
    write_text(os.path.join(settings.folder, 'bert_config.json'), str(arrays['config']))
    checkpoints.write_checkpoint(os.path.join(settings.folder, 'bert_model.ckpt'),
                                 {name: value for name, value in arrays.items() if '/' in name})


def sinusoids(positions, size):
    """(positions, size): sines at even places, cosines at odd ones."""
    angles = np.arange(positions)[:, None] / 10000 ** (np.arange(size // 2) * 2 / size)
    return np.stack([np.sin(angles), np.cos(angles)], 2).reshape(positions, size).astype('float32')


def define():
    """The classes that need PyTorch: (Model, Batches)."""
    import torch
    from torch.nn import functional as F

    class Model(torch.nn.Module):
        """BERT, NEZHA or RoFormer; its parameters have Google's names and shapes."""

        def __init__(self, kind, config, arrays):
            super().__init__()
            self.kind, self.heads, self.layers = kind, config['num_attention_heads'], config['num_hidden_layers']
            for name, value in arrays.items():
                self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))
            size = config['hidden_size'] // self.heads
            self.register_buffer('relative', torch.tensor(sinusoids(2 * DISTANCE + 1, size)))
            self.register_buffer('rotary', torch.tensor(sinusoids(config.get('max_position_embeddings', 512), size)))

        def dense(self, x, name):
            return F.linear(x, getattr(self, name + '/kernel').t(), getattr(self, name + '/bias'))

        def norm(self, x, name):
            return F.layer_norm(x, x.shape[-1:], getattr(self, name + '/LayerNorm/gamma'),
                                getattr(self, name + '/LayerNorm/beta'), 1e-12)

        def turn(self, x):
            table = self.rotary[:x.shape[2]]
            sines, cosines = [table[:, i::2].repeat_interleave(2, -1) for i in (0, 1)]
            return x * cosines + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sines

        def attend(self, q, k, v):
            """(batch, heads, length, size) each."""
            if self.kind == 'roformer':
                q, k = self.turn(q).to(v.dtype), self.turn(k).to(v.dtype)
            if self.kind != 'nezha':
                return F.scaled_dot_product_attention(q, k, v)
            places = torch.arange(q.shape[2], device=q.device)
            distances = (places[None] - places[:, None]).clamp(-DISTANCE, DISTANCE) + DISTANCE
            positions = self.relative[distances].to(v.dtype)
            q = q / q.shape[-1] ** 0.5
            scores = q @ k.transpose(-1, -2) + torch.einsum('bhjd,jkd->bhjk', q, positions)
            weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
            return weights @ v + torch.einsum('bhjk,jkd->bhjd', weights, positions)

        def forward(self, ids, places):
            """(batch, length), (batch, places) -> logits (batch, places, vocabulary)."""
            words, rows = getattr(self, 'bert/embeddings/word_embeddings'), ids.shape[0]
            x = words[ids] + getattr(self, 'bert/embeddings/token_type_embeddings')[0]
            if self.kind == 'roberta':
                x = x + getattr(self, 'bert/embeddings/position_embeddings')[:ids.shape[1]]
            x = self.norm(x, 'bert/embeddings')
            for i in range(self.layers):
                name = 'bert/encoder/layer_%d/' % i
                parts = [self.dense(x, name + 'attention/self/' + part) for part in ('query', 'key', 'value')]
                y = self.attend(*[part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts])
                y = y.transpose(1, 2).flatten(-2)
                x = self.norm(x + self.dense(y, name + 'attention/output/dense'), name + 'attention/output')
                y = self.dense(F.gelu(self.dense(x, name + 'intermediate/dense')), name + 'output/dense')
                x = self.norm(x + y, name + 'output')
            x = x[torch.arange(rows, device=ids.device)[:, None], places]
            x = self.norm(F.gelu(self.dense(x, 'cls/predictions/transform/dense')), 'cls/predictions/transform')
            return F.linear(x, words, getattr(self, 'cls/predictions/output_bias'))

    class Batches:
        """Rows of a text and their masks, drawn where the text lies."""

        def __init__(self, ids, begins, vocab, seed, device):
            self.ids, self.begins = [torch.tensor(array, device=device) for array in (ids.astype('int32'), begins)]
            self.special = torch.tensor([i for i, token in enumerate(vocab) if token[:1] == '[' and token[-1:] == ']'],
                                        device=device)
            self.others = torch.tensor(np.setdiff1d(np.arange(len(vocab)), self.special.cpu().numpy()), device=device)
            self.start, self.end, self.mask = [vocab.index(token) for token in ('[CLS]', '[SEP]', '[MASK]')]
            self.random = torch.Generator(device).manual_seed(seed)
            self.device = device

        def starts(self, length, count):
            return torch.randint(len(self.ids) - length, (count,), generator=self.random, device=self.device)

        def rows(self, starts, length):
            """(ids, begins) of [CLS], length - 2 tokens from each start on, [SEP]."""
            window = starts[:, None] + torch.arange(length - 2, device=self.device)
            column = torch.ones_like(starts)[:, None]
            ids = torch.cat([column * self.start, self.ids[window].long(), column * self.end], 1)
            return ids, torch.cat([column > 0, self.begins[window], column > 0], 1)

        def draw(self, shape):
            return torch.rand(shape, generator=self.random, device=self.device)

        def masked(self, ids, begins, shares=(MASKED, RANDOM)):
            """(masked ids, places, labels): 15 % of each row in whole words, the last one whole; labels are
            -100 at places that were not chosen."""
            words = begins.long().cumsum(1) - 1
            keys = self.draw(ids.shape).gather(1, words).masked_fill(torch.isin(ids, self.special), 2.0)
            keys, order = keys.sort(dim=1, stable=True)
            free = (keys < 2).sum(1)
            budget = (CHOSEN * free).round().long().clamp(min=1)
            highest = keys.gather(1, budget[:, None] - 1)
            places = order[:, :int(CHOSEN * ids.shape[1]) + 16]
            chosen = (keys <= highest)[:, :places.shape[1]] & (keys < 2)[:, :places.shape[1]]
            truth, draw = ids.gather(1, places), self.draw(places.shape)
            other = self.others[(self.draw(places.shape) * len(self.others)).long().clamp(max=len(self.others) - 1)]
            new = torch.where(draw < shares[0], self.mask, torch.where(draw < sum(shares), other, truth))
            return ids.scatter(1, places, torch.where(chosen, new, truth)), places, truth.masked_fill(~chosen, -100)

    return Model, Batches


def train(settings):
    try:
        import torch
        from torch.nn import functional as F
    except ImportError:
        refuse('train: PyTorch is not installed')
    Model, Batches = define()
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision('high')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    arrays = read(settings.weights, *ABOUT)
    kept = {name: arrays.pop(name) for name in ABOUT}
    corpus = read(settings.corpus, 'ids', 'begins', 'held_ids', 'tokens')
    ids, held_out, vocab = corpus['ids'], corpus['held_ids'], str(corpus['tokens']).split('\n')
    if vocab != str(kept['vocab']).split('\n')[:len(vocab)]:
        refuse('%s: made with another vocabulary than that of %s' % (settings.corpus, settings.weights))
    model = Model(str(kept['kind']), json.loads(str(kept['config'])), arrays).to(device)
    matrices = [value for name, value in model.named_parameters() if value.ndim > 1]
    rest = [value for name, value in model.named_parameters() if value.ndim < 2]
    optimizer = torch.optim.AdamW([{'params': matrices, 'weight_decay': 0.01}, {'params': rest, 'weight_decay': 0.0}],
                                  lr=settings.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=device == 'cuda')
    text = Batches(ids, corpus['begins'], vocab, settings.seed, device)

    def loss_of(masked, places, labels):
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            logits = model(masked, places)
            return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)

    compiled = torch.compile(loss_of, dynamic=False) if device == 'cuda' else loss_of

    def step_loss(length):
        return compiled(*text.masked(*text.rows(text.starts(length, settings.tokens // length), length)))

    def save():
        write(settings.output, dict(kept, **{name: value.detach().float().cpu().numpy()
                                             for name, value in model.named_parameters()}))

    # The same places every time.
    part, length = Batches(held_out, np.ones(len(held_out), bool), vocab, 0, device), 128
    starts = torch.linspace(0, len(held_out) - length, 256, device=device).long()
    asked = part.masked(*part.rows(starts, length), shares=(1, 0))

    def measure():
        """Accuracy at single tokens of held-out text, all of them hidden."""
        masked, places, labels = asked
        with torch.no_grad():
            found = model(masked, places).argmax(-1)
        return ((found == labels).sum() / (labels >= 0).sum()).item()

    print('begin: %d parameters, %d tokens of text, held-out accuracy %.4f'
          % (sum(value.numel() for value in model.parameters()), len(ids), measure()), flush=True)
    for length in sorted(set(settings.lengths)):  # compiled before the clock runs
        step_loss(length).backward()
        optimizer.zero_grad()
    began = noted = time.time()
    done, tokens, progress, losses = 0, 0, 0.0, []
    while progress < 1:
        rate = min(progress / settings.warmup, (1 - progress) / (1 - settings.warmup))
        for group in optimizer.param_groups:
            group['lr'] = settings.learning_rate * max(rate, 1e-4)
        length = settings.lengths[done % len(settings.lengths)]
        loss = step_loss(length)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        done, tokens = done + 1, tokens + settings.tokens // length * length
        if done % 20 == 0 and device == 'cuda':
            torch.cuda.synchronize()  # so that the clock is that of the GPU
        progress = done / settings.steps if settings.steps else (time.time() - began) / settings.seconds
        if time.time() - noted > 20 or progress >= 1:
            noted = time.time()
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                refuse('step %d: the loss is %s; %s has the weights of an earlier step' % (done, mean, settings.output))
            print('step %d: %.0f million tokens, %.0f seconds, loss %.4f, held-out accuracy %.4f'
                  % (done, tokens / 1e6, time.time() - began, mean, measure()), flush=True)
            losses = []
            save()


if __name__ == '__main__':
    chosen = parse_flags()
    {'unpack': unpack, 'pack': pack, 'train': train}[chosen.command](chosen)
