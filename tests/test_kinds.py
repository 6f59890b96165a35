"""The kinds of task: read, encode, loss, decode, score, submission, and a short training."""
import collections
import itertools
import json
import os
import unicodedata

from fltuning import compat  # before bert4keras
import numpy as np
import pytest
import tensorflow as tf

import small
import snippets
import tasks
import train
from c3 import C3, Sample
from chid import CHID, Blank
from cluener import CLUENER
from cmrc2018 import CMRC2018, bare, overlap
from fltuning.text import normalize
from fltuning.compat import K
from fltuning.errors import UserError
from fltuning.reading_comprehension import Window
from fltuning.records import Record
from tasks import CLUE as TASKS
from tasks import load_task
from wsc import WSC


@pytest.fixture(scope='module')
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kinds')
    return {kind: small.write_backbone(folder / kind, kind)
            for kind in ('roberta', 'nezha', 'roformer')}


@pytest.fixture(scope='module')
def tokenizer(backbones):
    return snippets.load_tokenizer(backbones['roberta']['dict_path'])[0]


def evaluate(task, labels, outputs):
    """The loss of the task's head as a number, on either stack."""
    head = task.head()
    labels = np.asarray(labels, task.label_dtype)
    outputs = np.asarray(outputs, 'float32')
    if compat.TF2:
        return float(head.loss(tf.constant(labels), tf.constant(outputs)))
    return float(K.eval(head.loss(tf.constant(labels), tf.constant(outputs))))


def log_softmax(scores):
    scores = np.asarray(scores, 'float64')
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def tokens_of(task, ids):
    return task.tokenizer.ids_to_tokens([int(i) for i in ids])


# ------------------------------------------------------------------ CLUE's files, or the sample's


@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_every_file_loads(name, any_data, tokenizer):
    """As many samples as there are records, and each of them can be encoded."""
    task = load_task(name, tokenizer)
    folder = os.path.join(any_data, name)
    files = [(file, True) for file in task.find_train_files(folder) + task.dev_files]
    files += [(file, False) for file in task.test_files
              if os.path.exists(os.path.join(folder, file))]
    for file, labelled in files:
        samples = task.load(folder, [file], labelled)
        with open(os.path.join(folder, file), encoding='utf-8') as reader:
            text = reader.read()
        if name == 'c3':
            records = sum(len(dialogue[1]) for dialogue in json.loads(text))
        elif name == 'chid':
            records = text.count('#idiom')
        elif name == 'cmrc2018':
            records = text.count('"question"')
            assert len({sample.question for sample in samples}) == records
            samples, records = task.to_predict(samples), None
        else:
            labels = [json.loads(line).get('label') for line in text.split('\n') if line]
            records = len([label for label in labels if not labelled or label != '-'])
        if records is not None:
            assert len(samples) == records
        for sample in samples[::100]:
            rows = task.encode(sample).rows
            assert all(2 < len(row) <= task.maxlen for row in rows)
            assert len(rows) >= task.rows_per_sample


# ------------------------------------------------------------------ entity recognition


@pytest.fixture
def ner(tokenizer):
    return CLUENER(tokenizer)


def recognize_perfectly(task, texts):
    """What is decoded where every gold span has a score above 0, and nothing else has."""
    encoded = [task.encode(text) for text in texts]
    inputs, labels = task.collate(encoded)
    assert labels.shape == (len(texts), 10) + 2 * inputs[0].shape[1:]
    return list(map(set, task.decode(2.0 * labels - 1, encoded)))


# The part between the brackets is an entity.
ENTITIES = [
    '她在[北京]大学', '[她]', '在[北京大学]', '[Word 2003]好', '用[Word] 2003', '[iPhone4]',
    'i[Phone]', '[２００３]年', '[Ｗｏｒｄ]好', '我  在　[北京]\t 。', '[a]', '[(b)]', 'A-[B]-C', '[A-B]-C',
    '龘龘[龘北]龘', '[龘]', '😀[北京]😀', '他[😀]好', '北[龘😀Z]京', '[é́a]', '[Café]', 'Ünï[北]',
    '[北 京]', '[ℵ北]', '\u200b[北京]\ufeff海', '한국[北]', '[한국]', 'naïve [Zoë]', '“[《东海》]”', '3.[5]%',
    '[X]' + 'y' * 3, 'x' * 250 + '[北]']


@pytest.mark.parametrize('marked', ENTITIES)
def test_entities_come_back_in_characters(ner, marked):
    """The last entity stands on token borders, except within a Latin word."""
    before, rest = marked.split('[', 1)
    entity, behind = rest.split(']', 1)
    text = before + entity + behind
    span = len(before), len(before) + len(entity) - 1
    sample = ner.Text(None, text, {('book',) + span, ('scene',) + span})
    assert tokens_at_labels(ner, sample) == ['book ' + plain(entity), 'scene ' + plain(entity)]
    found = recognize_perfectly(ner, [sample])
    for _kind, start, end in found[0]:
        assert (start, end) == span
    assert {kind for kind, _, _ in found[0]} == {'book', 'scene'}


def plain(text):
    """Lower case, without accents and spaces, each character by itself."""
    return ''.join(c for c in unicodedata.normalize('NFD', text.lower())
                   if unicodedata.category(c) not in ('Mn', 'Cf', 'Cc', 'Zs'))


def tokens_at_labels(task, sample):
    """'TYPE TOKENS' of the tokens that the labels of a sample say."""
    tokens = task.tokenizer.tokenize(sample.text)
    return ['%s %s' % (task.labels[kind], ''.join(map(task.tokenizer.stem, tokens[start:end + 1])))
            for kind, start, end in task.encode(sample).label[0]]


@pytest.mark.parametrize('text', ['İstanbul大学在北京', '北İ京İ大学'])
def test_letters_that_lower_case_makes_longer(ner, text):
    start = text.index('大学')
    entities = {('organization', start, start + 1)}
    sample = ner.Text(None, text, entities)
    assert recognize_perfectly(ner, [sample]) == [entities]
    assert tokens_at_labels(ner, sample) == ['organization 大学']


def test_spans_off_token_borders_are_left_out(backbones, tmp_path):
    """Of a word that is one token, no part can be found, but it counts in the score."""
    path = str(tmp_path / 'vocab.txt')
    with open(backbones['roberta']['dict_path'], encoding='utf-8') as reader:
        small.write_text(path, reader.read() + 'word\n')
    task = CLUENER(snippets.load_tokenizer(path)[0])
    whole, part = ('book', 1, 4), ('game', 1, 2)
    text = task.Text(None, '看Word看', {whole, part})
    found = recognize_perfectly(task, [text])
    assert found == [{whole}]
    assert task.score([text], found) == {'f1': 2 / 3.0, 'precision': 1.0, 'recall': 0.5}


def test_entities_past_maxlen_are_left_out(tokenizer):
    task = CLUENER(tokenizer, 8)
    text = task.Text(None, '一二三四五六七八', {('name', 5, 5), ('name', 6, 6), ('book', 0, 6)})
    encoded = task.encode(text)
    assert len(encoded.rows[0]) == 8
    assert recognize_perfectly(task, [text]) == [{('name', 5, 5)}]


def test_batches_of_different_lengths(ner):
    texts = [ner.Text(None, '北京', {('address', 0, 1)}),
             ner.Text(None, '她在北京大学用Word', {('name', 0, 0), ('address', 2, 3),
                                            ('organization', 2, 5)}),
             ner.Text(None, '的', set())]
    assert recognize_perfectly(ner, texts) == [text.entities for text in texts]


def test_nothing_is_found_outside_the_text(ner):
    """Scores above 0 everywhere: [CLS], [SEP] and padding still stand for no characters."""
    texts = [ner.Text(None, '北京', set()), ner.Text(None, '一二三四五', set())]
    encoded = [ner.encode(text) for text in texts]
    length = ner.collate(encoded)[0][0].shape[1]
    scores = np.broadcast_to(np.triu(np.ones((length, length))), (2, 10, length, length))
    for text, spans in zip(texts, ner.decode(scores, encoded)):
        n = len(text.text)
        assert {span[1:] for span in spans} == {(i, j) for i in range(n) for j in range(i, n)}


def test_entity_submission(ner):
    text = ner.Text(7, '北京的北京和Word', None)
    line, = ner.submission([text], [{('address', 3, 4), ('address', 0, 1), ('book', 6, 9)}]).split(
        '\n')[:-1]
    assert json.loads(line) == {'id': 7, 'text': '北京的北京和Word', 'label': {
        'address': {'北京': [[0, 1], [3, 4]]}, 'book': {'Word': [[6, 9]]}}}


def test_entity_score(ner):
    """Micro F1: 3 gold, 4 found, 2 right."""
    samples = [ner.Text(0, '', {('name', 0, 1), ('book', 2, 3)}),
               ner.Text(1, '', {('name', 0, 1)})]
    scores = ner.score(samples, [{('name', 0, 1), ('game', 2, 3), ('book', 2, 4)},
                                 {('name', 0, 1)}])
    assert scores == {'f1': 4 / 7.0, 'precision': 0.5, 'recall': 2 / 3.0}
    assert list(scores)[0] == ner.metric == 'f1'
    assert ner.score([ner.Text(0, '', set())], [set()])['f1'] == 0


def test_entity_loss(ner):
    """log(1 + sum of exp(s) of the others) + log(1 + sum of exp(-s) of the gold)."""
    random = np.random.RandomState(0)
    outputs = random.normal(size=(2, 10, 5, 5))
    outputs[:, :, np.tril(np.ones((5, 5)), -1) == 1] = -np.inf
    labels = (random.uniform(size=outputs.shape) < 0.2) & np.isfinite(outputs)
    labels[0, 0] = False
    expected = np.mean([
        np.log(1 + np.exp(s[~y & np.isfinite(s)]).sum()) + np.log(1 + np.exp(-s[y]).sum())
        for s, y in zip(outputs.reshape(20, 25), labels.reshape(20, 25))])
    assert abs(evaluate(ner, labels, outputs) - expected) < 1e-5


# ------------------------------------------------------------------ multiple choice


def test_multiple_choice_loss(tokenizer):
    """Softmax over the rows of a sample."""
    for task in (C3(tokenizer), CHID(tokenizer)):
        n = task.rows_per_sample
        scores = np.random.RandomState(0).normal(size=(3, n))
        gold = [n - 1, 0, 2]
        labels = np.repeat(gold, n)[:, None]
        expected = -np.mean([log_softmax(row)[label] for row, label in zip(scores, gold)])
        assert abs(evaluate(task, labels, scores.reshape(-1, 1)) - expected) < 1e-5


def test_c3_encoding(tokenizer):
    task = C3(tokenizer, 64)
    sample = Sample(None, '人：一二||她：三', '在哪？', ['甲', '乙丙'], 1)
    encoded = task.encode(sample)
    assert encoded.label == 1
    texts = [''.join(tokens_of(task, row)) for row in encoded.rows]
    start = '[CLS]人：一二||她：三[SEP]在[UNK]？[SEP]'
    assert texts == [start + '甲[SEP]', start + '乙丙[SEP]'] + 2 * [start + '无效答案[SEP]']
    inputs, labels = task.collate([encoded, encoded])
    assert inputs[0].shape[0] == 8 and labels[:, 0].tolist() == [1] * 8
    assert not inputs[1].any()


@pytest.mark.parametrize('passage, question, choice', [
    (100, 5, 3), (10, 60, 3), (20, 20, 70), (40, 40, 40), (5, 5, 5)])
def test_c3_shortens_the_longest(tokenizer, passage, question, choice):
    task = C3(tokenizer, 32)
    parts = [small.CHARACTERS[i] * n for i, n in enumerate([passage, question, choice])]
    row = task.encode(Sample(None, parts[0], parts[1], [parts[2]] * 4, 0)).rows[0]
    tokens = tokens_of(task, row)
    assert tokens[0] == '[CLS]' and tokens[-1] == '[SEP]' and tokens.count('[SEP]') == 3
    lengths = [tokens.count(part[0]) for part in parts]
    assert len(tokens) == sum(lengths) + 4 == min(32, passage + question + choice + 4)
    for length, full in zip(lengths, [passage, question, choice]):
        # A part that was cut is as long as the longest (the passage has a [CLS] more to lose).
        assert length == full or length >= max(lengths) - 2


def test_c3_never_chooses_what_was_filled_up(tokenizer):
    task = C3(tokenizer)
    samples = [Sample(3, '', '', ['甲', '乙'], 1), Sample(4, '', '', list('甲乙丙丁'), 3)]
    results = [np.array([0.5, 0.1, 9, 8]), np.array([0, 1, 2, 3])]
    assert task.choose(samples, results) == [0, 3]
    assert task.score(samples, results) == {'accuracy': 0.5}
    assert [json.loads(line) for line in task.submission(samples, results).splitlines()] == [
        {'id': '3', 'label': '0'}, {'id': '4', 'label': '3'}]


def test_c3_with_more_than_four_choices_to_predict(tokenizer, tmp_path):
    """As six questions of test1.1 have; the scores of the others stay where they belong."""
    folder = small.write_task(tmp_path, 'c3')
    path = os.path.join(folder, 'test1.1.json')
    with open(path, encoding='utf-8') as reader:
        dialogues = json.load(reader)
    dialogues[1][1][0]['choice'] = list('甲乙丙一二三四')
    small.write_json(path, dialogues)
    task = C3(tokenizer)
    samples = task.read(path, False)
    encoded = [task.encode(sample) for sample in samples]
    assert [len(e.rows) for e in encoded] == [4, 7, 4]
    outputs = np.arange(15.0)[:, None] * [[1]]
    outputs[[1, 9, 12]] += 100
    results = task.decode(outputs, encoded)
    assert [len(result) for result in results] == [4, 7, 4]
    assert task.choose(samples, results) == [1, 5, 1]


# ------------------------------------------------------------------ chid


@pytest.fixture
def chid(tokenizer):
    return CHID(tokenizer)


def write_chid(tmp_path, lines, answers=None):
    small.write_lines(tmp_path / 'dev.json', lines)
    if answers is not None:
        small.write_json(tmp_path / 'dev_answer.json', answers)
    return str(tmp_path / 'dev.json')


IDIOMS = ['一二三四', '二三四五', '三四五六', '四五六七', '五六七八', '六七八九', '七八九十', '甲乙丙丁', '乙丙丁一',
          '丙丁一二']


def test_chid_has_a_sample_for_each_blank(chid, tmp_path):
    path = write_chid(tmp_path, [
        {'content': ['这#idiom000001#是#idiom000002#。', '那是#idiom000003#'], 'candidates': IDIOMS},
        {'content': ['#idiom000004#'], 'candidates': IDIOMS[::-1]}],
        {'#idiom00000%d#' % i: 2 * i for i in range(1, 5)})
    samples = chid.read(path, True)
    assert [(s.line, s.tag, s.label) for s in samples] == [
        (path + ': line 1', '#idiom000001#', 2), (path + ': line 1', '#idiom000002#', 4),
        (path + ': line 1', '#idiom000003#', 6), (path + ': line 2', '#idiom000004#', 8)]
    assert (samples[1].left, samples[1].right) == ('这#idiom000001#是', '。')
    encoded = chid.encode(samples[0])
    assert encoded.label == 2 and len(encoded.rows) == 10
    for row, idiom in zip(encoded.rows, IDIOMS):
        assert ''.join(tokens_of(chid, row)) == (
            '[CLS]%s[SEP]这[unused1]是[MASK][MASK][MASK][MASK]。[SEP]' % idiom)
    assert ''.join(tokens_of(chid, chid.encode(samples[3]).rows[0])) == (
        '[CLS]丙丁一二[SEP][unused1][SEP]')
    assert [s.label for s in chid.read(path, False)] == [None] * 4


@pytest.mark.parametrize('left, right', [
    (100, 100), (100, 3), (3, 100), (30, 40), (0, 90), (90, 0), (25, 25), (26, 26), (0, 0)])
@pytest.mark.parametrize('maxlen', [64, 63, 16])
def test_chid_is_cut_around_the_blank(tokenizer, left, right, maxlen):
    """As much as fits stays, and the same on both sides as far as there is as much."""
    task = CHID(tokenizer, maxlen)
    before = ''.join(small.CHARACTERS[i % 100] for i in range(left))
    behind = ''.join(small.CHARACTERS[(50 + i) % 100] for i in range(right))
    row = tokens_of(task, task.encode(Blank(0, '', before, behind, IDIOMS, 0)).rows[0])
    room = maxlen - 6 - 2  # [CLS] idiom [SEP] ... blank ... [SEP]
    assert len(row) == min(maxlen, left + right + 8)
    place = row.index('[unused1]')
    kept_left, kept_right = ''.join(row[6:place]), ''.join(row[place + 1:-1])
    assert before.endswith(kept_left) and behind.startswith(kept_right)
    assert len(kept_left) + len(kept_right) == min(room, left + right)
    if len(kept_left) < left:
        assert len(kept_left) >= len(kept_right)
    if len(kept_right) < right:
        assert len(kept_right) >= len(kept_left) - 1


def test_chid_rows_fit_with_many_blanks(chid):
    """Other blanks count as four tokens each while the text is cut."""
    text = '这#idiom000001#是' * 20
    row = chid.encode(Blank(0, '', text, text, IDIOMS, 0)).rows[0]
    tokens = tokens_of(chid, row)
    assert len(tokens) == 64 and tokens.count('[unused1]') == 1 and tokens[-1] == '[SEP]'
    assert tokens[5:].count('[MASK]') > 30 and 'idiom' not in ''.join(tokens)


def test_chid_refuses_candidates_that_leave_no_room_for_the_blank(tokenizer, tmp_path):
    """[CLS] candidate [SEP] [unused1] [SEP] is what must fit."""
    task = CHID(tokenizer, 16)
    fits, too_long = small.CHARACTERS[:12], small.CHARACTERS[:13]
    for longest in (fits, too_long):
        small.write_lines(tmp_path / 'test.json', [
            {'content': ['这#idiom000001#是'], 'candidates': IDIOMS[:9] + [longest]}])
        if longest == fits:
            sample, = task.read(str(tmp_path / 'test.json'), False)
            rows = [tokens_of(task, row) for row in task.encode(sample).rows]
            assert all('[unused1]' in row and row[-1] == '[SEP]' for row in rows)
            assert max(map(len, rows)) == 16
    with pytest.raises(UserError) as refused:
        task.read(str(tmp_path / 'test.json'), False)
    assert 'line 1: field "candidates": expected idioms of at most 12 tokens' in str(refused.value)


@pytest.mark.parametrize('blanks', [1, 2, 3, 4])
def test_chid_assignment_is_the_best(chid, blanks):
    """Against all ways to give each blank an idiom of its own."""
    for seed in range(5):
        scores = np.random.RandomState(seed).normal(size=(blanks, 10))
        scores[:, 3] += 9  # an idiom that every blank wants
        samples = [Blank(0, str(i), '', '', IDIOMS, 0) for i in range(blanks)]
        chosen = chid.choose(samples, list(scores))
        rows, logs = list(range(blanks)), log_softmax(scores)
        best = max(itertools.permutations(range(10), blanks),
                   key=lambda columns: logs[rows, list(columns)].sum())
        assert chosen == list(best)
        if blanks > 1:
            assert scores.argmax(1).tolist() == [3] * blanks


def test_chid_lines_are_answered_apart(chid):
    samples = [Blank(line, tag, '', '', IDIOMS, None)
               for line, tag in [(0, 'a'), (1, 'b'), (0, 'c')]]
    scores = np.zeros((3, 10))
    scores[:, 5] = [3, 2, 1]
    scores[:, 6] = [0, 0, 0.5]
    assert chid.choose(samples, list(scores)) == [5, 5, 6]
    assert json.loads(chid.submission(samples, list(scores)),
                      object_pairs_hook=collections.OrderedDict) == collections.OrderedDict(
                          [('a', 5), ('b', 5), ('c', 6)])


def test_chid_with_more_blanks_than_idioms(chid):
    scores = np.random.RandomState(0).normal(size=(13, 10))
    samples = [Blank(0, str(i), '', '', IDIOMS, 0) for i in range(13)]
    chosen = chid.choose(samples, list(scores))
    assert set(chosen) <= set(range(10)) and max(map(chosen.count, chosen)) == 2
    scores = np.tile(np.where(np.arange(10) < 5, 5.0, -5.0), (11, 1))  # all like the same five
    assert len(set(chid.choose(samples[:11], list(scores)))) == 10  # none twice while others are left


# ------------------------------------------------------------------ wsc


@pytest.mark.parametrize('first, second, expected', [
    ((2, '北京'), (5, '它'), '我在_北京_。[它]大'),
    ((5, '它'), (2, '北京'), '我在[北京]。_它_大'),
    ((2, '北京'), (4, '。'), '我在_北京_[。]它大'),
    ((4, '。'), (2, '北京'), '我在[北京]_。_它大'),
    ((2, '北京'), (2, '北'), '我在_[北]京_。它大'),
    ((2, '北'), (2, '北京'), '我在[_北_京]。它大'),
    ((2, '北京'), (3, '京'), '我在_北[京]_。它大'),
    ((3, '京'), (2, '北京'), '我在[北_京_]。它大'),
    ((2, '北京'), (2, '北京'), '我在_[北京]_。它大'),
    ((0, '我'), (6, '大'), '_我_在北京。它[大]')])
def test_wsc_marks(tokenizer, first, second, expected):
    """Whichever comes first, side by side, and one within the other."""
    record = Record({'text': '我在北京。它大', 'target': {
        'span1_text': first[1], 'span1_index': first[0],
        'span2_text': second[1], 'span2_index': second[0]}}, 'here')
    assert WSC(tokenizer).mark(record) == expected


# ------------------------------------------------------------------ reading comprehension


def write_squad(path, context, questions):
    """questions: {id: (question, [(answer, answer_start)])}"""
    qas = [{'id': key, 'question': question,
            'answers': [{'text': text, 'answer_start': start} for text, start in answers]}
           for key, (question, answers) in questions.items()]
    small.write_json(path, {'version': 'v1.0', 'data': [
        {'paragraphs': [{'context': context, 'qas': qas}]}]})
    return str(path)


CONTEXT = ('《战国无双3》（Café Noir）由Ω－force开发，售价1,000元。' + '的是不在有人这中大来' * 30
           + 'ＡＢＣ在İstanbul；' + '上国和到说们为子你地' * 30 + '“最后”是Zürich。')


def positions(context, text):
    return context.index(text), context.index(text) + len(text)


@pytest.mark.parametrize('maxlen', [48, 150, 300, 512])
def test_windows_cover_the_passage(tokenizer, tmp_path, maxlen):
    task = CMRC2018(tokenizer, maxlen)
    question = '谁？的是'
    path = write_squad(tmp_path / 'x.json', CONTEXT, {'q': (question, [])})
    windows = task.read(path, False)
    size = maxlen - len(question) - 3
    text = normalize(CONTEXT)
    assert [w.begin for w in windows] == [i * min(128, size) for i in range(len(windows))]
    end = 0
    for window in windows:
        assert window.begin <= end < len(text)  # no gap, and none too many
        assert window.text == text[window.begin:window.begin + size]
        end = window.begin + len(window.text)
        assert len(task.encode(window).rows[0]) <= maxlen
    assert end == len(text)


@pytest.mark.parametrize('answer', ['战国无双3', 'Café Noir', '1,000元', 'ＡＢＣ', '“最后”', 'Zürich',
                                    'Ω－force', '战', '。'])
def test_trained_labels_are_the_answer(tokenizer, tmp_path, answer):
    """The tokens at the label are the answer's; a window without all of it is labelled (0, 0)."""
    task = CMRC2018(tokenizer, 150)
    start, end = positions(CONTEXT, answer)
    path = write_squad(tmp_path / 'x.json', CONTEXT, {'q': ('谁？', [(answer, start)])})
    windows = task.read(path, True)
    size, hits = 150 - 2 - 3, 0
    text = normalize(CONTEXT)
    place = len(normalize(CONTEXT[:start])), len(normalize(CONTEXT[:end]))
    encoded = [task.encode(window) for window in windows]
    inputs, labels = task.collate(encoded)
    for i, window in enumerate(windows):
        first, last = labels[i]
        if window.begin <= place[0] and place[1] <= window.begin + size:
            hits += 1
            expected = tokenizer.tokens_to_ids(tokenizer.tokenize(text[slice(*place)])[1:-1])
            assert inputs[0][i, first:last + 1].tolist() == expected
            assert inputs[2][i, first:last + 1].all()
        else:
            assert (first, last) == (0, 0)
    assert hits >= 1
    # The mask: [CLS] and the passage.
    for i in range(len(windows)):
        row = tokens_of(task, inputs[0][i])
        asked = row.index('[SEP]')
        end = asked + 1 + row[asked + 1:].index('[SEP]')
        assert inputs[2][i].tolist() == ([1] + [0] * asked + [1] * (end - asked - 1)
                                         + [0] * (len(row) - end))


def answer_perfectly(task, windows, gold):
    """Results from scores that are high at the token span of gold[question], else at [CLS]."""
    encoded = [task.encode(window) for window in windows]
    length = max(len(e.rows[0]) for e in encoded)
    outputs = np.full((len(windows), 1, length, length), -np.inf)
    for scores, window, e in zip(outputs[:, 0], windows, encoded):
        scores[np.triu_indices(length)] = -5.0
        scores[0, 0] = 5.0  # no answer
        _, offset, spans, begin = e.label
        start, end = [place - begin for place in gold[window.question.id]]
        starts = [i for i, places in enumerate(spans) if places[0] == start >= 0]
        ends = [i for i, places in enumerate(spans) if places[1] == end - 1 >= 0]
        if starts and ends:
            scores[offset + starts[0], offset + ends[0]] = 9.0
    return task.decode(outputs, encoded)


def test_answers_come_back_as_they_are_written(tokenizer, tmp_path):
    """Not lower-cased, with their accents, from whichever window."""
    task = CMRC2018(tokenizer, 150)
    answers = ['战国无双3', 'Café Noir', '1,000元', 'ＡＢＣ', 'İstanbul', '“最后”是Zürich', 'Ω－force', '售']
    path = write_squad(tmp_path / 'x.json', CONTEXT, collections.OrderedDict(
        (text, ('谁？', [(text, CONTEXT.index(text))])) for text in answers))
    windows = task.to_predict(task.read(path, True))
    gold = {text: tuple(len(normalize(CONTEXT[:place])) for place in positions(CONTEXT, text))
            for text in answers}
    results = answer_perfectly(task, windows, gold)
    found = json.loads(task.submission(windows, results),
                       object_pairs_hook=collections.OrderedDict)
    assert list(found.items()) == [(text, text) for text in answers]
    assert task.score(windows, results) == {'exact_match': 1, 'f1': 1, 'position_match': 1}


def test_every_window_is_asked_once(tokenizer, tmp_path):
    task = CMRC2018(tokenizer, 150)
    path = write_squad(tmp_path / 'x.json', CONTEXT, collections.OrderedDict([
        ('q', ('谁？', [('的', CONTEXT.index('的')), ('售', CONTEXT.index('售'))])),
        ('r', ('在？', [('售', CONTEXT.index('售'))]))]))
    windows = task.read(path, True)
    asked = task.to_predict(windows)
    assert len(windows) == 3 * len(asked) // 2
    assert [w.question.id for w in asked] == [key for key in 'qr' for _ in asked[::2]]
    assert all(window.answer is None for window in asked)


def test_questions_of_one_id_are_two(tokenizer):
    """In what is only predicted: an id that was left out may be one that is there, and both have an answer."""
    task = CMRC2018(tokenizer, 64)
    task.next_id = 0
    asked = [{'question': '谁？'}, {'question': '哪里？'}, {'id': 1, 'question': '几？'}]
    record = Record({'context': '一二三四', 'qas': asked}, 'x')
    windows = task.to_predict(list(task.parse([record], False)))
    assert [window.asked for window in windows] == ['谁？', '哪里？', '几？']
    found = task.predictions(windows, [(-1.0, 0, 1), (-1.0, 1, 2), (-2.0, 2, 3)])
    assert [(line['id'], line['answer']) for line in found] == [(0, '一'), (1, '二'), (1, '三')]


def test_the_best_window_wins(tokenizer):
    """By log-probability over all spans and [CLS] of its window, which itself is ruled out."""
    task = CMRC2018(tokenizer, 64)
    windows = [Window('q', '谁？', text, begin, None)
               for begin, text in [(0, '一二'), (128, '三四')]]
    encoded = [task.encode(window) for window in windows]
    outputs = np.full((2, 1, 7, 7), -np.inf)
    for scores in outputs[:, 0]:
        scores[0, 0] = scores[4, 4] = scores[4, 5] = scores[5, 5] = 0.0
    outputs[0, 0, 4, 5], outputs[0, 0, 0, 0] = 3.0, 9.0  # sure that there is nothing
    outputs[1, 0, 5, 5] = 1.0
    results = task.decode(outputs, encoded)
    assert [result[1:] for result in results] == [(0, 2), (129, 130)]
    expected = [log_softmax([9, 3, 0, 0])[1], log_softmax([0, 1, 0, 0])[1]]
    np.testing.assert_allclose([result[0] for result in results], expected, rtol=1e-6)
    assert task.best_spans(windows, results) == {'q': (129, 130)}
    assert task.best_spans(windows[::-1], results[::-1]) == {'q': (129, 130)}


def test_reading_loss(tokenizer):
    """Softmax over all (start, end)."""
    task = CMRC2018(tokenizer)
    outputs = np.random.RandomState(0).normal(size=(3, 1, 6, 6))
    outputs[:, :, np.tril(np.ones((6, 6)), -1) == 1] = -np.inf
    outputs[1, 0, :, 4] = -np.inf
    labels = [(0, 0), (2, 3), (5, 5)]
    expected = -np.mean([log_softmax(scores.ravel())[6 * start + end]
                         for scores, (start, end) in zip(outputs[:, 0], labels)])
    assert abs(evaluate(task, labels, outputs) - expected) < 1e-5


def test_answers_that_are_not_at_their_place(tokenizer, tmp_path, capsys):
    """Taken from the nearest place that has them, counted in one line."""
    task = CMRC2018(tokenizer, 64)
    context = '北京在北京的北京。'
    path = write_squad(tmp_path / 'x.json', context, collections.OrderedDict([
        ('right', ('谁？', [('北京', 3)])), ('near', ('谁？', [('北京', 5)])),
        ('far', ('谁？', [('北京', 400)])), ('before', ('谁？', [('北京', 1)])),
        ('absent', ('谁？', [('东京', -1), ('京。', 7)])), ('never', ('谁？', [('东京', -1)]))]))
    windows = task.read(path, True)
    starts = {}
    for window in windows:
        starts.setdefault(window.question.id, []).append(window.answer)
    assert starts == {'right': [(3, '北京')], 'near': [(6, '北京')], 'far': [(6, '北京')],
                      'before': [(0, '北京')], 'absent': [(7, '京。')], 'never': [(0, '')]}
    line, = capsys.readouterr().out.splitlines()
    assert line.startswith(path + ': 3 answers are not where answer_start says')
    assert '2 are in no place' in line
    # An answer in no place is scored against.
    results = [(0.0, 6, 8)] * len(windows)
    assert task.score(windows, results)['exact_match'] == 4 / 6.0


# text, answer, exact match, F1: counted by hand after the official script
SCORES = [
    ('北京', '北京', 1, 1),
    ('北京大学', '北京', 0, 4 / 6.0),  # 2 of 4, 2 of 2
    ('《战国无双3》', '战国无双3', 1, 1),
    ('战国无双', '《战国无双3》', 0, 8 / 9.0),  # 4 of 4, 4 of 5
    ('New York', 'new york', 1, 1),
    ('newyork', 'new york', 0, 0),  # one word, two words
    (' new york ', 'New York', 1, 1),
    ('new  york', 'new york', 0, 1),  # spaces within count for the exact match alone
    ('new-york', 'newyork', 1, 1),  # - is left out
    ('在new york的北京', 'york的', 0, 4 / 8.0),  # york 的 of 在 new york 的 北 京
    ('1,000人', '1000人', 0, 0.5),  # the number is another word; 人 of two each
    ('1,000人', '1,000 人', 0, 1),
    ('USS Port Royal（CG-73）', 'uss port royal', 0, 4 / 6.0),  # uss port royalcg73
    ('a(b)', 'b', 0, 2 / 5.0),  # a ( b ) against b
    ('3.5%', '3.5', 0, 2 / 3.0),  # 3.5 % against 3.5
    ('3.5。', '3.5', 1, 1),
    ('end.', 'end', 0, 2 / 3.0),  # end . against end
    ('好……', '好', 0, 2 / 3.0),  # the script keeps …
    ('甲乙丙丁', '甲丁乙丙', 0, 4 / 8.0),  # the longest run is 乙丙
    ('龘龘', '北京', 0, 0),
    ('，。', '北京', 0, 0),
    ('。', '', 1, 0),
    ('', '北京', 0, 0)]


@pytest.mark.parametrize('text, answer, exact_match, f1', SCORES)
def test_official_scores(text, answer, exact_match, f1):
    assert (bare(text) == bare(answer)) == bool(exact_match)
    assert abs(overlap(text, answer) - f1) < 1e-9
    assert abs(overlap(answer, text) - f1) < 1e-9


def test_reading_score(tokenizer, tmp_path):
    """The mean over questions of the best over answers; the place is counted apart."""
    task = CMRC2018(tokenizer, 64)
    context = '北京在北京的大学。'
    path = write_squad(tmp_path / 'x.json', context, collections.OrderedDict([
        ('place', ('谁？', [('北京', 0)])), ('words', ('谁？', [('北京', 0)])),
        ('second', ('谁？', [('在', 2), ('北京的大学', 3)])), ('wrong', ('谁？', [('学', 7)]))]))
    windows = task.to_predict(task.read(path, True))
    # 北京 at its place, 北京 elsewhere, 的大学 of the second answer, 在
    spans = [(0, 2), (3, 5), (5, 8), (2, 3)]
    scores = task.score(windows, [(-1.0,) + span for span in spans])
    assert scores == {'exact_match': 0.5, 'f1': (1 + 1 + 6 / 8.0 + 0) / 4, 'position_match': 0.25}
    assert list(scores)[0] == task.metric == 'exact_match'


RANDOM_RESULTS = {  # {metric: random results, some of them right}
    'accuracy': lambda task, sample, random: np.eye(200)[sample.label if random.rand() < 0.5 else random.randint(2)][
        :max(len(task.labels), task.rows_per_sample)],
    'f1': lambda task, sample, random: [entity for entity in sorted(sample.entities) if random.rand() < 0.5] + [
        (kind, 0, 0) for kind in task.labels if random.rand() < 0.2],
    'exact_match': lambda task, sample, random: (random.randn(),) + sample.question.places[0],
}


TEXTS = {  # what samples of one text have in common
    'c3': lambda s: s.passage, 'chid': lambda s: s.line, 'cmrc2018': lambda s: s.question.passage,
    'csl': lambda s: s.second, 'cmnli': lambda s: s.first, 'ocnli': lambda s: s.first,
    'wsc': lambda s: ''.join(c for c in s.first if c not in '_[]'),
}


@pytest.mark.parametrize('name', TASKS)
def test_points_make_the_score(name, tokenizer):
    """The score is the ratio of sums of points, and a text's samples are counted together."""
    task, random = load_task(name, tokenizer, 64), np.random.RandomState(3)
    samples = task.load(tasks.find_data(name, 'clue_dataset/sample'), task.dev_files, True)
    results = [RANDOM_RESULTS[task.metric](task, sample, random) for sample in samples]
    if name == 'cmrc2018':  # the best of a question's windows is wrong for one in two
        results = [result if random.rand() < 0.5 else (99.0, 0, 0) for result in results]
    got, possible = task.points(samples, results)
    score = sum(got) / float(sum(possible))
    assert abs(score - task.score(samples, results)[task.metric]) < 1e-12 and 0 < score < 1
    assert len(got) == len(possible) == len({TEXTS.get(name, id)(sample) for sample in samples})


def test_files_that_share_ids(tokenizer, tmp_path):
    """A test file whose ids are those of dev does not change what dev is scored against."""
    task = CMRC2018(tokenizer, 64)
    dev = write_squad(tmp_path / 'dev.json', '北京', {'1': ('谁？', [('北京', 0)])})
    test = write_squad(tmp_path / 'test.json', '大学在东海', {'1': ('谁？', [])})
    windows = task.read(dev, True)
    others = task.read(test, False)
    assert task.score(windows, [(0.0, 0, 2)])['exact_match'] == 1
    assert json.loads(task.submission(others, [(0.0, 3, 5)])) == {'1': '东海'}


# ------------------------------------------------------------------ from files to submission


def train_task(name, tmp_path, paths, **settings):
    small.write_task(tmp_path / 'data', name)
    settings = dict(dict(paths, data_path=tmp_path / 'data', output_dir=tmp_path / 'out', epochs=1,
                         batch_size=2, maxlen=128, ffn_prompt_size=2, learning_rate=0.01),
                    **settings)
    task = type(load_task(name))
    record = train.run(task, small.flags(settings))
    assert np.isfinite(record['history'][0]['loss'])
    assert all(0 <= value <= 1 for value in record['best']['dev'].values())
    results = {}
    for result in task.test_files.values():
        with open(str(tmp_path / 'out' / 'results' / result), encoding='utf-8') as reader:
            results[result] = reader.read()
    return record, results


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.costly
def test_wsc_trains(tmp_path, backbones, clear_session):
    _, results = train_task('wsc', tmp_path, backbones['roberta'])
    assert sorted(results) == ['cluewsc10_predict.json', 'cluewsc11_predict.json']
    for text in results.values():
        assert [line['id'] for line in lines_of(text)] == ['0', '1', '2']
        assert {line['label'] for line in lines_of(text)} <= {'true', 'false'}


@pytest.mark.costly
def test_c3_trains(tmp_path, backbones, clear_session):
    record, results = train_task('c3', tmp_path, backbones['nezha'], prompt_size=2)
    assert record['samples'] == {'train': 6, 'dev': 6}
    assert sorted(results) == ['c310_predict.json', 'c311_predict.json']
    for text in results.values():
        lines = lines_of(text)
        assert [line['id'] for line in lines] == ['0', '1', '2']
        for i, line in enumerate(lines):
            assert int(line['label']) < 2 + i % 3  # as many choices as there are


@pytest.mark.costly
def test_chid_trains(tmp_path, backbones, clear_session):
    record, results = train_task('chid', tmp_path, backbones['roformer'], maxlen=64)
    assert record['samples'] == {'train': 6, 'dev': 6}
    assert sorted(results) == ['chid10_predict.json', 'chid11_predict.json']
    first = [12, 18]  # the number of the first blank of either file
    for (_, text), number in zip(sorted(results.items()), first):
        answers = json.loads(text)
        assert list(answers) == ['#idiom%06d#' % (number + i) for i in range(6)]
        values = list(answers.values())
        assert set(values) <= set(range(10))
        assert len(set(values[:3])) == len(set(values[3:])) == 3


@pytest.mark.costly
@pytest.mark.parametrize('kind', ['roberta', 'nezha', 'roformer'])
def test_cluener_trains(tmp_path, backbones, kind, clear_session):
    record, results = train_task('cluener', tmp_path, backbones[kind], prompt_size=1)
    assert record['backbone_kind'] == kind
    # hidden 16: two prompts, the hidden units, and a GlobalPointer of ten types without bias
    assert record['parameters']['trained'] == (
        2 * 16 + 16 * 2 + 2 + 2 * 16 + 16 + 16 * 2 * 64 * 10)
    lines = lines_of(results['cluener_predict.json'])
    assert [line['id'] for line in lines] == [0, 1, 2]
    for line in lines:
        for kind, names in line['label'].items():
            assert kind in CLUENER.labels
            for name, spans in names.items():
                for start, end in spans:
                    assert line['text'][start:end + 1] == name


@pytest.mark.costly
def test_cmrc2018_trains(tmp_path, backbones, clear_session):
    record, results = train_task('cmrc2018', tmp_path, backbones['roberta'])
    assert set(record['best']['dev']) == {'exact_match', 'f1', 'position_match'}
    assert record['samples']['train'] > 3
    assert sorted(results) == ['cmrc2018_predict.json', 'cmrc2018_trial_predict.json']
    for name, text in results.items():
        stem = 'trial' if 'trial' in name else 'test'
        answers = json.loads(text)
        assert list(answers) == ['%s_%d' % (stem, i) for i in range(3)]
        with open(str(tmp_path / 'data' / 'cmrc2018' / (stem + '.json')),
                  encoding='utf-8') as reader:
            paragraphs = json.load(reader)['data'][0]['paragraphs']
        for answer, paragraph in zip(answers.values(), paragraphs):
            assert answer and answer in paragraph['context']


@pytest.mark.costly
@pytest.mark.parametrize('name', ['cluener', 'cmrc2018', 'c3'])
def test_a_long_run_learns_the_data_by_heart(name, tmp_path, clear_session):
    """What is trained on is answered: encoding, loss, decoding and score agree."""
    paths = small.write_backbone(tmp_path / 'still', hidden_size=32, hidden_dropout_prob=0.0,
                                 attention_probs_dropout_prob=0.0)
    record, _ = train_task(name, tmp_path, paths, epochs=40, learning_rate=0.03,
                           ffn_prompt_size=16, maxlen=256)
    best = record['best']['dev']
    assert list(best.values())[0] > 0.99, best
