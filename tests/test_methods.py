"""Ways of tuning by name: against closed forms, bert4keras's own model and peft, and through a run."""
import json
import os

from fltuning import compat  # before bert4keras
import bert4keras.models
import numpy as np
import pytest
import tensorflow as tf

import backbones
import small
import test_export
import test_models
import train
from afqmc import AFQMC
from fltuning import checkpoints, deltas, hf_weights, methods, weights
from fltuning.compat import K, keras
from fltuning.errors import UserError
from models import PtuningV2AddFNNPtuning, build_transformer_model
from predict import Predictor
from test_models import KINDS, PATHS
from tools import export

pytestmark = pytest.mark.usefixtures('clear_session')

OTHERS = [name for name in methods.METHODS if name not in methods.BY_SIZES]
SIZE = 3


def build(paths, kind, method, path='padded', layers=None, **options):
    transformer = build_transformer_model(
        paths.config_path, paths.checkpoint_path, model=PtuningV2AddFNNPtuning, backbone=kind,
        return_keras_model=False, method=method, layers_to_transform=layers,
        size=SIZE if methods.METHODS[method].unit else None, **dict(PATHS[path], **options))
    transformer.freeze()
    return transformer


def randomize(model, values=None):
    """Values of order one into all that is trained, near what it was, or those given; {name: array}."""
    random, pairs = np.random.RandomState(4), weights.named_weights(model)
    values = values or {name: value + random.normal(0, 0.3, value.shape).astype('float32')
                        for name, value in weights.get_values(pairs).items()}
    weights.set_values(pairs, values)
    return values


def outputs_and_gradients(model, inputs, loss):
    """(outputs, {name: gradient}) of loss(outputs), a tensor, by all that is trained; no dropout."""
    names, variables = zip(*weights.named_weights(model))
    if compat.TF2:
        with tf.GradientTape() as tape:
            outputs = model([tf.constant(x) for x in inputs], training=False)
            total = loss(outputs)
        values = [outputs] + [tf.convert_to_tensor(x) for x in tape.gradient(total, variables)]
        values = [value.numpy() for value in values]
    else:
        gradients = [tf.convert_to_tensor(x) for x in K.gradients(loss(model.output), variables)]
        values = K.function(model.inputs + [K.learning_phase()], [model.output] + gradients)(list(inputs) + [0])
    return values[0], dict(zip(names, values[1:]))


def a_loss(labels):
    return lambda outputs: K.mean(keras.losses.sparse_categorical_crossentropy(K.constant(labels), outputs))


def weighted(factors):
    return lambda outputs: K.sum(outputs * K.constant(factors))


@pytest.fixture(scope='module')
def batch():
    ids = np.random.RandomState(0).randint(1, 30, (4, 17))
    for row, length in enumerate((17, 11, 5, 14)):
        ids[row, length:] = 0
    return [ids, np.zeros_like(ids)], np.array([[0], [1], [2], [1]])


# ------------------------------------------------------------------ what is computed


@pytest.mark.costly
@pytest.mark.parametrize('kind, method', [(kind, method) for kind in KINDS for method in (
    'prompt_tuning', 'lora', 'ia3')] + [('roberta', 'ptuning')])
def test_packed_is_padded(kind, method, batch, tmp_path):
    """Outputs and gradients; and as many numbers are trained as the closed form says. (The other methods
    are compared with bert4keras's model, which is padded.)"""
    paths, found, values = backbones.write_backbone(tmp_path, kind, num_hidden_layers=2), [], None
    config = checkpoints.read_config(paths.config_path)
    for path in ('padded', 'first'):
        K.clear_session()
        transformer = build(paths, kind, method, path)
        model = test_models.with_head(transformer)
        values = randomize(model, values)
        assert sum(value.size for name, value in values.items()
                   if not name.startswith('head/')) == methods.trained_parameters(
            method, SIZE, config, kind)
        found.append(outputs_and_gradients(model, batch[0], a_loss(batch[1])))
    for outputs, gradients in found[1:]:
        np.testing.assert_allclose(outputs, found[0][0], atol=2e-6)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, found[0][1][name], atol=3e-6, err_msg=name)
        assert all(np.abs(gradient).max() > 1e-6 for gradient in gradients.values())


@pytest.mark.parametrize('path', ['padded', 'packed'])
@pytest.mark.parametrize('kind, method', [(kind, 'prompt_tuning') for kind in KINDS] + [
    ('roberta', 'lora'), ('roformer', 'ia3')])
def test_one_layer_in_numpy(kind, method, path, tmp_path):
    """Prompts as tokens in front of [CLS], at whose places the position table has zeros; W + A B; W * l."""
    backbone = backbones.write_backbone(tmp_path, kind)
    transformer = build(backbone, kind, method, path)
    values = randomize(transformer.model)
    ids, segments = test_models.a_batch()
    hidden = test_models.call_model(transformer.model, [ids, segments])
    variables, layer, drop = dict(backbone.variables), 'bert/encoder/layer_0/', 0
    real = ids > 0
    if method == 'prompt_tuning':
        table, drop = variables['bert/embeddings/word_embeddings'], SIZE
        prompts = values['Input-Prompts/0/prompt_embedding'] - variables[
            'bert/embeddings/token_type_embeddings'][0]
        variables['bert/embeddings/word_embeddings'] = np.concatenate([table, prompts])
        if kind == 'roberta':
            positions = variables['bert/embeddings/position_embeddings']
            variables['bert/embeddings/position_embeddings'] = np.pad(positions, [[SIZE, 0], [0, 0]], 'constant')
        front = np.tile(len(table) + np.arange(SIZE), (len(ids), 1))
        ids = np.concatenate([front, ids], 1)
        segments = np.concatenate([0 * front, segments], 1)
    name = 'Transformer-0-MultiHeadSelfAttention-%s-%s/%d/%s'
    if method == 'lora':
        for part in ('Query', 'Value'):
            variables[layer + 'attention/self/%s/kernel' % part.lower()] = (
                variables[layer + 'attention/self/%s/kernel' % part.lower()]
                + values[name % (part, 'LoRA', 0, 'down')].dot(values[name % (part, 'LoRA', 1, 'up')]))
    if method == 'ia3':
        for part in ('Key', 'Value'):
            for weight in ('kernel', 'bias'):
                variable = layer + 'attention/self/%s/%s' % (part.lower(), weight)
                variables[variable] = variables[variable] * values[name % (part, 'IA3', 0, 'scale')]
        scale = values['Transformer-0-FeedForward-Inner-IA3/0/scale']
        variables[layer + 'output/dense/kernel'] = variables[layer + 'output/dense/kernel'] * scale[:, None]
    seen = ids > 0
    expected = test_models.model_in_numpy(
        kind, variables, {}, ids, segments, np.repeat(seen[:, None], seen.shape[1], 1))[:, drop:]
    test_models.close(hidden[real], expected[real])


@pytest.mark.costly
@pytest.mark.parametrize('kind', KINDS)
def test_biases_and_all_weights_learn_as_in_bert4keras(kind, batch, tmp_path):
    """The gradients of its own model, nothing of which is frozen, on the same batch."""
    paths = backbones.write_backbone(tmp_path, kind, num_hidden_layers=2)
    model = bert4keras.models.build_transformer_model(
        paths.config_path, paths.checkpoint_path, model={'roberta': 'bert'}.get(kind, kind))
    first = keras.layers.Lambda(lambda x: x[:, 0])(model.output)
    model = keras.models.Model(model.inputs, keras.layers.Dense(3, activation='softmax', name='head')(first))
    head = [np.random.RandomState(5).normal(0, 1, shape) for shape in ((16, 3), (3,))]
    model.get_layer('head').set_weights(head)
    outputs, expected = outputs_and_gradients(model, batch[0], a_loss(batch[1]))
    config = checkpoints.read_config(paths.config_path)
    assert methods.backbone_parameters(config, kind) == weights.count(model.trainable_weights) - 16 * 3 - 3
    parts = dict(zip(('Query', 'Key', 'Value'), (1, 3, 5)))
    for method in ('finetune', 'bitfit'):
        K.clear_session()
        model = test_models.with_head(build(paths, kind, method, 'first'))
        model.get_layer('head').set_weights(head)
        ours, found = outputs_and_gradients(model, batch[0], a_loss(batch[1]))
        np.testing.assert_allclose(ours, outputs, atol=1e-6)
        assert methods.trained_parameters(method, None, config, kind) == weights.count(
            model.trainable_weights) - 16 * 3 - 3
        if method == 'finetune':
            assert sorted(found) == sorted(expected)
        compared = set()
        for name, gradient in found.items():
            theirs = name
            if name.split('/')[0].endswith('-Bias'):
                layer, part = name.split('/')[0][:-len('-Bias')].rsplit('-', 1)
                place = parts.get(part, 1 if part == 'Inner' else None)
                if place is None:  # of the layer's output: its last bias, a norm's beta comes first
                    layer, place = layer + '-' + part, {'Norm': 0, 'FeedForward': 3}.get(part, 7)
                theirs = '%s/%d/%s' % (layer, place, 'beta' if 'Norm' in part else 'bias')
            np.testing.assert_allclose(gradient, expected[theirs], atol=2e-6, err_msg=name)
            compared.add(theirs)
        assert compared == {name for name in expected if method == 'finetune'
                            or name.endswith(('/bias', '/beta')) or name.startswith('head')}


@pytest.mark.costly
def test_a_part_of_the_layers(tmp_path):
    """Those that are named, and no embedding; at the input there are no layers."""
    paths = backbones.write_backbone(tmp_path, 'roberta', num_hidden_layers=2)
    config = checkpoints.read_config(paths.config_path)
    for method in ('bitfit', 'finetune'):
        K.clear_session()
        model = build(paths, 'roberta', method, layers=[1]).model
        names = {name for name, _ in weights.named_weights(model)}
        assert names and all(name.startswith('Transformer-1-') for name in names)
        assert weights.count(w for _, w in weights.named_weights(model)) == methods.trained_parameters(
            method, SIZE, config, 'roberta', [1])


# ------------------------------------------------------------------ sizes and flags


BASE = dict(vocab_size=21128, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
            intermediate_size=3072, max_position_embeddings=512, type_vocab_size=2)


@pytest.mark.parametrize('method, size', [('fl', 165), ('ptuning_v2', 165), ('both', 83), ('lora', 83)])
def test_three_percent_of_a_backbone_of_base_size(method, size):
    """101.7 million parameters, 12 layers of 768: worked out by hand."""
    assert methods.size_of_share(method, 3.0, BASE, 'roberta') == size
    share = methods.trained_parameters(method, size, BASE, 'roberta') / 101677056.0
    assert abs(share - 0.03) < 2e-4


def test_the_table_of_the_documentation(root):
    """Parameters and rates that it says are those of the program."""
    text = small.read_text(os.path.join(root, 'docs', 'methods.md'))
    for name, about in methods.METHODS.items():
        size = methods.resolve(name, None, None, None, BASE, 'roberta')
        size = methods.size_of(name, *[size[key] for key in ('size', 'prompt_size', 'ffn_prompt_size')])
        row, timed = [[cell.strip() for cell in line.strip('|').split('|')]
                      for line in text.splitlines() if line.startswith('| `%s` |' % name)]
        assert row[2] == timed[1] == (str(size) if size else '')
        assert row[3] == format(methods.trained_parameters(name, size, BASE, 'roberta'), ',')
        assert float(row[4]) == about.rate if about.rate else row[4] == "the task's"


def parse(text):
    return train.parse_flags(AFQMC, text.split())


@pytest.mark.parametrize('flags, said', [
    ('--method lora --ffn_prompt_size 16', '--ffn_prompt_size: not with --method lora, whose size is --size'),
    ('--method head --prompt_size 1', '--prompt_size: not with --method head, which has no size'),
    ('--method ia3 --size 4', '--size: ia3 has no size'), ('--method finetune --share 5', '--share: finetune'),
    ('--size 4', '--size: expected --method'), ('--share 4', '--share: expected --method'),
    ('--method fl --size 4 --share 4', '--share: not with --size'), ('--method lora --size 0', 'from 1'),
    ('--method lora --share 0', 'above 0'), ('--method lora --share 101', 'up to 100'),
    ('--method adapters', "invalid choice: 'adapters'"), ('--method ptuning --share 3', 'takes --size')])
def test_what_contradicts_itself_is_refused(flags, said):
    with pytest.raises(UserError) as refused:
        parse(flags)
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_method_has_a_rate_of_its_own():
    assert parse('').learning_rate == parse('--method fl').learning_rate == AFQMC.learning_rate
    assert parse('--method lora').learning_rate == methods.METHODS['lora'].rate != AFQMC.learning_rate
    assert parse('--method lora --learning_rate 0.5').learning_rate == 0.5


def test_a_method_is_a_name_for_the_two_sizes():
    for name, sizes in [('fl', (0, 7)), ('ptuning_v2', (7, 0)), ('both', (7, 7)), ('head', (0, 0))]:
        found = methods.resolve(name, 7, None, None, BASE, 'roberta')
        assert (found['prompt_size'], found['ffn_prompt_size']) == sizes
        assert found['method'] is found['size'] is None
        assert methods.name_of(None, *sizes) == name
    with pytest.raises(UserError, match='layers_to_transform: ptuning'):
        methods.resolve('ptuning', 7, None, [0], BASE, 'roberta')


# ------------------------------------------------------------------ through a run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """(flags of a run, {method: (folder of its output, its record)}), of a backbone with dropout."""
    folder = tmp_path_factory.mktemp('methods')
    small.write_task(folder, 'afqmc', train=14)
    flags = dict(small.write_backbone(folder / 'backbone'), data_path=folder, epochs=2, batch_size=8,
                 learning_rate=0.01)
    made = {}
    for name in ['finetune'] + OTHERS[:-1] + ['fl']:
        K.clear_session()
        sizes = {'size': SIZE} if methods.METHODS[name].unit else {}
        out = folder / name
        made[name] = out, train.run(AFQMC, small.flags(dict(flags, output_dir=out, method=name, **sizes)))
    return flags, made


def paths_of(flags):
    return {name: flags[name] for name in ('config_path', 'checkpoint_path', 'dict_path')}


def delta_of(out):
    return str(out / 'weights' / 'afqmc.weights')


@pytest.mark.costly
def test_records_and_deltas_say_the_method(runs):
    flags, made = runs
    config = checkpoints.read_config(flags['config_path'])
    for name, (out, record) in made.items():
        belongs_to = deltas.read_delta(delta_of(out))[1]
        size = SIZE if methods.METHODS[name].unit else None
        assert (record['method'], record['size']) == (name, size)
        assert belongs_to['method'] == methods.METHODS[name].title
        assert methods.of_delta('', belongs_to) == ((None, None) if name == 'fl' else (name, size))
        trained = record['parameters']['trained']
        if name == 'finetune':  # of the tokens that a task keeps
            assert trained == record['parameters']['all']
        else:
            assert trained == 16 * 2 + 2 + methods.trained_parameters(name, size, config, 'roberta')
        assert any(epoch['loss'] for epoch in record['history'])


@pytest.mark.costly
def test_one_predictor_holds_all(runs):
    """In any order: what is predicted is what the run predicted of its test file, and all differ."""
    flags, made = runs
    K.clear_session()
    predictor = Predictor(**paths_of(flags))
    records = small.read_lines(os.path.join(str(flags['data_path']), 'afqmc', 'test.json'))
    models = {name: predictor.load(delta_of(out)) for name, (out, _) in made.items()}
    found = {}
    for name in list(models) + list(models)[::-1]:
        lines = models[name].predict(records)
        submitted = small.read_lines(made[name][0] / 'results' / 'afqmc_predict.json')
        assert [line['label'] for line in lines] == [line['label'] for line in submitted]
        probabilities = [line['probabilities']['1'] for line in lines]
        assert found.setdefault(name, probabilities) == probabilities
    assert len({tuple(np.round(values, 6)) for values in found.values()}) == len(made)
    shared = [models[name].shared.transformer.layers['Transformer-0-FeedForward'] for name in made]
    assert shared[0] is not shared[1] and len({id(layer) for layer in shared[1:]}) == 1


@pytest.mark.costly
def test_a_stopped_run_goes_on(runs, tmp_path):
    """To the same bits; a state of another method is refused."""
    (flags, made), method = runs, 'finetune'
    K.clear_session()
    flags = dict(flags, output_dir=tmp_path)
    real = train.Run.save_state

    def stop(self, *args):
        real(self, *args)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Run, 'save_state', stop)
        with pytest.raises(KeyboardInterrupt):
            train.run(AFQMC, small.flags(dict(flags, method=method)))
    K.clear_session()
    with pytest.raises(UserError, match='method is "%s"' % method):
        train.run(AFQMC, small.flags(dict(flags, method='ia3')) + ['--resume'])
    K.clear_session()
    train.run(AFQMC, small.flags(dict(flags, method=method)) + ['--resume'])
    ours, theirs = [deltas.read_delta(delta_of(out))[0] for out in (tmp_path, made[method][0])]
    assert sorted(ours) == sorted(theirs)
    assert all(value.tobytes() == theirs[name].tobytes() for name, value in ours.items())


@pytest.mark.costly
@pytest.mark.parametrize('method', ['lora', 'ia3', 'bitfit', 'finetune'])
def test_merged_in_plain_bert4keras(method, runs, tmp_path):
    flags, made = runs
    paths, delta = paths_of(flags), str(tmp_path / 'afqmc.weights')
    values, belongs_to = deltas.read_delta(delta_of(made[method][0]))
    random = np.random.RandomState(0)  # far from what was trained in a few steps
    values = {name: value + random.normal(0, 0.3, value.shape).astype('float32') for name, value in values.items()}
    deltas.save_delta(delta, values, belongs_to)
    records = small.read_lines(os.path.join(str(flags['data_path']), 'afqmc', 'test.json'))
    expected = test_export.probabilities(paths, delta, records)
    test_export.run_export('checkpoint', paths, delta, tmp_path / 'out')
    plain = bert4keras.models.build_transformer_model(
        str(tmp_path / 'out' / 'bert_config.json'), str(tmp_path / 'out' / 'bert_model.ckpt'))
    ids = test_export.padded_ids(paths, records)
    hidden = plain.predict([ids, np.zeros_like(ids)])
    found = test_export.softmax(hidden[:, 0].dot(values['head/0/kernel']) + values['head/1/bias'])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected[:, 0]) > 1e-3


@pytest.mark.parametrize('method, target', [('prompt_tuning', 'transformers'), ('ptuning', 'checkpoint')])
def test_input_prompts_are_part_of_no_layer(target, method, runs, tmp_path):
    flags, made = runs
    K.clear_session()
    with pytest.raises(UserError) as refused:
        export.run(['afqmc', '--to', target, '--weights', delta_of(made[method][0]),
                    '--output', str(tmp_path / 'out')] + small.flags(paths_of(flags)))
    assert 'size 3: trained input prompts' in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1 and os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('change, said', [
    (dict(size=4), 'size is 4, the tensors are of 3'), (dict(size='3'), 'field "size": expected a whole number'),
    (dict(method='adapters'), 'field "method": expected one of'),
    (dict(method='P-Tuning'), 'size is 3, the tensors are of none')])
def test_a_delta_that_says_another_size_is_refused(change, said, runs, tmp_path):
    flags, made = runs
    values, belongs_to = deltas.read_delta(delta_of(made['lora'][0]))
    deltas.save_delta(str(tmp_path / 'delta'), values, dict(belongs_to, **change))
    K.clear_session()
    with pytest.raises(UserError) as refused:
        Predictor(**paths_of(flags)).load(str(tmp_path / 'delta'))
    assert said in str(refused.value)


# ------------------------------------------------------------------ against peft


def transposed(value):
    return value.T


def same(value):
    return value


def in_peft(kind, method, names):
    """{our name: (peft's names of the same, f(ours) -> theirs)} of adapters' weights."""
    found = {}
    layer = 'base_model.model.encoder.layer.%s.'
    for name in names:
        place, number = name.split('/')[:2]
        prefix = layer % place.split('-')[1] if place.startswith('Transformer') else ''
        if method == 'lora':
            part = 'attention.self.%s.lora_%s.default.weight' % (place.split('-')[-2].lower(), 'AB'[int(number)])
            found[name] = [prefix + part], transposed
        elif method == 'ia3':
            part = ('output.dense' if 'Inner' in place else 'attention.self.' + place.split('-')[-2].lower())
            found[name] = [prefix + part + '.ia3_l.default'], same
        elif number == '0':
            found[name] = ['prompt_encoder.default.embedding.weight'], same
        else:  # of two LSTMs, forward and backward, and of two dense layers
            i = int(number) - 1
            if i < 12:
                weight = ('weight_ih', 'weight_hh', 'bias_ih')[i % 3]
                ending = '_l%d%s' % (i // 6, '_reverse' * (i // 3 % 2))
                theirs = ['prompt_encoder.default.lstm_head.' + weight + ending]
                if weight == 'bias_ih':
                    theirs.append('prompt_encoder.default.lstm_head.bias_hh' + ending)
                found[name] = theirs, transposed
            else:
                part = '%d.%s' % (2 * ((i - 12) // 2), ('weight', 'bias')[i % 2])
                found[name] = ['prompt_encoder.default.mlp_head.' + part], transposed
    return found


def peft_settings(method, width):
    return {
        'lora': dict(r=SIZE, lora_alpha=SIZE, target_modules=['query', 'value']),
        'ia3': dict(target_modules=r'.*(self\.key|self\.value|\d\.output\.dense)',
                    feedforward_modules=r'.*\d\.output\.dense'),
        'prompt_tuning': dict(num_virtual_tokens=SIZE),
        'ptuning': dict(num_virtual_tokens=SIZE, encoder_reparameterization_type='LSTM',
                        encoder_hidden_size=width // 2, encoder_num_layers=methods.LSTM_LAYERS,
                        encoder_dropout=0.0)}[method]


CASES = [('roberta', 'lora'), ('roberta', 'ia3'), ('roberta', 'prompt_tuning'), ('roberta', 'ptuning'),
         ('nezha', 'prompt_tuning'), ('roformer', 'prompt_tuning'), ('roformer', 'lora')]


@pytest.mark.slow
def test_the_same_in_peft(batch, tmp_path, pytorch):
    """Hidden states and gradients, on the same weights. There, prompts are in front of the positions and have
    segment 0: a position table with zeros for them, and vectors from which the segment's is taken."""
    (ids, segments), _ = batch
    real = (ids > 0)[..., None]
    factors = (np.random.RandomState(6).normal(0, 1, ids.shape + (16,)) * real).astype('float32')
    ours, files = [], []
    for kind, method in CASES:
        folder = tmp_path / kind / method
        os.makedirs(str(folder))
        K.clear_session()
        backbone = backbones.write_backbone(folder, kind, num_hidden_layers=2)
        model = build(backbone, kind, method, 'packed').model
        values = randomize(model)
        hidden, gradients = outputs_and_gradients(model, [ids, segments], weighted(factors))
        names = in_peft(kind, method, values)
        segment = backbone.variables['bert/embeddings/token_type_embeddings'][0]
        prompts = method in methods.AT_INPUT
        arrays = {}
        for name, value in values.items():
            theirs, change = names[name]
            if method == 'prompt_tuning' or name == 'Input-Prompts/16/bias':
                value = value - segment
            for i, one in enumerate(theirs):
                arrays['adapter/' + one] = change(value) * (i == 0)  # one of the two biases
        variables = dict(backbone.variables)
        if prompts and kind == 'roberta':
            table = variables['bert/embeddings/position_embeddings']
            variables['bert/embeddings/position_embeddings'] = np.pad(table, [[SIZE, 0], [0, 0]], 'constant')
        for name, value in variables.items():
            if name.startswith('bert/') and 'pooler' not in name:
                there = hf_weights.huggingface_name(name).replace('bert.', '', 1)
                arrays['backbone/' + there] = hf_weights.transposed(name, value)
        config = checkpoints.read_config(backbone.config_path)
        config.update({'embedding_size': 16} if kind == 'roformer' else {},
                      max_position_embeddings=80 + SIZE if prompts and kind == 'roberta' else 80)
        files.append(str(folder / 'case.npz'))
        np.savez(files[-1], input_ids=ids, attention_mask=(ids > 0).astype('int64'), factors=factors,
                 about=json.dumps(dict(kind=kind, method=method, config=config, peft=peft_settings(method, 16))),
                 **arrays)
        ours.append((hidden, gradients, names))
    pytorch.run('adapted', *files)
    for case, file, (hidden, gradients, names) in zip(CASES, files, ours):
        theirs = np.load(file + '.out.npz')
        np.testing.assert_allclose(hidden * real, theirs['hidden'] * real, atol=1e-5, err_msg=str(case))
        for name, gradient in gradients.items():
            expected = theirs['gradient/' + names[name][0][0]]
            np.testing.assert_allclose(names[name][1](gradient).reshape(expected.shape), expected, rtol=1e-5,
                                       atol=1e-5, err_msg='%s %s' % (case, name))
        assert len(gradients) >= 1 and all(np.abs(value).max() > 1e-4 for value in gradients.values())


@pytest.mark.slow
def test_onnx_holds_prompts_that_were_encoded(runs, tmp_path):
    """What it computes with the vectors is what the model computes with their encoder."""
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('tf2onnx')
    flags, made = runs
    paths, delta = paths_of(flags), delta_of(made['ptuning'][0])
    records = small.read_lines(os.path.join(str(flags['data_path']), 'afqmc', 'test.json'))
    expected = test_export.probabilities(paths, delta, records)
    test_export.run_export('onnx', paths, delta, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / 'model.onnx'), providers=['CPUExecutionProvider'])
    found, = session.run(None, {'input_ids': test_export.padded_ids(paths, records).astype('int64')})
    np.testing.assert_allclose(found, expected, atol=1e-5)
