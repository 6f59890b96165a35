"""What a grid's results say and do not say, in sentences."""
from typing import Dict, List

from tools import cells, dev_texts, rates, sizes
from tools.results import RIVAL, Results, Variant, ended_past
from tools.tables import counted, points, times, with_ours


def sentences(results: Results) -> List[str]:
    found = []
    if results.expected and results.there < results.expected:
        found.append('%d of the grid’s %d cells are there: all below is of those.'
                     % (results.there, results.expected))
    samples = {row.task for row in results.rows if row.sample}
    if samples:
        found.append('On %s the data is the bundled sample: it shows how things go, and scores nothing.'
                     % ', '.join(results.title(task) for task in results.tasks if task in samples))
    for backbone in results.backbones:
        about = 'With the backbone %s: ' % results.title(backbone)
        for pair in with_ours(results, backbone):
            found += [about + text for text in compared(results, backbone, *pair)]
        found += [about + text for variants in sizes.series(results, backbone)
                  for text in by_size(results, backbone, variants)]
        found += [about + text for variant in results.shown(backbone) for text in lost(results, backbone, variant)]
        found += [about + text for task in results.tasks for text in rates.chosen_blindly(results, backbone, task)]
        found += [about + text for task in results.tasks for text in mixed(results, backbone, task)]
        for task in results.unlearnt(backbone):
            found.append(about + 'on %s no method is above the commonest label by more than its interval, so this '
                         'task tells little of the methods.' % results.title(task))
    number = sum(row.score is None for row in results.rows)
    if number:
        found.append('%d runs diverged and are in no mean.' % number)
    return found


def mixed(results: Results, backbone: str, task: str) -> List[str]:
    """Of methods some of whose runs have learnt the task, and others not: their means and deviations hide it."""
    found = []
    for variant in results.variants:
        runs = [row for row in results.runs(task, backbone, variant) if row.score is not None]
        nothing = sum(not ended_past(row) for row in runs)
        if 0 < nothing < len(runs):
            found.append('on %s %d of %d runs of %s had learnt nothing in the end, unlike the others: the mean is of '
                         'neither kind.' % (results.title(task), nothing, len(runs), results.variant_title(variant)))
    return found


def lost(results: Results, backbone: str, variant: Variant) -> List[str]:
    """Of a method without a rate."""
    reasons = {task: results.without_rate.get((task, backbone, variant)) for task in results.tasks}
    diverged = [results.title(task) for task, why in reasons.items() if why == cells.DIVERGED]
    failed = [results.title(task) for task, why in reasons.items() if why not in (None, cells.DIVERGED)]
    return [text % (results.variant_title(variant), ', '.join(tasks)) for tasks, text in [
        (diverged, '%s diverged at every rate on %s, and has no score there.'),
        (failed, '%s has no score on %s: a run that was to choose its rate failed.')] if tasks]


def compared(results: Results, backbone: str, ours: Variant, theirs: Variant) -> List[str]:
    """Of scores, of their spread, and of P-Tuning V2 of the steps."""
    overall = results.overall(backbone, ours, theirs)
    if overall is None:
        return []
    us, them = results.variant_title(ours), results.variant_title(theirs)
    interval, number = overall
    tasks = over(results, number)
    said = '%s points' % points(interval)
    if interval.low is None:
        found = ['%s less %s is %s %s, which decides nothing: that takes two pairs of runs on a task.'
                 % (us, them, said, tasks)]
    else:
        found = [{
            'above': '%s is ahead of %s %s: %s.' % (us, them, tasks, said),
            'below': '%s is behind %s %s: %s.' % (us, them, tasks, said),
            'undecided': 'whether %s or %s is better %s is undecided: %s.' % (us, them, tasks, said),
        }[interval.verdict()] + by_task(results, backbone, ours, theirs)
            + for_other_texts(results, backbone, ours, theirs)]
    spread = results.spread(backbone, ours, theirs)
    if spread is not None:
        found.append('the scores of %s spread over %s %s times as much as those of %s %s%s.' % (
            us, 'draws' if results.several_draws else 'runs', times(spread[0]), them, over(results, spread[1]), {
                'above': ', which is more', 'below': ', which is less',
                'undecided': ': which of the two is steadier is undecided'}[spread[0].verdict(1)]))
    ratio = results.convergence_ratio(backbone, ours, theirs) if theirs.method == RIVAL else None
    if ratio is not None:
        found.append('%s takes %s times the steps of %s to 95 %% of its best %s%s.' % (
            them, times(ratio[0]), us, over(results, ratio[1]), {
                'above': ', so that %s converges faster' % us, 'below': ', so that %s converges faster' % them,
                'undecided': ': which converges faster is undecided'}[ratio[0].verdict(1)]))
    return found


def by_size(results: Results, backbone: str, variants: List[Variant]) -> List[str]:
    found = sizes.per_doubling(results, backbone, variants)
    if found is None:
        return []
    return ['each doubling of the size of %s, from %d to %d, changes its score by %s points %s%s.' % (
        results.variant_title(variants[0], 'size'), found.sizes[0], found.sizes[-1], points(found.interval),
        over(results, found.tasks), '' if found.interval.low is None else {
            'above': ': it rises with the size', 'below': ': it falls with the size',
            'undecided': ': whether it rises with the size is undecided'}[found.interval.verdict()])]


def for_other_texts(results: Results, backbone: str, ours: Variant, theirs: Variant) -> str:
    """The same as if dev's texts were drawn anew as well, where the runs have their points."""
    found = dev_texts.overall(results, backbone, ours, theirs)
    if found is None:
        return ''
    verdicts = [interval.verdict() for interval in (found[0], results.overall(backbone, ours, theirs)[0])]
    return ' For other dev texts, too: %s%s.' % (points(found[0]), (
        ', which leaves it undecided' if verdicts[0] != verdicts[1] else ''))


def over(results: Results, number: int) -> str:
    text = counted(number, len(results.tasks))
    return ('on ' if text == 'one task' else 'over ') + text


def by_task(results: Results, backbone: str, ours: Variant, theirs: Variant) -> str:
    found: Dict[str, List[str]] = {'ahead on': [], 'behind on': [], 'undecided on': [], 'no interval on': []}
    names = {'above': 'ahead on', 'below': 'behind on', 'undecided': 'undecided on'}
    for task in results.tasks:
        interval = results.difference(task, backbone, ours, theirs)
        if interval is not None:
            name = 'no interval on' if interval.low is None else names[interval.verdict()]
            found[name].append(results.title(task))
    if sum(map(len, found.values())) == 1:
        return ''
    return ' Task by task: %s.' % '; '.join(
        '%s %s' % (name, ', '.join(tasks)) for name, tasks in found.items() if tasks)
