"""The tables of a report, but for those of rates."""
import functools
from typing import Any, Callable, Dict, List, Optional

import numpy as np

from tools import dev_texts, rates, sizes
from tools.results import OURS, RIVAL, Results
from tools.statistics import Interval
from tools.table_formats import Item, Table, percent

CLOSE = '≈'  # not told from the best
NO_INTERVAL = ' (no interval)'
NOTES = [
    ('lost)', 'Lost: the training diverged, and the mean is that of the other runs.'),
    ('missing)', 'Missing: runs that other methods have.'),
    ('diverged', 'Diverged: at every rate, so there is none to train with.'),
    ('failed', 'Failed: a run that was to choose the rate.')]


def points(interval: Interval) -> str:
    """A difference of scores with its interval, in points of a percent."""
    def signed(value):
        return ('%+.1f' % (100 * value)).replace('-', '−')
    if interval.low is None:
        return signed(interval.value) + NO_INTERVAL
    return '%s (%s to %s)' % tuple(map(signed, interval))


def times(interval: Interval) -> str:
    if interval.low is None:
        return '%.2f' % interval.value + NO_INTERVAL
    return '%.2f (%.2f to %.2f)' % tuple(interval)


def overall_item(results: Results, found: Optional[tuple], text: Callable, neutral: float = 0.0) -> Item:
    """Of (interval, number of tasks): says so where these are not all tasks."""
    if found is None:
        return Item('–')
    interval, number = found
    few = '' if number == len(results.tasks) else ' (%s)' % counted(number, len(results.tasks))
    return Item(text(interval) + few, is_decided(interval, neutral))


def score_table(results: Results, backbone: str) -> Table:
    """Methods by tasks: mean ± standard deviation over the runs, in percent."""
    rows, marks = [], {task: results.marks(task, backbone) for task in results.tasks}
    pairs = {task: results.pairs(task, backbone) for task in results.tasks}
    for variant in results.shown(backbone):
        items, means = [Item(results.variant_title(variant))], []
        for task in results.tasks:
            runs = results.runs(task, backbone, variant)
            scores = [row.score for row in runs if row.score is not None]
            text = percent(float(np.mean(scores))) if scores else results.absent(task, backbone, variant)
            if len(scores) > 1:
                text += ' ± ' + percent(float(np.std(scores, ddof=1)))
            if marks[task].get(variant) == 'close':
                text += ' ' + CLOSE
            for count, what in ((len(runs) - len(scores), 'lost'), (len(pairs[task]) - len(runs), 'missing')):
                if count and runs:
                    text += ' (%d %s)' % (count, what)
            items.append(Item(text, marks[task].get(variant) == 'best'))
            means.append(np.mean(scores) if scores else np.nan)
        items.append(Item('–' if np.isnan(means).any() else percent(float(np.mean(means)))))
        rows.append(items)
    shown = ' '.join(item.text for items in rows for item in items[1:])
    shares = list(map(results.share, results.tasks))
    if any(share is not None for share in shares):
        rows.append([Item('the commonest label')] + [
            Item('–' if share is None else percent(share)) for share in shares] + [Item('')])
    note = ('Score on dev in percent, %s: mean ± standard deviation over the runs; in bold the best mean, of the '
            'methods with all runs where there are any, and of none that pairs of runs prove worse; %s: the paired '
            'difference to it is undecided at 95 %%.' % (
                'after the last step' if results.select == 'last' else
                'of the best evaluation, which dev itself chose', CLOSE))
    note += ''.join(' ' + text for word, text in NOTES if word in shown)
    return Table('Scores with the backbone ' + results.title(backbone), ['method'] + [
        '%s (%s)' % (results.title(task), results.metric(task)) for task in results.tasks] + ['mean'], rows, note)


def difference_table(results: Results, backbone: str) -> Optional[Table]:
    """FL-Tuning less each other, task by task and over tasks."""
    rows = difference_rows(results, backbone, results.difference, results.overall)
    return Table(
        'FL-Tuning less each other method, ' + results.title(backbone),
        ['method'] + results.task_titles() + ['over tasks'], rows,
        'Points of a percent between runs of the same seed and draw, with 95 % intervals: Student’s t, over tasks '
        'Welch’s. Above 0 FL-Tuning is ahead; bold where 0 is outside. The intervals are over seeds and draws, '
        'not over other dev records, and each is for itself: of twenty true ties one is expected in bold. '
        'Over tasks: over those with two pairs or more.') if rows else None


def other_texts_table(results: Results, backbone: str) -> Optional[Table]:
    """The same, with what other dev texts would change."""
    rows = difference_rows(results, backbone, functools.partial(dev_texts.difference, results),
                           functools.partial(dev_texts.overall, results))
    return Table(
        'The same for other dev texts, too, ' + results.title(backbone),
        ['method'] + results.task_titles() + ['over tasks'], rows,
        'The same differences, with 95 % intervals over seeds and over dev’s texts, as if these were drawn anew as '
        'well: what would hold on another dev set like it. –: runs have no points of texts, or no interval.'
    ) if rows else None


def difference_rows(results: Results, backbone: str, difference: Callable, overall: Callable) -> List[List[Item]]:
    """A row for each method that FL-Tuning is compared with; none at all if all are empty.

    difference, overall: what `Results` has under these names.
    """
    rows, several = [], len([variant for variant in results.variants if variant.method == OURS]) > 1
    for ours, variant in with_ours(results, backbone):
        title = results.variant_title(variant)
        items = [Item('%s less %s' % (results.variant_title(ours), title) if several else title)]
        for task in results.tasks:
            interval = difference(task, backbone, ours, variant)
            items.append(Item('–' if interval is None else points(interval), is_decided(interval)))
        rows.append(items + [overall_item(results, overall(backbone, ours, variant), points)])
    return rows if any(item.text != '–' for items in rows for item in items[1:]) else []


def size_table(results: Results, backbone: str) -> Optional[Table]:
    """What a doubling of the size changes, task by task and over tasks."""
    rows = []
    for variants in sizes.series(results, backbone):
        found = [sizes.per_doubling(results, backbone, variants, [task]) for task in results.tasks]
        if any(found):
            overall = sizes.per_doubling(results, backbone, variants)
            rows.append([Item(results.variant_title(variants[0], 'size'))] + [
                Item(points(one.interval), is_decided(one.interval)) if one else Item('–') for one in found] + [
                overall_item(results, overall and overall[:2], points)])
    return Table(
        'With each doubling of the size, ' + results.title(backbone),
        ['method'] + results.task_titles() + ['over tasks'], rows,
        'Change of the score in points of a percent: the slope of the line nearest to the scores of a seed (or draw) '
        'over the logarithm of the size, of sizes with all runs, with 95 % intervals: Student’s t, over tasks Welch’s; '
        'bold where 0 is outside. They are over seeds (or draws), not over other dev records, nor over other choices '
        'of a size’s rate. A line does not say where a curve bends.') if rows else None


def with_ours(results: Results, backbone: str) -> List[tuple]:
    """(FL-Tuning, another method) of the same size and layers where there is such a one."""
    return [(results.ours(variant), variant) for variant in results.shown(backbone)
            if variant.method != OURS and results.ours(variant)]


def is_decided(interval: Optional[Interval], neutral: float = 0.0) -> bool:
    return interval is not None and interval.verdict(neutral) != 'undecided'


def bootstrap_table(results: Results, backbone: str) -> Optional[Table]:
    """Interquartile mean and probability of improvement over tasks, by rliable."""
    from tools.rliable_scores import matrices, robust_scores
    found, runs, tasks = matrices(results, backbone)
    if runs < 2 or len(results.shown(backbone)) < 2:
        return None
    rows = [[Item(results.variant_title(variant)), Item('%s (%s to %s)' % tuple(map(percent, iqm))), Item(
        '' if better is None else '%.2f (%.2f to %.2f)' % better)] for variant, iqm, better in
        robust_scores(results, found)]
    note = ('Of %d %s of %s together, with the stratified bootstrap intervals of rliable (arXiv 2108.13264). '
            'With few seeds a bootstrap’s intervals are too narrow; the differences above are what decides.'
            % (runs, 'draws, each in the mean over its seeds,' if results.several_draws else 'runs',
               counted(tasks, len(results.tasks))))
    left = [results.variant_title(variant) for variant in results.shown(backbone) if variant not in found]
    if left:
        note += ' Left out, for want of some of these runs: %s.' % '; '.join(left)
    return Table('Over tasks, ' + results.title(backbone),
                 ['method', 'interquartile mean, percent', 'probability that FL-Tuning is better'], rows, note)


def counted(tasks: int, of: int) -> str:
    """
    >>> counted(1, 1), counted(3, 3), counted(1, 3)
    ('one task', '3 tasks', '1 of 3 tasks')
    """
    return '%d of %d tasks' % (tasks, of) if tasks < of else 'one task' if of == 1 else '%d tasks' % of


def convergence_table(results: Results, backbone: str) -> Optional[Table]:
    """Steps to 95 % of the best score, and the ratio of P-Tuning V2's to FL-Tuning's."""
    from tools.results import has_learnt, steps_to_best
    rows = []
    for variant in results.shown(backbone):
        items = [Item(results.variant_title(variant))]
        for task in results.tasks:
            steps = [steps_to_best(row) for row in results.runs(task, backbone, variant) if has_learnt(row)]
            items.append(Item('%.0f' % np.mean(steps) if steps else '–'))
        rows.append(items + [Item('')])
    for ours, theirs in rivals(results):
        overall = results.convergence_ratio(backbone, ours, theirs)
        if overall is None:
            continue
        items = [Item('%s / %s' % (results.variant_title(theirs), results.variant_title(ours)))]
        for task in results.tasks:
            found = results.convergence_ratio(backbone, ours, theirs, [task])
            items.append(Item('–' if found is None else times(found[0]), found and is_decided(found[0], 1)))
        rows.append(items + [overall_item(results, overall, times, 1)])
    if not any(len(row.history) > 1 for row in results.rows):
        return None
    return Table(
        'Convergence, ' + results.title(backbone), ['method'] + results.task_titles() + ['over tasks'],
        rows, 'Steps to the first evaluation with 95 % of the best score of the same run, mean over runs; no finer '
        'than the evaluations are. Ratios are geometric means of paired runs with 95 % intervals, on tasks where some '
        'method is above the commonest label; bold where 1 is outside. Both are of those runs that got past that '
        'label, where its share is known, by two standard errors of a share of dev: others are at their best at once.')


def rivals(results: Results) -> List[tuple]:
    """(FL-Tuning, P-Tuning V2) of the same size and layers."""
    return [(results.ours(variant), variant) for variant in results.variants
            if variant.method == RIVAL and results.ours(variant)]


def cost_table(results: Results, backbone: str) -> Optional[Table]:
    rows, seconds = [], {}
    for variant in results.shown(backbone):
        seconds[variant] = {task: [row.seconds for row in results.runs(task, backbone, variant)
                                   if row.score is not None and row.seconds] for task in results.tasks}
    timed = [found for found in seconds.values() if any(found.values())]
    tasks = [task for task in results.tasks if timed and all(found[task] for found in timed)]
    for variant, found in seconds.items():
        runs = [row for task in results.tasks for row in results.runs(task, backbone, variant)]
        if not runs:
            continue
        trained = [row.trained for row in runs if row.trained]
        shares = [row.trained / row.parameters for row in runs if row.trained and row.parameters]
        memory = [row.memory for row in runs if row.memory]
        means = [np.mean(found[task]) for task in tasks if found[task]]
        rows.append([Item(results.variant_title(variant)), Item(span(trained, '{:,.0f}')),
                     Item(span([100 * share for share in shares], '{:.2f}')),
                     Item(f'{np.mean(means):,.0f}' if means else '–'), Item(span(memory, '{:,.0f}')),
                     Item(str(len(runs)))])
    return Table('Cost of a run, ' + results.title(backbone), [
        'method', 'trained parameters', '% of all', 'seconds', 'peak memory, MB', 'runs'], rows,
        'Heads are among the trained parameters, so tasks differ. Seconds are of training alone, in the mean over %s, '
        'those that all methods here have, of runs that did not diverge, as the machines were: with several runs at a '
        'time they are no measure of speed (docs/speed.md has those).' % counted(len(tasks), len(results.tasks))
    ) if rows else None


def span(values: List[float], form: str) -> str:
    if not values:
        return '–'
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else '%s–%s' % (low, high)


def all_tables(results: Results, with_rliable: bool = True) -> List[Table]:
    found: List[Optional[Table]] = []
    for backbone in results.backbones:
        found += [score_table(results, backbone), difference_table(results, backbone),
                  other_texts_table(results, backbone), size_table(results, backbone)]
        if with_rliable:
            found.append(bootstrap_table(results, backbone))
        found += [convergence_table(results, backbone), cost_table(results, backbone),
                  rates.chosen_table(results, backbone), rates.search_table(results, backbone)]
    return [table for table in found if table]


def numbers(results: Results) -> Dict[str, Any]:
    """What the tables say as numbers, JSON-able: of each task, backbone and variant."""
    found, marks = [], {(task, backbone): results.marks(task, backbone)
                        for task in results.tasks for backbone in results.backbones}
    for (task, backbone, variant), rows in results.index.items():
        scores = [row.score for row in rows if row.score is not None]
        ours = results.ours(variant)
        interval = (results.difference(task, backbone, ours, variant)
                    if ours and variant.method != OURS else None)
        wider = interval and dev_texts.difference(results, task, backbone, ours, variant)
        found.append(dict(
            variant._asdict(), task=task, backbone=backbone, runs=len(rows), scores=scores,
            mean=float(np.mean(scores)) if scores else None,
            deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
            mark=marks[task, backbone].get(variant), ours_less_this=interval and list(interval),
            for_other_texts=wider and list(wider)))
    doubled = [dict(variants[0]._asdict(), size=one.sizes, backbone=backbone, task=task,
                    per_doubling=list(one.interval))
               for backbone in results.backbones for variants in sizes.series(results, backbone)
               for task in results.tasks for one in [sizes.per_doubling(results, backbone, variants, [task])] if one]
    without_rate = [dict(variant._asdict(), task=task, backbone=backbone, why=why)
                    for (task, backbone, variant), why in results.without_rate.items()]
    return {'name': results.name, 'found': found, 'sizes': doubled, 'without_rate': without_rate}
