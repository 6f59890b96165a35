"""A whole run of a task: what it trains, what it writes, what it says."""
import hashlib
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fltuning import compat, deltas, weights
import small
from fltuning import steps
import predict
import snippets
from tools import random_backbone
import train
from afqmc import AFQMC
from fltuning.compat import K
from fltuning.errors import UserError

pytestmark = pytest.mark.costly

KINDS = ['roberta', 'nezha', 'roformer']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('run')


@pytest.fixture(scope='module')
def data(folder):
    small.write_task(folder / 'data', 'afqmc')
    return str(folder / 'data')


@pytest.fixture(scope='module')
def backbones(folder):
    """{kind: {setting: path}}, with dropout."""
    return {kind: small.write_backbone(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def start(data, backbones, tmp_path, clear_session):
    """Function that runs AFQMC and gives the record of the run; `output` is where it writes to."""
    def start(output='out', kind='roberta', task=AFQMC, **settings):
        settings = dict(dict(
            backbones[kind], data_path=data, output_dir=tmp_path / output, epochs=2, batch_size=4,
            ffn_prompt_size=3, learning_rate=0.01), **settings)
        return train.run(task, small.flags(settings))
    return start


def read_bytes(*parts):
    with open(os.path.join(*map(str, parts)), 'rb') as reader:
        return reader.read()


def sha256(path):
    return hashlib.sha256(read_bytes(path)).hexdigest()


def without_times(history):
    return [{k: v for k, v in epoch.items() if k != 'seconds'} for epoch in history]


def list_files(folder):
    return sorted(os.path.relpath(os.path.join(place, name), str(folder))
                  for place, _, names in os.walk(str(folder)) for name in names)


# ------------------------------------------------------------------ what is written


def test_files_of_a_run(start, data, backbones, tmp_path, capsys):
    record = start(seed=5)
    out = tmp_path / 'out'
    assert list_files(out) == [os.path.join('results', 'afqmc_dev_errors.tsv'),
                               os.path.join('results', 'afqmc_history.jsonl'),
                               os.path.join('results', 'afqmc_predict.json'),
                               os.path.join('results', 'afqmc_run.json'),
                               os.path.join('weights', 'afqmc.state'),
                               os.path.join('weights', 'afqmc.weights')]
    lines = small.read_lines(out / 'results' / 'afqmc_predict.json')
    assert [sorted(line) for line in lines] == [['id', 'label']] * 5
    assert [line['id'] for line in lines] == ['0', '1', '2', '3', '4']
    assert {line['label'] for line in lines} <= {'0', '1'}

    assert small.read_json(out, 'results', 'afqmc_run.json') == json.loads(json.dumps(record))
    settings = record['settings']
    assert record['task'] == 'afqmc' and record['seed'] == settings['seed'] == 5
    used = dict(backbones['roberta'], data_path=data, epochs=2, batch_size=4, maxlen=128,
                prompt_size=0, ffn_prompt_size=3, learning_rate=0.01, grad_accum_steps=1,
                limit=None, backbone='auto', output_dir=str(out))
    assert {name: settings[name] for name in used} == used
    assert set(record['versions']) == {'stack', 'python', 'tensorflow', 'keras', 'bert4keras',
                                       'numpy'}
    assert record['versions']['bert4keras'] == '0.11.5'
    assert record['versions']['numpy'] == np.__version__
    assert record['data_sha256'] == {
        name: sha256(os.path.join(data, 'afqmc', name))
        for name in ('train.json', 'dev.json', 'test.json')}
    assert re.match('[0-9a-f]{64}$', record['backbone_sha256'])
    assert record['samples'] == {'train': 12, 'dev': 6}
    assert [epoch['epoch'] for epoch in record['history']] == [1, 2]
    for epoch in record['history']:
        assert set(epoch) == {'epoch', 'step', 'loss', 'dev', 'accuracy', 'macro_f1', 'seconds'}
        assert 0 < epoch['loss'] < 10 and 0 <= epoch['accuracy'] <= 1
    best = max(record['history'], key=lambda epoch: epoch['accuracy'])
    assert record['best'] == {'epoch': best['epoch'], 'step': 3 * best['epoch'], 'dev': {
        'accuracy': best['accuracy'], 'macro_f1': best['macro_f1']}}

    # hidden 16, 3 hidden units: a layer of 16*3 + 3 + 3*16 + 16, and a head of 16*2 + 2
    trained = 16 * 3 + 3 + 3 * 16 + 16 + 16 * 2 + 2
    assert record['parameters']['trained'] == trained
    everything = record['parameters']['all']
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        'afqmc: best dev accuracy %.4f in epoch %d; trained %d of %s parameters (%.2f %%); '
        % (best['accuracy'], best['epoch'], trained, format(everything, ','),
           100.0 * trained / everything))
    for name in set(list_files(out)) - {os.path.join('weights', 'afqmc.state'),
                                        os.path.join('results', 'afqmc_history.jsonl')}:
        assert os.path.join(str(out), name) in last


def test_all_parameters_are_counted(start, backbones):
    """Against the checkpoint's own variables."""
    import tensorflow as tf
    record = start(epochs=1)
    paths = backbones['roberta']
    _, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    total = 0
    for name, shape in tf.train.list_variables(paths['checkpoint_path']):
        if name.startswith('bert/') and 'pooler' not in name:
            total += (len(keep_tokens) if 'word_embeddings' in name else shape[0]) * int(
                np.prod(shape[1:]))
    parameters = record['parameters']
    assert parameters['all'] == total + parameters['trained']


def test_git_commit_and_fingerprints(start, root, data, tmp_path):
    record = start(epochs=1)
    if os.path.isdir(os.path.join(root, '.git')):
        commit = subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=root).decode().strip()
        assert record['git_commit'].rstrip('+') == commit
    copy = str(tmp_path / 'copy')
    shutil.copytree(data, copy)
    with open(os.path.join(copy, 'afqmc', 'dev.json'), 'ab') as writer:
        writer.write(b'\n')  # still the same samples
    changed = start('other', epochs=1, data_path=copy)
    assert changed['data_sha256']['dev.json'] != record['data_sha256']['dev.json']
    assert changed['data_sha256']['train.json'] == record['data_sha256']['train.json']
    assert changed['backbone_sha256'] == record['backbone_sha256']


def test_dev_errors(start, tmp_path):
    """Every dev sample that is wrong, and no other, with the probability of the wrong label."""
    record = start(epochs=1)
    rows = [line.split('\t') for line in read_bytes(
        tmp_path, 'out', 'results', 'afqmc_dev_errors.tsv').decode('utf-8').splitlines()]
    assert rows[0] == ['text', 'gold', 'predicted', 'probability']
    wrong = round(6 * (1 - record['history'][0]['accuracy']))
    assert len(rows) - 1 == wrong
    for text, gold, predicted, probability in rows[1:]:
        assert {gold, predicted} == {'0', '1'} and 0.5 <= float(probability) <= 1
        assert ' | ' in text


# ------------------------------------------------------------------ what is trained


class Watched(AFQMC):
    """AFQMC with dev scores that are given, and a look at the weights after each epoch."""
    accuracies = [0.2, 0.9, 0.5]

    def score(self, samples, results):
        trained, frozen = Watched.look()
        Watched.trained.append(trained)
        Watched.frozen.append(frozen)
        accuracy = self.accuracies[len(Watched.trained) - 2]
        return {'accuracy': accuracy, 'macro_f1': 0.0}

    def submission(self, samples, results):
        Watched.results = np.array(results)
        return super().submission(samples, results)


@pytest.fixture
def watched(monkeypatch):
    """Watched.trained and .frozen: {name: array} before the training and after each epoch."""
    original = steps.train_function

    def train_function(model, *args):
        session = None if compat.TF2 else K.get_session()

        def look():
            with contextlib.ExitStack() as stack:
                if session:  # that of the run
                    stack.enter_context(session.graph.as_default())
                    stack.enter_context(session.as_default())
                return [{name: value.copy() for name, value in
                         weights.get_values(weights.named_weights(model, trainable)).items()}
                        for trainable in (True, False)]

        Watched.look = staticmethod(look)
        before = Watched.look()
        Watched.trained, Watched.frozen = [before[0]], [before[1]]
        return original(model, *args)

    monkeypatch.setattr(steps, 'train_function', train_function)
    return Watched


def test_the_best_epoch_is_kept_and_predicts(start, watched, data, backbones, tmp_path):
    record = start(task=watched, epochs=3)
    assert record['best']['epoch'] == 2
    values, belongs_to = deltas.read_delta(str(tmp_path / 'out' / 'weights' / 'afqmc.weights'))
    assert belongs_to['epoch'] == 2 and belongs_to['dev']['accuracy'] == 0.9
    assert sorted(values) == sorted(watched.trained[2])
    for name, value in values.items():
        np.testing.assert_array_equal(value, watched.trained[2][name])
    assert any((values[name] != watched.trained[3][name]).any() for name in values)

    # What the file holds makes the predictions, in a model built anew.
    settings = train.parse_flags(AFQMC, small.flags(dict(backbones['roberta'], ffn_prompt_size=3)))
    tokenizer, keep_tokens = snippets.load_tokenizer(settings.dict_path)
    task = AFQMC(tokenizer)
    model, _ = snippets.build_model(task, settings, backbones['roberta'], keep_tokens)
    weights.load_delta(str(tmp_path / 'out' / 'weights' / 'afqmc.weights'), model,
                      {'task': 'afqmc'})
    samples = task.load(os.path.join(data, 'afqmc'), ['test.json'], False)
    results = steps.predict(steps.predict_function(model), task,
                            [task.encode(sample) for sample in samples], 'test')
    np.testing.assert_allclose(results, watched.results, rtol=1e-6)
    lines = small.read_lines(tmp_path / 'out' / 'results' / 'afqmc_predict.json')
    assert [int(line['label']) for line in lines] == np.argmax(results, 1).tolist()


@pytest.mark.parametrize('kind', KINDS)
def test_frozen_weights_stay_and_the_others_move(start, watched, kind, backbones):
    start(task=watched, kind=kind, prompt_size=2)
    for after in watched.frozen[1:]:
        assert sorted(after) == sorted(watched.frozen[0])
        for name, value in after.items():
            assert value.tobytes() == watched.frozen[0][name].tobytes(), name
    for name, value in watched.trained[0].items():
        assert (value != watched.trained[-1][name]).any(), name
    assert sorted({name.split('/')[0] for name in watched.trained[0]}) == [
        'Transformer-0-AddFFN', 'Transformer-0-MultiHeadSelfAttention-Key-PromptEmbedding',
        'Transformer-0-MultiHeadSelfAttention-Value-PromptEmbedding', 'head']
    # What is frozen is the checkpoint's.
    import tensorflow as tf
    reader = tf.train.load_checkpoint(backbones[kind]['checkpoint_path'])
    kernel = reader.get_tensor('bert/encoder/layer_0/intermediate/dense/kernel')
    np.testing.assert_array_equal(watched.frozen[-1]['Transformer-0-FeedForward/0/kernel'], kernel)


def test_a_frozen_weight_that_moves_is_noticed(start, monkeypatch, tmp_path):
    original = snippets.build_model

    def build_model(*args):
        model, transformer = original(*args)
        frozen = dict(weights.named_weights(model, trainable=False))
        monkeypatch.setattr(steps, 'train_epoch', lambda *args: K.set_value(
            frozen['Transformer-0-FeedForward/1/bias'], np.ones(24)) or 0.0)
        return model, transformer

    monkeypatch.setattr(snippets, 'build_model', build_model)
    with pytest.raises(AssertionError, match='frozen'):
        start(epochs=1)
    assert os.listdir(str(tmp_path / 'out' / 'results')) == ['afqmc_history.jsonl']


@pytest.mark.parametrize('prompt_size, ffn_prompt_size, trained', [
    (0, 0, 16 * 2 + 2),
    (4, 0, 2 * 4 * 16 + 16 * 2 + 2),
    (4, 5, 2 * 4 * 16 + 16 * 5 + 5 + 5 * 16 + 16 + 16 * 2 + 2)])
def test_trained_parameters(start, prompt_size, ffn_prompt_size, trained):
    """Head alone, P-Tuning V2, both."""
    record = start(epochs=1, prompt_size=prompt_size, ffn_prompt_size=ffn_prompt_size)
    assert record['parameters']['trained'] == trained


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('flag', ['auto', 'named'])
def test_backbones(start, kind, flag, tmp_path):
    record = start(kind=kind, epochs=1, limit=4, backbone=kind if flag == 'named' else 'auto')
    assert record['backbone_kind'] == kind
    assert len(small.read_lines(tmp_path / 'out' / 'results' / 'afqmc_predict.json')) == 4


def test_layers_to_transform(start, folder):
    """Of three layers two get hidden units: 16*3 + 3 + 3*16 + 16 each, and a head of 16*2 + 2."""
    paths = small.write_backbone(folder / 'three', num_hidden_layers=3)
    record = start('out', layers_to_transform='0,2', **paths)
    assert record['parameters']['trained'] == 2 * (16 * 3 + 3 + 3 * 16 + 16) + 16 * 2 + 2
    assert record['settings']['layers_to_transform'] == [0, 2]
    assert start('out', **paths)['parameters']['trained'] == 3 * (16 * 3 + 3 + 3 * 16 + 16) + 34
    with pytest.raises(UserError) as refused:
        start('out', layers_to_transform='1-3', **paths)
    assert 'layers_to_transform: 3: the layers of' in str(refused.value)


@pytest.mark.parametrize('text, numbers', [
    ('', None), ('3', [3]), ('0-2,5', [0, 1, 2, 5]), (' 4, 1-1,4', [1, 4]), ('2-1', 0), ('a', 0),
    ('-1', 0), ('1.5', 0), ('0-', 0)])
def test_layer_numbers(text, numbers):
    if numbers == 0:
        with pytest.raises(UserError) as refused:
            train.parse_flags(AFQMC, ['--layers_to_transform=' + text])
        assert 'expected layers such as 0-5,11, got ' + text in str(refused.value)
    else:
        assert train.parse_flags(AFQMC, ['--layers_to_transform=' + text]).layers_to_transform == numbers


def test_a_backbone_of_another_kind_is_refused(start):
    with pytest.raises(UserError, match='no variable bert/embeddings/position_embeddings'):
        start(kind='roformer', backbone='roberta')


# ------------------------------------------------------------------ seed and batches


def test_seed(start, tmp_path):
    """With dropout in backbone and prompts: two runs are equal, with another seed not."""
    first, second, other = [start(str(i), prompt_size=2, seed=seed)
                            for i, seed in enumerate([7, 7, 8])]
    files = [read_bytes(tmp_path, str(i), 'weights', 'afqmc.weights') for i in range(3)]
    assert files[0] == files[1] != files[2]
    assert without_times(first['history']) == without_times(second['history'])
    losses = [[epoch['loss'] for epoch in record['history']] for record in (first, other)]
    assert losses[0] != losses[1]


def test_both_stacks_give_the_same_run(tmp_path):
    """Initial weights, order of samples and dropout: what one stack once printed, on both."""
    small.write_task(tmp_path, 'afqmc')
    paths = small.write_backbone(tmp_path / 'backbone')
    record = train.run(AFQMC, small.flags(dict(
        paths, data_path=tmp_path, output_dir=tmp_path, prompt_size=20, learning_rate=1e-3, epochs=3,
        batch_size=4)))
    losses = [epoch['loss'] for epoch in record['history']]
    np.testing.assert_allclose(losses, [0.686680, 0.695095, 0.686651], atol=2e-6)


def test_dropout_is_on_in_training(start, folder):
    """Of weights that do not move, all epochs have the same loss, unless there is dropout."""
    paths = small.write_backbone(folder / 'still', attention_probs_dropout_prob=0.0,
                                 hidden_dropout_prob=0.0)
    still = dict(paths, learning_rate=1e-12, epochs=4)
    for settings, is_on in [(still, False), (dict(still, prompt_size=20), True),
                            (dict(learning_rate=1e-12), True)]:
        losses = [epoch['loss'] for epoch in start('out', **settings)['history']]
        assert (max(losses) - min(losses) > 1e-6) == is_on


def test_grad_accum_steps(start, folder, tmp_path):
    """Batches of 2 taken 3 at a time are batches of 6, where dropout is off."""
    paths = small.write_backbone(folder / 'quiet', attention_probs_dropout_prob=0.0,
                                 hidden_dropout_prob=0.0)
    values = []
    for output, settings in [('whole', dict(batch_size=6)),
                             ('parts', dict(batch_size=2, grad_accum_steps=3)),
                             ('small', dict(batch_size=2))]:
        start(output, epochs=1, **dict(paths, **settings))
        values.append(deltas.read_delta(str(tmp_path / output / 'weights' / 'afqmc.weights'))[0])
    whole, parts, without = values
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=0, atol=1e-6)
    assert max(np.abs(without[name] - whole[name]).max() for name in whole) > 1e-3


def test_limit(start, tmp_path):
    record = start(limit=3)
    assert record['samples'] == {'train': 3, 'dev': 3}
    lines = small.read_lines(tmp_path / 'out' / 'results' / 'afqmc_predict.json')
    assert [line['id'] for line in lines] == ['0', '1', '2']


# ------------------------------------------------------------------ flags and processes

FLAGS = {'backbone': 'auto', 'config_path': None, 'checkpoint_path': None, 'dict_path': None,
         'data_path': 'clue_dataset', 'prompt_size': 0, 'ffn_prompt_size': 160, 'epochs': 10,
         'batch_size': 32, 'maxlen': 128, 'learning_rate': 2e-4, 'grad_accum_steps': 1, 'seed': 42,
         'limit': None, 'output_dir': None}


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        train.run(AFQMC, ['--help'])
    assert ended.value.code == 0
    text = ' '.join(capsys.readouterr().out.split())
    assert 'do two questions of a bank' in text
    text = text[text.index('optional arguments' if 'optional arguments' in text else 'options:'):]
    for flag, default in FLAGS.items():
        entry = re.search(r'\s--%s .*?(?= --|$)' % flag, text)
        assert entry, flag
        shown = re.search(r'\(default: (.*)\)$', entry.group())
        assert default is None or shown.group(1) == str(default), flag


def test_a_flag_is_for_its_run_alone(start, monkeypatch):
    monkeypatch.setattr(snippets, 'ffn_prompt_size', 2)
    start(epochs=1, limit=4, seed=3, maxlen=16, ffn_prompt_size=6, prompt_size=1,
          grad_accum_steps=2)
    assert (snippets.ffn_prompt_size, snippets.prompt_size, snippets.seed) == (2, 0, 42)
    settings = train.parse_flags(AFQMC, [])
    assert (settings.ffn_prompt_size, settings.prompt_size, settings.seed) == (2, 0, 42)
    assert (settings.maxlen, settings.epochs, settings.limit) == (128, 10, None)
    assert AFQMC.maxlen == 128 and AFQMC.grad_accum_steps == 1


def test_settings_of_snippets_are_used(start, monkeypatch, data, backbones, tmp_path):
    for name, value in dict(backbones['nezha'], data_path=data, seed=9, ffn_prompt_size=2,
                            output_dir=str(tmp_path / 'there')).items():
        monkeypatch.setattr(snippets, name, value)
    record = train.run(AFQMC, ['--epochs', '1'])
    assert record['backbone_kind'] == 'nezha' and record['seed'] == 9
    assert record['parameters']['trained'] == 2 * 16 * 2 + 2 + 16 + 16 * 2 + 2
    assert os.path.exists(str(tmp_path / 'there' / 'results' / 'afqmc_predict.json'))


@pytest.mark.parametrize('name, value, said', [
    ('ffn_prompt_size', 'many', 'snippets.py: ffn_prompt_size: expected a whole number from 0, got many'),
    ('backbone', 'bert', 'snippets.py: backbone: expected one of auto, roberta, nezha, roformer, got bert')])
def test_a_wrong_setting_is_named_where_it_stands(name, value, said, monkeypatch):
    monkeypatch.setattr(snippets, name, value)
    with pytest.raises(UserError) as refused:
        train.parse_flags(AFQMC, [])
    assert str(refused.value) == said


def test_maxlen_cuts(start, monkeypatch):
    lengths = []
    original = AFQMC.collate
    monkeypatch.setattr(AFQMC, 'collate', lambda self, batch: lengths.append(
        max(len(row) for encoded in batch for row in encoded.rows)) or original(self, batch))
    start(epochs=1, maxlen=9)
    assert max(lengths) == 9


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['roberta', 'nezha', 'roformer'])
def test_without_a_backbone(kind, data, tmp_path, capsys, monkeypatch, clear_session):
    """The bundled one of the kind, in predictions too, and it is said what to set instead."""
    monkeypatch.chdir(str(tmp_path))
    more = [] if kind == 'roberta' else ['--backbone', kind]
    record = train.run(AFQMC, ['--data_path', data, '--epochs', '1', '--limit', '4'] + more)
    text = capsys.readouterr().err
    assert 'pretrained/%s; set config_path in snippets.py' % kind in text
    assert record['backbone_kind'] == kind
    predict.run(['afqmc', '--input', os.path.join(data, 'afqmc', 'test.json'), '--output', 'out'])
    with open('out') as ours, open(os.path.join('results', 'afqmc_predict.json')) as theirs:
        ours, theirs = [[json.loads(line) for line in reader] for reader in (ours, theirs)]
    assert [line['label'] for line in ours[:4]] == [line['label'] for line in theirs]


def test_as_a_process(start, data, backbones, tmp_path, root):
    """`python afqmc.py` in another folder: writes there, and the same as within this process."""
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    settings = dict(backbones['roberta'], data_path=data, epochs=1, batch_size=4, prompt_size=2,
                    ffn_prompt_size=3, learning_rate=0.01)
    done = subprocess.run(
        [sys.executable, os.path.join(root, 'afqmc.py')] + small.flags(settings),
        cwd=str(elsewhere), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1].startswith('afqmc: best dev accuracy ')
    assert b'Traceback' not in done.stderr and b'Warning' not in done.stderr
    assert b'1/1' in done.stderr  # the progress of the epoch
    start(epochs=1, prompt_size=2)
    for name in (('weights', 'afqmc.weights'), ('results', 'afqmc_predict.json')):
        assert read_bytes(elsewhere, *name) == read_bytes(tmp_path, 'out', *name)


def test_importing_does_nothing(tmp_path, root):
    """Importing prints nothing, writes nothing and builds no part of a model."""
    modules = sorted(name[:-3] for name in os.listdir(root) if name.endswith('.py'))
    assert 'afqmc' in modules and 'cmrc2018' in modules
    program = ('import sys; sys.path.insert(0, %r); import %s; import tensorflow as tf; '
               'graph = tf.compat.v1.get_default_graph(); '
               'sys.exit(len(graph.get_operations()))' % (root, ', '.join(modules)))
    done = subprocess.run([sys.executable, '-B', '-c', program], cwd=str(tmp_path),
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b'', b'')
    assert os.listdir(str(tmp_path)) == []


def test_random_backbones_are_the_same_every_time(tmp_path):
    import tensorflow as tf
    values = []
    for name in ('a', 'b'):
        paths = random_backbone.write_random_backbone(
            str(tmp_path / name), 'x好', hidden_size=8, intermediate_size=8, num_hidden_layers=1)
        reader = tf.train.load_checkpoint(paths['checkpoint_path'])
        values.append({key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()})
    assert sorted(values[0]) == sorted(values[1])
    for key, value in values[0].items():
        np.testing.assert_array_equal(value, values[1][key])
