"""Intervals that hold for other dev texts, too: against closed forms, other code, and their stated rates."""
import numpy as np
import pytest

import test_report
from fltuning.errors import UserError
from fltuning.run_record import pack_points, unpack_points
from fltuning.task import Task
from tools import dev_texts, results, statistics, tables, words
from tools.statistics import Interval


def test_the_closed_form_without_interaction():
    """Runs and texts that only add: each text moves all runs alike, and its variance is that of a mean."""
    texts = np.random.RandomState(0).randn(50)
    found = dev_texts.texts_variance(texts + np.array([[0.3], [0.0], [-0.2]]))
    assert found.count == 50 and found.variance == pytest.approx(texts.var(ddof=1) / 50)


def test_it_is_the_variance_component_of_a_crossed_design():
    """By other code: expected mean squares of a two-way table with one value a place, sums of squares by hand."""
    values = np.random.RandomState(1).randn(4, 30) + np.random.RandomState(2).randn(30)
    runs, count = values.shape
    total = ((values - values.mean()) ** 2).sum()
    of_runs = count * ((values.mean(1) - values.mean()) ** 2).sum()
    of_texts = runs * ((values.mean(0) - values.mean()) ** 2).sum()
    interaction = (total - of_runs - of_texts) / ((runs - 1) * (count - 1))
    component = (of_texts / (count - 1) - interaction) / runs
    assert dev_texts.texts_variance(values).variance == pytest.approx(component / count)


def test_texts_that_move_nothing_of_their_own():
    """Where the runs differ by chance alone, their interaction explains it all; below 0 there is no variance."""
    checkers = np.indices((2, 10)).sum(0) % 2
    assert dev_texts.texts_variance(checkers).variance == 0


def test_f1_is_a_mean_over_texts_to_first_order():
    """The variance of an F1 score over texts, against its bootstrap."""
    random = np.random.RandomState(3)
    gold, found = random.randint(0, 6, 400), random.randint(0, 6, 400)
    right = np.minimum(gold, found) * (random.rand(400) < 0.7)
    got, possible = 2 * right, gold + found
    scores = dev_texts.text_scores((got.tolist(), possible.tolist()))
    assert scores.mean() == pytest.approx(got.sum() / possible.sum())
    picked = random.randint(400, size=(4000, 400))
    drawn = got[picked].sum(1) / possible[picked].sum(1)
    assert np.sqrt(scores.var(ddof=1) / 400) == pytest.approx(drawn.std(), rel=0.05)


def test_a_score_of_nothing():
    """No entity in dev and none found: cluener's F1 is 0."""
    assert dev_texts.text_scores(([0, 0], [0, 0])).tolist() == [0, 0]


@pytest.mark.parametrize('seeds, share, texts', [(3, 0.0, 200), (5, 1.0, 200), (5, 9.0, 200), (3, 1.0, 20)])
def test_it_covers_what_it_says(seeds, share, texts):
    """Runs, texts and their interaction drawn anew: 95 % or more of the intervals hold the truth.

    share: the variance that comes of texts, in that of runs.
    """
    random, hits, draws = np.random.RandomState(4), 0, 1000
    for _ in range(draws):
        values = random.randn(seeds, 1) + np.sqrt(share * texts / seeds) * random.randn(texts) + random.randn(
            seeds, texts)
        interval = statistics.mean_interval(values.mean(1))
        wider = dev_texts.widen(interval, [dev_texts.texts_variance(values)])
        assert wider.high - wider.low >= (interval.high - interval.low) * (1 - 1e-9)
        hits += wider.low <= 0 <= wider.high
    assert hits / draws > 0.95 - 3 * np.sqrt(0.05 * 0.95 / draws)


def test_over_tasks_the_texts_of_each_count():
    """Two tasks alike: the half-width of the texts' part is that of one by the square root of two."""
    part = dev_texts.Texts(0.25, 10 ** 6)
    one, two = [dev_texts.widen(Interval(0.0, 0.0, 0.0), parts) for parts in ([part], [part, part])]
    assert one.high == pytest.approx(1.96 * 0.5, rel=1e-4) and two.high == pytest.approx(one.high / np.sqrt(2))


def packed(got):
    """Points as a record has them, of texts with one answer each."""
    return pack_points((got, [1] * len(got)), sum(got) / float(len(got)))


def with_points(right=None, dev=200):
    """A `spoil` of test_report.write_results: the points of each text, so that they make the score, nearly."""
    def spoil(found):
        random = np.random.RandomState(5)
        ease = random.rand(dev)  # texts that are hard are so for all
        for name in sorted(found):
            run = found[name]['run']
            score = run['history'][-1]['dev']['accuracy']
            got = (0.9 * ease + 0.1 * random.rand(dev) < score).astype(int).tolist()
            run['history'][-1]['dev']['accuracy'] = sum(got) / float(dev)
            run['dev_points'] = {'last': packed(got)}
            run['samples'] = {'train': 400, 'dev': dev}
            if right:
                right(found[name])
    return spoil


def test_the_report_has_them(tmp_path):
    """A table and a half-sentence more; its figures are the other table's, wider."""
    test_report.write_results(tmp_path, spoil=with_points())
    loaded = results.load(str(tmp_path))
    table, wider = tables.difference_table(loaded, 'roberta'), tables.other_texts_table(loaded, 'roberta')
    fl, other = loaded.variants[0], loaded.variants[-1]
    for task in ('tnews', 'afqmc'):
        narrow, wide = loaded.difference(task, 'roberta', fl, other), dev_texts.difference(
            loaded, task, 'roberta', fl, other)
        assert wide.value == narrow.value and wide.high > narrow.high
        place = loaded.tasks.index(task) + 1
        assert [items[place].text for items in wider.rows if items[0].text == 'head only'] == [
            tables.points(wide)]
    assert [items[0].text for items in wider.rows] == [items[0].text for items in table.rows]
    said = [text for text in words.sentences(loaded) if 'For other dev texts, too: ' in text]
    assert len(said) == 2 and tables.points(dev_texts.overall(loaded, 'roberta', fl, other)[0]) in said[1]
    found = [one for one in tables.numbers(loaded)['found'] if one['method'] == 'head']
    assert all(one['for_other_texts'][2] > one['ours_less_this'][2] for one in found)


def test_a_verdict_that_other_texts_undo(tmp_path):
    """Ahead on these texts by a little, with every seed: on as many others it might be behind, and that is said."""
    def spoil(found):
        for result in found.values():
            labels, run = result['labels'], result['run']
            got = [1] * 50 + [0] * 50
            if labels['method'] == 'fl':
                got = [1] * 30 + [0] * 20 + [1] * (22 + labels['seed']) + [0] * (28 - labels['seed'])
            run['history'][-1]['dev']['accuracy'] = sum(got) / 100.0
            run['dev_points'] = {'last': packed(got)}
            run['samples'] = {'train': 400, 'dev': 100}
    test_report.write_results(tmp_path, tasks=('tnews',), methods=['fl', 'head'], spoil=spoil)
    said = words.sentences(results.load(str(tmp_path)))
    assert any('FL-Tuning is ahead of head only' in text and text.endswith(', which leaves it undecided.')
               for text in said), said


def all_right(texts):
    """As many texts as said of a run's labels, all of them right."""
    def spoil(result):
        result['run']['history'][-1]['dev']['accuracy'] = 1.0
        result['run']['dev_points']['last'] = packed([1] * texts(result['labels']))
    return spoil


@pytest.mark.parametrize('spoil, grid', [
    (lambda result: result['run'].pop('dev_points') if result['labels']['seed'] == 2 else None, {}),
    (lambda result: result['run']['dev_points'].pop('last'), {}),
    (lambda result: result['run']['dev_points']['last'].update(got='1' * 200), {}),
    (lambda result: result['run'].update(few_shot={'train': [1], 'dev': [3, 8]}), {'draws': (1, 2)}),
    (all_right(lambda labels: 1 + labels['seed']), {}),
    (all_right(lambda labels: 1), {}),
    (lambda result: None, {'seeds': (1,)}),
])
def test_without_the_points_of_all_there_is_none(tmp_path, spoil, grid):
    """Runs of before; points that do not make the score; dev texts that were drawn for each; one text; one seed."""
    test_report.write_results(tmp_path, spoil=with_points(spoil), **grid)
    loaded = results.load(str(tmp_path))
    assert tables.other_texts_table(loaded, 'roberta') is None
    assert not any('other dev texts' in text for text in words.sentences(loaded))


def test_the_selected_evaluation_has_its_own(tmp_path):
    """Where that is the best; a run that selected its last one has no points of its best."""
    def both(result):
        result['run']['best'] = {'dev': {'accuracy': 0.25 if result['labels']['seed'] < 3 else 0.75}}
        result['run']['dev_points']['selected'] = pack_points(([3, 0], [3, 9]), 0.25)
    test_report.write_results(tmp_path, spoil=with_points(both), select='best')
    assert {(row.seed, row.points and tuple(map(tuple, row.points))) for row in results.load(str(tmp_path)).rows} == {
        (1, ((3, 0), (3, 9))), (2, ((3, 0), (3, 9))), (3, None)}


def test_points_are_kept_where_they_make_the_score():
    """Not of a task whose score is another, as a mean over classes is."""
    assert pack_points(([1, 12], [2, 24]), 0.5) == {'got': '1 12 ', 'possible': '2 24 '}
    assert unpack_points(pack_points(([1, 12], [2, 24]), 0.5)) == ([1, 12], [2, 24])
    assert pack_points(([1, 0], [1, 1]), 0.4) is None and pack_points(None, 0.4) is None
    assert pack_points(([], []), 0.0) == {'got': '', 'possible': ''}
    assert Task().points([1], [1]) is None


@pytest.mark.parametrize('last', [{'got': '1x', 'possible': '11'}, {'got': '1', 'possible': '11'}, {}, {'got': '1'}])
def test_points_that_are_none_are_named(tmp_path, last):
    def spoil(result):
        result['run']['dev_points']['last'] = last
    found = test_report.write_results(tmp_path, tasks=('tnews',), spoil=with_points(spoil))
    with pytest.raises(UserError) as error:
        results.load(str(tmp_path))
    assert any(name in str(error.value) for name in found)
