"""The bundled backbones: what they are made of, and that they know Chinese."""
import json
import os

import bert4keras.models
import numpy as np
import pytest
from bert4keras.tokenizers import load_vocab

from fltuning import checkpoints
from tools import pretrain, pretraining, pretraining_data
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer

KINDS = ['roberta', 'nezha', 'roformer']


@pytest.fixture(params=KINDS)
def bundled(request, root):
    """(kind, {setting: path}) of each."""
    return request.param, checkpoints.find_files(os.path.join(root, 'pretrained', request.param))


def test_what_they_are(bundled):
    kind, paths = bundled
    folder = os.path.dirname(paths['config_path'])
    assert sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) <= 20e6
    checkpoints.check_backbone(maxlen=512, **paths)
    assert checkpoints.detect_backbone(paths['config_path'], paths['checkpoint_path']) == kind
    config, tokens = checkpoints.read_config(paths['config_path']), list(load_vocab(paths['dict_path']))
    assert (config['num_hidden_layers'], config['hidden_size'], config['intermediate_size'],
            config['max_position_embeddings']) == (4, 256, 1024, 512)
    assert 5000 <= len(tokens) <= 7000 and set(SPECIAL_TOKENS) <= set(tokens)
    expected = checkpoints.variable_shapes(config, kind)
    found = checkpoints.list_variables(paths['checkpoint_path'])
    assert {name: tuple(found[name]) for name in expected if '/pooler/' not in name} == {
        name: shape for name, shape in expected.items() if '/pooler/' not in name}


def test_the_figures_that_are_told(bundled):
    """The README beside each gives the figures of its run."""
    kind, paths = bundled
    folder = os.path.dirname(paths['config_path'])
    with open(os.path.join(folder, 'pretrain.json'), encoding='utf-8') as reader:
        report = json.load(reader)
    with open(os.path.join(folder, 'README.md'), encoding='utf-8') as reader:
        text = reader.read()
    for value in (report['held_out']['accuracy'], report['baselines']['unigram'],
                  report['baselines']['bigram']):
        assert '%.1f %%' % (100 * value) in text


@pytest.mark.costly
def test_they_know_chinese(bundled, any_data, clear_session):
    """Masked tokens of dev sets, CLUE's or the sample's, by plain bert4keras's MLM head.

    They were not trained on those.
    """
    kind, paths = bundled
    tokens = load_vocab(paths['dict_path'])
    tokenizer = FastTokenizer(tokens)
    texts = []
    for task, field in (('tnews', 'sentence'), ('csl', 'abst'), ('afqmc', 'sentence1')):
        with open(os.path.join(any_data, task, 'dev.json'), encoding='utf-8') as reader:
            texts += [json.loads(next(reader))[field] for _ in range(60)]
    part = pretraining_data.encode(texts, tokenizer, whole_words=False)
    settings = pretrain.parse_flags(['--texts', 'x', '--output_dir', 'x', '--maxlen', '64'])
    corpus = pretraining_data.Corpus(part, part)
    evaluation = pretraining.Evaluation(corpus.held_out, tokenizer, len(tokens), settings)
    model = bert4keras.models.build_transformer_model(
        paths['config_path'], paths['checkpoint_path'], with_mlm='linear',
        model={'roberta': 'bert'}.get(kind, kind))

    def predict(inputs):
        logits = model.predict(inputs[:2])
        return logits.reshape(-1, logits.shape[-1])[inputs[2]]
    found = evaluation.measure(predict)
    # Against the commonest token of these very texts, always, and against equal chances.
    assert found['accuracy'] > 0.15 > 0.1 > evaluation.baselines(part, len(tokens))['unigram']
    assert found['loss'] < 5.5 < 8 < np.log(len(tokens))
