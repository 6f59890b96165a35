"""Reports: tables against other code on the raw files, verdicts at their stated rates, texts that need escaping."""
import html.parser
import json
import math
import os
import re
import statistics as standard
from unittest import mock

import numpy as np
import pytest
from scipy import stats

import lab
import small
from fltuning.errors import UserError
from tools import (
    calibration, pictures, rates, report, results, rliable_scores, sizes, statistics, table_formats, tables, words)

METHODS = ['fl', 'ptuning_v2', 'head']


def write_results(folder, tasks=('tnews', 'afqmc'), methods=METHODS, seeds=(1, 2, 3), draws=(None,), sizes=(None,),
                  layers=('',), backbones=('roberta',), spoil=None, **grid):
    """Result files as scripts/reproduce writes them, of made-up scores; returns {file name: result}."""
    dice, found = np.random.RandomState(0), {}
    places = [(task, backbone, method, size, part, draw, seed) for task in tasks for backbone in backbones
              for method in methods for size in sizes for part in layers for draw in draws for seed in seeds]
    for task, backbone, method, size, part, draw, seed in places:
        base = {'fl': 0.6, 'ptuning_v2': 0.55}.get(method, 0.5) + 0.02 * tasks.index(task) + (size or 0) / 5000
        best = base + 0.01 * dice.normal()
        history = [{'epoch': step // 10, 'step': step, 'loss': 1.0, 'seconds': 1.0,
                    'dev': {'accuracy': best * (1 - math.exp(-step / (10 if method == 'fl' else 16)))}}
                   for step in range(10, 101, 10)]
        configuration = {'task': task, 'method': method, 'size': size, 'layers': part, 'seed': seed, 'draw': draw,
                         'backbone': backbone}
        name = calibration_name(configuration)
        found[name + '.json'] = {
            'format': 1, 'configuration': configuration, 'diverged': False, 'error': '', 'seconds': 12.5, 'tries': 1,
            'threads': 1, 'host': {}, 'labels': dict(
                configuration, stage='whole', rate=0.001, metric='accuracy', commonest=0.2,
                records={'train': 400, 'dev': 1000}),
            'run': {'history': history, 'best': history[-1], 'samples': {'train': 400, 'dev': 1000}, 'seconds': 15.0,
                    'train_seconds': 11.5,
                    'peak_memory_mb': 700, 'settings': {}, 'parameters': {
                        'trained': {'fl': 3000, 'ptuning_v2': 3100}.get(method, 100), 'all': 100000}}}
    if spoil:
        spoil(found)
    for name, result in found.items():
        os.makedirs(str(folder / 'cells'), exist_ok=True)
        small.write_json(folder / 'cells' / name, result)
    small.write_json(folder / 'grid.json', dict(dict(
        name='made', select='last', count=len(found), rates=[0.001], search=None, titles={}, tasks=list(tasks),
        backbones=list(backbones), cells=[name[:-5] for name in found]), **grid))
    return found


def row(method, seed, score, task='tnews', size=None, commonest=None, seconds=10.0, scores=(0.5, 0.6)):
    """A run on 2,000 records of dev; scores: of its evaluations."""
    history = () if score is None else tuple(results.Point(10 * (number + 1), value)
                                             for number, value in enumerate(scores))
    return results.Row(task, 'roberta', results.Variant(method, size, '', None), seed, None, 'accuracy', score,
                       history, 10, 100, seconds, 1, 2000, commonest)


def rows_of(method, scores, **options):
    """Runs of seeds 1, 2, ...; '' for one that is not there."""
    return [row(method, seed + 1, score, **options) for seed, score in enumerate(scores) if score != '']


def texts(table):
    return {items[0].text: [('**' if item.bold else '') + item.text for item in items[1:]] for items in table.rows}


def calibration_name(configuration):
    import hashlib
    text = json.dumps(configuration, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def last_scores(found, task, method, select='last'):
    """In the order of the seeds."""
    runs = sorted((result['labels']['seed'], result['run']) for result in found.values()
                  if (result['labels']['task'], result['labels']['method']) == (task, method))
    return [(run['history'][-1] if select == 'last' else run['best'])['dev']['accuracy'] for _, run in runs]


def test_the_tables_are_those_of_the_raw_histories(tmp_path):
    """By other code: the statistics of the standard library, SciPy's t test on pairs."""
    found = write_results(tmp_path)
    loaded = results.load(str(tmp_path))
    table = tables.score_table(loaded, 'roberta')
    assert table.head == ['method', 'tnews (accuracy)', 'afqmc (accuracy)', 'mean']
    for row, method in zip(table.rows, METHODS):
        for item, task in zip(row[1:], ('tnews', 'afqmc')):
            scores = last_scores(found, task, method)
            assert item.text.startswith('%.1f ± %.1f' % (100 * standard.mean(scores), 100 * standard.stdev(scores)))
            others = {other: last_scores(found, task, other) for other in METHODS}
            best = max(METHODS, key=lambda other: standard.mean(others[other]))
            assert item.bold == (method == best)
            p = stats.ttest_rel(others[best], scores).pvalue if method != best else 1
            assert item.text.endswith('≈') == (method != best and p > 0.05)
    assert [item.text for item in table.rows[-1]] == ['the commonest label', '20.0', '20.0', '']
    differences = tables.difference_table(loaded, 'roberta')
    for row, method in zip(differences.rows, METHODS[1:]):
        for item, task in zip(row[1:], ('tnews', 'afqmc')):
            ours, theirs = [last_scores(found, task, name) for name in ('fl', method)]
            pairs = np.subtract(ours, theirs)
            low, high = stats.t.interval(0.95, 2, pairs.mean(), stats.sem(pairs))
            shown = [float(text.replace('−', '-')) for text in re.findall('[+−][0-9.]+', item.text)]
            assert shown == pytest.approx([100 * (standard.mean(ours) - standard.mean(theirs)), 100 * low, 100 * high],
                                          abs=0.0501)
            assert item.bold == (low > 0 or high < 0)
    steps = tables.convergence_table(loaded, 'roberta')
    for row, method in zip(steps.rows, METHODS):
        want = [next(entry['step'] for entry in result['run']['history'] if entry['dev']['accuracy'] >= 0.95 * max(
            entry['dev']['accuracy'] for entry in result['run']['history']))
            for result in found.values()
            if (result['labels']['method'], result['labels']['task']) == (method, 'tnews')]
        assert row[1].text == '%.0f' % standard.mean(want)
    assert steps.rows[3][0].text == 'P-Tuning V2 / FL-Tuning' and steps.rows[3][1].text.startswith('1.67 (')
    cost = tables.cost_table(loaded, 'roberta')
    assert [item.text for item in cost.rows[0]] == ['FL-Tuning', '3,000', '3.00', '12', '700', '6']


def test_numbers_are_those_of_the_tables(tmp_path):
    found = write_results(tmp_path)
    numbers = tables.numbers(results.load(str(tmp_path)))['found']
    assert len(numbers) == 6
    for entry in numbers:
        assert entry['scores'] == pytest.approx(last_scores(found, entry['task'], entry['method']))


def test_over_tasks_is_welch():
    """Of two tasks it is decided where SciPy's test of two samples with unequal variances decides."""
    first, second = [0.1, 0.2, 0.4], [0.3, 0.35, 0.1, 0.5]
    found = statistics.over_tasks([first, second])
    negated = [-value for value in second]
    p = stats.ttest_ind(first, negated, equal_var=False).pvalue
    for level, decided in ((1 - 0.99 * p, False), (1 - 1.01 * p, True)):
        edge = statistics.over_tasks([first, second], level=level)
        assert (edge.verdict() == 'above') == decided
    assert found.value == pytest.approx((np.mean(first) + np.mean(second)) / 2)


def test_the_spread_is_an_f_interval():
    """Of one task, against the quantiles of F."""
    first, second = [0.1, 0.2, 0.4], [0.3, 0.35, 0.1, 0.5]
    found = statistics.spread_ratio([first], [second])
    ratio = standard.stdev(first) / standard.stdev(second)
    want = [ratio / math.sqrt(stats.f.ppf(q, 2, 3)) for q in (0.975, 0.025)]
    assert found.value == pytest.approx(ratio) and np.allclose([found.low, found.high], want, rtol=0.05)


def test_draws_are_what_is_independent():
    """Of several draws, each draw's mean over its seeds counts once."""
    scores = {(draw, seed): draw + 0.1 * seed for draw in (1, 2, 3) for seed in (1, 2)}
    assert statistics.by_draw(scores) == pytest.approx([1.15, 2.15, 3.15])
    assert statistics.by_draw({(None, 2): 0.2, (None, 1): 0.1}) == [0.1, 0.2]
    # Runs that others do not have are left out.
    assert statistics.differences({(1, 1): 3.0, (2, 1): 5.0}, {(1, 1): 1.0}) == [2.0]


def test_deviations_are_no_smaller_than_a_records():
    """1 / sqrt(12) of a record's share, the deviation that rounding gives."""
    apart, same = [0.60, 0.62, 0.64], [0.667] * 3
    assert np.std(same) > 0  # not exactly: which made this an infinite ratio
    for ours, theirs, want in [(apart, same, 0.02 / (0.0005 / math.sqrt(12))), (same, same, 1.0),
                               (apart, [0.655] * 3, 0.02 / (0.0005 / math.sqrt(12)))]:
        found = results.Results([made for task in ('tnews', 'afqmc') for method, scores in (
            ('fl', ours), ('ptuning_v2', theirs)) for made in rows_of(method, scores, task=task)])
        interval, number = found.spread('roberta', *found.variants)
        assert interval.value == pytest.approx(want) and number == 2
        assert any('spread over runs' in text and ' over 2 tasks' in text for text in words.sentences(found))


def test_one_pair_on_a_task_does_not_hide_the_others():
    ours, head = [0.61, 0.62, 0.63], [0.404, 0.41, 0.416]
    found = results.Results(
        rows_of('fl', ours) + rows_of('ptuning_v2', [0.505, 0.51, 0.515]) + rows_of('head', head)
        + rows_of('fl', ours, task='afqmc') + rows_of('ptuning_v2', [0.5], task='afqmc')
        + rows_of('head', head, task='afqmc'))
    low, high = stats.t.interval(0.95, 2, 0.11, 0.005 / math.sqrt(3))
    interval, number = found.overall('roberta', *found.variants[:2])
    assert number == 1 and list(interval) == pytest.approx([0.11, low, high])
    said = ' '.join(words.sentences(found))
    assert 'FL-Tuning is ahead of P-Tuning V2 over 1 of 2 tasks: +11.0 (+9.8 to +12.2) points.' in said
    assert 'Task by task: ahead on tnews; no interval on afqmc.' in said
    shown = texts(tables.difference_table(found, 'roberta'))
    assert shown['P-Tuning V2'] == ['**+11.0 (+9.8 to +12.2)', '+11.0 (no interval)',
                                    '**+11.0 (+9.8 to +12.2) (1 of 2 tasks)']
    assert 'tasks' not in shown['head only'][-1]
    ratio = texts(tables.convergence_table(found, 'roberta'))['P-Tuning V2 / FL-Tuning']
    assert ratio[1] == '1.00 (no interval)' and ratio[2].endswith(' (1 of 2 tasks)')


def test_no_interval_over_tasks(tmp_path):
    write_results(tmp_path, seeds=(1,))
    said = words.sentences(results.load(str(tmp_path)))
    assert re.search(r'FL-Tuning less P-Tuning V2 is \+\d.\d \(no interval\) points over 2 tasks, which decides no',
                     said[0])
    assert 'Task by task' not in said[0] and 'one run' not in ' '.join(said)


@pytest.mark.parametrize('fl, other, best, shown', [
    # A mean over other seeds may be higher where every pair is lower.
    ([0.50, 0.51, 0.90], [0.55, 0.56, ''], 'ptuning_v2', ['63.7 ± 22.8', '**55.5 ± 0.7 (1 missing)']),
    # One that diverged but once.
    ([None, None, 0.70], [0.68, 0.69, 0.69], 'ptuning_v2', ['70.0 ≈ (2 lost)', '**68.7 ± 0.6']),
    # None has all: by the runs that they share.
    ([0.60, 0.70, ''], ['', 0.69, 0.90], 'fl', ['**65.0 ± 7.1 (1 missing)', '79.5 ± 14.8 ≈ (1 missing)']),
    # None that they share: each by its own.
    ([0.60, ''], ['', 0.69], 'ptuning_v2', ['60.0 ≈ (1 missing)', '**69.0 (1 missing)'])])
def test_the_best_is_chosen_on_shared_runs(fl, other, best, shown):
    found = results.Results(rows_of('fl', fl) + rows_of('ptuning_v2', other))
    assert [variant.method for variant, mark in found.marks('tnews', 'roberta').items() if mark == 'best'] == [best]
    table = tables.score_table(found, 'roberta')
    assert [items[0] for items in texts(table).values()] == shown
    assert ('Lost: ' in table.note, 'Missing: ' in table.note) == (None in fl, '' in fl + other)


def test_agreement_is_no_certainty():
    """Three runs of the same score on 100 records do not decide a tenth of a record."""
    assert statistics.mean_interval([0.001] * 3, 0.01).verdict() == 'undecided'
    assert statistics.mean_interval([0.05] * 3, 0.01).verdict() == 'above'
    assert statistics.mean_interval([0.5], 0.01).verdict() == 'undecided'


@pytest.mark.parametrize('seeds', [3, 5])
def test_a_tie_is_undecided_and_a_difference_decided(seeds):
    """At the stated rates: 5 % of ties, and what the noncentral t says of three deviations.

    Of 300 grids with a fixed seed; docs/grids.md has the figures of 1,000.
    """
    tie = calibration.calibrate(300, seeds)
    for rule in ('task', 'over tasks', 'marks'):
        assert tie[rule] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300), rule
    assert tie['percentile'] > 0.1  # which is why it does not decide
    real = calibration.calibrate(300, seeds, difference=3.0)
    rate = statistics.power(seeds, 3.0)
    assert abs(real['task'] - rate) < 3 * math.sqrt(rate * (1 - rate) / 300) + 0.03
    assert real['over tasks'] > 0.95 and real.get('task wrong', 0) == real.get('over tasks wrong', 0) == 0


def test_words(tmp_path):
    write_results(tmp_path, count=20)
    said = words.sentences(results.load(str(tmp_path)))
    assert said[0] == '18 of the grid’s 20 cells are there: all below is of those.'
    ahead, = [text for text in said if 'FL-Tuning is ahead of P-Tuning V2 over 2 tasks: +' in text]
    assert 'Task by task: ' in ahead
    assert any('P-Tuning V2 takes 1.67 (' in text and 'FL-Tuning converges faster' in text for text in said)


def test_a_tie_in_words(tmp_path):
    write_results(tmp_path, methods=['fl', 'lora'], tasks=('tnews',))

    def same(found):
        for result in found.values():
            if result['labels']['method'] == 'head':
                twin, = [other for other in found.values() if other['labels'] == dict(
                    result['labels'], method='fl')]
                result['run']['history'][-1]['dev']['accuracy'] = (
                    twin['run']['history'][-1]['dev']['accuracy'] + 0.001 * (result['labels']['seed'] - 2))
    write_results(tmp_path / 'tie', methods=['fl', 'head'], tasks=('tnews',), spoil=same)
    said = words.sentences(results.load(str(tmp_path / 'tie')))
    assert 'whether FL-Tuning or head only is better on one task is undecided: ' in said[0]


def test_what_was_not_learnt_is_said_and_not_counted(tmp_path):
    def level(found):
        for result in found.values():
            if result['labels']['task'] == 'afqmc':
                result['labels']['commonest'] = 0.65
    write_results(tmp_path, spoil=level)
    loaded = results.load(str(tmp_path))
    assert loaded.unlearnt('roberta') == ['afqmc']
    assert any('on afqmc no method is above the commonest label' in text for text in words.sentences(loaded))
    fl, other = loaded.variants[:2]
    assert list(loaded.convergence('roberta', fl, other)) == ['tnews']


def test_a_run_without_an_interval_says_not_that_nothing_was_learnt(tmp_path):
    write_results(tmp_path, seeds=(1,))
    loaded = results.load(str(tmp_path))
    assert loaded.unlearnt('roberta') == []
    assert not any('commonest' in text for text in words.sentences(loaded))
    head = rows_of('head', [0.5, 0.501, 0.499], commonest=0.5)
    for score, learnt in ((0.8, True), (0.52, False)):  # one run: above 0.5 by two standard errors, 0.0224, or not
        found = results.Results(head + rows_of('fl', [score], commonest=0.5))
        assert found.unlearnt('roberta') == ([] if learnt else ['tnews'])
    # Where no share is known, nothing is said of it.
    found = results.Results(rows_of('head', [0.5, 0.501, 0.499]) + rows_of('fl', [0.5, 0.52, 0.48]))
    assert found.unlearnt('roberta') == [] and 'commonest' not in ' '.join(words.sentences(found))
    assert 'the commonest label' not in texts(tables.score_table(found, 'roberta'))


def test_runs_that_learnt_nothing_among_others_are_counted():
    """One of three; a mean and a deviation hide it."""
    def said(scores, commonest):
        found = results.Results(rows_of('fl', scores, commonest=commonest))
        return [text for text in words.sentences(found) if 'learnt nothing in the end' in text]
    assert said([0.0, 0.67, 0.68], None) == [
        'With the backbone roberta: on tnews 1 of 3 runs of FL-Tuning had learnt nothing in the end, unlike the '
        'others: the mean is of neither kind.']
    assert said([0.51, 0.67, 0.53], 0.5)[0].split('on tnews ')[1].startswith('1 of 3 runs')  # 0.5224 is above
    assert said([0.0, 0.0, 0.0], None) == said([0.6, 0.67, 0.66], 0.5) == []


def test_convergence_is_of_what_was_learnt():
    """The greatest of several evaluations is above the commonest label by chance."""
    def ratio(scores, last):
        runs = [row(method, seed, last + 0.01 * seed, commonest=0.655, scores=scores)
                for method in ('fl', 'ptuning_v2') for seed in (1, 2, 3)]
        found = results.Results(runs)
        return found.convergence_ratio('roberta', *found.variants)
    error = math.sqrt(0.655 * 0.345 / 2000)
    assert ratio((0.655, 0.655 + 1.9 * error, 0.655), 0.7) is None
    assert ratio((0.655, 0.655 + 2.1 * error, 0.655), 0.7) is not None
    assert ratio((0.655, 0.655 + 2.1 * error, 0.655), 0.64) is None  # a task where nothing was learnt in the end
    runs = [row('fl', seed, 0.6, commonest=None, scores=scores)
            for seed, scores in enumerate([(0.0, 0.0, 0.0), (0.0, 0.2, 0.6), (0.0, 0.1, 0.6)])]
    steps = texts(tables.convergence_table(results.Results(runs), 'roberta'))['FL-Tuning']
    assert steps[0] == '%d' % runs[1].history[-1].step  # not the first, which is at its best, 0, at once


def test_diverged_runs_are_lost_and_counted(tmp_path):
    def diverge(found):
        result = next(result for result in found.values() if result['labels']['method'] == 'head')
        result.update(diverged=True, run=None)
    write_results(tmp_path, spoil=diverge)
    table = tables.score_table(results.load(str(tmp_path)), 'roberta')
    assert sum('(1 lost)' in item.text for row in table.rows for item in row) == 1 and 'Lost: ' in table.note


def without(method, task, why='diverged at every rate'):
    return {'task': task, 'backbone': 'roberta', 'method': method, 'size': None, 'layers': '', 'why': why}


def test_methods_without_a_rate_are_shown(tmp_path):
    write_results(tmp_path, methods=['fl', 'ptuning_v2'], search=0, count=40, without_rate=[
        without('finetune', 'tnews'), without('finetune', 'afqmc'), without('lora', 'afqmc'),
        without('bitfit', 'tnews', 'a run that was to choose its rate failed')])
    loaded = results.load(str(tmp_path))
    table = tables.score_table(loaded, 'roberta')
    shown = texts(table)
    assert shown['fine-tuning'] == ['diverged', 'diverged', '–'] and shown['LoRA'] == ['–', 'diverged', '–']
    assert shown['BitFit'] == ['failed', '–', '–'] and 'Diverged: ' in table.note and 'Failed: ' in table.note
    assert texts(rates.chosen_table(loaded, 'roberta'))['fine-tuning'] == ['diverged', 'diverged']
    said = ' '.join(words.sentences(loaded))
    assert '12 of the grid’s 40 cells are there' in said
    assert 'fine-tuning diverged at every rate on tnews, afqmc, and has no score there.' in said
    assert 'BitFit has no score on tnews: a run that was to choose its rate failed.' in said
    assert len(tables.numbers(loaded)['without_rate']) == 4


def test_a_grid_where_all_diverged_has_a_report(tmp_path):
    """Also in the place of FL-Tuning, and of all on a task that comes first."""
    def search(found):
        for result in found.values():
            result['labels']['stage'] = 'search'
            result.update(diverged=True, run=None)
    write_results(tmp_path, methods=['fl', 'head'], spoil=search, search=0, without_rate=[
        without(method, task) for task in ('afqmc', 'tnews') for method in ('fl', 'head')])
    loaded = results.load(str(tmp_path))
    assert loaded.tasks == ['tnews', 'afqmc'] and loaded.rows == []
    table, searched = tables.all_tables(loaded)
    assert texts(searched)['tnews: FL-Tuning'] == ['diverged']
    assert table.head == ['method', 'tnews (score)', 'afqmc (score)', 'mean']
    assert texts(table) == {title: ['diverged', 'diverged', '–'] for title in ('FL-Tuning', 'head only')}
    assert len(words.sentences(loaded)) == 2


@pytest.mark.parametrize('ends, blind', [
    ((0.2, 0.22), True), ((0.2, 0.24), False), ((None, 0.19), True), ((None, 0.3), False), ((0.1, 0.3), False)])
def test_a_rate_that_was_chosen_from_nothing_is_marked(tmp_path, ends, blind):
    """Two runs choose a rate from 1,000 records, 20 % of which have the commonest label: 2.5 % are two errors."""
    def search(found):
        for result in found.values():
            if result['labels']['seed'] in (1, 2) and result['labels']['method'] == 'fl':
                score = ends[result['labels']['seed'] - 1]
                result['labels'].update(stage='search', rate=[1e-4, 1e-3][result['labels']['seed'] - 1])
                if score is None:
                    result.update(diverged=True, run=None)
                else:
                    result['run']['history'][-1]['dev']['accuracy'] = score  # an evaluation before may be better
    write_results(tmp_path, tasks=('tnews',), methods=['fl', 'head'], spoil=search, search=0, rates=[1e-4, 1e-3, 1e-2])
    loaded = results.load(str(tmp_path))
    table = rates.chosen_table(loaded, 'roberta')
    assert texts(table) == {'FL-Tuning': ['0.001' + (' †' if blind else '')], 'head only': ['0.001']}
    assert ('†' in table.note) == blind
    shown = rates.search_table(loaded, 'roberta')
    assert shown.head == ['task: method', '0.0001', '0.001', '0.01']
    assert texts(shown) == {'tnews: FL-Tuning': [
        'diverged' if ends[0] is None else '%.1f' % (100 * ends[0]), '**%.1f' % (100 * ends[1]), '–']}
    said = [text for text in words.sentences(loaded) if 'blindly' in text]
    assert len(said) == blind and all('on tnews no run that chose the rate of FL-Tuning was' in text for text in said)


def test_cells_are_called_as_the_grid_calls_them_now(tmp_path):
    found = write_results(tmp_path)
    for named in ('before', 'after'):
        labels = {name[:-5]: dict(result['labels'], backbone=named) for name, result in found.items()}
        small.write_json(tmp_path / 'grid.json', dict(small.read_json(tmp_path, 'grid.json'), cells=labels))
        loaded = results.load(str(tmp_path))
        assert loaded.backbones == [named] and len(loaded.rows) == loaded.there == 18


def test_what_is_not_there_is_in_no_number():
    found = results.Results(rows_of('fl', [0.6, 0.6]) + rows_of('ptuning_v2', [0.6, 0.6])
                            + rows_of('ptuning_v2', [0.6, 0.6], task='afqmc'))
    before = tables.numbers(found)
    tables.all_tables(found, with_rliable=False)
    assert tables.numbers(found) == before
    assert [(entry['task'], entry['method'], entry['runs']) for entry in before['found']] == [
        ('tnews', 'fl', 2), ('tnews', 'ptuning_v2', 2), ('afqmc', 'ptuning_v2', 2)]


def test_seconds_are_of_tasks_that_all_have():
    found = results.Results(
        rows_of('fl', [0.6, 0.6], seconds=10.0) + rows_of('fl', [0.6], seconds=100.0, task='afqmc')
        + rows_of('ptuning_v2', [0.6, 0.6], seconds=20.0) + rows_of('ptuning_v2', [None], seconds=7.0)
        + rows_of('head', [None], seconds=1.0))
    table = tables.cost_table(found, 'roberta')
    assert {title: items[2] for title, items in texts(table).items()} == {
        'FL-Tuning': '10', 'P-Tuning V2': '20', 'head only': '–'}
    assert 'over 1 of 2 tasks' in table.note
    # Each task counts once, whatever its number of runs.
    found = results.Results(rows_of('fl', [0.6] * 3, seconds=10.0) + rows_of('fl', [0.6], seconds=100.0, task='afqmc'))
    assert texts(tables.cost_table(found, 'roberta'))['FL-Tuning'][2] == '55'


def test_rliable_is_given_whole_methods(monkeypatch):
    """Those that lack runs are left out by name, and do not cut the others."""
    whole = [made for task in ('tnews', 'afqmc') for method in ('fl', 'ptuning_v2', 'lora')
             for made in rows_of(method, [0.5, 0.6, 0.7], task=task)]
    monkeypatch.setattr(rliable_scores, 'robust_scores', lambda results, found: [])
    for more in (rows_of('head', [None] * 3), rows_of('head', [0.4] * 3),
                 rows_of('head', [0.4]) + rows_of('head', [0.4], task='afqmc'),
                 rows_of('head', [0.4] * 2) + rows_of('head', [0.4] * 2, task='afqmc')):
        found = results.Results(whole + more)
        scores, runs, tasks = rliable_scores.matrices(found, 'roberta')
        assert [variant.method for variant in scores] == ['fl', 'ptuning_v2', 'lora']
        assert {values.shape for values in scores.values()} == {(runs, tasks)} == {(3, 2)}
        note = tables.bootstrap_table(found, 'roberta').note
        assert note.startswith('Of 3 runs of 2 tasks together') and note.endswith('of these runs: head only.')
    # A run that few have by now, or a task, counts for none.
    found = results.Results(whole + [row('fl', 4, 0.5, task) for task in ('tnews', 'afqmc')] + rows_of(
        'fl', [0.5] * 3, task='wsc'))
    assert rliable_scores.matrices(found, 'roberta')[1:] == (3, 2)
    assert 'Of 3 runs of 2 of 3 tasks together' in tables.bootstrap_table(found, 'roberta').note
    # One run a task is no table.
    assert tables.bootstrap_table(results.Results([made for made in whole if made.seed == 1]), 'roberta') is None


def test_differences_name_their_partner_where_there_are_several(tmp_path):
    write_results(tmp_path, methods=['fl', 'ptuning_v2'], sizes=(16, 80), tasks=('tnews',))
    assert list(texts(tables.difference_table(results.load(str(tmp_path)), 'roberta'))) == [
        'FL-Tuning, size %d less P-Tuning V2, size %d' % (size, size) for size in (16, 80)]


def test_curves_say_when_they_are_cut():
    runs = rows_of('fl', [0.6, 0.6, 0.6])
    for rows, label in ((runs, 'steps'), (
            runs + [row('fl', 4, 0.6, scores=(0.5, 0.6, 0.6))], 'steps, cut to those of the shortest run')):
        plt, axis = mock.Mock(), mock.Mock()
        axis.get_legend_handles_labels.return_value = [], []
        plt.subplots.return_value = mock.Mock(), np.array([[axis]])
        pictures.curves(plt, results.Results(rows), 'roberta')
        axis.set_xlabel.assert_called_once_with(label)
        assert list(axis.plot.call_args[0][0]) == [10, 20]


def test_the_picture_of_differences_has_their_intervals():
    """A panel a backbone; those of Student's t, in percent."""
    ours, theirs = [0.61, 0.66, 0.70], [0.60, 0.61, 0.63]
    runs = rows_of('fl', ours) + rows_of('ptuning_v2', theirs) + [
        found._replace(backbone='nezha') for found in rows_of('fl', [0.6]) + rows_of('ptuning_v2', [0.5])]
    plt, axes = mock.Mock(), [mock.Mock(), mock.Mock()]
    for axis in axes:
        axis.get_legend_handles_labels.return_value = [], []
        axis.get_xlim.return_value = -1, 1
    plt.subplots.return_value = mock.Mock(), np.array([axes])
    pictures.differences(plt, results.Results(runs, order=['nezha', 'roberta']))
    points = 100 * (np.array(ours) - theirs)
    reach = stats.t.ppf(0.975, 2) * points.std(ddof=1) / math.sqrt(3)
    for axis, value, error in zip(axes, (10, points.mean()), (0, reach)):
        (found, place), more = axis.errorbar.call_args
        assert place == [0] and axis.errorbar.call_count == 1  # one task: none over tasks
        np.testing.assert_allclose(found, [value])
        np.testing.assert_allclose(more['xerr'], [[error], [error]], atol=1e-9)
        axis.set_xlim.assert_called_once_with(-1, 1)
    assert axes[0].set_title.call_args[0] == ('nezha',)


def test_sizes_and_layers_have_rows_and_partners(tmp_path):
    write_results(tmp_path, methods=['fl', 'ptuning_v2'], sizes=(16, 80), layers=('', '0-1'))
    loaded = results.load(str(tmp_path))
    titles = list(map(loaded.variant_title, loaded.variants))
    assert len(titles) == 8 and 'FL-Tuning, size 16, layers 0-1' in titles
    for variant in loaded.variants:
        ours = loaded.ours(variant)
        assert ours.method == 'fl' and ours[1:] == variant[1:]


def sized(scores):
    """Runs of FL-Tuning: {size: scores of seeds 1, 2, ...; '' for one that is not there}."""
    return results.Results([run for size, found in scores.items()
                            for run in rows_of('fl', found, size=size)])


@pytest.mark.parametrize('scores, used, seeds', [
    ({16: [0.5, 0.6, 0.55], 40: [0.52, 0.63, 0.54], 320: [0.6, 0.61, 0.58]}, [16, 40, 320], (0, 1, 2)),
    ({16: [0.5, 0.6, 0.55], 40: [0.52, '', 0.54], 320: [0.6, 0.61, 0.58]}, [16, 320], (0, 1, 2)),  # 40 is not finished
    ({16: [0.5, 0.6, 0.55], 40: [0.52, 0.63, 0.54], 320: [0.6, 0.61, None]}, [16, 40, 320], (0, 1)),
    ({16: [0.5, 0.6, 0.55], 40: [0.52, 0.63, 0.54], 320: [None] * 3}, [16, 40], (0, 1, 2)),
    ({None: [0.1, 0.1, 0.1], 16: [0.5, 0.6, 0.55], 40: [0.52, 0.63, 0.54]}, [16, 40], (0, 1, 2))],
    ids=['whole', 'unfinished', 'a seed diverged', 'a size diverged', 'without a size'])
def test_each_doubling_of_a_size_is_a_slope_over_its_logarithm(scores, used, seeds):
    """With numpy.polyfit's slopes, a seed each, and scipy's interval of their mean."""
    found = sized(scores)
    slopes = [np.polyfit(np.log2(used), [scores[size][seed] for size in used], 1)[0] for seed in seeds]
    doubling, = [sizes.per_doubling(found, 'roberta', variants) for variants in sizes.series(found, 'roberta')]
    assert doubling.tasks == 1 and doubling.sizes == used
    reach = stats.t.ppf(0.975, len(slopes) - 1) * stats.sem(slopes)
    np.testing.assert_allclose(doubling.interval, np.mean(slopes) + np.array([0, -reach, reach]))
    said, = [text for text in words.sentences(found) if 'each doubling' in text]
    assert 'from %d to %d, ' % (used[0], used[-1]) in said
    assert tables.numbers(found)['sizes'][0]['size'] == used


def test_a_doubling_over_tasks_is_over_the_sizes_that_all_have():
    found = results.Results([run for task, several in (('tnews', (16, 40, 80)), ('afqmc', (16, 80)))
                             for size in several
                             for run in rows_of('fl', [0.5 + size / 1000, 0.51 + size / 900], task=task, size=size)])
    variants, = sizes.series(found, 'roberta')
    assert sizes.per_doubling(found, 'roberta', variants).sizes == [16, 80]
    assert sizes.per_doubling(found, 'roberta', variants, ['tnews']).sizes == [16, 40, 80]
    apart = results.Results([run for task, size in (('tnews', 16), ('afqmc', 80))
                             for run in rows_of('fl', [0.5, 0.6], task=task, size=size)])
    assert tables.size_table(apart, 'roberta') is None


def test_draws_count_once_for_rliable_and_are_named_so():
    """A draw's mean over its seeds: runs on the same records are not independent of each other."""
    runs = [run._replace(draw=draw) for draw, lift in ((1, 0), (2, 0.1), (3, 0.2)) for method, more in (
        ('fl', 0.02), ('ptuning_v2', 0)) for run in rows_of(method, [0.5 + lift + more, 0.52 + lift + more])]
    found = results.Results(runs)
    scores, count, tasks = rliable_scores.matrices(found, 'roberta')
    assert (count, tasks) == (3, 1)
    np.testing.assert_allclose(scores[found.variants[1]], [[0.51], [0.61], [0.71]])
    assert any('spread over draws' in text for text in words.sentences(found))


def test_sizes_that_agree_are_no_certainty():
    """Deviations are no smaller than what rounding scores to a record of 2,000 makes of a slope."""
    found = sized({16: [0.5, 0.5], 64: [0.52, 0.52]})
    interval = sizes.per_doubling(found, 'roberta', found.variants).interval
    assert interval.value == pytest.approx(0.01)
    deviation = math.sqrt(2 / 12) / 2000 / 2  # of half the difference of two rounded scores
    assert interval.high - interval.value == pytest.approx(stats.t.ppf(0.975, 1) * deviation / math.sqrt(2))


def test_draws_count_once_for_a_size():
    runs = [run._replace(draw=draw) for draw in (1, 2) for size, lift in ((16, 0), (32, 0.01 * draw))
            for run in rows_of('fl', [0.5 + lift, 0.52 + lift, 0.51 + lift], size=size)]
    found = results.Results(runs)
    np.testing.assert_allclose(sizes.slopes(found, 'tnews', 'roberta', found.variants), [0.01, 0.02])


def test_what_a_size_is_worth_is_a_sentence_and_a_row_for_each_method(tmp_path):
    rising, flat = {16: [0.5, 0.51], 64: [0.6, 0.61]}, {16: [0.5, 0.51], 64: [0.51, 0.5]}
    for scores, end in ((rising, ': it rises with the size.'), (flat, ': whether it rises with the size is undecided.'),
                        ({16: [0.5], 64: [0.6]}, ' by +5.0 (no interval) points on one task.'),
                        (dict(zip((16, 64), reversed(list(rising.values())))), ': it falls with the size.')):
        said = [text for text in words.sentences(sized(scores)) if 'each doubling' in text]
        assert len(said) == 1 and 'the size of FL-Tuning, from 16 to 64, ' in said[0]
        assert said[0].endswith(end)
    assert tables.size_table(sized({16: [0.5, 0.51]}), 'roberta') is None
    write_results(tmp_path, methods=['fl', 'ptuning_v2', 'head'], sizes=(16, 80), layers=('', '0-1'))
    rows = texts(tables.size_table(results.load(str(tmp_path)), 'roberta'))
    assert list(rows) == ['%s, layers %s' % (method, part) for method in ('FL-Tuning', 'P-Tuning V2', 'head only')
                          for part in ('all', '0-1')]
    found = tables.numbers(results.load(str(tmp_path)))['sizes']
    assert len(found) == 12 and found[0]['size'] == [16, 80] and found[0]['per_doubling'][0] > 0
    json.dumps(found)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UserError) as refused:
        results.load(str(tmp_path))
    assert 'expected a folder that scripts/reproduce wrote' in str(refused.value)
    write_results(tmp_path)
    small.write_text(tmp_path / 'grid.json', '[]')
    with pytest.raises(UserError) as refused:
        results.load(str(tmp_path))
    assert 'grid.json: not written by scripts/reproduce' in str(refused.value)


@pytest.mark.parametrize('field, value', [
    ('cells', 3), ('cells', {'x': 1}), ('cells', {'x': {'task': 'tnews'}}), ('name', None), ('select', 'first'),
    ('count', '48'), ('search', 'true'), ('titles', ['FL']), ('titles', {'fl': 1}), ('rates', ['0.1']),
    ('tasks', 'tnews'), ('backbones', [1]), ('without_rate', [{'task': 'tnews'}])])
def test_a_field_of_grid_json_that_is_wrong_is_named(tmp_path, field, value):
    write_results(tmp_path)
    small.write_json(tmp_path / 'grid.json', dict({'cells': []}, **{field: value}))
    with pytest.raises(UserError) as refused:
        results.load(str(tmp_path))
    assert 'grid.json: %s: not written by scripts/reproduce: ' % field in str(refused.value)


@pytest.mark.parametrize('labels', [{'stage': None}, {'method': None}, {'metric': 3}])
def test_a_result_that_was_broken_by_hand_is_named(tmp_path, labels):
    write_results(tmp_path)
    path = sorted((tmp_path / 'cells').iterdir())[0]
    result = json.loads(path.read_text(encoding='utf-8'))
    for name, value in labels.items():
        result['labels'].pop(name)
        if value is not None:
            result['labels'][name] = value
    small.write_json(path, result)
    with pytest.raises(UserError) as refused:
        results.load(str(tmp_path))
    assert '%s: not a result of a cell of this version' % path in str(refused.value)
    with pytest.raises(UserError) as refused:
        report.run([])
    assert 'expected a folder' in str(refused.value)


NASTY = '今日头条 <b>&"50%_#$|*'


def test_texts_are_escaped(tmp_path):
    write_results(tmp_path, titles={'tnews': NASTY})
    table = tables.score_table(results.load(str(tmp_path)), 'roberta')
    assert r'今日头条 &lt;b&gt;&amp;"50%\_#$\|\*' in table_formats.markdown(table)
    text = table_formats.latex(table)
    assert r'今日头条 <b>\&"50\%\_\#\$|*' in text and text.count(r'\\') == 5
    for line in text.splitlines():  # as many columns in each row as are declared
        if line.endswith(r'\\'):
            assert len(re.findall(r'(?<!\\)&', line)) == 3


class Page(html.parser.HTMLParser):
    """What a browser would fetch, and what it shows."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.shown, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if name in ('src', 'href', 'srcset', 'data')]

    def handle_data(self, text):
        self.shown.append(text)


@lab.IN_LAB
@pytest.mark.slow
def test_a_report_is_one_page_that_needs_no_network(tmp_path):
    """HTML, tables and pictures, in the lab environment; titles are Chinese, and hostile."""
    python = lab.lab_python()
    earlier = tmp_path / 'report' / 'pictures'
    os.makedirs(str(earlier))
    for name in ('curves_nezha.png', 'spread_nezha.pdf', 'mine.png'):
        small.write_text(earlier / name, '')
    write_results(tmp_path, methods=METHODS[:2], sizes=(16, 80), layers=('', '0-1'),
                  titles={'tnews': NASTY, 'grid': '实验 <script>'})
    code, output = lab.run('report', [tmp_path], tmp_path / 'log', python=python, stand_in=False)
    assert code == 0 and 'Glyph' not in output and 'Traceback' not in output, output
    page = Page(small.read_text(tmp_path / 'report' / 'report.html'))
    assert page.fetched and all(source.startswith('data:image/png;base64,') for source in page.fetched)
    assert 'script' not in page.tags and any(NASTY in text for text in page.shown)
    names = sorted(os.listdir(str(earlier)))
    names.remove('mine.png')  # what is no picture of an earlier report stays
    assert names == sorted('%s.%s' % (name, ending) for ending in ('png', 'pdf') for name in ['differences'] + [
        kind + '_roberta' for kind in ('convergence', 'curves', 'layers', 'parameters', 'sizes', 'spread')])
    for name in names:
        with open(str(tmp_path / 'report' / 'pictures' / name), 'rb') as reader:
            assert reader.read(8).startswith(b'%PDF-' if name.endswith('pdf') else b'\x89PNG\r\n\x1a\n')
    assert small.read_text(tmp_path / 'report' / 'tables.tex').count(r'\begin{table}') == page.tags.count('table')


@lab.IN_LAB
@pytest.mark.slow
def test_interquartile_means_are_rliables(tmp_path):
    """The table's figures against SciPy's trimmed mean, and a count of pairs."""
    python = lab.lab_python()
    found = write_results(tmp_path)
    for folder in ('report', 'again'):
        code, output = lab.run('report', [tmp_path, '--output_dir', tmp_path / folder], tmp_path / 'log', python=python,
                               stand_in=False)
        assert code == 0, output
    assert small.read_text(tmp_path / 'report' / 'tables.md') == small.read_text(tmp_path / 'again' / 'tables.md')
    rows = [line.split(' | ') for line in small.read_text(tmp_path / 'report' / 'tables.md').splitlines()
            if line.startswith('| ')]
    start = next(number for number, row in enumerate(rows) if 'interquartile mean, percent' in row[1])
    for row, method in zip(rows[start + 2:], METHODS):
        scores = [last_scores(found, task, method) for task in ('tnews', 'afqmc')]
        assert row[1].startswith('%.1f (' % (100 * stats.trim_mean(np.ravel(scores), 0.25)))
        if method != 'fl':
            better = [np.mean([(a > b) + 0.5 * (a == b) for a in last_scores(found, task, 'fl') for b in values])
                      for task, values in zip(('tnews', 'afqmc'), scores)]
            assert row[2].startswith('%.2f (' % np.mean(better))


@lab.IN_LAB
@pytest.mark.slow
def test_the_demo(tmp_path):
    """The ready grid from its file to its report: what that says is what the runs' own records say.

    Half of its methods where the stacks share the long tests.
    """
    titles = {'fl': 'FL-Tuning', 'ptuning_v2': 'P-Tuning V2', 'lora': 'LoRA', 'bitfit': 'BitFit',
              'finetune': 'fine-tuning', 'head': 'head only'}
    methods = ['fl', 'finetune', 'head'] if small.DIVIDED else list(titles)
    python = lab.lab_python()
    stack = 'tf1' if os.path.exists(os.path.join(lab.ROOT, '.envs', 'tf1')) else 'tf2'  # the faster one to start
    code, output = lab.run('reproduce', ['demo', '--stack', stack, '--output_dir', tmp_path, '--methods', *methods],
                           tmp_path / 'log', stand_in=False)
    assert code == 0 and '{0} of {0} cells are there'.format(2 * len(methods)) in output, output
    code, output = lab.run('report', [tmp_path], tmp_path / 'log', python=python, stand_in=False)
    assert code == 0, output
    found = {name: small.read_json(tmp_path, 'cells', name) for name in os.listdir(str(tmp_path / 'cells'))}
    rows = [line.strip('| ').split(' | ') for line in small.read_text(
        tmp_path / 'report' / 'tables.md').splitlines() if line.startswith('| ')]
    shown = {row[0]: row[1].replace('*', '').replace('−', '-') for row in rows[2:2 + len(methods)]}
    assert len(shown) == len(methods)
    for method in methods:
        title = titles[method]
        scores = last_scores(found, 'tnews', method)
        assert len(scores) == 2
        assert shown[title].startswith('%.1f ± %.1f' % (100 * standard.mean(scores), 100 * standard.stdev(scores)))
    page = Page(small.read_text(tmp_path / 'report' / 'report.html'))
    assert len(page.fetched) >= 3 and any('FL-Tuning' in text for text in page.shown)
