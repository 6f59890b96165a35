"""Records that are odd, but no mistake, or that only look so: texts, values, ids, questions."""
import collections
import json
import math
import random
import re
import unicodedata
import warnings

import numpy as np
import pytest
from bert4keras.tokenizers import Tokenizer

import small
import snippets
from cluener import CLUENER
from chid import CHID
from cmrc2018 import CMRC2018
from fltuning.errors import LONGEST, UserError
from fltuning.records import Record, plain
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer, load_tokens
from tasks import load_task

SPACING_MARKS = [chr(code) for code in range(0x110000)
                 if unicodedata.combining(chr(code)) and unicodedata.category(chr(code)) != 'Mn']
# Marks that are removed, joiners, separators, controls; letters whose lower case or decomposition is longer.
ODD = SPACING_MARKS + list('\u0301\u0323\u0345\u200d\ufeff\u2028\x1c\x85\u180e\ufffd\0\u0130\u03a3\ufb01\u00df\u1e9e'
                           '\u212a\uac00\u1161\u0f43\u0958')


@pytest.fixture(scope='module')
def tokenizers():
    """With and without lower case; some tokens end between two marks."""
    tokens = SPECIAL_TOKENS + ['ab', 'a', '##b', '中', '\u302e', '##\u302e', '##\u302f', '\u302f', '##\U0001d16d']
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return [FastTokenizer(vocabulary), FastTokenizer(vocabulary, do_lower_case=False)]


def normal(tokenizer, text):
    if not tokenizer._do_lower_case:
        return text
    return ''.join(c for c in unicodedata.normalize('NFD', text.lower()) if unicodedata.category(c) != 'Mn')


def check_alignment(tokenizer, text):
    """Each token's characters, normalized, are the token, and every character that gives any is used."""
    tokens = tokenizer.tokenize(text)
    mapping = tokenizer.rematch(text, tokens)
    assert len(mapping) == len(tokens) and mapping[0] == mapping[-1] == []
    for token, places in zip(tokens[1:-1], mapping[1:-1]):
        stem = tokenizer.stem(token)
        assert len(stem) == len(places)
        for character, place in zip(stem, places):
            final_sigma = text[place] == '\u03a3' and character == '\u03c2'
            assert character in normal(tokenizer, text[place]) or final_sigma
    used = collections.Counter(place for places in mapping for place in places)
    for place, character in enumerate(text):
        assert used[place] == sum(not (c.isspace() or c in '\0\ufffd' or unicodedata.category(c) in ('Cc', 'Cf', 'Zs'))
                                  for c in normal(tokenizer, character))
    try:
        found = Tokenizer.rematch(tokenizer, text, tokens)
    except ValueError:
        return False
    places = [i for i, c in enumerate(text) for _ in (c.lower() if tokenizer._do_lower_case else c)]
    assert mapping == [[places[i] for i in token] for token in found]
    return True


@pytest.mark.parametrize('text', ['\U0001d16d\u302e中', '\U0001d16d\U0001d165a', 'a\u302f\u0301\U0001d165b',
                                  '\U0001d16d\u1b44中'])
def test_marks_in_another_order_are_aligned(text, tokenizers):
    assert not check_alignment(tokenizers[0], text)  # bert4keras finds no place for them


def test_every_text_is_aligned(tokenizers):
    """Where bert4keras finds the places they are the same."""
    chance, found = random.Random(0), collections.Counter()

    def character():
        kind = chance.random()
        if kind < 0.7:
            return chance.choice(ODD if kind < 0.4 else 'ab AB中国,#[]M1 ')
        code = chance.randrange(0x110000)
        code = code if chance.random() < 0.5 else code % 0x3200
        return chr(code) if not 0xd800 <= code < 0xe000 else 'a'

    for _ in range(3000):
        text = ''.join(character() for _ in range(chance.randint(1, 12)))
        for tokenizer in tokenizers:
            found[check_alignment(tokenizer, text)] += 1
    assert found[False] > 50 and found[True] > 5000


def test_entities_in_a_text_of_marks(tokenizers):
    task = CLUENER(tokenizers[0], 16)
    text = '\u302f\U0001d165中ab'
    sample = task.Text(0, text, {('name', 0, 2), ('book', 3, 4)})
    encoded = task.encode(sample)
    length = len(encoded.rows[0])
    scores = np.full((1, len(task.labels), length, length), -np.inf)
    for kind, start, end in encoded.label[0]:
        scores[0, kind, start, end] = 1
    found, = task.decode(scores, [encoded])
    assert ('book', 3, 4) in found


def test_spans_of_odd_texts(tokenizers):
    """Every span from a token to another has the characters of all tokens between."""
    task, chance, found = CLUENER(tokenizers[0], 12), random.Random(0), 0
    for _ in range(200):
        text = ''.join(chance.choice(SPACING_MARKS + list('ab中中 \u0301')) for _ in range(12))
        encoded = task.encode(task.Text(None, text, None))
        places, scores = encoded.label[1], np.full((1, len(task.labels)) + (len(encoded.rows[0]) + 2,) * 2, -np.inf)
        start, end = sorted(chance.randrange(len(places)) for _ in range(2))
        scores[0, 3, start, end] = 1.5
        inside = places[start:end + 1]
        expected = {} if inside[[0, -1]].min() < 0 else {
            (task.labels[3], inside[:, 0].min(), inside[:, 1].max()): 1 / (1 + math.exp(-1.5))}
        assert task.decode(scores, [encoded]) == [expected]
        found += inside[0, 0] > inside[:, 0].min()
    assert found  # with the first character not in the first token


def test_entities_that_cannot_be_found_are_counted(tokenizers, tmp_path, capsys):
    task = CLUENER(tokenizers[0], 8)
    path = str(tmp_path / 'train.json')
    small.write_lines(path, [
        {'text': '中ab中', 'label': {'name': {'ab': [[1, 2]], 'b': [[2, 2]], '中': [[0, 0]]}}},
        {'text': '中' * 12, 'label': {'book': {'中中': [[9, 10], [0, 1]]}}}])
    assert len(task.load_encoded(str(tmp_path), ['train.json'], True)) == 2
    assert capsys.readouterr().out == (
        path + ': 2 of 5 entities cannot be found: 1 begin or end inside a token, 1 are past maxlen 8\n')
    small.write_lines(path, [{'text': '中ab中', 'label': {'name': {'ab': [[1, 2]]}}}])
    task.load_encoded(str(tmp_path), ['train.json'], True)
    assert capsys.readouterr().out == ''


# ------------------------------------------------------------------ values that are not JSON's


@pytest.mark.parametrize('value, meaning', [
    (np.int64(7), 7), (np.float32(0.5), 0.5), (np.bool_(True), True), (np.str_('中'), '中'), (('a', 1), ['a', 1]),
    (np.arange(3), [0, 1, 2]), (np.array(['a', 'b']), ['a', 'b']), (np.array(5), 5), (None, None),
    ({'a': ({'b': np.int8(1)},)}, {'a': [{'b': 1}]}), (collections.OrderedDict(a=1), {'a': 1})])
def test_values_with_a_meaning(value, meaning):
    found = plain(value, 'record 0')
    assert found == meaning and type(found) is type(meaning)
    json.dumps(found)


@pytest.mark.parametrize('value', [
    b'a', {'a'}, frozenset(), object(), bytearray(b'a'), np.array([b'a']), [{'a': b'b'}], {1: 'a'}, {b'a': 'a'},
    np.datetime64('2020-01-01'), '\ud83d', ['a\udc00'], 1j, range(3)])
def test_values_without(value):
    with pytest.raises(UserError, match='^record 3: ?.*expected .*, got '):
        plain(value, 'record 3')


def test_lists_that_hold_themselves():
    endless = []
    endless.append(endless)
    with pytest.raises(UserError, match='nested too deeply'):
        plain(endless, 'record 3')


@pytest.mark.parametrize('label, index', [(True, 1), (False, 0), ('true', 1), ('false', 0)])
def test_truth_values_are_labels(label, index):
    assert Record({'label': label}, 'x').get_choice('label', ['false', 'true']) == index


@pytest.mark.parametrize('label', [0, 0.0, 1, 'True', None, [True]])
def test_what_is_no_truth_value(label):
    with pytest.raises(UserError, match='expected one of false, true, got'):
        Record({'label': label}, 'x').get_choice('label', ['false', 'true'])


@pytest.mark.parametrize('label', [True, 0.0, 1.0, '0.0', ['0']])
def test_what_is_no_number_of_a_class(label):
    with pytest.raises(UserError, match='expected one of 0, 1, got'):
        Record({'label': label}, 'x').get_choice('label', ['0', '1'])


def test_wsc_in_json(tmp_path):
    small.wsc(str(tmp_path))
    small.edit(tmp_path / 'train.json', '"label": "true"', '"label": true')
    assert [s.label for s in load_task('wsc').read(str(tmp_path / 'train.json'), True)] == [1, 0, 1, 0]


# ------------------------------------------------------------------ errors


def test_errors_are_short_and_steer_no_terminal():
    endless = UserError('FILE: line 3: ' + '长' * 10000 + ' got 7')
    assert len(str(endless)) <= LONGEST + 10
    assert str(endless).startswith('FILE: line 3: ') and str(endless).endswith(' got 7')
    shown = str(UserError('a\x1b[2J\x07\u202e\x9bb\r\nc\u2028d中　'))
    assert shown == 'a\\x1b[2J\\x07\\u202e\\x9bb c d中　'


@pytest.mark.parametrize('fields', [
    {'text': '中', 'label': {'name': {'长' * 10000: [[0, 0]]}}}, {'text': '中', 'label': {'长' * 10000: {}}},
    {'text': ['\x1b[2J' * 3000], 'label': {}}])
def test_long_values_are_cut(fields, tmp_path):
    small.write_lines(tmp_path / 'train.json', [fields])
    with pytest.raises(UserError) as refused:
        CLUENER().read(str(tmp_path / 'train.json'), True)
    assert len(str(refused.value)) < 1100 and '\x1b' not in str(refused.value)


# ------------------------------------------------------------------ blanks, questions, passages


def test_lines_without_a_blank_are_counted(tmp_path, capsys):
    small.chid(str(tmp_path))
    path = str(tmp_path / 'test1.0.json')
    small.edit(path, r'(#idiom[0-9]+#.*){3}', ' "], "candidates": %s}'
               % json.dumps([str(i) for i in range(10)]))
    assert len(CHID().read(path, False)) == 3
    assert capsys.readouterr().out == (
        path + ': 1 lines have no blank (#idiom000001#): nothing is predicted for them\n')


def squad(path, context, question, answers=None):
    record = dict({'id': 'q', 'question': question}, **{'answers': answers} if answers else {})
    small.write_json(path, {'data': [{'paragraphs': [{'context': context, 'qas': [record]}]}]})
    return str(path)


@pytest.mark.parametrize('length, cut', [(59, None), (60, None), (61, 30), (62, 30), (500, 30)])
def test_questions_without_room_for_a_passage_are_cut(length, cut, tokenizers, tmp_path, capsys):
    task = CMRC2018(tokenizers[0], 64)
    windows = task.read(squad(tmp_path / 'x.json', '中' * 50, '问' * length), False)
    assert {len(window.asked) for window in windows} == {cut or length}
    assert all(len(task.encode(window).rows[0]) <= 64 for window in windows)
    assert windows[0].begin == 0 and windows[-1].begin + len(windows[-1].text) == 50
    said = capsys.readouterr().out
    assert said == ('' if cut is None else str(tmp_path / 'x.json') + ': 1 questions are longer than maxlen '
                    '64 - 4 characters: cut to 30\n')


@pytest.mark.parametrize('context', ['\u0301', '\u0301\u0302', '\u200b', '\ufffd', '\u200d\u0301\ufeff', 'a\u0301',
                                     '\u302e'])
def test_every_question_has_an_answer_or_is_refused(context, tokenizers, tmp_path):
    """Refused where the passage has no token."""
    task = CMRC2018(tokenizers[0], 64)
    path = squad(tmp_path / 'x.json', context, '谁？')
    if len(tokenizers[0].ids(context)) == 2:
        with pytest.raises(UserError, match=re.escape('paragraphs[0]: field "context": expected a text of more')):
            task.read(path, False)
        return
    windows = task.to_predict(task.read(path, False))
    encoded = list(map(task.encode, windows))
    length = max(len(e.rows[0]) for e in encoded)
    results = task.decode(np.zeros((len(windows), 1, length, length)), encoded)
    answers = json.loads(task.submission(windows, results))
    assert answers['q'] and answers['q'] in context
    assert not list(task.check_submission(path, json.dumps(answers)))


@pytest.mark.parametrize('answer', ['\u0301', '\u200b', '\ufffd', '\u0301\u200d'])
@pytest.mark.parametrize('start', [0, 1, -1])
def test_answers_of_nothing_are_refused(answer, start, tokenizers, tmp_path):
    path = squad(tmp_path / 'x.json', '中' + answer + '中', '谁？', [{'text': answer, 'answer_start': start}])
    with pytest.raises(UserError, match=re.escape('answers[0]: field "text": expected a text of more')):
        CMRC2018(tokenizers[0], 64).read(path, True)


# ------------------------------------------------------------------ vocabularies


@pytest.mark.parametrize('tail, said', [
    ('中\n国\n中\n', 'line 107: expected each token once, got "中", which is line 105'),
    ('中\n\n', 'line 106: expected a token, got a blank line'),
    ('中\n \n', 'line 106: expected a token, got a blank line'),
    ('中\n\n\n', 'line 107: expected each token once, got "", which is line 106')])
def test_the_line_of_a_vocabulary_is_named(tail, said, tmp_path):
    path = str(tmp_path / 'vocab.txt')
    small.write_text(path, '\n'.join(SPECIAL_TOKENS) + '\n' + tail)
    with pytest.raises(UserError) as refused:
        load_tokens(path)
    assert '%s: %s' % (path, said) in str(refused.value)


def test_vocabularies_that_are_well(tmp_path, root):
    path = str(tmp_path / 'vocab.txt')
    for tail in ('中\n国', '中\n国\n', '中\n\n国\n'):
        small.write_text(path, '\n'.join(SPECIAL_TOKENS) + '\n' + tail)
        assert '国' in load_tokens(path)
    assert len(snippets.load_tokenizer(root + '/pretrained/roberta/vocab.txt')[1]) > 5000


def test_the_python_call_warns_of_what_the_program_says(tokenizers):
    from fltuning.streaming import predict_windows
    task = CMRC2018(tokenizers[0], 64)
    record = Record({'context': '中', 'qas': [{'id': 1, 'question': '问' * 99}]}, 'record 0')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        lines, = predict_windows(task, lambda task, encoded: task.decode(np.zeros((1, 1, 64, 64)), encoded),
                                 [record], remark=warnings.warn)
    assert [line['id'] for line in lines] == [1]
    assert 'cut to 30' in str(said[0].message)
