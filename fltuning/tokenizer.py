"""Vocabularies, and bert4keras's tokenizer, token by token the same and some twenty times as fast."""
import itertools
import os
import unicodedata
from typing import Dict, List, Tuple

from fltuning import compat  # noqa: F401  (before TensorFlow)
import numpy as np
from bert4keras.tokenizers import Tokenizer, load_vocab

from fltuning.errors import UserError
from fltuning.records import shorten
from fltuning.text import normalize

# [unused1..99] stay in the vocabulary: tasks mark places with them.
SPECIAL_TOKENS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + ['[unused%d]' % i
                                                                  for i in range(1, 100)]


def load_tokens(dict_path: str) -> Dict[str, int]:
    """{token: id} of the whole file. Raises UserError if it is no BERT vocabulary."""
    if not os.path.isfile(dict_path or ''):
        raise UserError('dict_path: %s: no such file; expected the path of vocab.txt' % dict_path)
    try:
        tokens = load_vocab(dict_path)
        check_lines(dict_path)
    except UnicodeDecodeError:
        raise UserError('%s: expected UTF-8, one token a line' % dict_path)
    for token in SPECIAL_TOKENS[:5]:
        if token not in tokens:
            raise UserError('%s: no token %s: expected a BERT vocabulary, one token a line'
                            % (dict_path, token))
    return tokens


def check_lines(dict_path: str) -> None:
    """Raises UserError for a line that leaves all later tokens with the id of another."""
    first: Dict[str, int] = {}
    with open(dict_path, encoding='utf-8') as reader:
        for number, line in enumerate(reader, 1):
            token = (line.split() or [''])[0]
            if token in first:
                raise UserError('%s: line %d: expected each token once, got %s, which is line %d: the ids '
                                'of all later tokens would be wrong'
                                % (dict_path, number, shorten(token), first[token]))
            first[token] = number
    if first.get('') == len(first):
        raise UserError('%s: line %d: expected a token, got a blank line; delete it'
                        % (dict_path, len(first)))


def load_tokenizer(dict_path: str) -> Tuple['FastTokenizer', List[int]]:
    """The tokenizer of the simplified vocabulary, and the ids of the tokens that were kept.

    Tokens of several characters that Chinese text never yields are left out, so the embedding
    matrix shrinks by a third; `keep_tokens` are the rows to keep, in their new order.
    Raises UserError if the file is no BERT vocabulary.
    """
    tokens = load_tokens(dict_path)
    token_dict, keep_tokens = load_vocab(
        dict_path, simplified=True, startswith=[t for t in SPECIAL_TOKENS if t in tokens])
    return FastTokenizer(token_dict), keep_tokens


class FastTokenizer(Tokenizer):
    """A bert4keras Tokenizer whose `ids` remembers what becomes of each character and word.

    bert4keras looks at a text character by character, and then at the words between spaces; neither
    depends on what stands around it, but for a final sigma and the order of combining marks. Texts
    with those are left to bert4keras.

    >>> tokenizer = FastTokenizer({'[PAD]': 0, '[UNK]': 1, '[CLS]': 2, '[SEP]': 3, '好': 4, 'a': 5})
    >>> tokenizer.ids('你好A')
    [2, 1, 4, 5, 3]
    """

    def __init__(self, token_dict, **kwargs):
        kwargs.setdefault('do_lower_case', True)
        super().__init__(token_dict, **kwargs)
        self._pieces = Memory(self._character_piece)  # {code point: what it becomes}
        self._lengths = Memory(lambda code: len(''.join(self._pieces[code].split())))
        self._word_ids = Memory(self._find_word_ids)  # {word: token ids}
        self._left_to_reference = {'\u03a3'} if self._do_lower_case else set()

    def _character_piece(self, code):
        character, piece = chr(code), ''
        for c in normalize(character) if self._do_lower_case else character:
            if unicodedata.combining(c):
                self._left_to_reference.add(character)
            if self._is_punctuation(c) or self._is_cjk_character(c):
                piece += ' ' + c + ' '
            elif self._is_space(c):
                piece += ' '
            elif not (ord(c) in (0, 0xfffd) or self._is_control(c)):
                piece += c
        return piece

    def _find_word_ids(self, word):
        return self.tokens_to_ids(self._word_piece_tokenize(word))

    def rematch(self, text, tokens):
        """For each token the places in `text` of the characters it stands for, none for [CLS].

        Tokens are all characters of the normal form but spaces and controls, in their order. bert4keras
        looks for each of them in the text instead, where combining marks may stand in another order, and
        counts places in the lower-cased text, which may be longer.
        """
        places, mapping, end = self._places(text), [], 0
        for token in tokens:
            begin, end = end, end + (0 if self._is_special(token) else len(self.stem(token)))
            mapping.append(places[begin:end])
        return mapping

    def _places(self, text):
        """The place in `text` of each character of which tokens are made."""
        if self._left_to_reference.isdisjoint(text):
            lengths = [self._lengths[ord(c)] for c in text]
            if self._left_to_reference.isdisjoint(text):  # it may have grown
                return [i for i, n in enumerate(lengths) for _ in range(n)]
        characters = [(c, i) for i, c in enumerate(text)]
        if self._do_lower_case:
            # Lower case, decomposed, marks in canonical order: as of the whole text.
            characters = [(d, i) for c, i in characters for low in c.lower()
                          for d in unicodedata.normalize('NFD', low)]
            characters = [pair for _, run in itertools.groupby(
                characters, lambda pair: unicodedata.combining(pair[0]) > 0)
                for pair in sorted(run, key=lambda pair: unicodedata.combining(pair[0]))]
        return [i for c, i in characters if self._lengths[ord(c)]]

    @staticmethod
    def spans(mapping):
        """(tokens, 2): the first and the last place of each token of `rematch`, -1 for none."""
        return np.array([(min(places), max(places)) if places else (-1, -1) for places in mapping],
                        'int32').reshape(-1, 2)

    def reference_ids(self, text):
        """[CLS] text [SEP] as bert4keras finds it."""
        return self.tokens_to_ids(self.tokenize(text))

    def words(self, text):
        """What is cut into word pieces: Chinese characters, marks, and words between spaces."""
        return text.translate(self._pieces).split()

    def ids(self, text):
        """[CLS] text [SEP] as token ids."""
        words = self.words(text)
        if not self._left_to_reference.isdisjoint(text):
            return self.reference_ids(text)
        ids, word_ids = [self._token_start_id], self._word_ids
        for word in words:
            ids += word_ids[word]
        ids.append(self._token_end_id)
        return ids


class Memory(dict):
    """A dict that computes what it lacks, and forgets all when it holds `size` values."""

    def __init__(self, compute, size=1 << 17):
        super().__init__()
        self.compute, self.size = compute, size

    def __missing__(self, key):
        value = self.compute(key)
        if len(self) >= self.size:
            self.clear()
        self[key] = value
        return value
