"""Tuned models in other programs: plain bert4keras, transformers and peft on PyTorch, onnxruntime."""
import json
import os
import shutil
import subprocess

import bert4keras.models
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import backbones
from fltuning import checkpoints, hf_weights
from fltuning import deltas, weights
from tools import export
import predict
import small
import snippets
import train
from fltuning.compat import K
from fltuning.task import pad
from pytorch import torch_python
from tasks import load_task
from fltuning.errors import UserError
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer, load_tokens

pytestmark = pytest.mark.costly

KINDS = ['roberta', 'nezha', 'roformer']
PLAIN = {'roberta': 'bert', 'nezha': 'nezha', 'roformer': 'roformer'}


@pytest.fixture(scope='module')
def texts(root):
    """Pairs of questions, of different lengths."""
    records = small.read_lines(os.path.join(root, 'clue_dataset', 'sample', 'afqmc', 'test.json'))
    records.sort(key=lambda r: len(r['sentence1'] + r['sentence2']))
    return records[::8] + records[-1:]


@pytest.fixture(scope='module')
def make(tmp_path_factory, texts):
    """f(kind, task, sizes) -> (paths of a backbone, path of a delta of random weights, its model's
    predictions and inputs), made once for each.

    Every weight is random; the backbone's vocabulary has the texts' characters and tokens that the
    program leaves out.
    """
    made = {}
    characters = sorted({c for r in texts for c in (r['sentence1'] + r['sentence2']).lower()
                         if not c.isspace()})

    def build(kind, task_name='afqmc', layers=None, **sizes):
        key = kind, task_name, str(layers), tuple(sorted(sizes.items()))
        if key not in made:
            made[key] = build_anew(str(tmp_path_factory.mktemp('export')), kind, task_name, layers,
                                   sizes)
        K.clear_session()
        return made[key]

    def build_anew(folder, kind, task_name, layers, sizes):
        tokens = SPECIAL_TOKENS + characters
        tokens[110:110] = ['##' + characters[-1], characters[-1] + characters[-2]]  # to be cut
        backbone = backbones.write_backbone(
            folder, kind, tokens=tokens, num_hidden_layers=3, hidden_size=48, intermediate_size=96,
            num_attention_heads=4, max_position_embeddings=512)
        paths = {name: getattr(backbone, name)
                 for name in ('config_path', 'checkpoint_path', 'dict_path')}
        K.clear_session()
        tokenizer, keep_tokens = snippets.load_tokenizer(backbone.dict_path)
        assert len(keep_tokens) < len(tokens)
        task = load_task(task_name, tokenizer)
        settings = train.parse_flags(type(task), small.flags(sizes) + (
            ['--layers_to_transform', layers] if layers else []))
        model, transformer = snippets.build_model(task, settings, paths, keep_tokens)
        random = np.random.RandomState(1)
        pairs = weights.named_weights(model)
        values = {name: random.normal(0, 0.05 if name.startswith('head') else 0.3,
                                      K.int_shape(w)).astype('float32') for name, w in pairs}
        weights.set_values(pairs, values)
        path = os.path.join(folder, task_name + '.weights')
        deltas.save_delta(path, values, deltas.identity(
            task, transformer, weights.fingerprint(transformer, tokenizer._token_dict)))
        return paths, path
    return build


def tuned(paths, weights):
    return predict.Predictor(**paths).load(weights)


def probabilities(paths, weights, texts):
    K.clear_session()
    return np.array([list(line['probabilities'].values())
                     for line in tuned(paths, weights).predict(texts)])


def padded_ids(paths, texts, full=True):
    """Token ids of the texts, padded; `full`: in the whole vocabulary, as other programs count."""
    if full:
        tokenizer = FastTokenizer(load_tokens(paths['dict_path']))
    else:
        tokenizer, _ = snippets.load_tokenizer(paths['dict_path'])
    task = load_task('afqmc', tokenizer)
    rows = [task.encode(task.Text(0, r['sentence1'], r['sentence2'], 0)).rows[0] for r in texts]
    assert len({len(row) for row in rows}) > 3
    return pad(rows)


def softmax(logits):
    weights = np.exp(logits.astype('float64') - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def run_export(format, paths, weights, folder, task='afqmc'):
    export.run([task, '--to', format, '--weights', weights, '--output', str(folder)]
               + small.flags(paths))
    K.clear_session()


def products(formats, tasks, kinds):
    """All; where stacks share the long tests, each task with each kind, and each format with each of both."""
    return [(format, task, kind) for i, task in enumerate(tasks) for j, kind in enumerate(kinds)
            for n, format in enumerate(formats) if not small.DIVIDED or n == (i + j) % len(formats)]


@pytest.mark.slow
@pytest.mark.parametrize('format, task, kind', products(
    ['checkpoint', 'transformers'], ['afqmc', 'c3', 'chid', 'cluener', 'cmrc2018', 'wsc'], KINDS))
def test_every_kind_of_task_with_every_backbone(format, task, kind, make, tmp_path, clear_session):
    """The class is one that the backbone has; where none has the head, it lies beside the backbone."""
    paths, delta = make(kind, task, ffn_prompt_size=7)
    run_export(format, paths, delta, tmp_path, task)
    purpose = {'afqmc': 'ForSequenceClassification', 'wsc': 'ForSequenceClassification',
               'c3': 'ForMultipleChoice', 'chid': 'ForMultipleChoice'}.get(task, 'Model')
    beside = format == 'checkpoint' or purpose == 'Model'
    assert os.path.exists(str(tmp_path / 'head.safetensors')) is beside
    if format == 'transformers':
        assert small.read_json(tmp_path / 'config.json')['architectures'] == [
            {'roberta': 'Bert', 'nezha': 'Nezha', 'roformer': 'RoFormer'}[kind] + purpose]
        names = set(load_file(str(tmp_path / 'model.safetensors')))
        assert any(name.startswith('classifier') for name in names) is not beside
    if beside:
        trained = {name for name in deltas.read_delta(delta)[0] if name.startswith('head/')}
        assert len(load_file(str(tmp_path / 'head.safetensors'))) == len(trained) > 0


# ------------------------------------------------------------------ checkpoints


@pytest.mark.slow
@pytest.mark.parametrize('layers', [None, '1'])
@pytest.mark.parametrize('kind', KINDS)
def test_merged_checkpoint_in_plain_bert4keras(kind, layers, make, texts, tmp_path, clear_session):
    paths, weights = make(kind, ffn_prompt_size=7, layers=layers)
    expected = probabilities(paths, weights, texts)
    run_export('checkpoint', paths, weights, tmp_path / 'merged')
    config = small.read_json(tmp_path / 'merged' / 'bert_config.json')
    assert config['intermediate_size'] == 96 + 7
    plain = bert4keras.models.build_transformer_model(
        str(tmp_path / 'merged' / 'bert_config.json'), str(tmp_path / 'merged' / 'bert_model.ckpt'),
        model=PLAIN[kind])
    ids = padded_ids(paths, texts)
    hidden = plain.predict([ids, np.zeros_like(ids)])
    head = load_file(str(tmp_path / 'merged' / 'head.safetensors'))
    found = softmax(hidden[:, 0].dot(head['head/0']) + head['head/1'])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected[:, 0]) > 0.01  # the texts are told apart

    # Without what was tuned, the outputs are others.
    K.clear_session()
    plain = bert4keras.models.build_transformer_model(
        paths['config_path'], paths['checkpoint_path'], model=PLAIN[kind])
    hidden = plain.predict([ids, np.zeros_like(ids)])
    assert np.abs(softmax(hidden[:, 0].dot(head['head/0']) + head['head/1']) - expected).max() > 0.01


def test_everything_else_in_the_checkpoint_stays(make, tmp_path, clear_session):
    """MLM head, pooler and the vocabulary rows that tuning left out, to the bit."""
    paths, weights = make('roberta', ffn_prompt_size=7)
    run_export('checkpoint', paths, weights, tmp_path)
    before = checkpoints.read_variables(paths['checkpoint_path'])
    after = checkpoints.read_variables(str(tmp_path / 'bert_model.ckpt'))
    assert sorted(before) == sorted(after)
    changed = {name for name, value in before.items() if value.tobytes() != after[name].tobytes()}
    parts = ['intermediate/dense/kernel', 'intermediate/dense/bias', 'output/dense/kernel',
             'output/dense/bias']
    assert changed == {'bert/encoder/layer_%d/%s' % (i, part) for i in range(3) for part in parts}
    with open(paths['dict_path']) as ours, open(str(tmp_path / 'vocab.txt')) as theirs:
        assert ours.read() == theirs.read()


def test_an_exported_checkpoint_can_be_tuned_again(make, tmp_path, clear_session):
    paths, weights = make('roberta', ffn_prompt_size=7)
    run_export('checkpoint', paths, weights, tmp_path / 'merged')
    small.write_task(tmp_path, 'afqmc')
    record = train.run(type(load_task('afqmc')), small.flags(dict(
        config_path=tmp_path / 'merged', data_path=tmp_path, output_dir=tmp_path, epochs=1)))
    assert record['backbone_kind'] == 'roberta'


@pytest.mark.parametrize('target', ['checkpoint', 'transformers'])
def test_prefixes_cannot_be_merged(target, make, tmp_path, clear_session):
    paths, weights = make('roberta', prompt_size=3, ffn_prompt_size=0)
    with pytest.raises(UserError) as refused:
        run_export(target, paths, weights, tmp_path / 'out')
    assert 'prompt_size 3' in str(refused.value) and '--to onnx' in str(refused.value)
    assert '--to peft' in str(refused.value)


def test_a_delta_of_another_backbone_is_refused(make, tmp_path, clear_session):
    paths, _ = make('roberta', ffn_prompt_size=7)
    _, weights = make('roformer', ffn_prompt_size=7)
    with pytest.raises(UserError) as refused:
        run_export('checkpoint', paths, weights, tmp_path / 'out')
    assert 'backbone_kind is "roformer", here it is "roberta"' in str(refused.value)
    assert not os.path.exists(str(tmp_path / 'out'))


def test_a_checkpoint_without_a_variable_is_refused(make, tmp_path, clear_session):
    paths, weights = make('roberta', ffn_prompt_size=7)
    variables = checkpoints.read_variables(paths['checkpoint_path'])
    del variables['bert/encoder/layer_1/output/dense/kernel']
    checkpoints.write_checkpoint(str(tmp_path / 'less'), variables)
    with pytest.raises(UserError) as refused:
        run_export('checkpoint', dict(paths, checkpoint_path=str(tmp_path / 'less')), weights,
                   tmp_path / 'out')
    assert 'no variable bert/encoder/layer_1/output/dense/kernel' in str(refused.value)


# ------------------------------------------------------------------ onnx


@pytest.mark.slow  # and `scripts/test --all` brings what they need
@pytest.mark.parametrize('kind, task, sizes', [
    ('roberta', 'afqmc', dict(ffn_prompt_size=7)), ('nezha', 'afqmc', dict(ffn_prompt_size=7)),
    ('roformer', 'afqmc', dict(ffn_prompt_size=7)), ('nezha', 'afqmc', dict(prompt_size=3)),
    ('roformer', 'cluener', dict(prompt_size=3, ffn_prompt_size=7)),
    ('roberta', 'cmrc2018', dict(ffn_prompt_size=7)), ('roberta', 'c3', dict(ffn_prompt_size=7))])
def test_onnx(kind, task, sizes, make, texts, tmp_path, clear_session):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('tf2onnx')
    paths, weights = make(kind, task, **dict(dict(prompt_size=0, ffn_prompt_size=0), **sizes))
    model = tuned(paths, weights)
    cut, ids = padded_ids(paths, texts, full=False), padded_ids(paths, texts)
    inputs = [cut, np.zeros_like(cut)] + [(cut > 0).astype('int32')] * (task == 'cmrc2018')
    expected = model.outputs(inputs)
    run_export('onnx', paths, weights, tmp_path, task)
    about = small.read_json(tmp_path / 'task.json')
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'),
                                           providers=['CPUExecutionProvider'])
    assert [value.name for value in session.get_inputs()] == about['inputs']
    feeds = dict(zip(about['inputs'], [ids.astype('int64'), (ids > 0).astype('int64')]))
    found, = session.run(about['outputs'], feeds)
    finite = np.isfinite(expected)
    assert (finite == np.isfinite(found)).all()
    if task == 'cluener':  # scores of order 100
        np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-3)
    else:
        np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_onnx_of_biases_that_are_zero(tmp_path, clear_session):
    """As a backbone of random weights has them; the export compares with TensorFlow by itself."""
    pytest.importorskip('onnxruntime')
    pytest.importorskip('tf2onnx')
    small.write_task(tmp_path, 'afqmc')
    paths = small.write_backbone(tmp_path / 'backbone', hidden_size=64, num_attention_heads=4)
    assert not checkpoints.read_variables(paths['checkpoint_path'])[
        'bert/encoder/layer_0/attention/self/query/bias'].any()
    train.run(type(load_task('afqmc')), small.flags(dict(
        paths, data_path=tmp_path, output_dir=tmp_path, epochs=1)))
    run_export('onnx', paths, str(tmp_path / 'weights' / 'afqmc.weights'), tmp_path / 'onnx')
    assert os.path.getsize(str(tmp_path / 'onnx' / 'model.onnx')) > 100000


# ------------------------------------------------------------------ transformers and peft


def torch_outputs(pytorch, folder, ids, texts=(), segments=None):
    path = os.path.join(str(folder), 'inputs.npz')
    np.savez(path, input_ids=ids, attention_mask=ids > 0,
             token_type_ids=np.zeros_like(ids) if segments is None else segments,
             texts=np.array([t['sentence1'] for t in texts]))
    pytorch.run('outputs', folder, path)
    return np.load(path + '.out.npz')


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_transformers_classifies_the_same(kind, make, texts, tmp_path, pytorch, clear_session):
    """Logits to 1e-5, whatever the segments, with labels; and its tokenizer gives our ids."""
    paths, weights = make(kind, ffn_prompt_size=7, layers='0,2')
    expected = probabilities(paths, weights, texts)
    run_export('transformers', paths, weights, tmp_path)
    ids = padded_ids(paths, texts)
    config = small.read_json(tmp_path / 'config.json')
    assert config['id2label'] == {'0': '0', '1': '1'}
    segments = (np.arange(ids.shape[1])[None] > 9) * np.ones_like(ids)
    found = torch_outputs(pytorch, tmp_path, ids, texts, segments)
    logits = found['outputs'][:, 1] - found['outputs'][:, 0]
    np.testing.assert_allclose(logits, np.log(expected[:, 1] / expected[:, 0]), atol=1e-5, rtol=1e-5)
    tokenizer = FastTokenizer(load_tokens(paths['dict_path']))
    assert json.loads(str(found['ids'])) == [tokenizer.ids(t['sentence1']) for t in texts]


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_transformers_chooses_the_same(kind, make, texts, tmp_path, pytorch, clear_session):
    paths, weights = make(kind, 'c3', ffn_prompt_size=7)
    model = tuned(paths, weights)
    cut, ids = padded_ids(paths, texts[:8], full=False), padded_ids(paths, texts[:8])
    expected = model.outputs([cut, np.zeros_like(cut)]).reshape(2, 4)
    run_export('transformers', paths, weights, tmp_path, 'c3')
    found = torch_outputs(pytorch, tmp_path, ids.reshape(2, 4, -1))['outputs']
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_transformers_has_the_backbone_and_the_head_is_beside_it(make, texts, tmp_path, pytorch, clear_session):
    paths, weights = make('nezha', 'cluener', ffn_prompt_size=7)
    cut, ids = padded_ids(paths, texts, full=False), padded_ids(paths, texts)
    expected = tuned(paths, weights).outputs([cut, np.zeros_like(cut)])
    run_export('transformers', paths, weights, tmp_path, 'cluener')
    hidden = torch_outputs(pytorch, tmp_path, ids)['outputs']
    head, = load_file(str(tmp_path / 'head.safetensors')).values()
    found = global_pointer(hidden, head, 10, ids > 0)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-3)


def global_pointer(hidden, kernel, heads, mask, size=64):
    """Scores (batch, heads, length, length) of bert4keras's GlobalPointer, in NumPy."""
    batch, length, _ = hidden.shape
    x = hidden.dot(kernel).reshape(batch, length, heads, 2, size)
    angles = np.arange(length)[:, None] / np.power(10000, np.arange(0, size, 2) / size)
    cos, sin = np.repeat(np.cos(angles), 2, -1), np.repeat(np.sin(angles), 2, -1)

    def rotate(y):  # (batch, length, heads, size)
        turned = np.stack([-y[..., 1::2], y[..., ::2]], -1).reshape(y.shape)
        return y * cos[:, None] + turned * sin[:, None]
    return np.einsum('bmhd,bnhd->bhmn', rotate(x[..., 0, :]), rotate(x[..., 1, :])) / size**0.5


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [dict(prompt_size=5, ffn_prompt_size=0),
                                   dict(prompt_size=5, ffn_prompt_size=7)])
def test_peft_prefixes(sizes, make, texts, tmp_path, pytorch, clear_session):
    paths, weights = make('roberta', **sizes)
    expected = probabilities(paths, weights, texts)
    run_export('peft', paths, weights, tmp_path)
    found = torch_outputs(pytorch, tmp_path, padded_ids(paths, texts))['outputs']
    logits = found[:, 1] - found[:, 0]
    np.testing.assert_allclose(logits, np.log(expected[:, 1] / expected[:, 0]), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('task', ['cluener', 'c3'])
def test_peft_of_other_tasks_has_the_head_beside_it(task, make, texts, tmp_path, pytorch, clear_session):
    paths, weights = make('roberta', task, prompt_size=5, ffn_prompt_size=0)
    cut, ids = padded_ids(paths, texts[:8], full=False), padded_ids(paths, texts[:8])
    expected = tuned(paths, weights).outputs([cut, np.zeros_like(cut)])
    run_export('peft', paths, weights, tmp_path, task)
    assert 'import AutoModel, AutoTokenizer' in small.read_text(tmp_path / 'README.md')
    assert 'head.safetensors' in small.read_text(tmp_path / 'README.md')
    hidden, head = torch_outputs(pytorch, tmp_path, ids)['outputs'], load_file(str(tmp_path / 'head.safetensors'))
    if task == 'c3':
        found, expected = hidden[:, 0].dot(head['head/0']) + head['head/1'], expected.reshape(8, 1)
    else:
        found = global_pointer(hidden, head['head/0'], 10, ids > 0)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('format', ['transformers', 'peft'])
def test_narrow_embeddings_are_refused(format, make, tmp_path, clear_session, monkeypatch):
    """transformers could not load them."""
    from tools import huggingface
    paths, weights = make('roberta', prompt_size=5 if format == 'peft' else 0, ffn_prompt_size=7)
    config = huggingface.huggingface_config
    monkeypatch.setattr(huggingface, 'huggingface_config', lambda exported: config(exported._replace(
        config=dict(exported.config, embedding_size=16))))
    with pytest.raises(UserError, match='embedding_size 16: expected hidden_size, '):
        run_export(format, paths, weights, tmp_path / 'out')
    assert not os.path.exists(str(tmp_path / 'out'))


def test_peft_is_for_bert_with_prefixes(make, tmp_path, clear_session):
    for kind, sizes in [('nezha', dict(prompt_size=3)), ('roberta', dict(ffn_prompt_size=7))]:
        paths, weights = make(kind, **dict(dict(prompt_size=0, ffn_prompt_size=0), **sizes))
        with pytest.raises(UserError) as refused:
            run_export('peft', paths, weights, tmp_path / kind)
        assert 'expected P-Tuning V2 on a BERT' in str(refused.value)


# ------------------------------------------------------------------ Hugging Face folders as backbones


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_huggingface_folders_are_backbones(kind, tmp_path, pytorch, clear_session):
    pytorch.run('make', kind, tmp_path)
    numbers = np.load(str(tmp_path / 'expected.npz'))
    ids = numbers['input_ids']
    for name in ('safe', 'half'):
        K.clear_session()
        transformer = snippets.load_backbone(str(tmp_path / name), str(tmp_path / name))
        assert transformer.backbone == kind
        inputs = [ids.astype('float32'), np.zeros_like(ids, 'float32')]
        found = transformer.model.predict(inputs)
        np.testing.assert_allclose(found[ids > 0], numbers[name][ids > 0], atol=2e-5)


@pytest.mark.slow
def test_pytorch_files_need_torch_and_say_so(tmp_path, pytorch, clear_session, monkeypatch):
    pytorch.run('make', 'roberta', tmp_path)
    path = str(tmp_path / 'bin' / 'pytorch_model.bin')
    monkeypatch.setitem(__import__('sys').modules, 'torch', None)
    with pytest.raises(UserError) as refused:
        checkpoints.read_variables(path)
    assert path in str(refused.value) and 'needs PyTorch' in str(refused.value)
    # With it, in its own environment, the weights are those of the safetensors file.
    script = ('import sys; sys.path.insert(0, %r)\n'
              'import pickle, types\n'
              'def stub(name, **parts):\n'
              '    sys.modules[name] = types.ModuleType(name)\n'
              '    vars(sys.modules[name]).update(parts)\n'
              'stub("tensorflow"), stub("fltuning.compat"), stub("bert4keras")\n'
              'stub("bert4keras.backend", keras=None, K=None)\n'
              'stub("bert4keras.tokenizers", load_vocab=None, Tokenizer=object)\n'
              'from fltuning import checkpoints\n'
              'from fltuning.errors import UserError\n'
              'a, b = [checkpoints.read_variables(p) for p in sys.argv[1:3]]\n'
              'assert sorted(a) == sorted(b) and len(a) > 50\n'
              'assert all((a[n] == b[n]).all() for n in a)\n'
              'class Evil(object):\n'
              '    def __reduce__(self): return print, ("code was run",)\n'
              'pickle.dump({"w": Evil()}, open(sys.argv[3], "wb"))\n'
              'try: checkpoints.read_variables(sys.argv[3])\n'
              'except UserError as error: print("refused:", error)\n')
    root = os.path.dirname(os.path.dirname(os.path.abspath(checkpoints.__file__)))
    done = subprocess.run(
        [torch_python(), '-c', script % root, path, str(tmp_path / 'safe' / 'model.safetensors'),
         str(tmp_path / 'evil.bin')], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith('refused:') and 'code was run' not in done.stdout.decode()


@pytest.mark.parametrize('kind', KINDS)
def test_names_there_and_back(kind):
    config = dict(hidden_size=4, intermediate_size=8, num_hidden_layers=12, vocab_size=9,
                  type_vocab_size=2, max_position_embeddings=5)
    shapes = backbones.variable_shapes(kind, config)
    for name in shapes:
        there = hf_weights.huggingface_name(name, {'roberta': 'bert'}.get(kind, kind))
        assert hf_weights.google_name(there) == name
        if there.startswith('bert.'):
            assert hf_weights.google_name(there[5:]) == name  # saved without its prefix
    assert hf_weights.google_name('cls.predictions.decoder.weight') is None
    assert hf_weights.google_name('bert.embeddings.position_ids') is None
    assert hf_weights.google_name('bert.embeddings.LayerNorm.gamma') == (
        'bert/embeddings/LayerNorm/gamma')


def test_a_whole_run_on_a_huggingface_folder(make, tmp_path, clear_session):
    """The same numbers as on Google's files of the same weights, and the same fingerprint."""
    paths, _ = make('roberta', ffn_prompt_size=7)
    folder = tmp_path / 'hf'
    os.makedirs(str(folder))
    shutil.copy(paths['dict_path'], str(folder / 'vocab.txt'))
    config = dict(small.read_json(paths['config_path']), model_type='bert', prefix=None,
                  torch_dtype='float32')
    small.write_json(folder / 'config.json', config)
    variables = checkpoints.read_variables(paths['checkpoint_path'])
    save_file(hf_weights.to_huggingface(variables), str(folder / 'model.safetensors'))
    small.write_task(tmp_path, 'afqmc')
    records = [train.run(type(load_task('afqmc')), small.flags(dict(
        where, data_path=tmp_path, output_dir=tmp_path / name, epochs=1)))
        for name, where in [('a', paths), ('b', {'config_path': folder})]]
    assert records[0]['history'][0]['loss'] == records[1]['history'][0]['loss']
    assert records[0]['backbone_sha256'] == records[1]['backbone_sha256']


def test_wrong_huggingface_files(make, tmp_path, clear_session):
    with pytest.raises(UserError) as refused:
        checkpoints.find_files(str(tmp_path))
    assert 'no bert_config.json or config.json in this folder' in str(refused.value)
    small.write_json(tmp_path / 'config.json', {'model_type': 'gpt2'})
    with pytest.raises(UserError) as refused:
        checkpoints.read_config(str(tmp_path / 'config.json'))
    assert 'model_type gpt2: expected bert, nezha or roformer' in str(refused.value)
    small.write_text(tmp_path / 'model.safetensors', 'none')
    with pytest.raises(UserError) as refused:
        checkpoints.read_variables(str(tmp_path / 'model.safetensors'))
    assert 'not a whole safetensors file' in str(refused.value)


def test_size_of_a_base_size_delta(tmp_path, clear_session):
    """AFQMC's, hidden 768, 12 layers, 160 hidden units: under 13 MB."""
    paths = backbones.write_backbone(
        tmp_path, 'roberta', tokens=SPECIAL_TOKENS + list('的是'), hidden_size=768,
        num_hidden_layers=12, num_attention_heads=12, intermediate_size=8)
    tokenizer, keep_tokens = snippets.load_tokenizer(paths.dict_path)
    task = load_task('afqmc', tokenizer)
    model, transformer = snippets.build_model(
        task, train.parse_flags(type(task), []),
        {'config_path': paths.config_path, 'checkpoint_path': paths.checkpoint_path}, keep_tokens)
    path = str(tmp_path / 'afqmc.weights')
    deltas.save_delta(path, weights.get_values(weights.named_weights(model)),
                      deltas.identity(task, transformer, '0' * 64))
    assert 11e6 < os.path.getsize(path) < 13e6
