"""Files in and out, and what a program does with its streams."""
import os
import stat
import subprocess
import sys
import threading

import pytest

import small
from bert4keras.snippets import lowercase_and_normalize
from fltuning import files
from fltuning.errors import UserError
from fltuning.text import normalize
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer, Memory

pytestmark = pytest.mark.costly


def test_the_file_at_fault_is_named(tmp_path):
    """A source that cannot be read is not blamed on the target."""
    source, target = str(tmp_path / 'source'), str(tmp_path / 'target')
    small.write_text(target, 'mine')
    with pytest.raises(UserError) as refused:
        files.copy_file(source, target)
    assert str(refused.value) == source + ': No such file or directory'
    os.mkdir(source)
    with pytest.raises(UserError, match='source: Is a directory'):
        files.copy_file(source, target)
    with pytest.raises(UserError) as refused:
        with files.replacing(target):
            open(str(tmp_path / 'another')).close()
    assert str(refused.value).startswith(str(tmp_path / 'another'))
    with pytest.raises(UserError) as refused:
        with files.replacing(str(tmp_path / 'target' / 'below')) as temporary:
            open(temporary, 'w').close()
    assert str(tmp_path / 'target') in str(refused.value)
    assert os.listdir(str(tmp_path)).count('target') == 1 and small.read_text(target) == 'mine'


def test_links_are_followed_and_devices_stay(tmp_path):
    real, link, pipe = [str(tmp_path / name) for name in ('real', 'link', 'pipe')]
    small.write_text(real, 'old')
    os.symlink(real, link)
    files.write_text(link, 'new')
    assert os.path.islink(link) and small.read_text(real) == 'new'
    files.write_text(os.devnull, 'nothing')
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(pipe)
    got = []
    reader = threading.Thread(target=lambda: got.append(small.read_text(pipe)))
    reader.start()
    files.write_text(pipe, 'through')
    reader.join(30)
    assert got == ['through'] and stat.S_ISFIFO(os.stat(pipe).st_mode)
    assert sorted(os.listdir(str(tmp_path))) == ['link', 'pipe', 'real']


def test_the_temporary_file_is_nobody_elses(tmp_path):
    """What has its name is not written into, and two writers at once have a file each."""
    path = str(tmp_path / 'file')
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second
        for name in (first, second):
            small.write_text(name, name)
    assert os.listdir(str(tmp_path)) == ['file']


@pytest.mark.parametrize('closed', ['2>&-', '>&- 2>&-'])
def test_closed_streams_end_no_program(closed, root, tmp_path):
    small.write_task(tmp_path / 'data', 'afqmc')
    flags = small.flags(dict(small.write_backbone(tmp_path / 'backbone'), data_path=tmp_path / 'data',
                             output_dir=tmp_path / 'out', epochs=1, ffn_prompt_size=2))
    done = subprocess.run(
        ['bash', '-c', '"$0" "$@" ' + closed, sys.executable, os.path.join(root, 'afqmc.py')] + flags,
        capture_output=True)
    assert done.returncode == 0
    assert len(small.read_lines(tmp_path / 'out' / 'results' / 'afqmc_predict.json')) == 5
    assert not done.stdout or b'wrote' in done.stdout


def test_the_tokenizers_memory_is_bounded():
    computed = []
    memory = Memory(lambda key: computed.append(key) or -key, size=10)
    assert [memory[i] for i in range(100)] == [-i for i in range(100)]
    assert len(memory) <= 10 and computed == list(range(100))
    assert memory[99] == -99 and len(computed) == 100
    tokenizer = FastTokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    tokenizer._word_ids.size = 50
    for i in range(500):
        assert tokenizer.ids('word%d' % i) == tokenizer.reference_ids('word%d' % i)
    assert len(tokenizer._word_ids) <= 50


def test_normalize_is_bert4keras_s():
    """For every character there is, and a text of them."""
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    assert list(map(normalize, characters)) == list(map(lowercase_and_normalize, characters))
    text = 'Café ÀÉ 北京 ﬁ ǅ Ⅷ'
    assert normalize(text) == lowercase_and_normalize(text)
