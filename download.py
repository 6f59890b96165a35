"""Fetches the data sets and the official backbones (`scripts/download`).

Transfers go on where they were cut, sizes and checksums are checked, archives are unpacked beside
their place and moved there only when every file in them reads as published.
"""
import argparse
import hashlib
import http.client
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile

from tqdm import tqdm

from datasets import DOWNLOADS, PUBLISHED, ROOT, check_file, find_root, load_task
from errors import Parser, UserError, run_tool

HUB = 'https://huggingface.co/%s/resolve/main/'
# {backbone: (address, files)}; of alternatives, in a tuple, the first that is there. NEZHA's own
# release has no direct address: this is its conversion for `transformers`.
BACKBONES = {
    'roberta': (HUB % 'hfl/chinese-roberta-wwm-ext',
                ['config.json', 'vocab.txt', ('model.safetensors', 'pytorch_model.bin')]),
    'nezha': (HUB % 'sijunhe/nezha-base-wwm',
              ['config.json', 'vocab.txt', ('model.safetensors', 'pytorch_model.bin')]),
    'roformer': ('https://open.zhuiyi.ai/releases/nlp/models/zhuiyi/',
                 ['chinese_roformer-char_L-12_H-768_A-12.zip']),
}
# MD5 of files in CLUE's archives, as far as they are known; the others are counted and read.
MD5 = {
    'afqmc': {'train.json': '319cf775353af9473140abca4052b89a',
              'dev.json': '307154b59cb6c3e68a0f39c310bbd364',
              'test.json': '94b925f23a9615dd08199c4013f761f4'},
    'c3': {'m-train.json': 'db321e631eb3e6f508e438992652618f',
           'd-train.json': '291b07679bef785aa66bb5343f1b49b2',
           'm-dev.json': 'beb2f2e08c18cd8e9429c6a55de6b8db',
           'd-dev.json': '446e75358789d3fbe8730089cadf5fb0',
           'test1.0.json': 'ec5421a078f6f77e2779731895f1a230',
           'test1.1.json': '18bd0cd75c81b85bf16c71a9730e03b7'},
    'cluener': {'train.json': '6cf6f466b20c1681ed12e6b18e6345df',
                'dev.json': 'ecf3cf49219eb6a5a32fe958da713f04',
                'test.json': '311aa1bca3fb1580e5106ad688fed629'},
    'cmrc2018': {'train.json': '7fb714b479c7f40fbb16acabd7af0ede',
                 'dev.json': '853b80709ff2d071f9fce196521b843c',
                 'trial.json': 'cac70d832b971405fa283d0494540759',
                 'test.json': 'fbf9d6e7dea4b00b7310126401109be8'},
    'csl': {'train.json': 'e927948b4e0eb4992fe9f45a77446bf5',
            'dev.json': '6c2ab8dd3b4785829ead94b05a1cb957',
            'test.json': 'ebfb89575355f00dcd9b18f8353547cd'},
}
LARGEST = 4 << 30  # bytes that an archive may unpack to
WAITS = (1, 2, 4, 8)  # seconds before a cut transfer is tried again
TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 16


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps what Hugging Face's say of the file: its SHA-256."""

    def __init__(self):
        self.linked = {}

    def redirect_request(self, request, fp, code, msg, headers, newurl):
        for name in ('X-Linked-Etag', 'X-Linked-Size'):
            if headers.get(name):
                self.linked[name] = headers[name].strip('"')
        new = super(Redirects, self).redirect_request(request, fp, code, msg, headers, newurl)
        for name in ('Range', 'If-range'):
            if new is not None and request.has_header(name):
                new.add_header(name, request.get_header(name))
        return new


class Cut(Exception):
    """The connection ended before the file did, or the server is busy: worth another try."""


def fetch(url, path):
    """Download to `path`, in a .part file until it is whole.

    A .part file of an earlier try is gone on with if the server says that the file is still the same.
    Raises UserError with the address and the server's answer, and if size or SHA-256 is not what the
    server said.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    for wait in WAITS + (None,):
        try:
            fetch_once(url, path + '.part', path + '.etag')
            break
        except Cut as error:
            if wait is None:
                raise UserError('%s: %s; run it again to go on' % (url, error))
            time.sleep(wait)
        except OSError as error:
            raise UserError('%s: %s' % (path, error.strerror or error))
    os.replace(path + '.part', path)
    remove(path + '.etag')


def fetch_once(url, part, etag_path):
    have, etag = 0, ''
    if os.path.exists(part) and os.path.exists(etag_path):
        have = os.path.getsize(part)
        with open(etag_path) as reader:
            etag = reader.read()
    request = urllib.request.Request(url, headers={'User-Agent': 'fl-tuning'})
    if have and etag:
        request.add_header('Range', 'bytes=%d-' % have)
        request.add_header('If-Range', etag)
    redirects = Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is longer than the file
            remove(part)
            raise Cut('the file has changed')
        if error.code in (429, 500, 502, 503, 504):
            raise Cut('%d %s' % (error.code, error.reason))
        raise UserError('%s: %d %s' % (url, error.code, error.reason))
    except (urllib.error.URLError, http.client.HTTPException, ValueError, OSError) as error:
        if isinstance(error, ValueError):
            raise UserError('%s: %s' % (url, error))
        raise Cut(getattr(error, 'reason', error))
    with response:
        goes_on = response.status == 206 and (
            response.headers.get('Content-Range', '').startswith('bytes %d-' % have))
        have = have if goes_on else 0
        length = response.headers.get('Content-Length')
        total = have + int(length) if length else None
        if not goes_on:
            # A weak tag does not say that the bytes are the same.
            etag = response.headers.get('ETag') or response.headers.get('Last-Modified') or ''
            with open(etag_path, 'w') as writer:
                writer.write('' if etag.startswith('W/') else etag)
        with open(part, 'ab' if goes_on else 'wb') as writer, tqdm(
                total=total, initial=have, unit='B', unit_scale=True,
                desc=url.rsplit('/', 1)[-1]) as bar:
            while True:
                try:
                    block = response.read(BLOCK)
                except (http.client.HTTPException, OSError) as error:
                    raise Cut(error or 'the connection was cut')
                if not block:
                    break
                writer.write(block)
                bar.update(len(block))
    check_transfer(url, part, total, redirects.linked)


def check_transfer(url, part, total, linked):
    size = os.path.getsize(part)
    if total is not None and size < total:
        raise Cut('the connection was cut at %d of %d bytes' % (size, total))
    expected = [(int(value), 'bytes') for value in (total, linked.get('X-Linked-Size'))
                if value is not None]
    for value, unit in expected:
        if size != value:
            remove(part)
            raise UserError('%s: got %d bytes, expected %d' % (url, size, value))
    sha256 = linked.get('X-Linked-Etag', '')
    if len(sha256) == 64 and digest(part, 'sha256') != sha256:
        remove(part)
        raise UserError('%s: the SHA-256 is not %s: what came is not the file' % (url, sha256))


def digest(path, name):
    found = hashlib.new(name)
    with open(path, 'rb') as reader:
        for block in iter(lambda: reader.read(1 << 20), b''):
            found.update(block)
    return found.hexdigest()


def remove(path):
    if os.path.exists(path):
        os.remove(path)


def unpack(archive, folder, wanted):
    """Unpack the files of an archive whose names end as `wanted`, without its folders, into `folder`.

    Raises UserError if the archive is damaged or encrypted, or has a path outside, a link, two files
    of one name, or more than LARGEST bytes.
    """
    left = LARGEST
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                left -= unpack_member(opened, member, folder, wanted, left)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as error:
        raise UserError('%s: the archive cannot be unpacked: %s' % (archive, error))
    except OSError as error:
        raise UserError('%s: %s' % (folder, error.strerror or error))


def unpack_member(opened, member, folder, wanted, left):
    """The bytes that were written."""
    name = member.filename.replace('\\', '/')
    parts = name.split('/')
    if name.startswith('/') or '..' in parts or ':' in parts[0]:
        raise UserError('%s: refused: its path %s leads outside' % (opened.filename, member.filename))
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError('%s: refused: %s is a link or a device' % (opened.filename, member.filename))
    if name.endswith('/') or parts[0] == '__MACOSX' or parts[-1].startswith('.') or not (
            parts[-1].endswith(wanted)):
        return 0
    target, written = os.path.join(folder, parts[-1]), 0
    if os.path.exists(target):
        raise UserError('%s: refused: two files are called %s' % (opened.filename, parts[-1]))
    with opened.open(member) as reader, open(target, 'wb') as writer:
        for block in iter(lambda: reader.read(BLOCK), b''):
            written += len(block)
            if written > left:
                raise UserError('%s: refused: it unpacks to more than %d bytes'
                                % (opened.filename, LARGEST))
            writer.write(block)
    return written


def check_data(name, folder, checksums=True):
    """Raises UserError if a file of a data set is not as published; prints which are not there."""
    task = load_task(name)
    for file, records in PUBLISHED[name][1].items():
        path = os.path.join(folder, file)
        if not os.path.exists(path):
            print('%s: %s is not in the archive' % (name, file))
            continue
        expected = MD5.get(name, {}).get(file)
        if checksums and expected and digest(path, 'md5') != expected:
            raise UserError('%s: %s: the MD5 is %s, as published it is %s; --skip_checksums takes it '
                            'all the same' % (name, file, digest(path, 'md5'), expected))
        _, remark, right = check_file(task, path, records)
        if not right:
            raise UserError('%s: %s: %s' % (name, file, remark))


def move_in(source, folder):
    """Put every file of one folder into another, each in one step; what else is there stays."""
    os.makedirs(folder, exist_ok=True)
    for name in sorted(os.listdir(source)):
        os.replace(os.path.join(source, name), os.path.join(folder, name))


def from_archive(url, folder, wanted, check):
    """Fetch an archive, unpack it beside `folder`, check it, and move its files in."""
    beside = folder + '.download'
    archive, unpacked = os.path.join(beside, url.rsplit('/', 1)[-1]), os.path.join(beside, 'files')
    fetch(url, archive)
    shutil.rmtree(unpacked, ignore_errors=True)
    os.makedirs(unpacked)
    try:
        unpack(archive, unpacked, wanted)
        check(unpacked)
    except UserError:
        shutil.rmtree(beside)  # the archive too: the next try is to get another
        raise
    move_in(unpacked, folder)
    shutil.rmtree(beside)


def download_data(name, settings):
    folder = os.path.join(find_root(settings.data_path), name)
    archive, files = PUBLISHED[name]
    if all(os.path.exists(os.path.join(folder, file)) for file in files):
        print('%s: all files are there already; scripts/data checks them' % name)
        return
    from_archive((settings.mirror or DOWNLOADS) + archive, folder, '.json',
                 lambda unpacked: check_data(name, unpacked, not settings.skip_checksums))
    print('%s: in %s' % (name, folder))


def download_backbone(name, settings):
    folder = os.path.join(settings.weights_path, name)
    address, files = BACKBONES[name]
    if settings.mirror:
        address = settings.mirror if files[0].endswith('.zip') else settings.mirror + name + '/'
    if files[0].endswith('.zip'):
        if not os.path.exists(os.path.join(folder, 'bert_model.ckpt.index')):
            from_archive(address + files[0], folder, ('.json', '.txt', '.index', '-00001'),
                         lambda unpacked: None)
    else:
        for choices in files:
            fetch_first(address, (choices,) if isinstance(choices, str) else choices, folder)
    print("%s: in %s; in snippets.py, config_path = '%s'" % (name, folder, folder))


def fetch_first(address, names, folder):
    """Fetch the first of these files that the server has, unless one is there already."""
    if any(os.path.exists(os.path.join(folder, name)) for name in names):
        return
    for name in names:
        try:
            return fetch(address + name, os.path.join(folder, name))
        except UserError as error:
            if name == names[-1] or ': 404 ' not in str(error):
                raise


def run(argv=None):
    names = list(PUBLISHED) + list(BACKBONES)
    parser = Parser(prog='scripts/download', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='+', metavar='NAME', choices=names + ['data', 'all'],
                        help='what to fetch: %s; data, all eleven tasks; or all' % ', '.join(names))
    parser.add_argument('--data_path', help='where data sets go, a folder each; the one that '
                                            'snippets.py names, unless said')
    parser.add_argument('--weights_path', default=os.path.join(ROOT, 'weights'),
                        help='where backbones go, a folder each; weights, unless said')
    parser.add_argument('--mirror', help='another address with the same archives, and a folder for '
                                         'each backbone that is no archive')
    parser.add_argument('--skip_checksums', action='store_true',
                        help='take data whose MD5 differs, if it reads and is complete')
    settings = parser.parse_args(argv)
    if settings.mirror and not settings.mirror.endswith('/'):
        settings.mirror += '/'
    chosen = {'data': list(PUBLISHED), 'all': names}
    for name in dict.fromkeys(one for given in settings.names for one in chosen.get(given, [given])):
        (download_data if name in PUBLISHED else download_backbone)(name, settings)


if __name__ == '__main__':
    run_tool('scripts/download', run)
