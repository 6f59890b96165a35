"""Large files: no more is read than is used, and little memory is kept."""
import gc
import json
import os
import tracemalloc

import numpy as np
import pytest

import small
from afqmc import AFQMC
from fltuning.errors import UserError
from fltuning.files import read_lines
from fltuning.records import read_json_lines
from fltuning.task import Encoded, EncodedList
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer
from tasks import load_task


@pytest.fixture(scope='module')
def tokenizer():
    return FastTokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS + list(small.CHARACTERS))})


def write_pairs(path, count):
    small.write_lines(path, [
        {'sentence1': small.sentence(i, 9 + i % 11), 'sentence2': small.sentence(i + 1, 7 + i % 13),
         'label': str(i % 2)} for i in range(count)])
    return os.path.getsize(str(path))


def test_memory_of_a_file_to_train_on(tokenizer, tmp_path):
    """At most as much as the file, where each object a token or a row would take eleven times as much."""
    size = write_pairs(tmp_path / 'train.json', 20000)
    task = AFQMC(tokenizer, 128)
    write_pairs(tmp_path / 'first.json', 10)
    task.load_encoded(str(tmp_path), ['first.json'], True)  # what is loaded once
    gc.collect()
    tracemalloc.start()
    encoded = task.load_encoded(str(tmp_path), ['train.json'], True)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(encoded) == 20000
    assert kept < size and peak < 1.2 * size


@pytest.mark.parametrize('name', ['afqmc', 'c3', 'chid', 'cluener', 'cmrc2018', 'wsc'])
def test_encoded_samples_are_the_same(name, tokenizer, tmp_path):
    folder = small.write_task(tmp_path, name)
    task = load_task(name, tokenizer, 64)
    files = task.find_train_files(folder)
    expected = list(map(task.encode, task.load(folder, files, True)))
    found = task.load_encoded(folder, files, True)
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected):
        assert [row.dtype for row in one.rows] == [row.dtype for row in other.rows]
        assert [row.tolist() for row in one.rows] == [row.tolist() for row in other.rows]
        assert str(one.label) == str(other.label)
    for i in (0, -1, len(expected) - 1):
        assert found[i].rows[0].tolist() == expected[i].rows[0].tolist()
    with pytest.raises(IndexError):
        found[len(expected)]
    first, = task.load_encoded(folder, files, True, 1)
    assert first.rows[0].tolist() == expected[0].rows[0].tolist()


def test_token_ids_of_any_size():
    rows = [np.array([70000, 2**31 - 1], 'int32'), np.array([], 'int32')]
    found, = EncodedList([Encoded(rows, 1)])
    assert [row.tolist() for row in found.rows] == [[70000, 2**31 - 1], []]
    found, = EncodedList([Encoded([np.array([65535], 'int32')], 1)], 'H')
    assert found.rows[0].tolist() == [65535]


def test_no_more_is_read_than_the_limit(tokenizer, tmp_path):
    write_pairs(tmp_path / 'train.json', 20)
    with open(str(tmp_path / 'train.json'), 'a') as writer:
        writer.write('not JSON\n')
    small.write_text(tmp_path / 'more.json', 'neither')
    task = AFQMC(tokenizer, 128)
    for limit in (1, 20):
        assert len(task.load(str(tmp_path), ['train.json', 'more.json'], True, limit)) == limit
        assert len(task.load_encoded(str(tmp_path), ['train.json', 'more.json'], True, limit)) == limit
    for load in (task.load, task.load_encoded):
        with pytest.raises(UserError, match='train.json: line 21: not JSON'):
            load(str(tmp_path), ['train.json', 'more.json'], True, 21)


def test_limits_go_over_files(tokenizer, tmp_path):
    for name in ('a', 'b', 'c'):
        write_pairs(tmp_path / (name + '.json'), 4)
    task = AFQMC(tokenizer, 128)
    for load in (task.load, task.load_encoded):
        for limit, count in [(None, 12), (3, 3), (4, 4), (6, 6), (99, 12)]:
            assert len(load(str(tmp_path), ['a.json', 'b.json', 'c.json'], True, limit)) == count


@pytest.mark.parametrize('content, lines', [
    (b'', []), (b'a', [b'a']), (b'a\n', [b'a\n']), (b'a\r\nb\rc\n\nd', [b'a\r\n', b'b\r', b'c\n', b'\n', b'd']),
    (b'a\r\r\nb', [b'a\r', b'\r\n', b'b']), (b'\xef\xbb\xbfa\n\xef\xbb\xbfb', [b'a\n', b'\xef\xbb\xbfb']),
    ('a\u2028b\x85c\x0bd\n'.encode(), ['a\u2028b\x85c\x0bd\n'.encode()])])
def test_lines_end_as_in_a_text_file(content, lines, tmp_path):
    path = str(tmp_path / 'x')
    with open(path, 'wb') as writer:
        writer.write(content)
    assert list(read_lines(path)) == list(enumerate(lines, 1))
    with open(path, encoding='utf-8-sig') as reader:
        texts = reader.read().split('\n')
    assert [line.decode().rstrip('\r\n') for line in lines] == (texts if texts[-1] else texts[:-1])


@pytest.mark.parametrize('content', [b'', b'\n\n', b' \r\n\t', '\u3000\n'.encode(), b'\xef\xbb\xbf\n'])
@pytest.mark.parametrize('keep_bad', [False, True])
def test_nothing_is_no_file_of_records(content, keep_bad, tmp_path):
    path = str(tmp_path / 'x')
    with open(path, 'wb') as writer:
        writer.write(content)
    with pytest.raises(UserError, match='x: the file is empty'):
        list(read_json_lines(path, keep_bad))


def test_bad_lines_are_kept_or_raise(tmp_path):
    path = str(tmp_path / 'x')
    content = b'{"a": 1}\n[1]\n\n{"a": 2\n\xff\n{"a": "\\ud83d"}\n{"a": 3}'
    with open(path, 'wb') as writer:
        writer.write(content)
    found = list(read_json_lines(path, keep_bad=True))
    assert [r if isinstance(r, dict) else str(r)[len(path):] for r in found] == [
        {'a': 1}, ': line 2: expected an object, got [1]',
        ": line 4: not JSON: Expecting ',' delimiter: line 1 column 8 (char 7)",
        ': line 5: expected UTF-8: invalid start byte',
        ": line 6: not JSON: 'utf-8' codec can't encode character '\\ud83d' in position 7: surrogates not allowed",
        {'a': 3}]
    records = read_json_lines(path)
    assert next(records) == {'a': 1}
    with pytest.raises(UserError, match='line 2: expected an object'):
        next(records)


def test_ids_of_a_file_to_predict_are_held_against_each_other_in_that_file_alone(tmp_path):
    line = json.dumps({'id': 1, 'sentence1': 'a', 'sentence2': 'b', 'label': '1'}) + '\n'
    small.write_text(tmp_path / 'one.json', line)
    small.write_text(tmp_path / 'two.json', line * 2)
    task = AFQMC()
    for _ in (0, 1):
        assert len(task.read(str(tmp_path / 'one.json'), False)) == 1
    assert len(task.read(str(tmp_path / 'two.json'), True)) == 2
    with pytest.raises(UserError) as refused:
        task.read(str(tmp_path / 'two.json'), False)
    path = str(tmp_path / 'two.json')
    assert str(refused.value) == ('%s: line 2: field "id": expected each id once, got 1, which is there already '
                                  '(%s: line 1)' % (path, path))
    assert len(task.read(str(tmp_path / 'one.json'), False)) == 1
