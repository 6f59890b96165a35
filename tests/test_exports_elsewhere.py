"""Exports on another machine: nothing of this one is in them, they can be moved, texts are cut alike."""
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import small
import train
from fltuning import checkpoints, deltas, hf_weights
from fltuning.errors import UserError
from fltuning.tokenizer import FastTokenizer, load_tokens
from tasks import load_task
from tools import export

pytestmark = pytest.mark.costly

FORMATS = ['checkpoint', 'transformers', 'peft', 'onnx']


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    """f(format) -> (paths of a backbone, path of a delta that can be exported to it)"""
    folder = tmp_path_factory.mktemp('tuned')
    small.write_task(folder, 'afqmc')
    paths = small.write_backbone(folder / 'backbone', stddev=0.3)
    deltas_of = {}
    for name, sizes in [('units', dict(ffn_prompt_size=5)), ('prefixes', dict(prompt_size=3, ffn_prompt_size=0))]:
        train.run(type(load_task('afqmc')), small.flags(dict(
            paths, data_path=folder, output_dir=folder / name, epochs=1, **sizes)))
        deltas_of[name] = str(folder / name / 'weights' / 'afqmc.weights')

    def find(format):
        if format == 'onnx':
            pytest.importorskip('tf2onnx')
            pytest.importorskip('onnxruntime')
        return paths, deltas_of['prefixes' if format == 'peft' else 'units']
    return find


def run(format, paths, weights, folder):
    export.run(['afqmc', '--to', format, '--weights', str(weights), '--output', str(folder)]
               + small.flags(paths))


def files(folder):
    """{path inside the folder: content}"""
    found = {}
    for place, _, names in os.walk(str(folder)):
        for name in names:
            with open(os.path.join(place, name), 'rb') as reader:
                found[os.path.relpath(os.path.join(place, name), str(folder))] = reader.read()
    return found


@pytest.mark.parametrize('format', FORMATS)
def test_nothing_of_the_machine_is_in_an_export(format, tuned, tmp_path, root):
    """Neither a path of it nor of a temporary folder, and two exports are the same files."""
    paths, weights = tuned(format)
    for name in ('first', 'second'):
        run(format, paths, weights, tmp_path / name)
    first, second = files(tmp_path / 'first'), files(tmp_path / 'second')
    assert sorted(first) == sorted(second) and len(first) > 3
    assert format == 'onnx' or first == second  # tf2onnx numbers its nodes anew
    home = os.path.expanduser('~').encode()
    for name, content in first.items():
        for place in (str(tmp_path).encode(), root.encode(), b'/tmp/', b'/home/', home + b'/', b'.export.'):
            assert place not in content, (name, place)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_not_exported(format, value, tuned, tmp_path):
    """In a part of the backbone that predictions do not need; where they do, it is not loaded."""
    paths, weights = tuned(format)
    variables = checkpoints.read_variables(paths['checkpoint_path'])
    name = 'bert/pooler/dense/kernel'
    variables.setdefault(name, np.zeros([16, 16], 'float32'))[0, 1] = value
    folder = tmp_path / 'hf'
    os.makedirs(str(folder))
    save_file(hf_weights.to_huggingface(variables), str(folder / 'model.safetensors'))
    with pytest.raises(UserError) as refused:
        run(format, dict(paths, checkpoint_path=str(folder)), weights, tmp_path / 'out')
    assert name in str(refused.value) and '1 of 256 values' in str(refused.value)
    assert os.listdir(str(tmp_path)) == ['hf']


def test_what_float32_cannot_hold_is_not_exported(tuned, tmp_path):
    """In the classifier of `transformers` the head's weights are larger by 2^14."""
    paths, weights = tuned('transformers')
    values, belongs_to = deltas.read_delta(weights)
    values = {name: value.copy() for name, value in values.items()}
    values['head/0/kernel'][0, 1] = 1e36
    deltas.save_delta(str(tmp_path / 'afqmc.weights'), values, belongs_to)
    with pytest.raises(UserError) as refused:
        run('transformers', paths, tmp_path / 'afqmc.weights', tmp_path / 'out')
    assert 'classifier.weight: 1 of 32 values' in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / 'out' / 'model.safetensors'))
    assert os.listdir(str(tmp_path)) == ['afqmc.weights']


def test_a_model_whose_output_is_no_number_is_no_onnx(tuned, tmp_path):
    """Its weights are finite, what they compute is not."""
    paths, weights = tuned('onnx')
    values, belongs_to = deltas.read_delta(weights)
    values = {name: np.full_like(value, 3e38) if name.startswith('head') else value for name, value in values.items()}
    deltas.save_delta(str(tmp_path / 'afqmc.weights'), values, belongs_to)
    with pytest.raises(UserError, match="model.onnx: the model's output is not a number") as refused:
        run('onnx', paths, tmp_path / 'afqmc.weights', tmp_path / 'out')
    assert str(refused.value).startswith(str(tmp_path / 'out' / 'model.onnx'))
    assert os.listdir(str(tmp_path)) == ['afqmc.weights']


@pytest.mark.parametrize('format', FORMATS)
def test_a_full_disk_leaves_nothing(format, tuned, tmp_path):
    """Nor takes anything of an earlier export."""
    paths, weights = tuned(format)
    for room in (10, 6000):
        with small.room_for(room), pytest.raises(UserError) as refused:
            run(format, paths, weights, tmp_path / 'out')
        assert 'File too large' in str(refused.value) and '.export.' not in str(refused.value)
        assert os.listdir(str(tmp_path)) == []
    run(format, paths, weights, tmp_path / 'out')
    before = files(tmp_path / 'out')
    with small.room_for(6000), pytest.raises(UserError):
        run(format, paths, weights, tmp_path / 'out')
    assert files(tmp_path / 'out') == before


@pytest.mark.parametrize('format', ['checkpoint', 'transformers'])
def test_an_export_over_another_takes_its_place(format, tuned, tmp_path):
    paths, weights = tuned(format)
    run(format, paths, weights, tmp_path)
    small.write_text(tmp_path / 'vocab.txt', 'other')
    small.write_text(tmp_path / 'mine.txt', 'mine')
    run(format, paths, weights, tmp_path)
    assert small.read_text(tmp_path / 'vocab.txt') == small.read_text(paths['dict_path'])
    assert small.read_text(tmp_path / 'mine.txt') == 'mine'
    if format == 'checkpoint':
        assert checkpoints.read_variables(str(tmp_path / 'bert_model.ckpt'))


def test_onnx_says_how_texts_are_cut_and_names_its_axes(tuned, tmp_path):
    onnx = pytest.importorskip('onnx')
    paths, weights = tuned('onnx')
    run('onnx', paths, weights, tmp_path)
    about = small.read_json(tmp_path / 'task.json')
    assert about['axes'] == {'input_ids': ['batch', 'length'], 'probabilities': ['batch', 2]}
    assert about['text']['lower_case'] is about['text']['strip_accents'] is True
    graph = onnx.load(str(tmp_path / 'model.onnx')).graph
    for value in list(graph.input) + list(graph.output):
        assert [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim] == (
            about['axes'][value.name])
    readme = small.read_text(tmp_path / 'README.md')
    assert 'lower case' in readme and 'accents' in readme and '200 characters' in readme


# ------------------------------------------------------------------ with PyTorch


TOKENIZE = '''
import json, sys
from tokenizers import Tokenizer
from transformers import AutoTokenizer
texts = json.load(open(sys.argv[2]))
tokenizer, plain = AutoTokenizer.from_pretrained(sys.argv[1]), Tokenizer.from_file(sys.argv[1] + '/tokenizer.json')
assert tokenizer.mask_token == '[MASK]' and tokenizer.mask_token_id == plain.token_to_id('[MASK]')
assert tokenizer('a', 'b')['input_ids'] == plain.encode('a', 'b').ids
json.dump([[tokenizer(text)['input_ids'], plain.encode(text).ids] for text in texts], sys.stdout)
'''
MOVED = '''
import os, sys
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification
folder = sys.argv[1]
ids = torch.arange(5, 25).reshape(2, 10)
inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}
with torch.no_grad():
    base = AutoModelForSequenceClassification.from_pretrained(folder)
    first = PeftModel.from_pretrained(base, folder + '/adapter').eval()(**inputs).logits
    os.chdir(folder)
    second = AutoPeftModelForSequenceClassification.from_pretrained('adapter').eval()(**inputs).logits
assert torch.equal(first, second) and first.std() > 0
'''


@pytest.mark.slow
def test_an_adapter_can_be_moved(tuned, tmp_path, pytorch):
    paths, weights = tuned('peft')
    run('peft', paths, weights, tmp_path / 'here')
    shutil.move(str(tmp_path / 'here'), str(tmp_path / 'there'))
    pytorch.run('script', MOVED, tmp_path / 'there')


@pytest.mark.slow
@pytest.mark.parametrize('format', ['transformers', 'peft'])
def test_odd_texts_are_cut_alike(format, tuned, tmp_path, pytorch):
    """Long words, what looks like a special token, accents, marks and all kinds of characters."""
    paths, weights = tuned(format)
    run(format, paths, weights, tmp_path / 'out')
    texts = (['a' * length for length in (99, 100, 101, 116, 199, 200, 201, 300)]
             + ['问[MASK]题', '[CLS] a [SEP][PAD]', '[UNK]', '[unused1]x', '[mask]', 'É café', 'x\u0301y', 'ÀB',
                ' ', '\u200b', 'a\tb\nc', '，。！', '１２ａ', '\ufffd\x00a', 'İ', 'ΑΣ ΟΔΟΣ', '가나', 'が']
             + ['a%sb' % chr(code) for code in range(1, 0x700) if code != 0x61d]
             + ['a%sb' % chr(code) for code in range(0x2000, 0xd800, 7)
                # marks that are newer than the library's Unicode, as 0x61d is
                if not 0x2e43 <= code < 0x2e80 and code != 0xa82c])
    small.write_json(tmp_path / 'texts.json', texts)
    found = json.loads(pytorch.run('script', TOKENIZE, tmp_path / 'out', tmp_path / 'texts.json'))
    tokenizer = FastTokenizer(load_tokens(paths['dict_path']))
    differ = [text for text, both in zip(texts, found) if both != [tokenizer.ids(text)] * 2]
    assert differ == []
