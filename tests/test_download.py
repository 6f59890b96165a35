"""Downloads from a server on loopback, which does to them what networks do."""
import hashlib
import http.server
import io
import os
import stat
import threading
import zipfile

import pytest

import datasets
import download
from errors import UserError

CONTENT = bytes(bytearray(range(256))) * 2000


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers.get('Range')))
        if self.path in server.codes and server.codes[self.path]:
            self.send_error(server.codes[self.path].pop(0))
            return
        if self.path in server.redirects:
            target, headers = server.redirects[self.path]
            self.send_response(302)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header('Location', target)
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        content = server.files[self.path]
        etag = '"%s"' % hashlib.md5(content).hexdigest()
        begin, whole = 0, len(content)
        if server.ranges and self.headers.get('Range') and self.headers.get('If-Range') == etag:
            begin = int(self.headers['Range'][len('bytes='):-1])
            if begin >= whole:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (begin, whole - 1, whole))
        else:
            self.send_response(200)
        self.send_header('ETag', etag)
        self.send_header('Content-Length', str(whole - begin))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else whole
        self.wfile.write(content[begin:begin + cut])
        if server.after_cut:
            server.after_cut.pop()()


@pytest.fixture
def server():
    """Serves `files`; `cuts`: after how many bytes the next connections end; `seen`: requests."""
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        server.files, server.cuts, server.seen, server.ranges = {}, [], [], True
        server.codes, server.redirects, server.after_cut = {}, {}, []
        server.url = 'http://127.0.0.1:%d/' % server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, 'WAITS', (0, 0, 0))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'here' / 'file.bin')


def read(path):
    with open(str(path), 'rb') as reader:
        return reader.read()


def ranges(server):
    return [asked for _, asked in server.seen]


# ------------------------------------------------------------------ one file


def test_a_file(server, path):
    server.files['/file.bin'] = CONTENT
    download.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT
    assert os.listdir(os.path.dirname(path)) == ['file.bin']


def test_a_cut_transfer_goes_on(server, path):
    server.files['/file.bin'], server.cuts = CONTENT, [100000, 200000]
    download.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT
    assert ranges(server) == [None, 'bytes=100000-', 'bytes=300000-']


def test_it_goes_on_in_the_next_run(server, path):
    server.files['/file.bin'], server.cuts = CONTENT, [1000] * 4
    with pytest.raises(UserError) as refused:
        download.fetch(server.url + 'file.bin', path)
    assert 'cut at 4000 of 512000 bytes; run it again to go on' in str(refused.value)
    assert not os.path.exists(path)
    download.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT and ranges(server)[-1] == 'bytes=4000-'


def test_a_server_that_knows_no_ranges(server, path):
    server.files['/file.bin'], server.cuts, server.ranges = CONTENT, [100000], False
    download.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT


def test_a_file_that_changes_between_two_tries(server, path):
    """The two halves must not be put together."""
    server.files['/file.bin'], server.cuts = CONTENT, [100000]
    server.after_cut = [lambda: server.files.update({'/file.bin': CONTENT[::-1]})]
    download.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT[::-1]


def test_a_busy_server(server, path):
    server.files['/file.bin'], server.codes = CONTENT, {'/file.bin': [503, 429]}
    download.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT


@pytest.mark.parametrize('code, tries', [(404, 1), (403, 1), (500, 4)])
def test_a_server_that_says_no(code, tries, server, path):
    server.codes = {'/file.bin': [code] * 9}
    with pytest.raises(UserError) as refused:
        download.fetch(server.url + 'file.bin', path)
    assert '%sfile.bin: %d ' % (server.url, code) in str(refused.value)
    assert len(server.seen) == tries and not os.path.exists(path)


def test_no_server(path):
    with pytest.raises(UserError) as refused:
        download.fetch('http://127.0.0.1:9/file.bin', path)
    assert 'http://127.0.0.1:9/file.bin: ' in str(refused.value)


@pytest.mark.parametrize('sent, said', [
    (CONTENT, None), (CONTENT[:-1] + b'x', 'the SHA-256 is not'), (CONTENT + b'x', 'got 512001 bytes'),
    (CONTENT[:-1], 'got 511999 bytes')])
def test_what_hugging_face_says_of_a_file(sent, said, server, path):
    server.files['/cdn'] = sent
    server.redirects['/file.bin'] = (server.url + 'cdn', {
        'X-Linked-Etag': '"%s"' % hashlib.sha256(CONTENT).hexdigest(),
        'X-Linked-Size': str(len(CONTENT))})
    if said is None:
        server.cuts = [1000]  # the range has to survive the redirect
        download.fetch(server.url + 'file.bin', path)
        assert read(path) == CONTENT and ranges(server)[-1] == 'bytes=1000-'
        return
    with pytest.raises(UserError) as refused:
        download.fetch(server.url + 'file.bin', path)
    assert said in str(refused.value)
    assert not os.path.exists(path) and not os.path.exists(path + '.part')


def test_no_space_left(server, path, monkeypatch):
    server.files['/file.bin'] = CONTENT

    class Full(io.BytesIO):
        def write(self, block):
            raise OSError(28, 'No space left on device')
    monkeypatch.setattr(download, 'open', lambda name, mode='r': (
        Full() if name.endswith('.part') else io.open(name, mode)), raising=False)
    with pytest.raises(UserError) as refused:
        download.fetch(server.url + 'file.bin', path)
    assert str(refused.value) == path + ': No space left on device'


# ------------------------------------------------------------------ archives


def archive(members):
    """Bytes of a zip of [(name or ZipInfo, content)]."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, 'w', zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return written.getvalue()


def link(name):
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def data_files(clue, name):
    folder = os.path.join(clue, name)
    return {file: read(os.path.join(folder, file)) for file in os.listdir(folder)
            if file.endswith('.json') and file != 'labels.json'}


def run(server, tmp_path, *names):
    download.run(list(names) + ['--mirror', server.url, '--data_path', str(tmp_path / 'data'),
                                '--weights_path', str(tmp_path / 'weights')])


@pytest.fixture(autouse=True)
def folders(tmp_path):
    os.makedirs(str(tmp_path / 'data'))


@pytest.mark.parametrize('name, zipped', [('afqmc', 'afqmc_public.zip'), ('c3', 'c3_public.zip')])
def test_a_real_data_set(name, zipped, server, tmp_path, clue):
    files = data_files(clue, name)
    server.files['/' + zipped] = archive(
        [('README.md', b'read me'), ('__MACOSX/._train.json', b'junk'), ('folder/', b'')]
        + [('folder/' + file if i % 2 else file, content)
           for i, (file, content) in enumerate(sorted(files.items()))])
    mine = tmp_path / 'data' / name
    os.makedirs(str(mine))
    (mine / 'notes.txt').write_text('mine')
    server.cuts = [50000]
    run(server, tmp_path, name)
    assert set(os.listdir(str(mine))) == set(files) | {'notes.txt'}
    assert all(read(mine / file) == content for file, content in files.items())
    assert os.listdir(str(tmp_path / 'data')) == [name]
    before = len(server.seen)
    run(server, tmp_path, name)  # all is there
    assert len(server.seen) == before


def test_data_that_is_not_as_published(server, tmp_path, clue):
    files = data_files(clue, 'csl')
    one_less = dict(files, **{'dev.json': files['dev.json'].split(b'\n', 1)[1]})
    changed = dict(files, **{'dev.json': files['dev.json'].replace(b'"0"', b'"1"', 1)})
    mine = tmp_path / 'data' / 'csl'
    os.makedirs(str(mine))
    (mine / 'train.json').write_text('mine')
    for content, flags, said in [(one_less, ['--skip_checksums'], '1 fewer than published'),
                                 (changed, [], 'the MD5 is')]:
        server.files['/csl_public.zip'] = archive(sorted(content.items()))
        with pytest.raises(UserError) as refused:
            run(server, tmp_path, 'csl', *flags)
        assert 'dev.json' in str(refused.value) and said in str(refused.value)
        assert read(mine / 'train.json') == b'mine' and os.listdir(str(mine)) == ['train.json']
        assert os.listdir(str(tmp_path / 'data')) == ['csl']
    run(server, tmp_path, 'csl', '--skip_checksums')
    assert read(mine / 'dev.json') == changed['dev.json']


GOOD = [('dev.json', b'{}')]
WRONG = {
    'outside': (GOOD + [('../evil.json', b'x')], '../evil.json leads outside'),
    'absolute': ([('/tmp/evil.json', b'x')], 'leads outside'),
    'a drive': ([('C:/evil.json', b'x')], 'leads outside'),
    'backslashes': ([('..\\evil.json', b'x')], 'leads outside'),
    'a link': ([(link('train.json'), b'/etc/passwd')], 'train.json is a link'),
    'two of a name': ([('a/dev.json', b'x'), ('b/dev.json', b'y')], 'two files are called dev.json'),
    'a bomb': ([('train.json', b'0' * 300000)], 'unpacks to more than 100000 bytes'),
    'several small bombs': ([('%d.json' % i, b'0' * 60000) for i in range(3)], 'more than 100000')}


@pytest.mark.parametrize('case', sorted(WRONG))
def test_archives_that_are_refused(case, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'LARGEST', 100000)
    members, said = WRONG[case]
    server.files['/afqmc_public.zip'] = archive(members)
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'afqmc')
    assert said in str(refused.value)
    assert os.listdir(str(tmp_path / 'data')) == []
    assert sorted(os.listdir(str(tmp_path))) == ['data']


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'text', 'encrypted'])
def test_damaged_archives(damage, server, tmp_path):
    content = bytearray(archive([('dev.json', CONTENT[:3000] + os.urandom(3000))]))
    if damage == 'truncated':
        content = content[:-100]
    if damage == 'flipped':
        content[2000] ^= 1
    if damage == 'text':
        content = b'<html>not found</html>'
    if damage == 'encrypted':  # the flag, in both headers
        content[6] |= 1
        content[content.index(b'PK\x01\x02') + 8] |= 1
    server.files['/afqmc_public.zip'] = bytes(content)
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'afqmc')
    assert 'afqmc_public.zip: the archive cannot be unpacked' in str(refused.value)
    assert os.listdir(str(tmp_path / 'data')) == []


# ------------------------------------------------------------------ backbones, the program


def test_backbones(server, tmp_path, capsys):
    """A safetensors file where there is one, PyTorch's where not, and a zip of a TensorFlow one."""
    for name, weights in [('roberta', 'model.safetensors'), ('nezha', 'pytorch_model.bin')]:
        for file in ('config.json', 'vocab.txt', weights):
            server.files['/%s/%s' % (name, file)] = file.encode()
    folder = 'chinese_roformer-char_L-12_H-768_A-12/'
    files = ['bert_config.json', 'vocab.txt', 'bert_model.ckpt.index',
             'bert_model.ckpt.data-00000-of-00001']
    server.files['/chinese_roformer-char_L-12_H-768_A-12.zip'] = archive(
        [(folder + file, file) for file in files])
    run(server, tmp_path, 'roberta', 'nezha', 'roformer')
    found = {name: sorted(os.listdir(str(tmp_path / 'weights' / name)))
             for name in os.listdir(str(tmp_path / 'weights'))}
    assert found == {'roberta': ['config.json', 'model.safetensors', 'vocab.txt'],
                     'nezha': ['config.json', 'pytorch_model.bin', 'vocab.txt'],
                     'roformer': sorted(files)}
    assert "config_path = '%s'" % (tmp_path / 'weights' / 'nezha') in capsys.readouterr().out
    before = len(server.seen)
    run(server, tmp_path, 'roberta', 'nezha', 'roformer')
    assert len(server.seen) == before


def test_names(capsys):
    with pytest.raises(UserError) as refused:
        download.run(['nosuch'])
    assert 'afqmc' in str(refused.value) and 'roformer' in str(refused.value)
    with pytest.raises(UserError):
        download.run([])


def test_addresses():
    """Those that CLUE and the authors publish."""
    assert download.DOWNLOADS + datasets.PUBLISHED['wsc'][0] == (
        'https://storage.googleapis.com/cluebenchmark/tasks/cluewsc2020_public.zip')
    assert download.BACKBONES['roberta'][0] == (
        'https://huggingface.co/hfl/chinese-roberta-wwm-ext/resolve/main/')
    assert set(download.MD5) <= set(datasets.PUBLISHED)
    assert sum(map(len, download.MD5.values())) == 19
