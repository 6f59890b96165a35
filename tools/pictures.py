"""The pictures of a report, each as PNG and PDF. matplotlib is of the lab environment."""
import glob
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np

from fltuning.extras import import_extra
from fltuning.files import replacing
from tools import statistics
from tools.results import Results, Variant, has_learnt
from tools.tables import counted, rivals, with_ours

COLORS = ['#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e', '#8c564b', '#17becf', '#e377c2', '#7f7f7f', '#bcbd22']
MARKERS = 'osD^vPX<>'  # one fewer than colours, so that 90 go by before both come again
TICKS = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10]
CHINESE = ['Noto Sans SC', 'Noto Sans CJK SC', 'Noto Sans CJK JP', 'Source Han Sans SC', 'WenQuanYi Zen Hei',
           'WenQuanYi Micro Hei', 'Droid Sans Fallback', 'SimHei', 'PingFang SC']


class Picture(NamedTuple):
    name: str
    title: str  # what it shows, in a sentence


def draw_all(results: Results, folder: str) -> List[Picture]:
    """Draws what the results have, into folder/NAME.png and .pdf; what an earlier report drew besides is removed."""
    import_extra('matplotlib', 'lab').use('Agg')
    plt = import_extra('matplotlib.pyplot', 'lab')
    use_fonts(results)
    os.makedirs(folder, exist_ok=True)
    kinds, drawn = (curves, spread, parameters, sizes, layers, convergence), []
    places = [(differences, differences.__name__, ())]
    places += [(draw, '%s_%s' % (draw.__name__, backbone), (backbone,))
               for draw in kinds for backbone in results.backbones]
    for draw, name, which in places:
        with plt.rc_context({'font.size': 9, 'axes.grid': True, 'grid.alpha': 0.3, 'axes.axisbelow': True}):
            picture = draw(plt, results, *which)
            if picture is None:
                continue
            figure, title = picture
            for ending in ('png', 'pdf'):
                with replacing(os.path.join(folder, '%s.%s' % (name, ending))) as temporary:
                    # The same results give the same file.
                    figure.savefig(temporary, format=ending, dpi=130, metadata={
                        'CreationDate': None} if ending == 'pdf' else {'Software': None})
            plt.close(figure)
            drawn.append(Picture(name, title))
    remove_others(folder, [differences.__name__] + [draw.__name__ + '_*' for draw in kinds], drawn)
    return drawn


def remove_others(folder: str, kinds: List[str], drawn: List[Picture]) -> None:
    """Pictures of these kinds, as patterns of names, that are none of those drawn."""
    names = {picture.name for picture in drawn}
    for kind in kinds:
        for ending in ('.png', '.pdf'):
            for path in glob.glob(os.path.join(glob.escape(folder), kind + ending)):
                if os.path.basename(path)[:-len(ending)] not in names:
                    os.remove(path)


def use_fonts(results: Results) -> None:
    """Chinese in titles needs a font that has it; says so in a line where there is none."""
    manager, matplotlib = import_extra('matplotlib.font_manager', 'lab'), import_extra('matplotlib', 'lab')
    try:
        import pylopdf_fonts_zh_cn
        for path in glob.glob(os.path.join(os.path.dirname(pylopdf_fonts_zh_cn.__file__), '*Sans*.otf')):
            manager.fontManager.addfont(path)
    except ImportError:
        pass
    known = {font.name for font in manager.fontManager.ttflist}
    found = [name for name in CHINESE if name in known]
    matplotlib.rcParams['font.family'] = ['DejaVu Sans'] + found[:1]
    shown = ''.join(list(results.titles.values()) + results.tasks + results.backbones)
    if not found and any('\u2e80' <= character <= '\U0003ffff' for character in shown):
        print('no font here has Chinese characters, so pictures show boxes: `scripts/setup.sh lab cjk` adds one')


def panels(plt: Any, count: int, width: float = 3.4, height: float = 2.7) -> tuple:
    """(figure, axes in a list): three a row."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns + 0.4, height * rows + 0.5), squeeze=False,
                                layout='constrained')
    found = list(axes.flat)
    for axis in found[count:]:
        axis.remove()
    return figure, found[:count]


def style(results: Results, variant: Variant) -> Dict[str, Any]:
    number = results.variants.index(variant)
    return {'color': COLORS[number % len(COLORS)], 'marker': MARKERS[number % len(MARKERS)]}


def legend(figure: Any, axes: List[Any]) -> None:
    """One for all panels, below them."""
    found = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            found.setdefault(label, handle)
    if found:
        columns = int(13 * figure.get_figwidth() / (max(map(len, found)) + 8))  # as many as fit
        columns = max(1, min(columns, len(found)))
        rows = -(-len(found) // columns)
        figure.set_figheight(figure.get_figheight() + 0.18 * (rows - 1))
        figure.legend(found.values(), found.keys(), loc='outside lower center', fontsize=8,
                      ncols=columns)


def arms(interval: statistics.Interval, scale: float = 1) -> List[List[float]]:
    """How far an interval's ends are from its value, as errorbar has them; 0 where it has none."""
    return [[0 if edge is None else scale * abs(edge - interval.value)] for edge in (interval.low, interval.high)]


def differences(plt: Any, results: Results) -> Optional[tuple]:
    """A panel a backbone, a line for each other method on each task, and over tasks where there are several."""
    found, several = {}, len(results.tasks) > 1
    for backbone in results.backbones:
        for ours, other in with_ours(results, backbone):
            for task in results.tasks:
                found[backbone, other, task] = results.difference(task, backbone, ours, other)
            overall = results.overall(backbone, ours, other) if several else None
            found[backbone, other, None] = overall and overall[0]
    found = {place: interval for place, interval in found.items() if interval is not None}
    if not found:
        return None
    backbones = [name for name in results.backbones if name in {place[0] for place in found}]
    lines = [(other, task) for other in results.variants for task in results.tasks + [None]
             if any((backbone, other, task) in found for backbone in backbones)]
    figure, axes = panels(plt, len(backbones), 3.9, 0.8 + 0.22 * len(lines))
    for number, (axis, backbone) in enumerate(zip(axes, backbones)):
        axis.set_title(results.title(backbone))
        for place, (other, task) in enumerate(lines):
            interval = found.get((backbone, other, task))
            if interval is not None:
                axis.errorbar([100 * interval.value], [place], xerr=arms(interval, 100), markersize=4 if task else 6,
                              capsize=2, linestyle='', label=results.variant_title(other), **style(results, other))
        axis.axvline(0, color='grey', linewidth=1)
        axis.set_yticks(range(len(lines)), [results.title(task) if task else 'over tasks' for _, task in lines]
                        if number % 3 == 0 else [''] * len(lines))
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_xlabel('points by which FL-Tuning is ahead')
    edges = [edge for axis in axes for edge in axis.get_xlim()]
    for axis in axes:
        axis.set_xlim(min(edges), max(edges))
    legend(figure, axes)
    return figure, ('FL-Tuning’s score less that of each other method, runs of the same seed and draw in pairs, with '
                    '95 % intervals: right of 0 FL-Tuning is ahead.')


def per_task(draw: Callable) -> Callable:
    """A picture with a panel a task: draw(axis, results, task, backbone) -> whether there is anything."""
    def picture(plt, results, backbone):
        figure, axes = panels(plt, len(results.tasks))
        drawn = []
        for axis, task in zip(axes, results.tasks):
            axis.set_title(results.title(task))
            drawn.append(draw(axis, results, task, backbone))
        if not any(drawn):
            plt.close(figure)
            return None
        legend(figure, axes)
        return figure, '%s, backbone %s.' % (' '.join(draw.__doc__.split()).rstrip('.'), results.title(backbone))
    picture.__name__ = draw.__name__
    return picture


def percent_axis(axis: Any, results: Results, task: str) -> None:
    axis.set_ylabel(results.metric(task) + ', %')


def common_line(axis: Any, results: Results, task: str) -> None:
    share = results.share(task)
    if share is not None:
        axis.axhline(100 * share, color='black', linewidth=0.8, linestyle=':', label='commonest label')


@per_task
def curves(axis, results, task, backbone):
    """Score on dev over steps: the mean over runs, and a band from the least to the greatest"""
    several = cut = False
    for variant in results.variants:
        rows = [row for row in results.runs(task, backbone, variant) if row.history]
        if not rows:
            continue
        of_runs = [{point.step for point in row.history} for row in rows]
        steps = sorted(set.intersection(*of_runs))
        cut = cut or len(set.union(*of_runs)) > len(steps)
        if not steps:
            continue
        several = several or len(steps) > 1
        values = 100 * np.array([[dict(row.history)[step] for step in steps] for row in rows])  # (runs, steps)
        look = style(results, variant)
        axis.plot(steps, values.mean(0), label=results.variant_title(variant), markersize=3, linewidth=1.2, **look)
        axis.fill_between(steps, values.min(0), values.max(0), color=look['color'], alpha=0.15, linewidth=0)
    common_line(axis, results, task)
    axis.set_xlabel('steps' + (', cut to those of the shortest run' if cut else ''))
    percent_axis(axis, results, task)
    return several


@per_task
def spread(axis, results, task, backbone):
    """Each run's score, and the mean"""
    shown = [variant for variant in results.variants if results.scores(task, backbone, variant)]
    for place, variant in enumerate(shown):
        values = 100 * np.array(list(results.scores(task, backbone, variant).values()))
        shift = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(1)
        look = style(results, variant)
        axis.scatter(place + shift, values, s=18, alpha=0.8, label=results.variant_title(variant), **look)
        axis.hlines(values.mean(), place - 0.3, place + 0.3, color=look['color'])
    common_line(axis, results, task)
    axis.set_xticks([])
    percent_axis(axis, results, task)
    return bool(shown)


@per_task
def parameters(axis, results, task, backbone):
    """Mean score against trained parameters, with its 95 % interval over runs"""
    shown = False
    for variant in results.variants:
        rows = [row for row in results.runs(task, backbone, variant) if row.score is not None and row.trained]
        if not rows:
            continue
        shown = True
        error_bar(axis, np.mean([row.trained for row in rows]), results, task, backbone, variant)
    axis.set_xscale('log')
    axis.set_xlabel('trained parameters')
    common_line(axis, results, task)
    percent_axis(axis, results, task)
    return shown


def error_bar(axis: Any, place: float, results: Results, task: str, backbone: str, variant: Variant,
              label: Optional[str] = None, **look: Any) -> None:
    """A mean with its interval; the bar is cut where a score cannot be."""
    values = statistics.by_draw(results.scores(task, backbone, variant))
    found = statistics.mean_interval(values, results.resolution(task, backbone))
    below, above = (0, 0) if found.low is None else (found.value - max(0, found.low), min(1, found.high) - found.value)
    axis.errorbar([place], [100 * found.value], [[100 * below], [100 * above]], markersize=5, capsize=2, linestyle='',
                  label=label or results.variant_title(variant), **dict(style(results, variant), **look))


def over(field: str) -> Callable:
    """draw(axis, results, task, backbone): mean scores over a field of the variants, a line for all else of them."""
    def draw(axis, results, task, backbone):
        series = results.series(field)
        names = list(dict.fromkeys(getattr(variant, field) for found in series.values() for variant in found))
        shown = False
        for number, found in enumerate(series.values()):
            found = [variant for variant in found if results.scores(task, backbone, variant)]
            places = [names.index(getattr(variant, field)) + 0.06 * number for variant in found]
            look = {'color': COLORS[number % len(COLORS)], 'marker': MARKERS[number % len(MARKERS)]}
            for place, variant in zip(places, found):
                error_bar(axis, place, results, task, backbone, variant, results.variant_title(variant, field), **look)
            if field == 'size':
                axis.plot(places, [100 * np.mean(list(results.scores(task, backbone, variant).values()))
                                   for variant in found], color=look['color'], linewidth=1)
            shown = shown or bool(found)
        axis.set_xticks(range(len(names)), [str(name) or 'all' for name in names])
        axis.set_xlabel(field)
        common_line(axis, results, task)
        percent_axis(axis, results, task)
        return shown
    return draw


def named(draw: Callable, name: str, text: str) -> Callable:
    draw.__name__, draw.__doc__ = name, text
    return per_task(draw)


sizes = named(over('size'), 'sizes', 'Mean score over the size, with its 95 % interval over runs')
layers = named(over('layers'), 'layers', 'Mean score by the layers that are tuned, with its 95 % interval over runs')


def convergence(plt: Any, results: Results, backbone: str) -> Optional[tuple]:
    pairs = [pair for pair in rivals(results) if results.convergence(backbone, *pair)]
    if not pairs or not any(len(row.history) > 1 for row in results.rows if has_learnt(row)):
        return None
    figure, axes = panels(plt, 1, 5.6, 0.5 + 0.34 * len(pairs) * (len(results.tasks) + 1))
    labels, shown = [], []
    for ours, theirs in pairs:
        for task in results.tasks + [None]:
            found = results.convergence_ratio(backbone, ours, theirs, [task] if task else None)
            if found is not None:
                labels.append((results.title(task) if task else 'over ' + counted(found[1], len(results.tasks)))
                              + (', %s' % results.variant_title(theirs) if len(pairs) > 1 else ''))
                shown.append(found[0])
    for place, interval in enumerate(shown):
        axes[0].errorbar([interval.value], [place], xerr=arms(interval), color='black', marker='o', capsize=3)
    axes[0].axvline(1, color='grey', linewidth=1)
    axes[0].set_xscale('log')
    edges = [value for interval in shown for value in interval if value is not None] + [0.9, 1.2]
    ticks = [tick for tick in TICKS if 0.8 * min(edges) <= tick <= 1.2 * max(edges)]
    axes[0].set_xticks(ticks, ['%g' % tick for tick in ticks])
    axes[0].xaxis.set_minor_locator(import_extra('matplotlib.ticker', 'lab').NullLocator())
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].invert_yaxis()
    axes[0].set_xlabel('steps to 95 %% of the best:\n%s / %s'
                       % (results.title(pairs[0][1].method), results.title(pairs[0][0].method)))
    return figure, ('Convergence: right of 1, FL-Tuning reaches 95 %% of its best in fewer steps; 95 %% intervals over '
                    'runs, backbone %s.' % results.title(backbone))
