"""The learning rates of a report: which were chosen, and from what."""
from typing import List, Optional

from tools.results import Results, Row
from tools.table_formats import Item, Table, percent


def chosen_table(results: Results, backbone: str) -> Optional[Table]:
    """The chosen rates, whether one is at the edge of the list, and whether it was chosen from anything."""
    if not results.choices:
        return None
    rows: List[List[Item]] = []
    edges = (min(results.rates), max(results.rates)) if results.rates else ()
    for variant in results.shown(backbone):
        items = [Item(results.variant_title(variant))]
        for task in results.tasks:
            key = (task, backbone, variant)
            rate = results.choices.get(key)
            items.append(Item(results.absent(*key) if rate is None else '%g%s%s' % (
                rate, ' *' if rate in edges else '', ' †' if results.is_blind(*key) else '')))
        rows.append(items)
    blind = any('†' in item.text for row in rows for item in row)
    return Table('Learning rates, ' + results.title(backbone), ['method'] + results.task_titles(), rows,
                 'Chosen on a fifth of the training records, for each method from the same list (%s). *: at its edge, '
                 'so that a better one may lie beyond.%s' % (', '.join('%g' % rate for rate in results.rates), (
                     ' †: none of the runs that chose it ended above the commonest label (or above 0, where there is '
                     'none) by two standard errors, so it is as good as picked blindly.' if blind else '')))


def search_table(results: Results, backbone: str) -> Optional[Table]:
    """Tasks and methods by rates: what each run that was to choose one ended with."""
    rows = []
    for task in results.tasks:
        for variant in results.shown(backbone):
            found = results.searches.get((task, backbone, variant), {})
            chosen = results.choices.get((task, backbone, variant))
            if found:
                rows.append([Item('%s: %s' % (results.title(task), results.variant_title(variant)))] + [
                    score_item(found.get(rate), rate == chosen) for rate in results.rates])
    return Table('What chose the learning rates, ' + results.title(backbone),
                 ['task: method'] + ['%g' % rate for rate in results.rates], rows,
                 'Scores in percent on a fifth of the training records, of a run with each rate on the others, after '
                 'its last step; in bold the one that was chosen, of equal ones the first.') if rows else None


def score_item(row: Optional[Row], is_chosen: bool) -> Item:
    if row is None:
        return Item('–')
    return Item('diverged' if row.score is None else percent(row.score), is_chosen)


def chosen_blindly(results: Results, backbone: str, task: str) -> List[str]:
    """A sentence of the methods whose rate on a task was chosen from runs that had learnt nothing, if any."""
    titles = [results.variant_title(variant) for variant in results.shown(backbone)
              if results.is_blind(task, backbone, variant)]
    return ['on %s no run that chose the rate of %s was above the commonest label: it is as good as picked blindly, '
            'and another may do better.' % (results.title(task), ' or '.join(titles))] if titles else []
