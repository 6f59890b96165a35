"""experiments/pretrain_on_gpu.py, here on a CPU: its model, its masks, and checkpoints there and back."""
import os
import re

import numpy as np
import pytest

import backbones
import small
from conftest import ROOT
from experiments import pretrain_on_gpu
from fltuning import checkpoints, steps
from fltuning.tokenizer import SPECIAL_TOKENS
from tools import pretraining_model

TOKENS = SPECIAL_TOKENS + [chr(0x4e00 + i) for i in range(40)]
LENGTH = 140  # NEZHA's relative positions end at a distance of 64

PREPARE = '''
import json, sys
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
from experiments import pretrain_on_gpu
Model, Batches = pretrain_on_gpu.define()
'''

LOGITS = PREPARE + '''
arrays, asked = dict(np.load(sys.argv[2])), np.load(sys.argv[3])
vocab, config, kind = [str(arrays.pop(name)) for name in ('vocab', 'config', 'kind')]
model = Model(kind, json.loads(config), arrays)
with torch.no_grad():
    logits = model(torch.tensor(asked['ids']), torch.tensor(asked['places']))
np.savez(sys.argv[4], logits=logits.numpy())
'''

MASKS = PREPARE + '''
asked = np.load(sys.argv[2])
text = Batches(asked['ids'], asked['begins'], [str(token) for token in asked['vocab']], 3, 'cpu')
rows, begins = text.rows(text.starts(64, 500), 64)
masked, places, labels = text.masked(rows, begins)
np.savez(sys.argv[3], rows=rows, begins=begins, masked=masked, places=places, labels=labels)
'''

TRAIN = PREPARE + '''
torch.set_num_threads(1)  # beside other tests
pretrain_on_gpu.train(pretrain_on_gpu.parse_flags(['train'] + sys.argv[2:]))
'''


@pytest.fixture
def make(tmp_path):
    def make(kind):
        (tmp_path / 'backbone').mkdir()
        return backbones.write_backbone(
            tmp_path / 'backbone', kind, tokens=TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            vocab_size=len(TOKENS), max_position_embeddings=160)
    return make


def command(*args):
    """unpack and pack, which need TensorFlow."""
    settings = pretrain_on_gpu.parse_flags(list(map(str, args)))
    getattr(pretrain_on_gpu, settings.command)(settings)


@pytest.mark.parametrize('kind', ['roberta', 'nezha', 'roformer'])
def test_it_computes_what_scripts_pretrain_computes(kind, make, tmp_path, pytorch, clear_session):
    paths = make(kind)
    command('unpack', tmp_path / 'backbone', tmp_path / 'weights.npz')
    random = np.random.RandomState(0)
    ids, places = random.randint(5, len(TOKENS), (3, LENGTH)), np.sort(random.randint(0, LENGTH, (3, 9)))
    np.savez(str(tmp_path / 'asked.npz'), ids=ids, places=places)
    pytorch.run('script', LOGITS, ROOT, *[tmp_path / name for name in ('weights.npz', 'asked.npz', 'found.npz')])
    config = checkpoints.read_config(paths.config_path)
    config.pop('use_relative_position', None)
    model, _ = pretraining_model.build(kind, config, paths.checkpoint_path)
    flat = (places + np.arange(3)[:, None] * LENGTH).reshape(-1)
    inputs = [array.astype('int32') for array in (ids, np.zeros_like(ids), flat)]
    expected = steps.predict_function(model)(inputs).reshape(3, 9, -1)
    found = np.load(str(tmp_path / 'found.npz'))['logits']
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_masks(tmp_path, pytorch):
    """15 % of a row's tokens that are not special, the last word whole; 80/10/10."""
    random = np.random.RandomState(1)
    ids, begins = random.randint(3, len(TOKENS), 5000).astype('uint16'), random.rand(5000) < 0.6
    np.savez(str(tmp_path / 'asked.npz'), ids=ids, begins=begins, vocab=TOKENS)
    pytorch.run('script', MASKS, ROOT, tmp_path / 'asked.npz', tmp_path / 'found.npz')
    found = np.load(str(tmp_path / 'found.npz'))
    rows, masked, begins = found['rows'], found['masked'], found['begins']
    special = np.isin(rows, [TOKENS.index(token) for token in SPECIAL_TOKENS if token in TOKENS])
    words, text = begins.cumsum(1), ids.tobytes()
    assert all(row[1:-1].astype('uint16').tobytes() in text for row in rows)
    assert (rows[:, 0] == TOKENS.index('[CLS]')).all() and (rows[:, -1] == TOKENS.index('[SEP]')).all()
    changed = 0
    for i, (places, labels) in enumerate(zip(found['places'], found['labels'])):
        chosen = places[labels >= 0]
        assert len(set(chosen)) == len(chosen) and not special[i][chosen].any()
        assert (rows[i][chosen] == labels[labels >= 0]).all()
        whole = np.flatnonzero(np.isin(words[i], words[i][chosen]) & ~special[i])
        assert set(whole) == set(chosen)
        budget = max(1, round(0.15 * (~special[i]).sum()))
        longest = np.bincount(words[i][chosen]).max()
        assert budget <= len(chosen) < budget + longest
        others = np.setdiff1d(np.arange(rows.shape[1]), chosen)
        assert (masked[i][others] == rows[i][others]).all()
        changed += len(chosen)
    hidden, kept = (masked == TOKENS.index('[MASK]')) & (rows != masked), found['labels'] >= 0
    assert abs(hidden.sum() / changed - 0.8) < 0.02
    true = np.take_along_axis(masked, found['places'], 1)[kept] == found['labels'][kept]
    assert abs(true.mean() - (0.1 + 0.1 / 40)) < 0.02


def test_a_backbone_without_an_mlm_head_is_refused(tmp_path, capsys):
    folder = tmp_path / 'backbone'
    folder.mkdir()
    backbones.write_backbone(folder, 'roberta', tokens=TOKENS, change=lambda variables: [
        variables.pop(name) for name in list(variables) if name.startswith('cls/')])
    with pytest.raises(SystemExit) as ended:
        command('unpack', folder, tmp_path / 'weights.npz')
    error = capsys.readouterr().err
    assert ended.value.code == 2 and 'has no cls/predictions/' in error and error.count('\n') == 1
    assert not (tmp_path / 'weights.npz').exists()


def test_files_that_are_none_are_refused(tmp_path, capsys):
    small.write_text(tmp_path / 'weights.npz', 'no weights')
    np.savez(str(tmp_path / 'other.npz'), vocab='')
    for name, message in [('weights.npz', 'expected a .npz'), ('nosuch.npz', 'No such file'),
                          ('other.npz', 'has no config, kind')]:
        with pytest.raises(SystemExit) as ended:
            command('pack', tmp_path / name, tmp_path / 'out')
        error = capsys.readouterr().err
        assert ended.value.code == 2 and name in error and message in error and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.costly
def test_it_trains_and_comes_back_as_a_backbone(make, tmp_path, pytorch, clear_session):
    paths = make('roberta')
    command('unpack', tmp_path / 'backbone', tmp_path / 'weights.npz')
    ids = np.repeat(np.random.RandomState(0).randint(len(SPECIAL_TOKENS), len(TOKENS), 60), 150).astype('uint16')
    begins = np.ones(len(ids), bool)
    np.savez(str(tmp_path / 'corpus.npz'), ids=ids, begins=begins, held_ids=ids, held_begins=begins,
             tokens='\n'.join(TOKENS), made_of='')
    printed = pytorch.run('script', TRAIN, ROOT, tmp_path / 'weights.npz', tmp_path / 'new.npz', '--corpus',
                          tmp_path / 'corpus.npz', '--steps', 300, '--tokens', 256, '--lengths', 64, 128,
                          '--learning_rate', '0.005')
    accuracy = float(re.search('held-out accuracy ([0-9.]+)$', printed.strip()).group(1))
    assert accuracy > 0.5 > 2 * np.bincount(ids).max() / len(ids), printed  # it reads what is around a place
    command('pack', tmp_path / 'new.npz', tmp_path / 'new')
    assert sorted(os.listdir(str(tmp_path / 'new'))) == [
        'bert_config.json', 'bert_model.ckpt.data-00000-of-00001', 'bert_model.ckpt.index', 'vocab.txt']
    assert small.read_text(tmp_path / 'new' / 'vocab.txt') == small.read_text(paths.dict_path)
    written = checkpoints.read_variables(str(tmp_path / 'new' / 'bert_model.ckpt'))
    values = np.load(str(tmp_path / 'new.npz'))
    assert set(written) == {name for name in values.files if '/' in name}
    assert all((written[name] == values[name]).all() for name in written)
