"""Texts for masked-language-model pretraining: read, encoded once, packed and masked batch by batch."""
import collections
import itertools
import lzma
import os
import string
import zipfile
from typing import NamedTuple, Tuple

import numpy as np
from tqdm import tqdm

from fltuning.errors import UserError
from fltuning.files import replacing
from fltuning.records import find_strings
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer
from tasks import NAMES, load_task
from fltuning.extras import import_extra

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are
CHOSEN = 0.15
SHORTEST = 16  # tokens a sequence where a length warm-up begins

Part = Tuple[np.ndarray, np.ndarray]


class Corpus(NamedTuple):
    """All texts as one row of token ids, uint16 (uint32 where a vocabulary has more), [SEP] between them, and where
    a word begins, bool, of the same length: (ids, begins)."""
    train: Part
    held_out: Part


# ------------------------------------------------------------------ texts


def find_text_files(path):
    """[(file, task or None)] of a file, of a folder of CLUE data, the train files, or of a folder's .txt
    and .txt.xz files. Raises UserError."""
    if not os.path.exists(path):
        raise UserError('%s: no such file or folder of texts' % path)
    if not os.path.isdir(path):
        return [(path, None)]
    found = []
    for name in sorted(os.listdir(path)):
        if name in NAMES and os.path.isdir(os.path.join(path, name)):
            task = load_task(name)
            found += [(os.path.join(path, name, file), task)
                      for file in task.find_train_files(os.path.join(path, name))]
    found = found or [(os.path.join(path, name), None) for name in sorted(os.listdir(path))
                      if name.endswith(('.txt', '.txt.xz')) and name != 'vocab.txt'
                      and os.path.isfile(os.path.join(path, name))]
    if not found:
        raise UserError('%s: neither CLUE data nor .txt or .txt.xz files' % path)
    return found


def read_strings(file, task):
    """The texts of a file, each a list of strings: a line; or of a task's record all that is Chinese."""
    for item in task.read_records(file) if task else read_lines(file):
        strings = [text for text in find_strings(dict(item) if task else item)
                   if not task or any('\u4e00' <= c <= '\u9fa5' for c in text)]
        if strings:
            yield list(dict.fromkeys(strings))


def read_lines(path):
    """The lines of a file, .xz or plain, that are not empty. Raises UserError."""
    try:
        opened = lzma.open(path, 'rt', encoding='utf-8') if path.endswith('.xz') else open(
            path, encoding='utf-8')
        with opened as reader:
            for line in reader:
                if line.strip():
                    yield line.strip()
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise UserError('%s: %s' % (path, getattr(error, 'strerror', None) or error))
    except UnicodeDecodeError as error:
        raise UserError('%s: expected UTF-8: %s' % (path, error.reason))


def read_all(paths):
    """The texts of all files, see `read_strings`."""
    return (text for path in paths for found in find_text_files(path) for text in read_strings(*found))


def make_vocab(texts, size, min_count=5):
    """Tokens: special ones, letters and digits and pieces of them, then what occurs most, characters
    and, in 15 % of the room, whole Latin words and numbers.

    Counted here, since the `tokenizers` library breaks ties otherwise in every run.
    """
    counts = collections.Counter()
    tokenizer = FastTokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    for text in texts:
        counts.update(tokenizer.words(text))
    letters = string.ascii_lowercase + string.digits
    tokens = SPECIAL_TOKENS + list(letters) + ['##' + letter for letter in letters]
    known = set(tokens)
    common = [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
              if count >= min_count and word not in known]
    characters = [word for word in common if len(word) == 1][:max(0, int(0.85 * size) - len(tokens))]
    words = [word for word in common if len(word) > 1]
    return (tokens + characters + words)[:max(size, len(tokens))]


def encode(texts, tokenizer, whole_words):
    """(ids, begins) of texts, see `Corpus`."""
    if whole_words:
        jieba = import_extra('jieba', 'pretrain')
        jieba.setLogLevel(60)
    dtype = 'uint16' if max(tokenizer._token_dict.values()) < 2**16 else 'uint32'
    ids, begins = [np.array([tokenizer._token_end_id], dtype)], [np.ones(1, bool)]
    for text in tqdm(texts, desc='encoding', unit='text', mininterval=5):
        words = jieba.cut(text) if whole_words else [text]
        found = [tokenizer.ids(word)[1:-1] for word in words]
        row = np.array(list(itertools.chain.from_iterable(found)) + [tokenizer._token_end_id], dtype)
        first = np.zeros(len(row), bool)
        if whole_words:
            first[np.cumsum([0] + [len(word) for word in found])] = True
        else:
            first[:] = True
        ids.append(row)
        begins.append(first)
    return np.concatenate(ids), np.concatenate(begins)


def encode_corpus(settings, tokens, train=True):
    """(train, held out): one text in `held_out` is held out, unless a string of ten characters in it is also
    in another text. train: False leaves that part empty."""
    tokenizer = FastTokenizer({token: i for i, token in enumerate(tokens)})
    every, seen = settings.held_out, set()

    def chosen(held_out):
        for i, strings in enumerate(read_all(settings.texts)):
            if bool(every and i % every == every - 1) != held_out:
                continue
            hashes = [hash(text) for text in strings if len(text) >= 10]
            if held_out and seen.intersection(hashes):
                continue
            seen.update(hashes)
            yield ' '.join(strings)

    trained_on = chosen(False)
    if not train:
        collections.deque(trained_on, 0)  # reads them, since their strings decide what is held out
    return Corpus(*[encode(texts, tokenizer, settings.whole_words) for texts in (trained_on, chosen(True))])


def read_corpus(cache, made_of):
    """(tokens, Corpus)"""
    try:
        arrays = np.load(cache)
        theirs = str(arrays['made_of'])
        if theirs == made_of:
            return str(arrays['tokens']).split('\n'), Corpus(
                (arrays['ids'], arrays['begins']), (arrays['held_ids'], arrays['held_begins']))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError('%s: damaged: %s; remove it' % (cache, error))
    raise UserError('%s: made of %s, here it is %s (texts, vocab_size, whole words, held out); name '
                    'another output_dir, or remove it' % (cache, theirs, made_of))


def write_corpus(cache, made_of, tokens, corpus):
    with replacing(cache) as temporary:
        with open(temporary, 'wb') as writer:
            np.savez(writer, made_of=made_of, tokens='\n'.join(tokens), ids=corpus.train[0],
                     begins=corpus.train[1], held_ids=corpus.held_out[0],
                     held_begins=corpus.held_out[1])


# ------------------------------------------------------------------ batches


def sequences(part, tokenizer, maxlen, places):
    """(token ids, begins), (len(places), maxlen): [CLS], maxlen - 2 tokens from each place on, [SEP]."""
    ids, begins = part
    window = np.arange(maxlen - 2)[None] + np.asarray(places)[:, None]
    inside, first = ids[window].astype('int32'), begins[window]
    column = np.ones((len(places), 1), 'int32')
    return (np.concatenate([column * tokenizer._token_start_id, inside,
                            column * tokenizer._token_end_id], 1),
            np.concatenate([column > 0, first, column > 0], 1))


def mask_tokens(ids, begins, random, tokenizer, vocab_size, kept, shares=(MASKED, RANDOM)):
    """(masked ids, flat places, their tokens): 15 % of each row in whole words, 80/10/10.

    kept: ids that are never masked, special tokens.
    shares: of the chosen ones, those that become [MASK] and those that become another token.
    """
    masked, places = ids.copy(), []
    words = np.cumsum(begins, 1)
    for row in range(len(ids)):
        free = ~np.isin(ids[row], kept)
        keys = random.rand(words[row, -1] + 1)
        order = np.argsort(np.where(free, keys[words[row]], 2), kind='stable')[:free.sum()]
        budget = max(1, int(round(CHOSEN * free.sum())))
        cut = words[row, order[:budget]]
        # The last word is taken whole.
        chosen = order[:budget + int(np.sum(words[row, order[budget:]] == cut[-1]))] if len(cut) else cut
        places.append(row * ids.shape[1] + np.sort(chosen))
    places = np.concatenate(places).astype('int32')
    labels, draw = ids.reshape(-1)[places], random.rand(len(places))
    new = np.where(draw < shares[0], tokenizer._token_mask_id, labels)
    others = np.setdiff1d(np.arange(vocab_size), kept)
    new = np.where((draw >= shares[0]) & (draw < sum(shares)),
                   others[random.randint(0, len(others), len(places))], new)
    masked.reshape(-1)[places] = new
    return masked, places, labels


def special_ids(tokenizer):
    found = map(tokenizer.token_to_id, SPECIAL_TOKENS)
    return [number for number in found if number is not None]


class Sampler:
    """Batches as a function of seed and step: each epoch goes through the text once, shifted.

    In the first `length_warmup` steps sequences are shorter, of SHORTEST tokens and then twice as long
    time and again, and batches have as many more of them (Li et al. 2022, arXiv 2108.06084).
    """

    def __init__(self, part, tokenizer, vocab_size, settings, length=None):
        self.part, self.tokenizer, self.vocab_size, self.settings = part, tokenizer, vocab_size, settings
        self.length = length or settings.maxlen
        self.batch_size = max(1, settings.batch_size * settings.maxlen // self.length)
        self.kept = special_ids(tokenizer)
        self.size = self.length - 2
        self.per_epoch = max(1, (len(part[0]) - self.size) // self.size)
        self.epoch, self.order = None, None
        self.shorter = [Sampler(part, tokenizer, vocab_size, settings, SHORTEST << i) for i in range(16)
                        if SHORTEST << i < self.length and not length]

    def places(self, numbers):
        """Where the sequences with these numbers, counted over all epochs, begin."""
        found = []
        for number in numbers:
            epoch = number // self.per_epoch
            if epoch != self.epoch:
                random = np.random.RandomState([self.settings.seed, 1, epoch])
                self.epoch, self.order = epoch, random.permutation(self.per_epoch)
                self.shift = random.randint(min(self.size, len(self.part[0]) - self.size
                                                - (self.per_epoch - 1) * self.size) or 1)
            found.append(self.shift + self.order[number % self.per_epoch] * self.size)
        return found

    def batch(self, step):
        """([token ids, segment ids, places], labels) of a step, counted from 0."""
        size = self.batch_size
        if step < self.settings.length_warmup and self.shorter:
            return self.shorter[step * len(self.shorter) // self.settings.length_warmup].batch(step)
        ids, begins = sequences(self.part, self.tokenizer, self.length,
                                self.places(range(step * size, (step + 1) * size)))
        random = np.random.RandomState([self.settings.seed, 2, step])
        masked, places, labels = mask_tokens(ids, begins, random, self.tokenizer, self.vocab_size,
                                             self.kept)
        return [masked, np.zeros_like(masked), places], labels
