"""Predictions of tuned models without training: the program, the Python call, the original's files."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fltuning import checkpoints
from fltuning import deltas
import predict
import small
import train
from fltuning.compat import K
from tasks import load_task
from fltuning.errors import UserError
from fltuning.files import write_tensors
from fltuning.tokenizer import SPECIAL_TOKENS

pytestmark = pytest.mark.costly

TASKS = ['afqmc', 'c3', 'chid', 'cluener', 'cmnli', 'cmrc2018', 'wsc']
TEST_FILES = {'c3': 'test1.0.json', 'chid': 'test1.0.json', 'wsc': 'test1.0.json'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('predict')


@pytest.fixture(scope='module')
def backbone(folder):
    return small.write_backbone(folder / 'backbone')


@pytest.fixture(scope='module')
def tuned(folder, backbone):
    """f(task, **flags) -> output_dir of a short run, made once for each."""
    made = {}

    def run(name, **flags):
        key = name, tuple(sorted(flags.items()))
        if key not in made:
            data, out = [str(folder / kind / str(len(made))) for kind in ('data', 'out')]
            small.write_task(data, name)
            train.run(type(load_task(name)), small.flags(dict(
                dict(backbone, data_path=data, output_dir=out, epochs=1, learning_rate=0.01,
                     maxlen=64), **flags)))
            made[key] = data, out
        return made[key]
    return run


def answers(name, submission):
    """What a submission says, as `predictions` would say it."""
    if name in ('chid', 'cmrc2018'):
        return list(json.loads(submission).items())
    return [(line['id'], line['label']) for line in map(json.loads, submission.splitlines())]


@pytest.mark.parametrize('name', TASKS)
def test_the_program_says_what_the_run_submitted(name, tuned, backbone, tmp_path):
    data, out = tuned(name)
    test_file = TEST_FILES.get(name, 'test.json')
    output = str(tmp_path / 'predictions.json')
    predict.run([name, '--weights', os.path.join(out, 'weights', name + '.weights'),
                 '--input', os.path.join(data, name, test_file), '--output', output]
                + small.flags(backbone))
    with open(os.path.join(out, 'results', load_task(name).test_files[test_file])) as reader:
        expected = answers(name, reader.read())
    lines = small.read_lines(output)
    if name == 'cmrc2018':
        assert [(line['id'], line['answer']) for line in lines] == expected
        assert all(0 <= line['probability'] <= 1 for line in lines)
        return
    same = {'cluener': lambda label: label, 'chid': int}.get(name, str)
    assert [(str(line['id']), same(line['label'])) for line in lines] == [
        (str(key), same(label)) for key, label in expected]
    for line in lines:
        probabilities = line['probabilities']
        if name == 'cluener':
            for kind, names in line['label'].items():
                for text, places in names.items():
                    assert len(probabilities[kind][text]) == len(places)
                    assert all(0.5 < p <= 1 for p in probabilities[kind][text])
            continue
        values = list(probabilities.values()) if isinstance(probabilities, dict) else probabilities
        assert abs(sum(values) - 1) < 1e-5
        if name == 'afqmc':
            assert probabilities[line['label']] == max(values)
        if name == 'c3':
            assert max(values) == values[line['label']] and line['choice']


def test_standard_input_and_output(tuned, backbone, root, tmp_path):
    data, out = tuned('afqmc')
    command = [sys.executable, os.path.join(root, 'predict.py'), 'afqmc', '--input', '-',
               '--weights', os.path.join(out, 'weights', 'afqmc.weights')] + small.flags(backbone)
    lines = '{"sentence1": "她在北京", "sentence2": "她在东海"}\n' * 2
    done = subprocess.run(command, input=lines.encode('utf-8'), capture_output=True,
                          cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    found = [json.loads(line) for line in done.stdout.decode('utf-8').splitlines()]
    assert [line['id'] for line in found] == [0, 1]
    assert found[0]['probabilities']['1'] == pytest.approx(found[1]['probabilities']['1'], abs=1e-6)
    assert os.listdir(str(tmp_path)) == []

    done = subprocess.run(command, input=b'{"sentence1": "x"}\n', capture_output=True)
    assert (done.returncode, done.stdout) == (2, b'')
    assert done.stderr.decode().splitlines()[-1] == (
        'scripts/predict: error: -: line 1: field "sentence2": expected a text, '
        'the field is missing')


def test_two_tasks_over_one_backbone(tuned, backbone, monkeypatch, clear_session):
    """The backbone is read once and its layers are the same; each says what it says alone."""
    names = [('afqmc', {}), ('afqmc', {'prompt_size': 5, 'ffn_prompt_size': 0}),
             ('cluener', {'prompt_size': 2})]
    paths = [os.path.join(tuned(name, **flags)[1], 'weights', name + '.weights')
             for name, flags in names]
    records = [[{'sentence1': '她在北京', 'sentence2': small.sentence(i, 9)} for i in range(5)]] * 2
    records.append([{'text': small.sentence(i, 12)} for i in range(5)])
    alone = []
    for path, rows in zip(paths, records):
        K.clear_session()
        alone.append(predict.Predictor(**backbone).load(path).predict(rows))
    assert alone[0] != alone[1]

    K.clear_session()
    reads, original = [], checkpoints.read_variables
    monkeypatch.setattr(checkpoints, 'read_variables',
                        lambda *args: reads.append(args) or original(*args))
    predictor = predict.Predictor(**backbone)
    models = [predictor.load(path) for path in paths]
    assert len(reads) == 1
    frozen = [{layer.name: layer for layer in model.model.layers
               if layer.weights and not layer.trainable_weights} for model in models]
    assert frozen[0] == frozen[1] == frozen[2] and len(frozen[0]) > 5
    for _turn in (0, 1):  # one after the other, and again
        for model, rows, expected in zip(models, records, alone):
            found = model.predict(rows)
            if model.task.name == 'cluener':
                assert [line['label'] for line in found] == [line['label'] for line in expected]
                continue
            assert [line['label'] for line in found] == [line['label'] for line in expected]
            np.testing.assert_allclose(
                [list(line['probabilities'].values()) for line in found],
                [list(line['probabilities'].values()) for line in expected], atol=1e-6)


def test_records_that_are_wrong(tuned, backbone, clear_session):
    model = predict.Predictor(**backbone).load(
        os.path.join(tuned('afqmc')[1], 'weights', 'afqmc.weights'))
    with pytest.raises(UserError) as refused:
        model.predict([{'sentence1': 'x', 'sentence2': 'y'}, {'sentence1': 3}])
    assert str(refused.value) == 'record 1: field "sentence1": expected a text, got 3'
    assert model.predict([]) == []


@pytest.mark.parametrize('change, said', [
    (dict(task='csl'), ['task is afqmc', 'csl']),
    (dict(backbone='other'), ['backbone_sha256 is ', 'here it is']),
    (dict(weights='none'), ['no such file']),
    (dict(input='none.json'), ['none.json', 'No such file'])])
def test_what_does_not_fit_is_refused(change, said, tuned, backbone, folder, tmp_path, clear_session):
    data, out = tuned('afqmc')
    paths = backbone
    if 'backbone' in change:
        paths = small.write_backbone(tmp_path / 'other', seed=7)
    output = tmp_path / 'out.json'
    small.write_text(output, 'mine')
    weights = os.path.join(out, 'weights', change.get('weights', 'afqmc.weights'))
    with pytest.raises(UserError) as refused:
        predict.run([change.get('task', 'afqmc'), '--weights', weights, '--output', str(output),
                     '--input', change.get('input', os.path.join(data, 'afqmc', 'test.json'))]
                    + small.flags(paths))
    for text in said:
        assert text in str(refused.value)
    assert output.read_text() == 'mine'


@pytest.mark.parametrize('change, said', [
    (lambda m: dict(m, task='os'), "task 'os': expected one of afqmc, c3"),
    (lambda m: dict(m, task=['afqmc']), 'metadata: field "task": expected a text, got ["afqmc"]'),
    (lambda m: {name: m[name] for name in m if name != 'maxlen'}, 'metadata: no field "maxlen"'),
    (lambda m: dict(m, maxlen='64'), 'metadata: field "maxlen": expected a whole number from 1'),
    (lambda m: dict(m, layers_to_transform=None), 'metadata: field "layers_to_transform"'),
    (lambda m: dict(m, labels={'0': 1}), 'metadata: field "labels": expected a list of texts'),
    (lambda m: dict(m, ffn_prompt_size=10**7), 'ffn_prompt_size is 10000000, the tensors are of 160'),
    (lambda m: dict(m, prompt_size=10**7), 'prompt_size is 10000000, the tensors are of none'),
    (lambda m: [m], 'metadata: expected an object'), (lambda m: 'none', 'metadata: expected an object'),
    (lambda m: None, 'metadata: expected an object')])
def test_metadata_are_checked_before_anything_is_built(change, said, tuned, backbone, tmp_path):
    """And a task's name imports no module but that of a task."""
    values, metadata = deltas.read_delta(os.path.join(tuned('afqmc')[1], 'weights', 'afqmc.weights'))
    path, changed = str(tmp_path / 'changed.weights'), change(metadata)
    if isinstance(changed, dict):
        deltas.save_delta(path, values, changed)
    else:
        write_tensors(path, values, {deltas.FORMAT: json.dumps(changed)})
    with pytest.raises(UserError) as refused:
        predict.Predictor(**backbone).load(path)
    assert said in str(refused.value)


def test_metadata_that_are_no_json(tuned, backbone, tmp_path):
    path = os.path.join(tuned('afqmc')[1], 'weights', 'afqmc.weights')
    values, _ = deltas.read_delta(path)
    write_tensors(str(tmp_path / 'x.weights'), values, {deltas.FORMAT: '{"task": '})
    with pytest.raises(UserError, match='metadata: not JSON'):
        predict.Predictor(**backbone).load(str(tmp_path / 'x.weights'))


# ------------------------------------------------- whole models of the original, in HDF5


@pytest.fixture
def golden_backbone(golden, tmp_path):
    """A function that gives the paths of a golden backbone, with a vocabulary of its 120 tokens."""
    def paths(kind):
        vocab = tmp_path / 'vocab.txt'
        small.write_text(vocab, '\n'.join(SPECIAL_TOKENS + list('一二三四五六七八九十甲乙丙丁的是')) + '\n')
        here = os.path.join(golden, kind)
        return {'config_path': os.path.join(here, 'bert_config.json'), 'dict_path': str(vocab),
                'checkpoint_path': os.path.join(here, 'bert_model.ckpt')}
    return paths


@pytest.mark.parametrize('kind', ['bert', 'nezha', 'roformer'])
@pytest.mark.parametrize('case', ['fl', 'pt'])
def test_files_of_the_original(kind, case, golden, golden_backbone, clear_session):
    numbers = np.load(os.path.join(golden, kind, 'golden.npz'))
    predictor = predict.Predictor(**golden_backbone(kind))
    model = predictor.load(os.path.join(golden, kind, case + '.weights'), 'cmnli')
    found = model.outputs([numbers['token_ids'], numbers['segment_ids']])
    np.testing.assert_allclose(found, numbers[case + '/probs_of_saved_weights'], atol=1e-5)


def test_files_of_the_original_with_a_head_of_another_name(golden, golden_backbone, tmp_path,
                                                           clear_session):
    """Keras numbered the original's heads: dense_25 and the like."""
    import h5py
    path = str(tmp_path / 'renamed.weights')
    shutil.copy(os.path.join(golden, 'bert', 'fl.weights'), path)
    os.chmod(path, 0o644)
    with h5py.File(path, 'r+') as file:
        file.move('head', 'dense_25')
        names = [b'dense_25' if name in (b'head', 'head') else name
                 for name in file.attrs['layer_names']]
        file.attrs['layer_names'] = names
    numbers = np.load(os.path.join(golden, 'bert', 'golden.npz'))
    model = predict.Predictor(**golden_backbone('bert')).load(path, 'cmnli')
    found = model.outputs([numbers['token_ids'], numbers['segment_ids']])
    np.testing.assert_allclose(found, numbers['fl/probs_of_saved_weights'], atol=1e-5)


@pytest.mark.parametrize('task, kind, said', [
    ('afqmc', 'bert', 'head/0/kernel has shape (48, 3), here it is (48, 2)'),
    ('cmnli', 'nezha', ''), (None, 'bert', 'name it')])
def test_files_of_the_original_that_do_not_fit(task, kind, said, golden, golden_backbone,
                                               clear_session):
    path = os.path.join(golden, 'bert', 'fl.weights')
    with pytest.raises(UserError) as refused:
        predict.Predictor(**golden_backbone(kind)).load(path, task)
    assert path in str(refused.value) and said in str(refused.value)


def test_a_folder_is_enough(tuned, backbone, clear_session):
    predictor = predict.Predictor(os.path.dirname(backbone['config_path']))
    path = os.path.join(tuned('afqmc')[1], 'weights', 'afqmc.weights')
    assert predictor.load(path).predict([{'sentence1': '她', 'sentence2': '她'}])[0]['id'] == 0
    assert deltas.read_delta(path)[1]['backbone_sha256'] == predictor.sha256
