"""Bad input: one line with the place and what was expected, exit code 2, nothing touched."""
import json
import os
import subprocess
import sys

import pytest

import backbones
import small
import snippets
from fltuning import checkpoints
import train
from afqmc import AFQMC
from c3 import C3
from chid import CHID
from cluener import CLUENER
from cmnli import CMNLI
from cmrc2018 import CMRC2018
from tools.random_backbone import write_vocab
from wsc import WSC

TASKS = {task.name: task for task in (AFQMC, C3, CHID, CLUENER, CMNLI, CMRC2018, WSC)}


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    return small.write_backbone(tmp_path_factory.mktemp('backbone'), max_position_embeddings=64)


@pytest.fixture
def refused(tmp_path, backbone, monkeypatch, capsys):
    """Function that runs a task as its script does and gives the error line.

    Asserts that the exit code is 2, that there is one line, and that files of an earlier run are
    as before.
    """
    def refused(task, **settings):
        out = tmp_path / 'out'
        earlier = [os.path.join('weights', task + '.weights'),
                   os.path.join('results', task + '_run.json'),
                   os.path.join('results', sorted(TASKS[task].test_files.values())[0])]
        for name in earlier:
            path = os.path.join(str(out), name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            small.write_text(path, 'of an earlier run')
        settings = dict(dict(backbone, data_path=tmp_path / 'data', output_dir=out, epochs=1,
                             maxlen=48), **settings)
        monkeypatch.setattr(sys, 'argv', [task + '.py'] + small.flags(settings))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            train.main(TASKS[task])
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert error.startswith(task + '.py: error: ') and error.endswith('\n')
        assert len(error.splitlines()) == 1, error
        found = sorted(os.path.relpath(os.path.join(place, name), str(out))
                       for place, _, names in os.walk(str(out)) for name in names)
        assert found == sorted(earlier)
        for name in earlier:
            with open(os.path.join(str(out), name)) as reader:
                assert reader.read() == 'of an earlier run'
        return error

    return refused


# ------------------------------------------------------------------ the data

# what is wrong: task, file, what is replaced there, by what; what the error line must say
DATA = {
    'missing field': (
        'afqmc', 'train.json', '"sentence1": ', '"sentence_1": ',
        ['train.json: line 1:', '"sentence1"', 'missing']),
    'missing field in the last line of the test file': (
        'afqmc', 'test.json', ', "id": 4', '', ['test.json: line 5:', '"id"', 'missing']),
    'not JSON': (
        'afqmc', 'dev.json', r'\n\{', '\n{"sentence1"; ', ['dev.json: line 2:', 'not JSON']),
    'a list instead of an object': (
        'afqmc', 'train.json', r'\{.*\}\n', '[1, 2]\n',
        ['train.json: line 1:', 'expected an object', '[1, 2]']),
    'a number instead of an object': (
        'afqmc', 'train.json', r'\{.*\}\n', '3\n', ['train.json: line 1:', 'expected an object']),
    'nested without end': (
        'afqmc', 'train.json', r'\{.*\}\n', '[' * 100000 + '\n',
        ['train.json: line 1:', 'not JSON']),
    'half a surrogate pair': (
        'afqmc', 'train.json', '"sentence1": "', '"sentence1": "\\ud83d',
        ['train.json: line 1:', 'surrogate']),
    'unknown label': (
        'afqmc', 'dev.json', '"label": "1"', '"label": "2"',
        ['dev.json: line 2:', '"label"', 'expected one of 0, 1', '"2"']),
    'a label that is true': (
        'afqmc', 'dev.json', '"label": "1"', '"label": true',
        ['dev.json: line 2:', '"label"', 'true']),
    'a text that is null': (
        'afqmc', 'train.json', '"sentence2": "[^"]*"', '"sentence2": null',
        ['train.json: line 1:', '"sentence2"', 'a text', 'null']),
    'a text that is a number': (
        'afqmc', 'train.json', '"sentence2": "[^"]*"', '"sentence2": 5',
        ['train.json: line 1:', '"sentence2"', 'a text', '5']),
    'an empty text': (
        'afqmc', 'train.json', '"sentence2": "[^"]*"', '"sentence2": " "',
        ['train.json: line 1:', '"sentence2"', 'a text']),
    'an id that is a list': (
        'afqmc', 'test.json', '"id": 0', '"id": [0]', ['test.json: line 1:', '"id"', '[0]']),
    'empty file': (
        'afqmc', 'dev.json', r'(?s).*', ' \n\n', ['dev.json', 'empty']),
    'not UTF-8': (
        'afqmc', 'train.json', r'\n\{', b'\n\xb0\xa1{', ['train.json: line 2:', 'UTF-8']),
    'wsc: a span that the text does not have there': (
        'wsc', 'train.json', '"span2_index": 7', '"span2_index": 6',
        ['train.json: line 1:', 'target', 'span2_index', '她们', '6']),
    'wsc: a negative place': (
        'wsc', 'dev.json', '"span1_index": 0', '"span1_index": -11',
        ['dev.json: line 1:', 'target', 'span1_index', '-11']),
    'wsc: a place as text': (
        'wsc', 'dev.json', '"span1_index": 0', '"span1_index": "0"',
        ['dev.json: line 1:', 'target', 'span1_index', 'a whole number', '"0"']),
    'wsc: no target': (
        'wsc', 'test.json', '"target": {[^}]*}', '"target": []',
        ['test.json: line 1:', '"target"', 'an object', '[]']),
    'c3: one choice': (
        'c3', 'm-dev.json', r'(?s)"choice": \[.*?\]', '"choice": ["一"]',
        ['m-dev.json: dialogue 0: questions[0]:', '"choice"', 'two to four', '["一"]']),
    'c3: five choices to train on': (
        'c3', 'd-train.json', r'(?s)"choice": \[.*?\]', '"choice": ["一","二","三","四","五"]',
        ['d-train.json: dialogue 0: questions[0]:', '"choice"', 'two to four']),
    'c3: an answer that is no choice': (
        'c3', 'd-dev.json', '"answer": "[^"]*"', '"answer": "没有"',
        ['d-dev.json: dialogue 0: questions[0]:', '"answer"', 'one of ', '"没有"']),
    'c3: an object at the top': (
        'c3', 'm-train.json', r'(?s).*', '{"data": []}',
        ['m-train.json', 'a list of [turns, questions']),
    'c3: turns that are no list': (
        'c3', 'm-train.json', r'(?s)\[\s*\[\s*\[.*?\]', '[["一"',
        ['m-train.json: dialogue 0:', '"turns"', 'a list', '"一"']),
    'c3: a question that is a text': (
        'c3', 'm-train.json', r'(?s)\{.*?\}', '"谁？"',
        ['m-train.json: dialogue 0: questions[0]:', 'an object', '"谁？"']),
    'c3: not JSON': (
        'c3', 'm-train.json', r'(?s)\A(.*?\n){3}', '[\n[\n[;\n',
        ['m-train.json: line 3:', 'not JSON']),
    'chid: a blank without an answer': (
        'chid', 'dev_answer.json', '"#idiom000007#": [0-9]', '"#idiom700007#": 1',
        ['dev_answer.json', '"#idiom000007#"', 'missing']),
    'chid: an answer past the candidates': (
        'chid', 'train_answer.json', '"#idiom000001#": [0-9]', '"#idiom000001#": 10',
        ['train_answer.json', '"#idiom000001#"', '0 to 9', '10']),
    'chid: an answer as text': (
        'chid', 'train_answer.json', '"#idiom000001#": [0-9]', '"#idiom000001#": "一"',
        ['train_answer.json', '"#idiom000001#"', 'a whole number', '"一"']),
    'chid: nine candidates': (
        'chid', 'test1.1.json', r'"candidates": \["[^"]*", ', '"candidates": [',
        ['test1.1.json: line 1:', '"candidates"', '10 idioms']),
    'chid: a candidate that is a number': (
        'chid', 'train.json', r'"candidates": \["[^"]*", ', '"candidates": [1, ',
        ['train.json: line 1:', '"candidates"', 'a list of texts']),
    'chid: content that is a text': (
        'chid', 'train.json', r'"content": \[.*?\]', '"content": "一"',
        ['train.json: line 1:', '"content"', 'a list', '"一"']),
    'chid: answers that are a list': (
        'chid', 'dev_answer.json', r'(?s).*', '[1, 2]', ['dev_answer.json', 'an object']),
    'cluener: a place past the text': (
        'cluener', 'train.json', r'\[\[0, 1\]\]', '[[90, 91]]',
        ['train.json: line 2:', '"label"', '"name"', '"老美"', '[[90, 91]]']),
    'cluener: a place with another text': (
        'cluener', 'dev.json', r'\[\[0, 1\]\]', '[[1, 2]]',
        ['dev.json: line 2:', '"label"', '"name"', '"老美"', '[[1, 2]]']),
    'cluener: places the wrong way round': (
        'cluener', 'dev.json', r'\[\[0, 1\]\]', '[[1, 0]]',
        ['dev.json: line 2:', '"老美"', '[[1, 0]]']),
    'cluener: an unknown type': (
        'cluener', 'train.json', '"name": ', '"person": ',
        ['train.json: line 2:', '"label"', '"person"', 'one of the types address, book']),
    'cluener: places that are no list of pairs': (
        'cluener', 'train.json', r'\[\[0, 1\]\]', '[0, 1]',
        ['train.json: line 2:', '"label"', '"name"', '"老美"', '[0, 1]']),
    'cluener: a type that holds a list': (
        'cluener', 'train.json', r'\{"老美": \[\[0, 1\]\]\}', '["老美"]',
        ['train.json: line 2:', '"label"', '"name"', 'an object', '["老美"]']),
    'cluener: a name of two lines': (
        'cluener', 'train.json', '"老美": ', '"老\\n美": ', ['train.json: line 2:', '"name"', '老']),
    'cmrc2018: an answer in no place': (
        'cmrc2018', 'train.json', '"text": "Peking University"', '"text": "Peking Universität"',
        ['train.json: data[0]: paragraphs[1]: qas[0]: answers[0]:', '"text"', 'in the passage',
         'Universität']),
    'cmrc2018: no place': (
        'cmrc2018', 'train.json', '"answer_start": 1', '"answer_start": null',
        ['train.json: data[0]: paragraphs[0]: qas[0]: answers[0]:', '"answer_start"',
         'a whole number', 'null']),
    'cmrc2018: no answers': (
        'cmrc2018', 'dev.json', r'(?s)"answers": \[.*?\]', '"answers": []',
        ['dev.json: data[0]: paragraphs[0]: qas[0]:', '"answers"', 'a list', '[]']),
    'cmrc2018: a passage of combining marks': (
        'cmrc2018', 'test.json', '"context": "[^"]*"', '"context": "\\u0301\\u0302"',
        ['test.json: data[0]: paragraphs[0]:', '"context"', 'more than marks']),
    'cmrc2018: an answer of combining marks': (
        'cmrc2018', 'dev.json', r'"answers": \[\s*\{\s*"text": "[^"]*"', '"answers": [{"text": "\\u0301"',
        ['dev.json: data[0]: paragraphs[0]: qas[0]: answers[0]:', '"text"', 'more than marks']),
    'an id that comes twice in a test file': (
        'afqmc', 'test.json', '"id": 3', '"id": "1"',
        ['test.json: line 4: field "id": expected each id once, got "1"', 'test.json: line 2)']),
    'chid: a blank that comes twice in a test file': (
        'chid', 'test1.0.json', '#idiom000015#', '#idiom000013#',
        ['test1.0.json: line 2: field "content": expected each id once', 'line 1)']),
    'cmrc2018: a question that comes twice in a test file': (
        'cmrc2018', 'test.json', r'"id": "test_1",\s*"question"', '"id": "test_0", "question"',
        ['test.json: data[0]: paragraphs[1]: qas[0]: field "id": expected each id once', 'paragraphs[0]']),
    'cmrc2018: a list at the top': (
        'cmrc2018', 'train.json', r'(?s).*', '[{}]', ['train.json', 'an object', '[{}]']),
    'cmrc2018: a passage that is a list': (
        'cmrc2018', 'test.json', '"context": "[^"]*"', '"context": ["一"]',
        ['test.json: data[0]: paragraphs[0]:', '"context"', 'a text', '["一"]']),
}


@pytest.mark.parametrize('wrong', sorted(DATA))
def test_data(wrong, refused, tmp_path):
    task, name, pattern, replacement, expected = DATA[wrong]
    folder = small.write_task(tmp_path / 'data', task)
    small.edit(os.path.join(folder, name), pattern, replacement)
    error = refused(task)
    assert folder in error
    for text in expected:
        assert text in error, error


def test_missing_directory(refused, tmp_path):
    error = refused('afqmc')
    assert str(tmp_path / 'data' / 'afqmc') in error and 'data_path' in error


@pytest.mark.parametrize('task, name', [('afqmc', 'train.json'), ('c3', 'd-dev.json'),
                                        ('chid', 'dev_answer.json')])
def test_missing_file(refused, tmp_path, task, name):
    folder = small.write_task(tmp_path / 'data', task)
    os.remove(os.path.join(folder, name))
    error = refused(task)
    assert os.path.join(folder, name) in error and 'No such file' in error


@pytest.mark.parametrize('name', ['train.json', 'dev.json'])
def test_file_without_a_sample(refused, tmp_path, name):
    """All its lines are of those that are left out."""
    folder = small.write_task(tmp_path / 'data', 'cmnli')
    with open(os.path.join(folder, name), encoding='utf-8') as reader:
        lines = [json.loads(line) for line in reader]
    small.write_lines(os.path.join(folder, name), [dict(line, label='-') for line in lines])
    error = refused('cmnli')
    assert os.path.join(folder, name) in error and 'no sample' in error


def test_a_directory_instead_of_a_file(refused, tmp_path):
    folder = small.write_task(tmp_path / 'data', 'afqmc')
    os.remove(os.path.join(folder, 'dev.json'))
    os.mkdir(os.path.join(folder, 'dev.json'))
    assert os.path.join(folder, 'dev.json') + ': Is a directory' in refused('afqmc')


def test_byte_order_mark_and_blank_lines_are_accepted(tmp_path, backbone, clear_session):
    folder = small.write_task(tmp_path / 'data', 'afqmc')
    for name in ('train.json', 'dev.json', 'test.json'):
        small.edit(os.path.join(folder, name), r'\A', b'\xef\xbb\xbf')
        small.edit(os.path.join(folder, name), r'\n', b'\r\n\r\n')
    record = train.run(AFQMC, small.flags(dict(
        backbone, data_path=tmp_path / 'data', output_dir=tmp_path / 'out', epochs=1, maxlen=48,
        ffn_prompt_size=2)))
    assert record['samples'] == {'train': 12, 'dev': 6}
    assert len(small.read_lines(tmp_path / 'out' / 'results' / 'afqmc_predict.json')) == 5


# ------------------------------------------------------------------ the backbone


@pytest.fixture
def own_backbone(tmp_path):
    """Function that writes a backbone of values that can be changed; gives {setting: path}."""
    def own_backbone(change=None, kind='roberta'):
        folder = tmp_path / 'own'
        folder.mkdir()
        write_vocab(str(folder / 'vocab.txt'), small.CHARACTERS)
        with open(str(folder / 'vocab.txt'), encoding='utf-8') as reader:
            tokens = reader.read().split('\n')[:-1]
        return backbones.write_backbone(folder, kind, tokens=tokens, change=change)._asdict()
    return own_backbone


def paths_of(backbone):
    return {name: backbone[name] for name in ('config_path', 'checkpoint_path', 'dict_path')}


KERNEL = 'bert/encoder/layer_0/intermediate/dense/kernel'


@pytest.mark.parametrize('missing', [KERNEL, 'bert/embeddings/word_embeddings',
                                     'bert/encoder/layer_0/output/LayerNorm/gamma'])
@pytest.mark.parametrize('kind', ['roberta', 'nezha'])
def test_checkpoint_lacks_a_variable(refused, own_backbone, tmp_path, missing, kind):
    small.write_task(tmp_path / 'data', 'afqmc')
    paths = paths_of(own_backbone(lambda variables: variables.pop(missing), kind))
    error = refused('afqmc', **paths)
    assert paths['checkpoint_path'] in error and missing in error


def test_checkpoint_has_another_shape(refused, own_backbone, tmp_path):
    small.write_task(tmp_path / 'data', 'afqmc')
    paths = paths_of(own_backbone(
        lambda variables: variables.update({KERNEL: variables[KERNEL][:, :-1]})))
    error = refused('afqmc', **paths)
    assert paths['checkpoint_path'] in error and KERNEL in error
    assert '(16, 23)' in error and '(16, 24)' in error


@pytest.mark.parametrize('suffix', ['.index', '.data-00000-of-00001'])
@pytest.mark.parametrize('damage', ['missing', 'short', 'other'])
def test_checkpoint_is_damaged(refused, own_backbone, tmp_path, suffix, damage):
    small.write_task(tmp_path / 'data', 'afqmc')
    paths = paths_of(own_backbone())
    path = paths['checkpoint_path'] + suffix
    if damage == 'missing':
        os.remove(path)
    else:
        with open(path, 'r+b') as writer:
            if damage == 'short':
                writer.truncate(os.path.getsize(path) // 2)
            else:
                writer.write(b'no checkpoint' * (os.path.getsize(path) // 13))
    error = refused('afqmc', **paths)
    assert paths['checkpoint_path'] in error


@pytest.mark.parametrize('change', ['shorter', 'longer'])
def test_vocabulary_of_another_checkpoint(refused, backbone, tmp_path, change):
    small.write_task(tmp_path / 'data', 'afqmc')
    with open(backbone['dict_path'], encoding='utf-8') as reader:
        tokens = reader.read().split('\n')[:-1]
    vocab = str(tmp_path / 'vocab.txt')
    changed = tokens[:-1] if change == 'shorter' else tokens + ['龘']
    small.write_text(vocab, '\n'.join(changed) + '\n')
    error = refused('afqmc', dict_path=vocab)
    assert vocab in error and '%d tokens' % len(changed) in error and str(len(tokens)) in error


def test_config_and_checkpoint_of_different_vocabularies(refused, own_backbone, tmp_path):
    """The vocabulary fits the config, but not the checkpoint."""
    small.write_task(tmp_path / 'data', 'afqmc')
    name = 'bert/embeddings/word_embeddings'
    paths = paths_of(own_backbone(
        lambda variables: variables.update({name: variables[name][:-3]})))
    error = refused('afqmc', **paths)
    assert paths['dict_path'] in error and paths['checkpoint_path'] in error


@pytest.mark.parametrize('text, expected', [
    ('[PAD]\n[CLS]\n[SEP]\n', '[UNK]'), (b'\xb0\xa1\n', 'UTF-8'), ('', '[PAD]')])
def test_no_vocabulary(refused, tmp_path, text, expected):
    small.write_task(tmp_path / 'data', 'afqmc')
    path = str(tmp_path / 'words.txt')
    with open(path, 'wb') as writer:
        writer.write(text if isinstance(text, bytes) else text.encode('utf-8'))
    error = refused('afqmc', dict_path=path)
    assert path in error and expected in error


@pytest.mark.parametrize('pattern, replacement, expected', [
    ('(?s).*', 'hidden_size: 16', 'config'), ('(?s).*', '[16]', 'config'),
    ('"hidden_size": 16', '"size": 16', 'hidden_size'),
    ('"hidden_size": 16', '"hidden_size": "wide"', 'wide'),
    ('"hidden_act": "gelu"', '"hidden_act": "gellu"', 'hidden_act'),
    (r'\A', b'\xb0\xa1', 'config')])
def test_no_config(refused, backbone, tmp_path, pattern, replacement, expected):
    small.write_task(tmp_path / 'data', 'afqmc')
    path = str(tmp_path / 'config.json')
    with open(backbone['config_path']) as reader:
        small.write_text(path, reader.read())
    small.edit(path, pattern, replacement)
    error = refused('afqmc', config_path=path)
    assert path in error and expected in error


@pytest.mark.parametrize('setting', ['config_path', 'checkpoint_path', 'dict_path'])
def test_no_such_file_of_the_backbone(refused, tmp_path, setting):
    small.write_task(tmp_path / 'data', 'afqmc')
    error = refused('afqmc', **{setting: str(tmp_path / 'nothing')})
    assert setting in error and str(tmp_path / 'nothing') in error


@pytest.mark.costly
@pytest.mark.parametrize('kind', ['roberta', 'nezha', 'roformer'])
def test_maxlen_beyond_the_positions(refused, tmp_path, backbone, kind, clear_session):
    """Only where there are positions to be beyond: the others train at any length."""
    small.write_task(tmp_path / 'data', 'afqmc')
    if kind == 'roberta':
        error = refused('afqmc', maxlen=65)
        assert 'maxlen 65' in error and '64 positions' in error
        assert backbone['checkpoint_path'] in error
    else:
        paths = small.write_backbone(tmp_path / kind, kind, max_position_embeddings=64)
        checkpoints.check_backbone(maxlen=65, **paths)
        train.run(AFQMC, small.flags(dict(
            paths, data_path=tmp_path / 'data', output_dir=tmp_path / 'o', epochs=1, maxlen=65,
            limit=2, ffn_prompt_size=2)))


# ------------------------------------------------------------------ flags and settings


@pytest.mark.parametrize('flag, value', [
    ('prompt_size', '-1'), ('ffn_prompt_size', '-160'), ('ffn_prompt_size', '1.5'),
    ('epochs', '0'), ('epochs', 'ten'), ('batch_size', '0'), ('maxlen', '7'), ('limit', '0'),
    ('grad_accum_steps', '0'), ('learning_rate', 'fast'), ('learning_rate', '0'),
    ('learning_rate', '-0.1'), ('learning_rate', 'nan'), ('learning_rate', 'inf'),
    ('seed', '-1'), ('seed', 'x'), ('seed', '4294967296'), ('backbone', 'albert')])
def test_bad_flags(refused, tmp_path, flag, value):
    small.write_task(tmp_path / 'data', 'afqmc')
    error = refused('afqmc', **{flag: value})
    assert '--' + flag in error and value in error


@pytest.mark.parametrize('flag', ['prompt_sizes', 'epoch', 'prompt-size'])
def test_unknown_flag(refused, tmp_path, flag):
    small.write_task(tmp_path / 'data', 'afqmc')
    assert '--' + flag in refused('afqmc', **{flag: 3})


@pytest.mark.parametrize('setting, value', [
    ('prompt_size', -1), ('ffn_prompt_size', -2), ('seed', -1), ('backbone', 'albert')])
def test_bad_settings(refused, tmp_path, monkeypatch, setting, value):
    """What stands in snippets.py is checked like a flag."""
    small.write_task(tmp_path / 'data', 'afqmc')
    monkeypatch.setattr(snippets, setting, value)
    error = refused('afqmc')
    assert setting in error and str(value) in error


def test_output_directory_that_is_a_file(tmp_path, backbone, monkeypatch, capsys, clear_session):
    small.write_task(tmp_path / 'data', 'afqmc')
    small.write_text(tmp_path / 'out', 'mine')
    monkeypatch.setattr(sys, 'argv', ['afqmc.py'] + small.flags(dict(
        backbone, data_path=tmp_path / 'data', output_dir=tmp_path / 'out', epochs=1, limit=2,
        maxlen=48, ffn_prompt_size=2)))
    with pytest.raises(SystemExit) as ended:
        train.main(AFQMC)
    assert ended.value.code == 2
    assert str(tmp_path / 'out') in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / 'out').read_text() == 'mine'


@pytest.mark.costly
@pytest.mark.parametrize('wrong', ['flag', 'directory', 'line'])
def test_as_a_process(wrong, root, tmp_path, backbone):
    """Exit code and standard error of a real process: no traceback, no usage text."""
    settings = dict(backbone, data_path=tmp_path / 'data', output_dir=tmp_path / 'out', maxlen=48)
    if wrong != 'directory':
        folder = small.write_task(tmp_path / 'data', 'afqmc')
    if wrong == 'line':
        small.edit(os.path.join(folder, 'dev.json'), r'\n\{', '\n{;')
    if wrong == 'flag':
        settings['prompt_sizes'] = 3
    done = subprocess.run(
        [sys.executable, os.path.join(root, 'afqmc.py')] + small.flags(settings),
        cwd=str(tmp_path), capture_output=True)
    assert done.returncode == 2
    lines = done.stderr.decode('utf-8').splitlines()
    assert len(lines) == 1 and lines[0].startswith('afqmc.py: error: ')
    assert {'flag': '--prompt_sizes', 'directory': 'no folder', 'line': 'dev.json: line 2: '}[
        wrong] in lines[0]
    assert not (tmp_path / 'out').exists()
