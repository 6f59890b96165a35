"""Texts and token ids before any tokenizer: normal form, cutting to a length."""
import unicodedata
from typing import List, Sequence


def normalize(text: str) -> str:
    """Lower case and without accents, as BERT's uncased vocabularies have it.

    Each character by itself, so that it depends on no other: the same as bert4keras's
    `lowercase_and_normalize` of every one.
    """
    return ''.join(map(normalize_character, text))


def normalize_character(character: str) -> str:
    if character < '\x80':
        return character.lower()
    decomposed = unicodedata.normalize('NFD', character.lower())
    return ''.join(c for c in decomposed if unicodedata.category(c) != 'Mn')


def has_tokens(text: str) -> bool:
    """Whether a tokenizer makes anything of a text: not of marks, spaces and controls alone."""
    return any(not (c.isspace() or c == '\ufffd' or unicodedata.category(c) in ('Mn', 'Cc', 'Cf', 'Zs'))
               for c in text)


def cut(maxlen: int, *parts: Sequence[int]) -> List[List[int]]:
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
