"""bert4keras's tokenizer, token by token the same and some twenty times as fast."""
import unicodedata

import compat  # noqa: F401  (before bert4keras)
from bert4keras.snippets import lowercase_and_normalize
from bert4keras.tokenizers import Tokenizer


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
        super(FastTokenizer, self).__init__(token_dict, **kwargs)
        self._pieces = Memory(self._character_piece)  # {code point: what it becomes}
        self._word_ids = Memory(self._find_word_ids)  # {word: token ids}
        self._left_to_reference = {'\u03a3'} if self._do_lower_case else set()

    def _character_piece(self, code):
        character, piece = chr(code), ''
        for c in lowercase_and_normalize(character) if self._do_lower_case else character:
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

        bert4keras's counts places in the lower-cased text, which may be longer.
        """
        mapping = super(FastTokenizer, self).rematch(text, tokens)
        places = [i for i, c in enumerate(text)
                  for _ in (c.lower() if self._do_lower_case else c)]
        return [[places[i] for i in chars] for chars in mapping]

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
    """A dict that computes what it lacks."""

    def __init__(self, compute):
        super(Memory, self).__init__()
        self.compute = compute

    def __missing__(self, key):
        value = self[key] = self.compute(key)
        return value


def cut(maxlen, *parts):
    """Lists of token ids, cut to a sum of `maxlen`: the longest loses its token before the last.

    The same as bert4keras's truncate_sequences(maxlen, -2, ...), without removing one by one.
    """
    lengths = [len(part) for part in parts]
    if sum(lengths) <= maxlen:
        return list(parts)
    low, high = 0, max(lengths)  # the largest cap under which all parts fit
    while low < high:
        cap = (low + high + 1) // 2
        if sum(min(length, cap) for length in lengths) <= maxlen:
            low = cap
        else:
            high = cap - 1
    new = [min(length, low) for length in lengths]
    spare = maxlen - sum(new)
    for i in reversed(range(len(parts))):  # of equally long parts, the first is cut first
        if spare and lengths[i] > low:
            new[i] += 1
            spare -= 1
    return [part[:n - 1] + part[-1:] if n < length else part
            for part, n, length in zip(parts, new, lengths)]
