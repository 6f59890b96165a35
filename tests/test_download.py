"""Downloads from a server on loopback, which does to them what networks do."""
import hashlib
import http.server
import io
import os
import stat
import subprocess
import sys
import threading
import zipfile

import pytest
from safetensors.numpy import save_file

import small
import tasks
from fltuning.task import Published
from tools import download, transfer
from fltuning import checkpoints, errors, files, hf_weights
from fltuning.errors import UserError

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
                self.send_response(416)
                self.send_header('Content-Range', 'bytes */%d' % whole)
                self.end_headers()
                return
            begin += server.shifts.pop() if server.shifts else 0
            self.send_response(206)
            self.send_header('Content-Range', 'bytes %d-%d/%d' % (begin, whole - 1, whole))
        else:
            self.send_response(200)
        self.send_header('ETag', etag)
        self.send_header('Content-Length', str(whole - begin))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else whole
        self.wfile.write(content[begin:begin + cut])
        if server.stalls and server.stalls.pop():
            self.rfile.read(1)  # says no more until the other side hangs up
        if server.after_cut:
            server.after_cut.pop()()


@pytest.fixture
def server():
    """Serves `files`; `cuts`: after how many bytes the next connections end; `seen`: requests.

    stalls: whether the next connections stay open after the cut; shifts: by how many bytes the next
    parts begin elsewhere than asked.
    """
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        server.files, server.cuts, server.seen, server.ranges = {}, [], [], True
        server.codes, server.redirects, server.after_cut = {}, {}, []
        server.stalls, server.shifts = [], []
        server.url = 'http://127.0.0.1:%d/' % server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transfer, 'WAITS', (0, 0, 0))


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
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT
    assert os.listdir(os.path.dirname(path)) == ['file.bin']


def test_a_cut_transfer_goes_on(server, path):
    server.files['/file.bin'], server.cuts = CONTENT, [100000, 200000]
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT
    assert ranges(server) == [None, 'bytes=100000-', 'bytes=300000-']


def test_it_goes_on_in_the_next_run(server, path):
    server.files['/file.bin'], server.cuts = CONTENT, [1000] * 4
    with pytest.raises(UserError) as refused:
        transfer.fetch(server.url + 'file.bin', path)
    assert 'cut at 4000 of 512000 bytes; run it again to go on' in str(refused.value)
    assert not os.path.exists(path)
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT and ranges(server)[-1] == 'bytes=4000-'


def test_a_server_that_knows_no_ranges(server, path):
    server.files['/file.bin'], server.cuts, server.ranges = CONTENT, [100000], False
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT


def test_a_file_that_changes_between_two_tries(server, path):
    """The two halves must not be put together."""
    server.files['/file.bin'], server.cuts = CONTENT, [100000]
    server.after_cut = [lambda: server.files.update({'/file.bin': CONTENT[::-1]})]
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT[::-1]


def test_a_file_that_changes_and_a_run_that_is_stopped_right_then(server, path, monkeypatch):
    """The old part must not be gone on with under the new file's tag."""
    server.files['/file.bin'], server.cuts = CONTENT, [1000] * 4
    with pytest.raises(UserError):
        transfer.fetch(server.url + 'file.bin', path)
    server.files['/file.bin'] = CONTENT[::-1]

    def stopped(name, mode='r'):
        if name.endswith('.part'):
            raise KeyboardInterrupt
        return open(name, mode)
    monkeypatch.setattr(transfer, 'open', stopped, raising=False)
    with pytest.raises(KeyboardInterrupt):
        transfer.fetch(server.url + 'file.bin', path)
    monkeypatch.undo()
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT[::-1]


def test_a_run_that_is_stopped(server, path, monkeypatch):
    """Ctrl-C keeps what has come; nothing stands under the file's name."""
    server.files['/file.bin'] = CONTENT

    class Stopped(transfer.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt
    monkeypatch.setattr(transfer, 'tqdm', Stopped)
    with pytest.raises(KeyboardInterrupt):
        transfer.fetch(server.url + 'file.bin', path)
    assert not os.path.exists(path) and read(path + '.part') == CONTENT[:transfer.BLOCK]
    monkeypatch.undo()
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT and ranges(server)[-1] == 'bytes=%d-' % transfer.BLOCK


@pytest.mark.parametrize('more, asked', [(b'', 1), (b'x', 2)])
def test_a_part_that_is_all_there(more, asked, server, path):
    """Stopped after the last byte: nothing comes again; one byte too many: all of it does."""
    server.files['/file.bin'] = CONTENT
    os.makedirs(os.path.dirname(path))
    for suffix, content in [('.part', CONTENT + more),
                            ('.etag', b'"%s"' % hashlib.md5(CONTENT).hexdigest().encode())]:
        with open(path + suffix, 'wb') as writer:
            writer.write(content)
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT and len(server.seen) == asked
    assert os.listdir(os.path.dirname(path)) == ['file.bin']


def test_another_part_than_was_asked_for(server, path):
    server.files['/file.bin'], server.cuts, server.shifts = CONTENT, [1000], [5]
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT and ranges(server) == [None, 'bytes=1000-', None]


def test_a_server_that_says_no_more(server, path, monkeypatch):
    monkeypatch.setattr(transfer, 'TIMEOUT', 0.3)
    server.files['/file.bin'], server.cuts, server.stalls = CONTENT, [transfer.BLOCK], [True]
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT and ranges(server) == [None, 'bytes=%d-' % transfer.BLOCK]


def test_a_busy_server(server, path):
    server.files['/file.bin'], server.codes = CONTENT, {'/file.bin': [503, 429]}
    transfer.fetch(server.url + 'file.bin', path)
    assert read(path) == CONTENT


@pytest.mark.parametrize('code, tries', [(404, 1), (403, 1), (500, 4)])
def test_a_server_that_says_no(code, tries, server, path):
    server.codes = {'/file.bin': [code] * 9}
    with pytest.raises(UserError) as refused:
        transfer.fetch(server.url + 'file.bin', path)
    assert '%sfile.bin: %d ' % (server.url, code) in str(refused.value)
    assert len(server.seen) == tries and not os.path.exists(path)


def test_no_server(path):
    with pytest.raises(UserError) as refused:
        transfer.fetch('http://127.0.0.1:9/file.bin', path)
    assert 'http://127.0.0.1:9/file.bin: ' in str(refused.value)


@pytest.mark.parametrize('sent, said', [
    (CONTENT, None), (CONTENT[:-1] + b'x', 'the SHA-256 is not'), (CONTENT + b'x', 'got 512001 bytes'),
    (CONTENT[:-1], 'got 511999 bytes')], ids=['right', 'changed', 'longer', 'shorter'])
def test_what_hugging_face_says_of_a_file(sent, said, server, path):
    server.files['/cdn'] = sent
    server.redirects['/file.bin'] = (server.url + 'cdn', {
        'X-Linked-Etag': '"%s"' % hashlib.sha256(CONTENT).hexdigest(),
        'X-Linked-Size': str(len(CONTENT))})
    if said is None:
        server.cuts = [1000]  # the range has to survive the redirect
        transfer.fetch(server.url + 'file.bin', path)
        assert read(path) == CONTENT and ranges(server)[-1] == 'bytes=1000-'
        return
    with pytest.raises(UserError) as refused:
        transfer.fetch(server.url + 'file.bin', path)
    assert said in str(refused.value)
    assert not os.path.exists(path) and not os.path.exists(path + '.part')


class Full(io.BytesIO):
    def write(self, block):
        raise OSError(28, 'No space left on device')


def test_no_space_left(server, tmp_path, monkeypatch):
    server.files['/roberta/config.json'] = CONTENT
    monkeypatch.setattr(transfer, 'open', lambda name, mode='r': (
        Full() if name.endswith('.part') else open(name, mode)), raising=False)
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'roberta')
    assert str(refused.value) == 'roberta: No space left on device'


def test_no_space_left_for_what_is_in_an_archive(server, tmp_path, monkeypatch, published):
    """What has come through the network stays, and does not come again."""
    server.files['/afqmc_public.zip'] = archive(sorted(published('afqmc').items()))
    monkeypatch.setattr(transfer, 'open', lambda name, mode='r': (
        Full() if name.endswith('dev.json') else open(name, mode)), raising=False)
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'afqmc')
    assert str(refused.value) == 'afqmc: No space left on device'
    assert os.listdir(str(tmp_path / 'data')) == ['afqmc.download']
    assert os.listdir(str(tmp_path / 'data' / 'afqmc.download')) == ['afqmc_public.zip']
    monkeypatch.delattr(transfer, 'open')
    run(server, tmp_path, 'afqmc')
    assert len(server.seen) == 1 and os.listdir(str(tmp_path / 'data')) == ['afqmc']


# ------------------------------------------------------------------ archives


def archive(members, compression=zipfile.ZIP_DEFLATED):
    """Bytes of a zip of [(name or ZipInfo, content)]."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, 'w', compression) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return written.getvalue()


def link(name):
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.fixture
def published(root, monkeypatch):
    """A function: a task's name -> {file: content} of the bundled sample, as if CLUE had published it."""
    def publish(name):
        folder, task = os.path.join(root, 'clue_dataset', 'sample', name), tasks.load_task(name)
        contents = {file: read(os.path.join(folder, file)) for file in os.listdir(folder)}
        monkeypatch.setattr(type(task), 'published', {
            file: Published(content.count(b'"question"' if name == 'c3' else b'\n'),
                            hashlib.md5(content).hexdigest())
            for file, content in contents.items()})
        return contents
    return publish


def run(server, tmp_path, *names):
    download.run(list(names) + ['--mirror', server.url, '--data_path', str(tmp_path / 'data'),
                                '--weights_path', str(tmp_path / 'weights')])


@pytest.fixture(autouse=True)
def folders(tmp_path):
    os.makedirs(str(tmp_path / 'data'))


@pytest.mark.parametrize('name, zipped', [('afqmc', 'afqmc_public.zip'), ('c3', 'c3_public.zip')])
def test_a_data_set(name, zipped, server, tmp_path, published):
    files = published(name)
    server.files['/' + zipped] = archive(
        [('README.md', b'read me'), ('__MACOSX/._train.json', b'junk'), ('folder/', b'')]
        + [('folder/' + file if i % 2 else file, content)
           for i, (file, content) in enumerate(sorted(files.items()))])
    mine = tmp_path / 'data' / name
    os.makedirs(str(mine))
    (mine / 'notes.txt').write_text('mine')
    server.cuts = [1000]
    run(server, tmp_path, name)
    assert set(os.listdir(str(mine))) == set(files) | {'notes.txt'}
    assert all(read(mine / file) == content for file, content in files.items())
    assert os.listdir(str(tmp_path / 'data')) == [name]
    before = len(server.seen)
    run(server, tmp_path, name)  # all is there
    assert len(server.seen) == before


def test_data_that_is_not_as_published(server, tmp_path, published):
    files = published('csl')
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
    assert read(mine / 'train.json.old') == b'mine' and set(os.listdir(str(mine))) == (
        set(files) | {'train.json.old'})


def test_files_that_are_there_but_not_as_published(server, tmp_path, published, capsys):
    """They are fetched again, and what they were is kept; what is right is let alone."""
    files = published('cluener')
    server.files['/cluener_public.zip'] = archive(sorted(files.items()))
    mine = tmp_path / 'data' / 'cluener'
    os.makedirs(str(mine))
    for file, content in files.items():
        (mine / file).write_bytes(content[:1000] if file == 'dev.json' else content)
    run(server, tmp_path, 'cluener')
    assert {file: read(mine / file) for file in os.listdir(str(mine))} == dict(
        files, **{'dev.json.old': files['dev.json'][:1000]})
    assert 'dev.json: not as published: now dev.json.old' in capsys.readouterr().out
    run(server, tmp_path, 'cluener')
    assert len(server.seen) == 1 and 'there already' in capsys.readouterr().out


def test_what_is_replaced_twice_is_kept_twice(tmp_path, capsys):
    folder = tmp_path / 'mine'
    for content in ['first', 'second', 'third', 'fourth']:
        os.makedirs(str(tmp_path / 'new'), exist_ok=True)
        (tmp_path / 'new' / 'dev.json').write_text(content)
        download.move_in(str(tmp_path / 'new'), str(folder))
    kept = {name: (folder / name).read_text() for name in os.listdir(str(folder))}
    assert kept == {'dev.json': 'fourth', 'dev.json.old': 'first', 'dev.json.old.2': 'second',
                    'dev.json.old.3': 'third'}
    assert 'dev.json: not as published: now dev.json.old.3' in capsys.readouterr().out


def test_chid_is_not_whole_without_its_answers(root, tmp_path, monkeypatch):
    """Of which the table says nothing: CLUE publishes no count of them, nor does anyone an MD5."""
    sample = os.path.join(root, 'clue_dataset', 'sample', 'chid')
    with open(os.path.join(sample, 'dev.json'), encoding='utf-8') as reader:
        lines = len(reader.readlines())
    chid = tasks.load_task('chid')
    monkeypatch.setattr(type(chid), 'published', {'dev.json': Published(lines)})
    assert download.find_fault(chid, os.path.join(sample, 'dev.json')) == ''
    (tmp_path / 'dev.json').write_bytes(read(os.path.join(sample, 'dev.json')))
    assert 'dev_answer.json' in download.find_fault(chid, str(tmp_path / 'dev.json'))


def test_checksums_are_of_genuine_files(clue):
    """All but what may be in part, rebuilt or not there."""
    others = {('cmnli', 'train.json'), ('cmnli', 'dev.json'), ('iflytek', 'train.json'),
              ('ocnli', 'train.50k.json'), ('tnews', 'train.json')}
    published = {(name, file): published.md5 for name in tasks.CLUE
                 for file, published in tasks.load_task(name).published.items()
                 if published.md5 and (name, file) not in others}
    assert published == {(name, file): files.file_digest(os.path.join(clue, name, file), 'md5')
                         for name, file in published}
    assert len(published) == 27


GOOD = [('dev.json', b'{}')]
WRONG = {
    'outside': (GOOD + [('../evil.json', b'x')], '../evil.json leads outside'),
    'absolute': ([('/tmp/evil.json', b'x')], 'leads outside'),
    'a drive': ([('C:/evil.json', b'x')], 'leads outside'),
    'backslashes': ([('..\\evil.json', b'x')], 'leads outside'),
    'a link': ([(link('train.json'), b'/etc/passwd')], 'train.json is a link'),
    'two of a name': ([('a/dev.json', b'x'), ('b/dev.json', b'y')], 'two files are called dev.json'),
    'a bomb': ([('train.json', b'0' * 300000)], 'unpacks to more than 100000 bytes'),
    'several small bombs': ([('%d.json' % i, b'0' * 60000) for i in range(3)], 'more than 100000'),
    'many files': ([('%d.txt' % i, b'') for i in range(21)], 'it has more than 20 files'),
    'another data set': ([('train.txt', b'x'), ('labels.json', b'{}')], 'train.json is not in the')}


@pytest.mark.parametrize('case', sorted(WRONG))
def test_archives_that_are_refused(case, server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, 'LARGEST', 100000)
    monkeypatch.setattr(transfer, 'MEMBERS', 20)
    members, said = WRONG[case]
    server.files['/afqmc_public.zip'] = archive(members)
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'afqmc')
    assert said in str(refused.value)
    assert os.listdir(str(tmp_path / 'data')) == []
    assert sorted(os.listdir(str(tmp_path))) == ['data']


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'text', 'encrypted', 'no deflate stream',
                                    'bzip2', 'more than it says', 'no beginning'])
def test_damaged_archives(damage, server, tmp_path):
    content = bytearray(archive([('dev.json', CONTENT[:3000] + os.urandom(3000))]))
    directory = content.index(b'PK\x01\x02')
    if damage == 'no deflate stream':  # its blocks have no such kind
        content[38] = 0xff
    if damage == 'bzip2':
        content = archive([('dev.json', b'x')], zipfile.ZIP_BZIP2)
    if damage == 'more than it says':  # 10 bytes, in both headers, where 6,000 are
        content[22:26] = content[directory + 24:directory + 28] = b'\x0a\0\0\0'
    if damage == 'no beginning':  # the directory is said to begin before the file does
        content[-10:-6] = b'\xff\xff\xff\x0f'
    if damage == 'truncated':
        content = content[:-100]
    if damage == 'flipped':
        content[2000] ^= 1
    if damage == 'text':
        content = b'<html>not found</html>'
    if damage == 'encrypted':  # the flag, in both headers
        content[6] |= 1
        content[directory + 8] |= 1
    server.files['/afqmc_public.zip'] = bytes(content)
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'afqmc')
    assert 'afqmc_public.zip: the archive cannot be unpacked' in str(refused.value)
    assert os.listdir(str(tmp_path / 'data')) == []


# ------------------------------------------------------------------ backbones, the program


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    """{file: content} of a small backbone, in Google's layout and in Hugging Face's."""
    folder = tmp_path_factory.mktemp('backbone')
    paths = small.write_backbone(folder)
    save_file(hf_weights.to_huggingface(checkpoints.read_variables(paths['checkpoint_path'])),
              str(folder / 'model.safetensors'))
    files = {file: read(folder / file) for file in os.listdir(str(folder))}
    return dict(files, **{'config.json': files['bert_config.json'],
                          'pytorch_model.bin': archive([('archive/data.pkl', b'')])})


def serve(server, backbone):
    for name, weights in [('roberta', 'model.safetensors'), ('nezha', 'pytorch_model.bin')]:
        for file in ('config.json', 'vocab.txt', weights):
            server.files['/%s/%s' % (name, file)] = backbone[file]
    server.files['/chinese_roformer-char_L-12_H-768_A-12.zip'] = archive(
        [('folder/' + file, backbone[file]) for file in download.CHECKPOINT])


def test_backbones(server, tmp_path, capsys, backbone):
    """A safetensors file where there is one, PyTorch's where not, and a zip of a TensorFlow one."""
    serve(server, backbone)
    run(server, tmp_path, 'roberta', 'nezha', 'roformer')
    found = {name: sorted(os.listdir(str(tmp_path / 'weights' / name)))
             for name in os.listdir(str(tmp_path / 'weights'))}
    assert found == {'roberta': ['config.json', 'model.safetensors', 'vocab.txt'],
                     'nezha': ['config.json', 'pytorch_model.bin', 'vocab.txt'],
                     'roformer': sorted(download.CHECKPOINT)}
    said = capsys.readouterr().out
    assert "config_path = '%s'" % (tmp_path / 'weights' / 'nezha') in said
    assert 'nezha: no model.safetensors there: to read' in said and 'roberta: no' not in said
    before = len(server.seen)
    run(server, tmp_path, 'roberta', 'nezha', 'roformer')
    assert len(server.seen) == before


PORTAL = b'<html><body>Please log in to use this network.</body></html>'


@pytest.mark.parametrize('name, file', [
    ('roberta', 'config.json'), ('roberta', 'vocab.txt'), ('roberta', 'model.safetensors'),
    ('nezha', 'pytorch_model.bin')])
def test_a_page_in_place_of_a_file(name, file, server, tmp_path, backbone):
    """As a network answers before one has logged in: nothing of it is kept, and the next run is right."""
    serve(server, backbone)
    right = server.files['/%s/%s' % (name, file)]
    for wrong in (PORTAL, right[:-1] if file != 'config.json' else b'{}', b''):
        if file == 'vocab.txt' and wrong != PORTAL:
            continue
        server.files['/%s/%s' % (name, file)] = wrong
        with pytest.raises(UserError) as refused:
            run(server, tmp_path, name)
        assert str(refused.value).startswith('%s%s/%s: the server sent something else: '
                                             % (server.url, name, file))
        folder = tmp_path / 'weights' / name
        assert not folder.exists() or not {file, 'download'} & set(os.listdir(str(folder)))
    server.files['/%s/%s' % (name, file)] = right
    run(server, tmp_path, name)
    assert read(tmp_path / 'weights' / name / file) == right


def test_a_file_that_is_there_but_not_what_it_must_be(server, tmp_path, backbone, capsys):
    """It is fetched again, what it was is kept, and the others are let alone."""
    serve(server, backbone)
    run(server, tmp_path, 'roberta', 'roformer')
    for name, file in [('roberta', 'vocab.txt'), ('roberta', 'model.safetensors'),
                       ('roformer', 'bert_config.json'), ('roformer', 'bert_model.ckpt.index')]:
        path, before = tmp_path / 'weights' / name / file, len(server.seen)
        path.write_bytes(PORTAL)
        run(server, tmp_path, name)
        assert read(path) == backbone[file] and read(str(path) + '.old') == PORTAL
        assert len(server.seen) == before + 1
        assert '%s.old' % file in capsys.readouterr().out


def test_an_archive_of_something_else(server, tmp_path, backbone):
    server.files['/chinese_roformer-char_L-12_H-768_A-12.zip'] = archive(
        [('folder/' + file, PORTAL if file == 'vocab.txt' else backbone[file])
         for file in download.CHECKPOINT])
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'roformer')
    assert 'vocab.txt: no token [PAD]: expected a BERT vocabulary' in str(refused.value)
    assert os.listdir(str(tmp_path / 'weights')) == []


def test_control_bytes_of_a_server(server, path):
    class Reason(Handler):
        responses = {**Handler.responses, 404: ('no \x1b[2J\x07 such', '')}
    server.RequestHandlerClass = Reason
    with pytest.raises(UserError) as refused:
        transfer.fetch(server.url + 'file.bin', path)
    assert '404 no \\x1b[2J\\x07 such' in str(refused.value)


def test_a_checkpoint_in_part(server, tmp_path):
    server.files['/chinese_roformer-char_L-12_H-768_A-12.zip'] = archive(
        [('folder/' + file, b'x') for file in download.CHECKPOINT[:-1]])
    with pytest.raises(UserError) as refused:
        run(server, tmp_path, 'roformer')
    assert str(refused.value) == (
        'roformer: bert_model.ckpt.data-00000-of-00001 is not in the archive')
    assert os.listdir(str(tmp_path / 'weights')) == []


@pytest.mark.parametrize('args, said', [
    ([], 'what is to be fetched?: expected one or more of afqmc, '),
    (['wsc', 'nosuch'], 'nosuch: expected one or more of afqmc, '),
    (['roberta', '--mirror', 'ftp://a/b'], '--mirror: ftp://a/b: expected an address, https://...'),
    (['roberta', '--mirror', 'http://a b/'], "http://a b/roberta/config.json: "),
    (['roberta', '--weights_path', __file__], __file__),
    (['wsc', '--data_path', '/nosuch'], 'data_path: no folder /nosuch')])
def test_usage(args, said, capsys, monkeypatch, tmp_path):
    if 'roberta' in args and '--weights_path' not in args:
        args = args + ['--weights_path', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['download'] + args)
    with pytest.raises(SystemExit) as ended:
        errors.run_tool('scripts/download', download.run)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count('\n')) == (2, '', 1)
    assert printed.err.startswith('scripts/download: error: ' + said)
    assert not os.path.exists(str(tmp_path / 'roberta'))  # no folder of a backbone that did not come
    if not args or 'nosuch' in args:
        assert all(name in printed.err for name in ('cmrc2018', 'roformer', 'data', 'all'))


def test_it_starts_without_tensorflow(root):
    program = ("import sys; sys.path.insert(0, %r); from tools import download; "
               "assert not {'tensorflow', 'bert4keras'} & set(sys.modules)" % root)
    assert subprocess.check_output([sys.executable, '-c', program], stderr=subprocess.STDOUT) == b''


def test_addresses():
    """Those that CLUE and the authors publish."""
    assert download.DOWNLOADS + tasks.load_task('wsc').archive == (
        'https://storage.googleapis.com/cluebenchmark/tasks/cluewsc2020_public.zip')
    assert download.BACKBONES['roberta'][0] == (
        'https://huggingface.co/hfl/chinese-roberta-wwm-ext/resolve/main/')
    without = {name for name in tasks.CLUE
               if not all(published.md5 for published in tasks.load_task(name).published.values())}
    assert without == {'chid', 'wsc'}
