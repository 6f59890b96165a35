"""Files from the network, and what is in their archives: whole, or not at all.

A transfer goes on where it was cut, and what came is checked against what the server says of it.
"""
import errno
import http.client
import os
import shutil
import stat
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib

from tqdm import tqdm

from fltuning.errors import UserError
from fltuning.files import file_digest

LARGEST = 4 << 30  # bytes that an archive may unpack to
MEMBERS = 1000  # files that may be in it
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
        return super().redirect_request(request, fp, code, msg, headers, newurl)


class Cut(Exception):
    """The connection ended before the file did, or the server is busy: worth another try."""


def fetch(url, path):
    """Download to `path`, in a .part file until it is whole.

    A .part file of an earlier try is gone on with if the server says that the file is still the same.
    Raises UserError with the address and the server's answer, and if size or SHA-256 is not what the
    server said; OSError if there is no space.
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
        if error.code == 416:  # nothing is left to send: the part is the file, or no part of it
            if error.headers.get('Content-Range') == 'bytes */%d' % have:
                return check_transfer(url, part, have, redirects.linked)
            remove(part)
            raise Cut('the file has changed')
        if error.code in (429, 500, 502, 503, 504):
            raise Cut('%d %s' % (error.code, error.reason))
        raise UserError('%s: %d %s' % (url, error.code, error.reason))
    except (urllib.error.URLError, http.client.HTTPException, ValueError, OSError) as error:
        if isinstance(error, (ValueError, http.client.InvalidURL)):
            raise UserError('%s: %s' % (url, error))
        raise Cut(getattr(error, 'reason', error))
    with response:
        goes_on = response.status == 206
        if goes_on and not response.headers.get('Content-Range', '').startswith('bytes %d-' % have):
            remove(part)
            raise Cut('the server sent another part than was asked for')
        have = have if goes_on else 0
        total = None if response.length is None else have + response.length
        if not goes_on:
            remove(part)  # first: whenever it is stopped, no part may lie beside another file's tag
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
            sync(writer)
    check_transfer(url, part, total, redirects.linked)


def check_transfer(url, part, total, linked):
    size = os.path.getsize(part)
    if total is not None and size < total:
        raise Cut('the connection was cut at %d of %d bytes' % (size, total))
    for expected in (total, linked.get('X-Linked-Size')):
        if expected is not None and size != int(expected):
            remove(part)
            raise UserError('%s: got %d bytes, expected %s' % (url, size, expected))
    sha256 = linked.get('X-Linked-Etag', '')
    if len(sha256) == 64 and file_digest(part) != sha256:
        remove(part)
        raise UserError('%s: the SHA-256 is not %s: what came is not the file' % (url, sha256))


def remove(path):
    if os.path.exists(path):
        os.remove(path)


def sync(writer):
    """What was written is on the disk before the file gets its name."""
    writer.flush()
    os.fsync(writer.fileno())


def unpack(archive, folder, wanted):
    """Unpack the files of an archive whose names end as `wanted`, without its folders, into `folder`.

    Raises UserError if the archive is damaged or encrypted, or has a path outside, a link, two files
    of one name, or more than LARGEST bytes or MEMBERS files; OSError if there is no space.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            if len(members) > MEMBERS:
                raise UserError('%s: refused: it has more than %d files' % (archive, MEMBERS))
            if sum(member.file_size for member in members) > LARGEST:
                raise UserError('%s: refused: it unpacks to more than %d bytes' % (archive, LARGEST))
            for member in members:
                unpack_member(opened, member, folder, wanted)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError,
            OSError) as error:
        # EINVAL is what seeking before the file's beginning gives, so damage.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError('%s: the archive cannot be unpacked: %s' % (archive, error))


def unpack_member(opened, member, folder, wanted):
    name = member.filename.replace('\\', '/')
    parts = name.split('/')
    if name.startswith('/') or '..' in parts or ':' in name:
        raise UserError('%s: refused: its path %s leads outside' % (opened.filename, member.filename))
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError('%s: refused: %s is a link or a device' % (opened.filename, member.filename))
    if name.endswith('/') or '__MACOSX' in parts or parts[-1].startswith('.') or not (
            parts[-1].endswith(wanted)):
        return
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # As zipfile says it of what it can't unpack; `unpack` makes one line of either.
        raise NotImplementedError('%s is not deflated' % member.filename)
    target = os.path.join(folder, parts[-1])
    if os.path.exists(target):
        raise UserError('%s: refused: two files are called %s' % (opened.filename, parts[-1]))
    with opened.open(member) as reader, open(target, 'wb') as writer:
        shutil.copyfileobj(reader, writer)  # a reader gives no more than the size that was declared
        sync(writer)
