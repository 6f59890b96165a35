"""Pretraining: texts, masks, the MLM head, going on, and that it learns."""
import json
import lzma
import os
import sys
import types

import bert4keras.models
import numpy as np
import pytest

from fltuning import checkpoints
from fltuning import deltas
from fltuning import steps
from tools import pretrain, pretraining, pretraining_data, pretraining_model
import small
import train
from fltuning.compat import K
from fltuning.errors import UserError
from fltuning.tokenizer import SPECIAL_TOKENS, FastTokenizer

KINDS = ['roberta', 'nezha', 'roformer']
SIZES = dict(layers=1, hidden_size=16, heads=2, intermediate_size=32, max_position=40, vocab_size=300,
             maxlen=16, batch_size=4, steps=12, eval_every=3, save_every=3, held_out=5,
             learning_rate=0.01)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    """60 lines of Chinese with some Latin."""
    path = tmp_path_factory.mktemp('texts') / 'texts.txt'
    small.write_text(path, ''.join(
        '%s，word%d。%s\n\n' % (small.sentence(i % 20, 30), i % 3, small.sentence(i % 7, 12))
        for i in range(60)))
    return str(path)


def start(texts, out, *more, **changes):
    settings = pretrain.parse_flags(['--texts', texts, '--no_whole_words'] + small.flags(
        dict(SIZES, output_dir=out, **changes)) + list(more))
    os.makedirs(settings.output_dir, exist_ok=True)
    run = pretraining.Pretraining(settings)
    run.run()
    return run


@pytest.fixture
def no_curve(monkeypatch):
    monkeypatch.setattr(pretraining, 'draw', lambda *args: None)


# ------------------------------------------------------------------ texts and masks


def test_texts_of_files_and_folders(tmp_path):
    small.write_text(tmp_path / 'a.txt', '一\n\n二\n')
    with lzma.open(str(tmp_path / 'b.txt.xz'), 'wt', encoding='utf-8') as writer:
        writer.write('三\n四')
    small.write_text(tmp_path / 'vocab.txt', 'no text')
    (tmp_path / 'folder.txt').mkdir()
    assert list(pretraining_data.read_all([str(tmp_path)])) == [['一'], ['二'], ['三'], ['四']]
    for name in ('none.txt', 'empty'):
        (tmp_path / 'empty').mkdir(exist_ok=True)
        with pytest.raises(UserError) as refused:
            list(pretraining_data.read_all([str(tmp_path / name)]))
        assert name in str(refused.value)
    small.write_text(tmp_path / 'c.txt.xz', 'no xz')
    with pytest.raises(UserError):
        list(pretraining_data.read_all([str(tmp_path)]))


def test_no_text_is_held_out_that_is_trained_on_too(tmp_path, tokenizer):
    """Of csl most abstracts stand in several records."""
    lines = ['一丁丂七丄丅丆万丈三%s' % chr(0x4e10 + i) for i in range(20)]
    lines[4] = lines[1]
    small.write_text(tmp_path / 'x.txt', '\n'.join(lines))
    settings = pretrain.parse_flags(['--texts', str(tmp_path), '--output_dir', 'x', '--held_out', '5',
                                     '--no_whole_words'])
    corpus = pretraining_data.encode_corpus(settings, list(tokenizer._token_dict))
    held_out, trained = set(corpus.held_out[0]), set(corpus.train[0])
    ends = [tokenizer.token_to_id(line[-1]) for line in lines]
    assert [end in held_out for end in ends] == [i in (9, 14, 19) for i in range(20)]
    assert [end in trained for end in ends] == [i not in (9, 14, 19) for i in range(20)]


def test_a_large_vocabulary(tokenizer):
    """Of a multilingual backbone that is measured: ids past 65,535 are others' on NumPy 1, an error on 2."""
    tokens = list(tokenizer._token_dict)
    large = FastTokenizer({token: i for i, token in enumerate(
        tokens[:-20] + ['[unused%d]' % i for i in range(70000)] + tokens[-20:])})
    text = ''.join(token for token in tokens[-20:] if len(token) == 1)
    ids, _ = pretraining_data.encode([text], large, False)
    assert ids.tolist()[1:-1] == large.ids(text)[1:-1] and ids.max() > 2**16
    assert pretraining_data.encode([text], tokenizer, False)[0].dtype == 'uint16'


def test_the_vocabulary(texts):
    """What occurs at least five times, the commonest first, the same every time."""
    found = pretraining_data.make_vocab(['好的好 word 龘', '的好，Word', '好'] * 5, 300)
    start = len(SPECIAL_TOKENS) + 2 * 36
    assert found[:start - 72] == SPECIAL_TOKENS
    assert found[start:] == ['好', '的', '龘', '，', 'word']
    assert pretraining_data.make_vocab(['好的好', 'word'] * 9, 215)[start:] == ['好', '的', 'word']
    assert pretraining_data.make_vocab(['好的'] * 4, 300)[start:] == []
    lines = [line for line, in pretraining_data.read_all([texts])]
    assert pretraining_data.make_vocab(lines, 250) == pretraining_data.make_vocab(reversed(lines), 250)
    # 36 characters, so that with the first 176 tokens they are 85 %, and three words.
    assert len(pretraining_data.make_vocab(lines, 250)) == 176 + 36 + 3


def test_of_clue_only_train_files_are_read(tmp_path):
    for name in ('afqmc', 'c3', 'cmrc2018', 'cluener', 'wsc'):
        small.write_task(tmp_path, name)
        folder = tmp_path / name
        for file in os.listdir(str(folder)):
            if 'train' not in file:
                os.remove(str(folder / file))
    found = list(map(' '.join, pretraining_data.read_all([str(tmp_path)])))
    assert any('北京大学' in text for text in found) and any('男：' in text for text in found)
    assert len(found) > 20


@pytest.fixture
def tokenizer():
    tokens = SPECIAL_TOKENS + [chr(0x4e00 + i) for i in range(400)]
    return FastTokenizer({token: i for i, token in enumerate(tokens)})


def test_masks(tokenizer):
    """15 % of each row, in whole words; of those 80 % [MASK], 10 % others, 10 % as they were."""
    state = np.random.RandomState(3)
    ids = state.randint(104, 504, (200, 128)).astype('int32')
    ids[:, 0], ids[:, -1], ids[:, 50] = 2, 3, 3
    begins = state.rand(200, 128) < 0.6
    begins[:, [0, 1, 50, 51, 127]] = True
    kept = list(range(104))
    masked, places, labels = pretraining_data.mask_tokens(
        ids, begins, np.random.RandomState(0), tokenizer, 504, kept)
    assert (ids.reshape(-1)[places] == labels).all() and (labels >= 104).all()
    untouched = np.ones(ids.size, bool)
    untouched[places] = False
    assert (masked.reshape(-1)[untouched] == ids.reshape(-1)[untouched]).all()
    rows = np.bincount(places // 128, minlength=200)
    assert rows.min() >= 19 and rows.mean() < 20.5  # 15 % of 125 is 19
    words = np.cumsum(begins.reshape(-1))
    for word in set(words[places]):  # all of a word or nothing
        assert set(np.flatnonzero(words == word)) <= set(places)
    new = masked.reshape(-1)[places]
    shares = [(new == 4).mean(), ((new != 4) & (new != labels)).mean(), (new == labels).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)
    again = pretraining_data.mask_tokens(ids, begins, np.random.RandomState(1), tokenizer, 504, kept)[1]
    assert len(again) != len(places) or (again != places).any()


def test_an_epoch_goes_through_the_text_once(tokenizer):
    settings = pretrain.parse_flags(['--texts', 'x', '--output_dir', 'x', '--maxlen', '12',
                                     '--batch_size', '3'])
    ids = np.arange(1000, 1965).astype('uint16')
    sampler = pretraining_data.Sampler((ids, np.ones(965, bool)), tokenizer, 504, settings)
    orders = []
    for epoch in range(3):
        numbers = range(epoch * sampler.per_epoch, (epoch + 1) * sampler.per_epoch)
        places = sampler.places(numbers)
        rows, _ = pretraining_data.sequences(sampler.part, tokenizer, 12, places)
        assert (rows[:, 0] == 2).all() and (rows[:, -1] == 3).all()
        seen = np.sort(rows[:, 1:-1].reshape(-1))
        assert len(set(seen)) == len(seen) == sampler.per_epoch * 10 > 940
        orders.append(places)
    assert orders[0] != orders[1] != orders[2]
    again = pretraining_data.Sampler(sampler.part, tokenizer, 504, settings)
    for step in (40, 7):  # whatever was asked before
        for ours, theirs in zip(sampler.batch(step)[0], again.batch(step)[0]):
            assert (ours == theirs).all()


def test_sequences_grow(tokenizer):
    """From 16 tokens on, twice as long time and again, with as many tokens a batch."""
    settings = pretrain.parse_flags(['--texts', 'x', '--output_dir', 'x', '--maxlen', '64',
                                     '--batch_size', '3', '--length_warmup', '10'])
    ids = (104 + np.arange(4000) % 400).astype('uint16')
    sampler, again = [pretraining_data.Sampler((ids, np.ones(4000, bool)), tokenizer, 504, settings)
                      for _ in range(2)]
    batches = [sampler.batch(step)[0][0] for step in range(13)]
    assert [batch.shape for batch in batches] == [(12, 16)] * 5 + [(6, 32)] * 5 + [(3, 64)] * 3
    assert (batches[4][0] != batches[3][0]).any()
    for step in (12, 7, 1):
        assert (again.batch(step)[0][0] == batches[step]).all()
    settings.length_warmup = 0
    assert sampler.batch(0)[0][0].shape == (3, 64)


def test_evaluation_hides_every_answer(tokenizer):
    """15 % of the tokens, at the places that training's masks would take, all of them [MASK]."""
    part = 104 + np.arange(4000, dtype='uint16') % 400, np.ones(4000, bool)
    settings = pretrain.parse_flags(['--texts', 'x', '--output_dir', 'x', '--maxlen', '34'])
    evaluation = pretraining.Evaluation(part, tokenizer, 504, settings)
    chosen = 0
    for ((masked, _, places), labels), before in zip(evaluation.batches, evaluation.before):
        assert (masked.reshape(-1)[places] == 4).all() and (masked == 4).sum() == len(places)
        follows = before >= 104  # not [CLS]
        assert (labels[follows] == 104 + (before[follows] - 103) % 400).all() and follows.any()
        chosen += len(places)
    assert 0.14 < chosen / 4000 < 0.17


def test_baselines(tokenizer):
    """Of a text where b follows a: known by the token before, not without."""
    text = np.array([104, 105, 106] * 300 + [105] * 10, 'uint16')
    settings = pretrain.parse_flags(['--texts', 'x', '--output_dir', 'x', '--maxlen', '32'])
    part = text, np.ones(len(text), bool)
    evaluation = pretraining.Evaluation(part, tokenizer, 504, settings)
    found = evaluation.baselines(part, 504)
    assert 0.2 < found['unigram'] < 0.5 < 0.9 < found['bigram'] < 0.999


# ------------------------------------------------------------------ the model


@pytest.mark.costly
@pytest.mark.parametrize('kind', KINDS)
def test_logits_are_those_of_plain_bert4keras(kind, texts, tmp_path, no_curve, clear_session):
    """What it writes, loaded by bert4keras with its MLM head at all positions."""
    run = start(texts, tmp_path, backbone=kind)
    inputs, _ = run.sampler.batch(0)
    found = run.predict(inputs)
    K.clear_session()
    plain = bert4keras.models.build_transformer_model(
        str(tmp_path / 'bert_config.json'), str(tmp_path / 'bert_model.ckpt'),
        model={'roberta': 'bert'}.get(kind, kind), with_mlm='linear')
    expected = plain.predict(inputs[:2])
    expected = expected.reshape(-1, expected.shape[-1])[inputs[2]]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize('kind', KINDS[:1] + [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:]])
def test_a_finished_backbone_is_measured(kind, texts, tmp_path, no_curve, capsys, clear_session):
    """As at the end of its pretraining, to the digit; without that run's files but the backbone."""
    start(texts, tmp_path / 'out', backbone=kind)
    held_out = small.read_json(tmp_path / 'out', 'pretrain.json')['held_out']
    for name in ('corpus.npz', 'pretrain.state', 'pretrain.json'):
        os.remove(str(tmp_path / 'out' / name))
    before = sorted(os.listdir(str(tmp_path / 'out')))
    flags = ['--texts', texts, '--no_whole_words', '--evaluate', str(tmp_path / 'out'), '--maxlen', '16',
             '--held_out']
    capsys.readouterr()
    pretrain.run(flags + ['5'])
    assert 'loss %(loss).4f, accuracy %(accuracy).4f' % held_out in capsys.readouterr().out
    pretrain.run(flags + ['1'])  # of all texts
    assert 'masked tokens' in capsys.readouterr().out
    assert sorted(os.listdir(str(tmp_path / 'out'))) == before
    with pytest.raises(UserError) as refused:
        pretrain.run(flags + ['61'])  # none
    assert 'less than a sequence of 16 tokens' in str(refused.value)


def test_what_has_no_mlm_head_cannot_be_measured(texts, tmp_path, clear_session):
    small.write_backbone(tmp_path)
    names = checkpoints.read_variables(str(tmp_path / 'bert_model.ckpt'))
    checkpoints.write_checkpoint(str(tmp_path / 'bert_model.ckpt'), {
        name: value for name, value in names.items() if not name.startswith('cls/')})
    with pytest.raises(UserError) as refused:
        pretrain.run(['--texts', texts, '--no_whole_words', '--evaluate', str(tmp_path), '--maxlen', '16',
                      '--held_out', '1'])
    assert 'no MLM head' in str(refused.value)


@pytest.mark.costly
def test_its_backbone_can_be_tuned_and_pretrained_further(texts, tmp_path, no_curve, clear_session):
    start(texts, tmp_path / 'first')
    small.write_task(tmp_path, 'afqmc')
    from afqmc import AFQMC
    record = train.run(AFQMC, small.flags(dict(
        config_path=tmp_path / 'first', data_path=tmp_path, output_dir=tmp_path, epochs=1, maxlen=40)))
    assert record['backbone_kind'] == 'roberta'
    further = start(texts, tmp_path / 'second', init_checkpoint=tmp_path / 'first', steps=3)
    first, _ = deltas.read_delta(str(tmp_path / 'first' / 'pretrain.state'), pretraining.STATE)
    name = 'Transformer-0-FeedForward/0'
    with further.graph.use():
        value = K.get_value(dict(further.state())[name])
    assert 0 < np.abs(value - first[name]).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize('kinds', [('roformer', 'roberta'), ('roberta', 'nezha'), ('nezha', 'roformer')])
def test_a_backbone_of_another_kind(kinds, texts, tmp_path, capsys, no_curve, clear_session):
    """What both kinds have goes on from its values; positions, which RoBERTa alone has, start anew."""
    start(texts, tmp_path / 'first', backbone=kinds[0])
    capsys.readouterr()
    start(texts, tmp_path / 'second', backbone=kinds[1], init_checkpoint=tmp_path / 'first', steps=3)
    assert ('starting anew: Embedding-Position\n' in capsys.readouterr().out) == (kinds[1] == 'roberta')
    files = [checkpoints.find_files(str(tmp_path / name)) for name in ('first', 'second')]
    assert [checkpoints.detect_backbone(file['config_path'], file['checkpoint_path'])
            for file in files] == list(kinds)
    first, second = [checkpoints.read_variables(file['checkpoint_path']) for file in files]
    assert len(set(first) ^ set(second)) == ('roberta' in kinds)
    for name in set(first) & set(second):
        assert np.abs(first[name] - second[name]).max() < 0.05, name


def test_positions_begin_as_sinusoids():
    found = pretraining_model.sinusoids(50, 8)
    angles = np.arange(50)[:, None] / 10000 ** (np.array([0, 2, 4, 6]) / 8)
    np.testing.assert_allclose(found[:, ::2], np.sin(angles))
    np.testing.assert_allclose(found[:, 1::2], np.cos(angles))


# ------------------------------------------------------------------ going on, learning


class Stop(Exception):
    pass


@pytest.mark.parametrize('stops', [(2,), pytest.param((4, 8), marks=pytest.mark.slow)])
def test_stopped_and_resumed(stops, texts, tmp_path, monkeypatch, no_curve, clear_session):
    start(texts, tmp_path / 'whole', grad_accum_steps=2)
    original = steps.train_function
    for stop in stops:
        def train_function(*args):
            step, count = original(*args), []

            def stopping(*batch):
                count.append(1)
                if len(count) > stop:
                    raise Stop
                return step(*batch)
            return stopping
        monkeypatch.setattr(steps, 'train_function', train_function)
        with pytest.raises(Stop):
            start(texts, tmp_path / 'parts', '--resume', grad_accum_steps=2)
    monkeypatch.setattr(steps, 'train_function', original)
    start(texts, tmp_path / 'parts', '--resume', grad_accum_steps=2)
    (ours, notes), (theirs, their_notes) = [
        deltas.read_delta(str(tmp_path / name / 'pretrain.state'), pretraining.STATE)
        for name in ('parts', 'whole')]
    assert sorted(ours) == sorted(theirs) and len(ours) > 20
    for name, value in ours.items():
        assert value.tobytes() == theirs[name].tobytes(), name
    losses = [[(n['train_loss'], n['loss'], n['accuracy']) for n in found['history']]
              for found in (notes, their_notes)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


@pytest.mark.costly
def test_the_last_group_makes_an_update_of_what_it_has(texts, tmp_path, no_curve, clear_session):
    """Of 7 batches with 4 to accumulate: two updates, the second of three."""
    start(texts, tmp_path, steps=7, grad_accum_steps=4)
    values, _ = deltas.read_delta(str(tmp_path / 'pretrain.state'), pretraining.STATE)
    sums = [value for name, value in values.items() if name.endswith('/gradient_sum')]
    assert sums and not any(value.any() for value in sums)
    first = {name: value for name, value in values.items() if name.endswith('/m')}
    start(texts, tmp_path / 'four', steps=4, grad_accum_steps=4)
    values, _ = deltas.read_delta(str(tmp_path / 'four' / 'pretrain.state'), pretraining.STATE)
    assert all(value.any() for name, value in first.items() if 'embedding' not in name.lower())
    assert any((value != values[name]).any() for name, value in first.items())


@pytest.mark.slow
def test_refused_and_nothing_lost(texts, tmp_path, no_curve, clear_session):
    """Each in one line; what an earlier run left stays as it is."""
    start(texts, tmp_path / 'out')
    start(texts, tmp_path / 'other', vocab_size=200, max_position=20)
    start(texts, tmp_path / 'heads', init_checkpoint=tmp_path / 'out')
    config = dict(small.read_json(tmp_path / 'heads' / 'bert_config.json'), num_attention_heads=1)
    small.write_text(tmp_path / 'heads' / 'bert_config.json', json.dumps(config))
    more = tmp_path / 'more.txt'
    small.write_text(more, '另外的文本\n' * 20)
    start(texts, tmp_path / 'unmasked')
    vocab = tmp_path / 'unmasked' / 'vocab.txt'
    small.write_text(vocab, vocab.read_text('utf-8').replace('[MASK]', 'mask'))

    def contents():
        return {name: open(str(tmp_path / 'out' / name), 'rb').read()
                for name in os.listdir(str(tmp_path / 'out'))}
    before = contents()
    for expected, arguments, changes in [
            ('there is a backbone already', [], {}),
            ('there is a backbone already', [], {'init_checkpoint': tmp_path / 'other'}),
            ('seed is 42, here it is 1', ['--resume'], {'seed': 1}),
            ('layers is 1, here it is 2', ['--resume'], {'layers': 2}),
            ('num_attention_heads is 2, here it is 1', ['--resume'], {'init_checkpoint': tmp_path / 'heads'}),
            ('no token [MASK]', ['--resume'], {'init_checkpoint': tmp_path / 'unmasked'}),
            ('backbone is "roberta", here it is "nezha"', ['--resume'], {'backbone': 'nezha'}),
            ('corpus.npz: made of', ['--resume'], {'vocab_size': 200}),
            ('corpus.npz: made of', ['--resume'], {'texts': more}),
            ('another vocabulary', ['--resume'], {'init_checkpoint': tmp_path / 'other'}),
            ('no such file', ['--resume'], {'init_checkpoint': tmp_path / 'nope'})]:
        with pytest.raises(UserError) as refused:
            start(str(changes.pop('texts', texts)), tmp_path / 'out', *arguments, **changes)
        assert expected in str(refused.value)
        assert contents() == before
    for left in (500, 0):
        with open(str(tmp_path / 'out' / 'corpus.npz'), 'wb') as writer:
            writer.write(before['corpus.npz'][:left])
        with pytest.raises(UserError) as refused:
            start(texts, tmp_path / 'out', '--resume')
        assert 'corpus.npz: damaged' in str(refused.value)
    os.remove(str(tmp_path / 'out' / 'corpus.npz'))
    with pytest.raises(UserError) as refused:
        start(str(more), tmp_path / 'out', '--resume')
    assert 'corpus is' in str(refused.value)


@pytest.mark.parametrize('expected,changes', [
    ('maxlen', {'maxlen': 7}), ('maxlen 41: the backbone has 40', {'maxlen': 41}),
    ('hidden_size 18: expected a multiple', {'hidden_size': 18, 'heads': 6, 'backbone': 'roformer'}),
    ('save_every 4: expected a multiple', {'save_every': 4}), ('dropout', {'dropout': 1}),
    ('fewer than one sequence', {'maxlen': 40, 'held_out': 1})])
def test_bad_flags(expected, changes, texts, tmp_path, no_curve):
    with pytest.raises(UserError) as refused:
        start(texts, tmp_path, **changes)
    assert expected in str(refused.value)


@pytest.mark.parametrize('name', ['matplotlib', 'jieba'])
def test_what_is_not_installed_is_said_at_once(name, tmp_path, monkeypatch):
    for module in ('matplotlib', 'jieba'):
        monkeypatch.setitem(sys.modules, module, None if module == name else types.ModuleType(module))
    with pytest.raises(UserError) as refused:
        pretrain.run(['--texts', 'not read', '--output_dir', str(tmp_path / 'out')])
    assert '%s is not installed: `scripts/setup.sh ' % name in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_the_loss_falls_on_ten_sentences(kind, tmp_path, no_curve, clear_session):
    path = tmp_path / 'ten.txt'
    small.write_text(path, ''.join(small.sentence(7 * i + 1, 24) + '\n' for i in range(10)))
    run = start(str(path), tmp_path / 'out', backbone=kind, layers=2, hidden_size=64, heads=4,
                intermediate_size=128, maxlen=26, batch_size=32, steps=1200, eval_every=200,
                save_every=1200, held_out=0, learning_rate=3e-3)
    losses = [note['train_loss'] for note in run.history]
    assert losses[0] > 1 and losses[-1] < 0.15


@pytest.mark.slow
def test_the_curve(texts, tmp_path, clear_session):
    pytest.importorskip('matplotlib')
    pytest.importorskip('jieba')
    settings = pretrain.parse_flags(['--texts', texts] + small.flags(dict(SIZES, output_dir=tmp_path)))
    pretraining.Pretraining(settings).run()
    with open(str(tmp_path / 'pretrain.png'), 'rb') as reader:
        assert reader.read(8) == b'\x89PNG\r\n\x1a\n'
    with open(str(tmp_path / 'pretrain.json')) as reader:
        report = json.load(reader)
    assert len(report['history']) == 4 and set(report['baselines']) == {'unigram', 'bigram'}
    begins = np.load(str(tmp_path / 'corpus.npz'))['begins']
    assert 0.3 < begins.mean() < 0.98  # words of several characters
