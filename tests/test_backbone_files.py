"""Files of backbones that are not what they must be, and settings that name no file: one line that says so."""
import collections
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import small
import snippets
import train
from fltuning import checkpoints, hf_weights, memory
from fltuning.errors import UserError
from pytorch import torch_python
from tasks import load_task


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    return small.write_backbone(tmp_path_factory.mktemp('backbone'))


@pytest.fixture
def refused():
    """f(function, ...) -> the line of its UserError."""
    def call(function, *args, **kwargs):
        with pytest.raises(UserError) as error:
            function(*args, **kwargs)
        assert '\n' not in str(error.value)
        return str(error.value)
    return call


def huggingface_weights(paths):
    return hf_weights.to_huggingface(checkpoints.read_variables(paths['checkpoint_path']))


# ------------------------------------------------------------------ settings that name them


@pytest.mark.parametrize('settings, said', [
    (dict(config_path='/no/such'), 'config_path: /no/such: no such file or folder; expected bert_config.json or '
                                 'config.json'),
    (dict(config_path='{folder}', checkpoint_path='/no/such'), 'checkpoint_path: /no/such: no such file'),
    (dict(config_path='{folder}', dict_path='/no/such'), 'dict_path: /no/such: no such file'),
    (dict(checkpoint_path='no_such'), 'checkpoint_path: no_such: no such file or folder; expected model.safetensors'),
    (dict(dict_path='no_such'), 'dict_path: no_such: no such file or folder; expected vocab.txt'),
    (dict(config_path='{empty}'), 'config_path: {empty}: no bert_config.json or config.json in this folder'),
    (dict(config_path='{folder}', checkpoint_path='{empty}'), 'checkpoint_path: {empty}: no model.safetensors'),
    (dict(config_path='{folder}', dict_path='{empty}'), 'dict_path: {empty}: no vocab.txt in this folder'),
    (dict(config_path='{folder}/vocab.txt'), 'config_path: {folder}/vocab.txt: line 1: not JSON'),
    (dict(config_path='{folder}', checkpoint_path='{folder}/vocab.txt'),
     'checkpoint_path: {folder}/vocab.txt: expected a TensorFlow checkpoint'),
    (dict(config_path='{folder}', dict_path='{folder}/bert_config.json'),
     'dict_path: {folder}/bert_config.json: no token [PAD]')])
def test_a_setting_is_named_as_it_was_given(settings, said, backbone, tmp_path, refused):
    places = {'folder': os.path.dirname(backbone['config_path']), 'empty': str(tmp_path)}
    settings = {name: value.format(**places) for name, value in settings.items()}
    line = refused(snippets.find_backbone, snippets.BackboneSettings(**settings))
    assert line.startswith(said.format(**places))


def test_what_is_not_set_is_found_beside_what_is(backbone, tmp_path, refused):
    folder = os.path.dirname(backbone['config_path'])
    for setting, value in backbone.items():
        assert checkpoints.find_files(**{setting: value}) == backbone
        assert checkpoints.find_files(**{setting: folder}) == backbone
    for suffix in ('.index', '.data-00000-of-00001'):  # the files by which a checkpoint is seen
        assert checkpoints.find_files(folder, backbone['checkpoint_path'] + suffix) == backbone
    config = small.read_text(backbone['config_path'])
    small.write_text(tmp_path / 'bert_config.json', config)
    line = refused(checkpoints.find_files, str(tmp_path))
    assert line.startswith('config_path: %s: no model.safetensors or' % tmp_path)
    assert line.endswith('in this folder; set checkpoint_path')


def test_pretraining_names_its_own_setting(tmp_path, refused):
    from tools import pretrain
    pytest.importorskip('matplotlib')
    line = refused(pretrain.run, ['--texts', __file__, '--output_dir', str(tmp_path), '--no_whole_words',
                                  '--init_checkpoint', '/no/such'])
    assert line.startswith('init_checkpoint: /no/such: no such file or folder')
    assert not os.path.exists(str(tmp_path / 'corpus.npz'))


# ------------------------------------------------------------------ parts, and what is in them


@pytest.fixture
def sharded(backbone, tmp_path):
    """(folder of a backbone in three files, {weight: array})"""
    weights = huggingface_weights(backbone)
    small.write_text(tmp_path / 'config.json', small.read_text(backbone['config_path']))
    small.write_text(tmp_path / 'vocab.txt', small.read_text(backbone['dict_path']))
    names = {name: 'model-%05d-of-00003.safetensors' % (1 + i % 3) for i, name in enumerate(sorted(weights))}
    for file in set(names.values()):
        save_file({name: value for name, value in weights.items() if names[name] == file},
                  str(tmp_path / file))
    small.write_json(tmp_path / 'model.safetensors.index.json', {'metadata': {}, 'weight_map': names})
    return str(tmp_path), names


def test_a_checkpoint_in_parts(sharded, backbone):
    paths = checkpoints.find_files(sharded[0])
    assert paths['checkpoint_path'].endswith('model.safetensors.index.json')
    checkpoints.check_backbone(**paths)
    assert checkpoints.detect_backbone(paths['config_path'], paths['checkpoint_path']) == 'roberta'
    expected = checkpoints.read_variables(backbone['checkpoint_path'])
    found = checkpoints.read_variables(paths['checkpoint_path'])
    assert sorted(found) == sorted(expected)
    assert all((found[name] == value).all() for name, value in expected.items())
    assert checkpoints.list_variables(paths['checkpoint_path']) == {
        name: value.shape for name, value in found.items()}


def test_a_part_that_is_missing_or_cut(sharded, refused):
    path = os.path.join(sharded[0], 'model-00002-of-00003.safetensors')
    with open(path, 'rb') as reader:
        content = reader.read()
    with open(path, 'wb') as writer:
        writer.write(content[:-1])
    assert '%s: not a whole safetensors file: ' % path in refused(checkpoints.find_files, sharded[0])
    os.remove(path)
    line = refused(checkpoints.find_files, sharded[0])
    assert '1 of the 3 files that it lists are missing: model-00002-of-00003.safetensors' in line


def test_every_damage_of_a_checkpoints_index(backbone, tmp_path):
    """Eight bytes of zeros anywhere, or of ones: it is read, or refused in a line."""
    for suffix in ('.index', '.data-00000-of-00001'):
        shutil.copy(backbone['checkpoint_path'] + suffix, str(tmp_path / ('x' + suffix)))
    with open(str(tmp_path / 'x.index'), 'rb') as reader:
        genuine = reader.read()
    outcomes = collections.Counter()
    for place in range(0, len(genuine) - 8, 3):
        for byte in (b'\0', b'\xff'):
            with open(str(tmp_path / 'x.index'), 'wb') as writer:
                writer.write(genuine[:place] + 8 * byte + genuine[place + 8:])
            for function in (checkpoints.read_variables, checkpoints.list_variables):
                try:
                    outcomes[bool(function(str(tmp_path / 'x')))] += 1
                except UserError as error:
                    outcomes['refused'] += 1
                    assert 'expected' in str(error)
    assert outcomes['refused'] > 500


@pytest.mark.parametrize('index', [[], {}, {'weight_map': []}, {'weight_map': {}}, {'weight_map': {'a': 1}},
                                   {'weight_map': {'a': '../x.safetensors'}},
                                   {'weight_map': {'a': '/etc/passwd'}}])
def test_an_index_that_is_none(index, sharded, refused):
    small.write_json(os.path.join(sharded[0], 'model.safetensors.index.json'), index)
    assert 'field "weight_map": expected' in refused(checkpoints.find_files, sharded[0])


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('layout', ['TensorFlow', 'safetensors'])
def test_one_value_that_is_no_number(layout, value, backbone, tmp_path, refused, monkeypatch):
    variables = checkpoints.read_variables(backbone['checkpoint_path'])
    name = 'bert/encoder/layer_0/output/dense/kernel'
    variables[name][3, 5] = value
    if layout == 'TensorFlow':
        path = str(tmp_path / 'bert_model.ckpt')
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, 'check_finite', lambda *args: None)  # which writes none
            checkpoints.write_checkpoint(path, variables)
    else:
        path = str(tmp_path / 'model.safetensors')
        save_file(hf_weights.to_huggingface(variables), path)
    line = refused(checkpoints.read_variables, path)
    assert line.startswith('%s: %s: 1 of 384 values are infinite or not a number' % (path, name))
    small.write_task(tmp_path, 'afqmc')
    line = refused(train.run, type(load_task('afqmc')), small.flags(dict(
        backbone, checkpoint_path=path, data_path=tmp_path, output_dir=tmp_path, epochs=1)))
    assert name in line
    line = refused(checkpoints.write_checkpoint, str(tmp_path / 'new'), variables)
    assert name in line and not [file for file in os.listdir(str(tmp_path)) if 'new' in file]


def test_a_full_disk_leaves_nothing_of_a_checkpoint(tmp_path, refused):
    path = str(tmp_path / 'here' / 'bert_model.ckpt')
    with small.room_for(50000):
        line = refused(checkpoints.write_checkpoint, path, {'a': np.ones([200, 200], 'float32')})
    assert line == '%s: cannot be written: File too large' % path
    assert os.listdir(os.path.dirname(path)) == []
    checkpoints.write_checkpoint(path, {'a': np.ones([200, 200], 'float32')})
    assert sorted(os.listdir(os.path.dirname(path))) == [
        'bert_model.ckpt.data-00000-of-00001', 'bert_model.ckpt.index']


# ------------------------------------------------------------------ PyTorch's files


def test_a_file_by_pytorch_names_the_command_that_works(tmp_path, refused, monkeypatch, root):
    path = str(tmp_path / 'pytorch_model.bin')
    small.write_text(path, '<html>')
    assert refused(checkpoints.check_weights, path) == '%s: not a whole PyTorch file' % path
    with open(path, 'wb') as writer:
        writer.write(b'\x80\x02')
    monkeypatch.setitem(sys.modules, 'torch', None)
    line = refused(checkpoints.list_variables, path)
    stack = 'tf1' if sys.version_info < (3, 8) else 'tf2'
    assert '`scripts/setup.sh %s torch` adds it' % stack in line
    assert os.path.exists(os.path.join(root, 'scripts', '%s-torch.lock' % stack))


TORCH = '''
import sys, types
sys.path.insert(0, sys.argv[1])
for name in ('fltuning.compat', 'tensorflow', 'bert4keras', 'bert4keras.backend', 'bert4keras.tokenizers',
             'fltuning.tokenizer'):
    sys.modules[name] = types.ModuleType(name)
import fltuning
fltuning.compat = sys.modules['fltuning.compat']
sys.modules['bert4keras.backend'].keras = sys.modules['bert4keras.tokenizers'].load_vocab = None
sys.modules['fltuning.tokenizer'].load_tokens = None
import torch
from fltuning import checkpoints
from fltuning.errors import UserError
name = 'bert.encoder.layer.0.output.dense.weight'
value = torch.randn(3, 4)
class Code:
    def __reduce__(self): return print, ('code was run',)
cases = {
    'plain': {name: value}, 'parameter': {name: torch.nn.Parameter(value)},
    'half': {name: value.half()}, 'shared': {name: value, 'other': value},
    'sparse': {name: value.to_sparse()}, 'meta': {name: value.to('meta')}, 'number': {3: value},
    'nested': {'state_dict': {name: value}}, 'list': [value], 'nan': {name: value / 0},
    'text': {name: 'x'}, 'code': {name: Code()}, 'model': torch.nn.Linear(2, 2)}
for case, content in cases.items():
    torch.save(content, case + '.bin')
    try:
        found = checkpoints.read_variables(case + '.bin')
        assert checkpoints.list_variables(case + '.bin') == {n: v.shape for n, v in found.items()}
        array, = found.values()
        assert abs(array - value.numpy().T).max() < 1e-2
        print(case, 'read')
    except UserError as error:
        print(case, error)
'''


@pytest.mark.slow  # `scripts/test --all` brings PyTorch
def test_what_a_file_by_pytorch_may_hold(root, tmp_path):
    done = subprocess.run([torch_python(), '-W', 'ignore', '-c', TORCH, root], cwd=str(tmp_path), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    said = dict(line.split(' ', 1) for line in done.stdout.decode().splitlines())
    for case in ('plain', 'parameter', 'half', 'shared'):
        assert said.pop(case) == 'read'
    for case, expected in [
            ('sparse', 'sparse.bin: "bert.encoder.layer.0.output.dense.weight": expected a plain tensor, it is'
                       ' sparse'),
            ('meta', 'meta.bin: "bert.encoder.layer.0.outp'), ('number', 'number.bin: expected {name: tensor}'),
            ('nested', 'nested.bin: expected {name: tensor}, got "state_dict": dict'),
            ('list', 'list.bin: expected {name: tensor}, got list'),
            ('nan', 'nan.bin: bert/encoder/layer_0/output/dense/kernel: 12 of 12 values'),
            ('text', 'text.bin: expected {name: tensor}'),
            ('code', 'code.bin: not a PyTorch file of weights: it holds more than tensors'),
            ('model', 'model.bin: not a PyTorch file of weights')]:
        assert said.pop(case).startswith(expected)
    assert not said


# ------------------------------------------------------------------ sizes that no memory holds


@pytest.mark.parametrize('setting', ['ffn_prompt_size', 'prompt_size'])
def test_sizes_that_no_memory_holds(setting, backbone, tmp_path, refused):
    """Said before anything is built, and how much it would take."""
    small.write_task(tmp_path, 'afqmc')
    line = refused(train.run, type(load_task('afqmc')), small.flags(dict(
        backbone, data_path=tmp_path, output_dir=tmp_path, epochs=1, **{setting: 2000000000})))
    assert line.startswith('%s 2000000000: needs ' % setting) and 'GiB of memory' in line
    assert os.listdir(str(tmp_path / 'weights')) == []


def test_sizes_of_a_config_that_no_memory_holds(backbone, tmp_path, refused):
    config = small.read_json(backbone['config_path'])
    small.write_json(tmp_path / 'bert_config.json', dict(
        config, hidden_size=2**16, intermediate_size=10**6, num_hidden_layers=1000))
    line = refused(snippets.load_backbone, str(tmp_path), None)
    assert line.startswith('a backbone of hidden_size 65536 and 1000 layers: needs ')


def test_free_memory():
    free = memory.free_memory()
    assert free is None or 2**20 < free < 2**50
    memory.check_room({'a': 1})
