"""Grids: what is refused, the cells and their order, data, engines that lose processes, searches of rates."""
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import lab
import small
import snippets
import tasks
from fltuning import compat
from fltuning.errors import UserError
from tools import cell_run, cells, estimates, grids, methods, parts, plan, reproduce, results, words

GRID = '''name: g
tasks: [afqmc, wsc]
methods: [fl, ptuning_v2]
sizes: [2]
seeds: [1, 2, 3]
rates: [0.001, 0.002]
settings: {epochs: 4}
data_path: DATA
backbones: {tiny: BACKBONE}
'''


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with data of some tasks and a tiny backbone."""
    folder = tmp_path_factory.mktemp('grids')
    small.write_task(folder / 'data', 'afqmc', train=40)
    for name in ('wsc', 'c3', 'chid', 'cmrc2018', 'cluener'):
        small.write_task(folder / 'data', name)
    record = small.read_lines(folder / 'data' / 'wsc' / 'train.json')[0]
    small.write_lines(folder / 'data' / 'wsc' / 'train.json', [
        dict(record, text='她说这是美的。她们也说' + small.sentence(i // 3, 20)) for i in range(60)])
    small.write_backbone(folder / 'backbone')
    return folder


@pytest.fixture
def write(made, tmp_path):
    """write(text, old, new) -> the path of a grid file: `text`, or GRID, with something replaced."""
    def write_grid(*replaced, **options):
        text = options.get('text', GRID)
        for old, new in zip(replaced[::2], replaced[1::2]):
            assert old in text
            text = text.replace(old, new)
        text = text.replace('DATA', str(made / 'data')).replace('BACKBONE', str(made / 'backbone'))
        small.write_text(tmp_path / 'g.yml', text)
        return str(tmp_path / 'g.yml')
    return write_grid


@pytest.mark.parametrize('line,expected,old,new', [
    (2, 'unknown task afqcm: expected one of afqmc,', '[afqmc, wsc]', '[afqcm]'),
    (3, 'unknown lore: expected one of fl, ptuning_v2, both,', '[fl, ptuning_v2]', '[fl, lore]'),
    (4, 'sizes: expected a whole number from 1, got 0', '[2]', '[2, 0]'),
    (5, 'seeds: 1 is there twice', '[1, 2, 3]', '[1, 2, 1]'),
    (6, 'rates: expected a number above 0, got 1e-3x', '0.001', '1e-3x'),
    (6, 'rates: search chooses among rates: expected at least two', 'rates: [0.001, 0.002]',
     'rates: [0.001]\nsearch: true'),
    (7, 'settings: unknown key epoch: expected one of', 'epochs: 4', 'epoch: 4'),
    (7, 'epochs: expected a whole number from 1, got 0', 'epochs: 4', 'epochs: 0'),
    (8, 'data_path: no folder', 'DATA', '/nowhere'),
    (9, 'no folder /nowhere; expected one with bert_config.json', 'BACKBONE', '/nowhere'),
    (10, 'unknown key layer: expected one of', 'BACKBONE}\n', 'BACKBONE}\nlayer: ["0"]\n'),
    (10, 'seeds is there twice', 'BACKBONE}\n', 'BACKBONE}\nseeds: [4]\n'),
    (10, 'share: sizes are given too', 'BACKBONE}\n', 'BACKBONE}\nshare: 3\n'),
    (10, 'draws: draws are of few_shot samples', 'BACKBONE}\n', 'BACKBONE}\ndraws: [1, 2]\n'),
    (10, 'select: unknown first: expected one of last, best', 'BACKBONE}\n', 'BACKBONE}\nselect: first\n'),
    (4, 'sizes: no method here has sizes: expected one of fl,', '[fl, ptuning_v2]', '[head]'),
    (1, 'no seeds: expected a list', 'seeds: [1, 2, 3]\n', ''),
    (4, 'not YAML', '[fl, ptuning_v2]', '[fl, ptuning_v2'),
    (2, 'train: expected a whole number from 1, got -5', '[afqmc, wsc]', '{afqmc: {train: -5}}'),
    (2, 'tasks: afqmc is there twice', '[afqmc, wsc]', '{afqmc: {}, afqmc: {}}'),
    (7, 'settings: precision bfloat16: the stack tf1 computes in float32 only', 'epochs: 4', 'precision: bfloat16'),
    (10, 'layers: 0,1: these layers are there twice', 'BACKBONE}\n', 'BACKBONE}\nlayers: ["0-1", "0,1"]\n'),
    (1, '32 cells: expected 30 at most', 'seeds: [1, 2, 3]', 'seeds: [1, 2, 3, 4]'),
])
def test_bad_grids_are_refused_with_file_and_line(line, expected, old, new, write, monkeypatch):
    monkeypatch.setattr(grids, 'MOST', 30)
    path = write(old, new)
    with pytest.raises(UserError) as refused:
        grids.read_grid(path)
    assert ('%s: line %d: ' % (path, line)) in str(refused.value)
    assert expected in str(refused.value)


def test_nothing_runs_of_a_grid_with_a_cell_that_cannot_fit(write, tmp_path, capsys):
    path = write('sizes: [2]', 'sizes: [2, 2000000000]')
    with pytest.raises(UserError) as refused:
        reproduce.run([path, '--output_dir', str(tmp_path / 'out')], ['false'])
    assert str(refused.value).startswith('%s: line 4: sizes: afqmc tiny fl size 2000000000 ' % path)
    assert 'of memory' in str(refused.value) and not os.path.exists(str(tmp_path / 'out' / 'cells'))


def test_other_refusals(write, made, tmp_path):
    for old, new, expected in [
            ('afqmc, wsc', 'afqmc, tnews', 'line 2: tasks: data_path: no folder'),
            ('epochs: 4}', 'precision: bf16}\nstack: tf2', 'settings: afqmc: argument --precision: invalid choice'),
            ('{tiny: BACKBONE}', '{a: BACKBONE, b: BACKBONE}', 'line 9: backbones: a and b are the same'),
            ('{tiny: BACKBONE}', '{tiny: DATA}', 'line 9: backbones: ')]:
        with pytest.raises(UserError) as refused:
            plan.Plan(grids.read_grid(write(old, new)), str(tmp_path / 'out'))
        assert expected in str(refused.value)
    with pytest.raises(UserError) as refused:
        grids.find_grid('no-such-grid')
    assert 'demo' in str(refused.value)


def test_ready_grids_are_right():
    """All of them, and what the documentation says of them."""
    found = grids.ready_grids()
    assert {'demo', 'paper_full', 'paper_few_shot', 'ablation_size', 'ablation_layers', 'convergence',
            'pretraining'} == set(found)
    for name in found:
        grid = grids.read_grid(grids.find_grid(name))
        assert grid.name == name and 'fl' in grid.methods and len(grid.seeds) > 1
        with open(os.path.join(grids.ROOT, 'docs', 'grids.md'), encoding='utf-8') as reader:
            assert '`%s`' % name in reader.read()


def make_plan(path, folder):
    return plan.Plan(grids.read_grid(path), str(folder))


def test_cells(write, tmp_path):
    """A cell for each combination, named by all that decides it, with the flags that scripts/run takes."""
    found = make_plan(write(), tmp_path / 'out').cells()
    assert len(found) == 2 * 2 * 3 * 2 == len({cell.name for cell in found})
    # In an order that gives all of the first seed's table before the second's.
    assert [cell.labels['seed'] for cell in found] == [1] * 8 + [2] * 8 + [3] * 8
    for cell in found:
        text = json.dumps(cell.configuration, sort_keys=True, separators=(',', ':'))
        assert cell.name == hashlib.sha256(text.encode()).hexdigest()[:20]
        assert str(tmp_path) not in text
        arguments = cell.arguments('here', 3)
        assert arguments[:4] == [cell.labels['task'], '--stack', 'tf1', '--resume']
        flags = dict(zip(arguments[4::2], arguments[5::2]))
        assert flags['--threads'] == '3' and flags['--output_dir'] == 'here' and flags['--epochs'] == '4'
        assert float(flags['--learning_rate']) == cell.labels['rate'] and flags['--seed'] == str(cell.labels['seed'])
    other = {cell.name for cell in make_plan(write('epochs: 4', 'epochs: 5'), tmp_path / 'out').cells()}
    assert not other & {cell.name for cell in found}
    more = {cell.name for cell in make_plan(write('[1, 2, 3]', '[1, 2, 3, 4]'), tmp_path / 'out').cells()}
    assert more > {cell.name for cell in found}


def test_a_cell_changes_with_its_files(write, made, tmp_path):
    """Not with where they are."""
    before = {cell.name for cell in make_plan(write(), tmp_path / 'a').cells()}
    assert {cell.name for cell in make_plan(write(), tmp_path / 'b').cells()} == before
    small.write_backbone(tmp_path / 'backbone', seed=3)
    path = write('BACKBONE', str(tmp_path / 'backbone'))
    assert not {cell.name for cell in make_plan(path, tmp_path / 'a').cells()} & before


def test_what_was_edited_in_snippets_decides_too(write, tmp_path, monkeypatch):
    before = make_plan(write(), tmp_path / 'a').cells()[0]
    monkeypatch.setattr(snippets, 'prompt_dropout', 0.3)
    after = make_plan(write(), tmp_path / 'a').cells()[0]
    assert after.name != before.name and after.flags['prompt_dropout'] == 0.3
    assert after.flags['checkpoint_path'] == after.flags['dict_path'] == ''  # those there are of another backbone


def test_methods_without_a_size_or_layers_come_once(write, tmp_path):
    path = write('[fl, ptuning_v2]', '[fl, head]', 'sizes: [2]', "sizes: [2, 3]\nlayers: ['', '0']")
    found = make_plan(path, tmp_path / 'out').groups
    assert len([group for group in found if group.method == 'fl']) == 2 * 2 * 2
    assert [tuple(group[2:]) for group in found if group.method == 'head'] == [('head', None, '')] * 2


def test_flags_of_methods():
    """A size where one is given, a share where the method has that, nothing where it has neither."""
    shown = {method: [methods.method_flags(method, size, 3.0) for size in (None, 8)] for method in methods.METHODS}
    assert shown['lora'] == [{'method': 'lora', 'share': 3.0}, {'method': 'lora', 'size': 8}]
    assert shown['ptuning'] == [{'method': 'ptuning'}, {'method': 'ptuning', 'size': 8}]
    for method in ('ia3', 'bitfit', 'finetune', 'head'):
        assert shown[method][0] == {'method': method} and not methods.is_sized(method)


def test_the_data_of_the_parts(made, tmp_path):
    """A fifth is to choose the rate on, and texts that stand in several records are on one side."""
    found = parts.prepare('wsc', str(made / 'data'), str(tmp_path), 50, 3, split=True)
    read = {(part, file): small.read_lines(os.path.join(found[part].data_path, 'wsc', file + '.json'))
            for part in ('split', 'whole') for file in ('train', 'dev')}
    assert read['whole', 'train'] == small.read_lines(made / 'data' / 'wsc' / 'train.json')[:50]
    assert read['whole', 'dev'] == small.read_lines(made / 'data' / 'wsc' / 'dev.json')[:3]
    assert found['whole'].records == {'train': 50, 'dev': 3}
    texts = [{record['text'] for record in read['split', file]} for file in ('train', 'dev')]
    assert not texts[0] & texts[1]
    sizes = [len(read['split', file]) for file in ('train', 'dev')]
    assert sum(sizes) == 50 and 3 < sizes[1] < 20
    labels = [record['label'] for record in read['whole', 'dev']]
    assert found['whole'].commonest == max(labels.count(label) for label in labels) / 3


@pytest.mark.parametrize('name', ['c3', 'chid', 'cmrc2018', 'cluener', 'afqmc'])
def test_parts_of_each_format_read_as_the_originals(name, made, tmp_path):
    found = parts.prepare(name, str(made / 'data'), str(tmp_path))['whole']
    task, folders = tasks.load_task(name), [os.path.join(str(made / 'data'), name),
                                            os.path.join(found.data_path, name)]
    for files in (task.train_files, task.dev_files):
        ours, theirs = [task.load(folder, files, True) for folder in reversed(folders)]
        assert len(ours) == len(theirs) > 0
        if name != 'cmrc2018':  # whose passages are objects without a comparison
            strip = [[str(value) for field, value in zip(sample._fields, sample) if field != 'line']
                     if hasattr(sample, '_fields') else str(sample) for sample in ours + theirs]
            assert strip[:len(ours)] == strip[len(ours):]
    two = parts.prepare(name, str(made / 'data'), str(tmp_path), 2, 1)['whole']
    assert two.records == {'train': 2, 'dev': 1} and two.sha256 != found.sha256
    assert task.load(os.path.join(two.data_path, name), task.dev_files, True)


def test_random_backbones_are_of_the_same_shapes(write, made, tmp_path):
    """Others for each seed; the cells of such a backbone have names and folders of their own."""
    from fltuning import checkpoints
    from tools.random_backbone import copy_random
    path = write('{tiny: BACKBONE}', '{tiny: BACKBONE, random: {random: BACKBONE}}')
    found = [cell for cell in make_plan(path, tmp_path / 'out').cells() if cell.labels['task'] == 'wsc']
    folders = {(cell.labels['backbone'], cell.labels['seed']): cell.flags['config_path'] for cell in found}
    assert len(set(folders.values())) == 1 + 3 and len({cell.name for cell in found}) == len(found) == 24
    copy_random(str(made / 'backbone'), folders['random', 1], folders['random', 2])
    ours, again, theirs = [checkpoints.read_variables(os.path.join(folder, 'bert_model.ckpt')) for folder in (
        folders['random', 1], folders['random', 2], str(made / 'backbone'))]
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in theirs.items()}
    name = 'bert/encoder/layer_0/intermediate/dense/kernel'
    assert (ours[name] != again[name]).any() and abs(ours[name].std() - 0.02) < 0.005


def finish(found, cell, accuracy, diverged=False):
    """Put a result of a cell into what a plan knows."""
    found.known[cell.name] = dict(labels=cell.labels, diverged=diverged, run=None if diverged else {
        'history': [{'epoch': 1, 'accuracy': accuracy + 0.5}, {'epoch': 2, 'accuracy': accuracy}],
        'best': {'dev': {'accuracy': accuracy + 0.5}}})


def test_the_rate_is_chosen_on_the_split(write, tmp_path):
    """The best after the last step, of equal ones the first; a rate that diverges is the worst."""
    found = make_plan(write('seeds: [1, 2, 3]', 'seeds: [1, 2, 3]\nsearch: {seed: 7}'), tmp_path / 'out')
    searched = found.cells()
    assert len(searched) == 2 * 2 * 2 and {cell.labels['seed'] for cell in searched} == {7}
    assert found.count() == 2 * 2 * (2 + 3)
    whole_data = found.parts['afqmc']['whole'].sha256
    assert all(cell.configuration['data'] != whole_data for cell in searched if cell.labels['task'] == 'afqmc')
    scores = {('afqmc', 'fl'): (0.3, 0.4), ('afqmc', 'ptuning_v2'): (0.4, 0.4), ('wsc', 'fl'): (None, 0.1),
              ('wsc', 'ptuning_v2'): (None, None)}
    for cell in searched:
        score = scores[cell.labels['task'], cell.labels['method']][cell.labels['rate'] == 0.002]
        finish(found, cell, score, score is None)
        assert all(other.labels['stage'] == 'search' for other in found.cells()[:8])
    chosen = {(group.task, group.method): rate for group, rate in found.rates.items()}
    found.cells()
    chosen = {(group.task, group.method): rate for group, rate in found.rates.items()}
    assert chosen == {('afqmc', 'fl'): 0.002, ('afqmc', 'ptuning_v2'): 0.001, ('wsc', 'fl'): 0.002,
                      ('wsc', 'ptuning_v2'): None}
    whole = found.cells()[8:]
    assert [cell.labels['seed'] for cell in whole] == [1] * 3 + [2] * 3 + [3] * 3
    assert all(cell.labels['rate'] == chosen[cell.labels['task'], cell.labels['method']] for cell in whole)
    assert found.count() == 8 + 9 and not list(found.waiting())


def results_in(folder):
    return {name[:-5]: small.read_json(folder, 'cells', name) for name in os.listdir(str(folder / 'cells'))}


def test_cells_that_fail_or_diverge_do_not_stop_the_rest(write, tmp_path):
    path = write('[0.001, 0.002]', '[0.002, 5]')
    arguments = [path, '--output_dir', tmp_path / 'out', '--processes', 4]
    code, output = lab.run('reproduce', arguments, tmp_path / 'log', STAND_IN_FAILS='2')
    assert code == 1
    failed = [line for line in output.splitlines() if line.startswith('failed: ')]
    assert len(failed) == 4 and all('seed 2' in line and 'data_path: something is wrong' in line for line in failed)
    found = results_in(tmp_path / 'out')
    assert len(found) == 24 - 4
    assert sum(result['diverged'] for result in found.values()) == 24 // 2 - 0
    assert all((result['labels']['rate'] == 5) == result['diverged'] for result in found.values())
    code, output = lab.run('reproduce', arguments, tmp_path / 'again')
    assert code == 0 and '20 of 24 cells are there' in output and len(results_in(tmp_path / 'out')) == 24
    assert sum(line[0] == 'start' for line in lab.lines(tmp_path / 'again')) == 4
    assert os.listdir(str(tmp_path / 'out' / 'work')) == []
    text = json.dumps(list(found.values()))
    assert str(tmp_path) not in text  # results are to be passed on


def test_killed_workers_and_a_killed_driver_lose_nothing(write, tmp_path):
    """24 cells on the local engine: three processes of cells are killed and the driver once, then it is run again."""
    log, folder = tmp_path / 'log', tmp_path / 'out'
    arguments = [write(), '--output_dir', folder, '--processes', 3]
    driver = lab.start('reproduce', arguments, log, seconds=0.15)
    killed = [lab.kill_when(driver, log, 4, lambda line: line[2])[1] for _ in range(3)]
    lab.kill_when(driver, log, 3, lambda line: driver.pid)
    assert driver.wait(20) == -signal.SIGKILL
    assert 0 < len(results_in(folder)) < 24
    code, output = lab.run('reproduce', arguments, log)
    assert code == 0, output
    found = results_in(folder)
    lab.check_none_twice(log, found, 4)
    assert len(found) == 24
    starts = [cell for what, cell, _, _ in lab.lines(log) if what == 'start']
    assert all(starts.count(cell) > killed.count(cell) for cell in killed) and len(starts) >= 24 + 3
    assert all(len(result['run']['history']) == 4 for result in found.values())
    assert os.listdir(str(folder / 'work')) == []


def test_a_driver_that_is_asked_to_end_ends_cleanly(write, tmp_path):
    log = tmp_path / 'log'
    arguments = [write(), '--output_dir', tmp_path / 'out', '--processes', 2]
    driver = lab.start('reproduce', arguments, log, seconds=0.3)
    while len(lab.lines(log)) < 5:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)  # as Ctrl-C, which is ignored where a shell runs this in the background
    assert driver.wait(30) == 130
    with open(str(log) + '.out') as reader:
        output = reader.read()
    assert 'of 24 cells are there; the same command goes on' in output and 'Traceback' not in output
    for _, _, pid, _ in lab.lines(log):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_two_drivers_share_the_cells(write, tmp_path):
    """Started at once on the same folder, they run none twice."""
    log = tmp_path / 'log'
    arguments = [write('seeds: [1, 2, 3]', 'seeds: [1]'), '--output_dir', tmp_path / 'out', '--processes', 2]
    drivers = [lab.start('reproduce', arguments, log, seconds=0.05) for _ in range(2)]
    assert [driver.wait(100) for driver in drivers] == [0, 0]
    lab.check_none_twice(log, results_in(tmp_path / 'out'), 4)


def test_a_dry_run_says_how_long(write, tmp_path):
    code, output = lab.run('reproduce', [write(), '--output_dir', tmp_path / 'out', '--dry_run', '--processes', 2],
                           tmp_path / 'log')
    assert code == 0 and output.count('afqmc tiny fl size 2') == 6
    assert not os.path.exists(str(tmp_path / 'out' / 'cells'))
    assert 'g: 24 cells, 0 of them there; about ' in output and 'a guess' in output


def test_a_part_of_a_grid(write, tmp_path):
    """Its cells are those of the whole grid, which goes on from there; a name that is not in it is refused."""
    arguments = [write(), '--output_dir', tmp_path / 'out', '--processes', 4]
    part = arguments + ['--tasks', 'wsc', '--methods', 'ptuning_v2', 'fl']
    code, output = lab.run('reproduce', part, tmp_path / 'log')
    assert code == 0 and len(results_in(tmp_path / 'out')) == 12
    grid = small.read_json(tmp_path / 'out', 'grid.json')
    assert grid['tasks'] == ['afqmc', 'wsc'] and grid['count'] == 24 and len(grid['cells']) == 12
    code, output = lab.run('reproduce', arguments + ['--tasks', 'afqmc'], tmp_path / 'log')
    assert code == 0 and len(small.read_json(tmp_path / 'out', 'grid.json')['cells']) == 24
    code, output = lab.run('reproduce', arguments, tmp_path / 'log')
    assert code == 0 and '24 of 24 cells are there' in output
    lab.check_none_twice(tmp_path / 'log', results_in(tmp_path / 'out'), 4)
    code, output = lab.run('reproduce', arguments + ['--methods', 'lora'], tmp_path / 'log')
    assert code == 2 and '--methods: lora is not in the grid g: expected some of fl, ptuning_v2' in output


def test_parts_of_changed_grids_are_not_mixed(write, tmp_path):
    folder = tmp_path / 'out'

    def write_part(task, *changes):
        grid = grids.read_grid(write(*changes))
        plan.Plan(grids.narrow(grid, {'tasks': [task]}), str(folder), grid).write()
        return small.read_json(folder, 'grid.json')['cells']
    first = write_part('wsc')
    assert set(write_part('afqmc')) > set(first) and len(first) == 12
    other = write_part('afqmc', 'epochs: 4', 'epochs: 5')
    assert len(other) == 12 and not set(other) & set(first)
    # What a backbone is called now, not what it was called when its cells ran.
    labels = write_part('wsc', '{tiny: BACKBONE}', '{mine: BACKBONE}')
    assert set(labels) == set(first) and {found['backbone'] for found in labels.values()} == {'mine'}


def test_more_of_a_grid_keeps_what_is_there(write, tmp_path):
    """Seeds, tasks and methods that are added leave parts that were run before as they are; those taken away go."""
    folder = tmp_path / 'out'

    def write_part(part, *changes):
        grid = grids.read_grid(write(*changes))
        plan.Plan(grids.narrow(grid, part), str(folder), grid).write()
        return small.read_json(folder, 'grid.json')['cells']
    first = write_part({}, 'afqmc, wsc', 'wsc')
    more = write_part({'methods': ['lora']}, '[1, 2, 3]', '[1, 2, 3, 4]', '[fl, ptuning_v2]', '[lora, fl, ptuning_v2]')
    assert set(first) < set(more) and len(first) == 12 and len(more) == 12 + 16
    other = write_part({'tasks': ['afqmc']}, '[fl, ptuning_v2]', '[lora, fl, ptuning_v2]', '{epochs: 4}',
                       '{batch_size: 8, epochs: 4}')
    assert not set(other) & set(first)
    more = write_part({}, 'afqmc, wsc', 'wsc', '{epochs: 4}', '{batch_size: 8, epochs: 4}')
    assert set(write_part({'methods': ['lora']}, '[fl, ptuning_v2]', '[lora, fl, ptuning_v2]', '{epochs: 4}',
                          '{epochs: 4, batch_size: 8}')) > set(more)  # the same in another order
    write_part({}, 'afqmc, wsc', 'wsc')
    fewer = write_part({'methods': ['lora']}, '[1, 2, 3]', '[1, 2]', '[fl, ptuning_v2]', '[lora, fl]')
    assert {labels['seed'] for labels in fewer.values()} == {1, 2}
    assert {(labels['task'], labels['method']) for labels in fewer.values()} == {
        ('afqmc', 'lora'), ('wsc', 'lora'), ('wsc', 'fl')}


@pytest.mark.parametrize('what', ['data', 'settings'])
def test_runs_on_other_data_are_not_compared(what, write, made, tmp_path, capsys, monkeypatch):
    import wsc
    arguments = ['--output_dir', str(tmp_path / 'out'), '--tasks', 'wsc', '--processes', '4']
    command = [sys.executable, lab.STAND_IN]
    monkeypatch.setenv('STAND_IN_LOG', str(tmp_path / 'log'))
    path = write('seeds: [1, 2, 3]', 'seeds: [1, 2]', 'rates: [0.001, 0.002]', 'rates: [0.001]')
    assert reproduce.run([path, '--methods', 'fl'] + arguments, command) == 0
    assert reproduce.run([path, '--methods', 'ptuning_v2'] + arguments, command) == 0
    assert len(small.read_json(tmp_path / 'out', 'grid.json')['cells']) == 4
    assert 'left out' not in capsys.readouterr().out
    if what == 'data':
        small.write_task(tmp_path / 'data', 'wsc')
        arguments += ['--data_path', str(tmp_path / 'data')]
    else:
        monkeypatch.setattr(wsc.WSC, 'maxlen', 33)
    assert reproduce.run([path, '--methods', 'ptuning_v2'] + arguments, command) == 0
    assert 'grid.json: 2 cells that are there are left out: now they would be on other data' in capsys.readouterr().out
    assert {row.variant.method for row in results.load(str(tmp_path / 'out')).rows} == {'ptuning_v2'}
    os.remove(str(tmp_path / 'out' / 'grid.json'))
    if what == 'data':  # all that is in the folder
        with pytest.raises(UserError, match='are runs of wsc on different data'):
            results.load(str(tmp_path / 'out'))


def test_the_sample_is_named(write, tmp_path, capsys, monkeypatch):
    """When a grid begins and in its report: tables of what scores nothing look like others."""
    monkeypatch.setenv('STAND_IN_LOG', str(tmp_path / 'log'))
    path = write('data_path: DATA\n', '', '[afqmc, wsc]', '{afqmc: {train: 4000, dev: 50}}', '[1, 2, 3]', '[1, 2]',
                 'rates: [0.001, 0.002]', 'rates: [0.001]')
    assert reproduce.run([path, '--output_dir', str(tmp_path / 'out')], [sys.executable, lab.STAND_IN]) == 0
    said = capsys.readouterr().out
    assert 'afqmc: no files in clue_dataset/afqmc: using the bundled sample' in said
    assert 'afqmc: train: 200 records are there, of the 4000 that are asked for' in said and 'afqmc: dev: ' not in said
    assert ('On afqmc the data is the bundled sample: it shows how things go, and scores nothing.'
            in words.sentences(results.load(str(tmp_path / 'out'))))


def test_groups_without_a_rate_are_listed(write, tmp_path):
    found = make_plan(write('seeds: [1, 2, 3]', 'seeds: [1, 2, 3]\nsearch: true'), tmp_path / 'out')
    for cell in found.cells():
        if cell.labels['task'] == 'wsc':
            finish(found, cell, 0.5, cell.labels['method'] == 'fl')
    failed = next(cell for cell in found.cells() if cell.labels['task'] == 'afqmc')
    found.failed[failed.name] = 'out of memory'
    found.cells()
    found.write()
    grid = small.read_json(tmp_path / 'out', 'grid.json')
    assert grid['count'] == 2 * 2 * (2 + 3)
    assert [(lost['task'], lost['method'], lost['why']) for lost in grid['without_rate']] == [
        ('afqmc', 'fl', 'a run that was to choose its rate failed'), ('wsc', 'fl', 'diverged at every rate')]


def test_what_was_edited_in_a_task_decides_too(write, tmp_path, monkeypatch):
    import afqmc
    path = write('epochs: 4', 'maxlen: 30')

    def names():
        return {cell.name for cell in make_plan(path, tmp_path / 'out').cells() if cell.labels['task'] == 'afqmc'}
    before = names()
    monkeypatch.setattr(afqmc.AFQMC, 'epochs', 7)
    assert not names() & before
    monkeypatch.setattr(afqmc.AFQMC, 'maxlen', 77)  # which the grid says itself
    monkeypatch.undo()
    assert names() == before


def test_the_rate_of_a_grid_without_rates_decides_too(write, tmp_path, monkeypatch):
    import afqmc
    path = write('rates: [0.001, 0.002]\n', '', '[fl, ptuning_v2]', '[fl, lora]', 'sizes: [2]\n', '')
    cells = [cell for cell in make_plan(path, tmp_path / 'out').cells() if cell.labels['task'] == 'afqmc']
    rates = {cell.labels['method']: cell.flags['learning_rate'] for cell in cells}
    assert rates == {'fl': afqmc.AFQMC.learning_rate, 'lora': 5e-4}
    monkeypatch.setattr(afqmc.AFQMC, 'learning_rate', 0.5)
    again = [cell for cell in make_plan(path, tmp_path / 'out').cells() if cell.labels['task'] == 'afqmc']
    assert {cell.labels['method'] for old, cell in zip(cells, again) if old.name != cell.name} == {'fl'}


def test_the_commonest_label_of_a_dev_set_that_is_drawn_is_not_known(write, tmp_path):
    for settings, known in (('epochs: 4', True), ('few_shot_dev: 2', False), ('limit: 3', False)):
        found = make_plan(write('epochs: 4', settings), tmp_path / 'out').cells()
        assert all((cell.labels['commonest'] is not None) == known for cell in found)


def test_evaluations_within_epochs_are_counted_beside_those_after_them():
    config = methods.read_config(grids.bundled('roberta').folder)
    part = parts.Part('', '', {'train': 30, 'dev': 20}, None, 10.0)

    def work(**settings):
        settings = dict(dict(batch_size=2, maxlen=32, epochs=2, classes=2), **settings)
        return estimates.estimate(config, 'fl', 2, 3.0, settings, part).work
    assert work(eval_every=5) / work() == pytest.approx((2 * 60 + 20 * (2 + 6)) / (2 * 60 + 20 * 2))
    assert work(eval_every=31) == work()


def test_the_clock_learns():
    def cell(method):
        return cells.Cell({}, {'task': 'tnews', 'method': method}, {}, estimates.Estimate(0, 0, 1e12))
    clock, fl, finetune = estimates.Clock(), cell('fl'), cell('finetune')
    guess = clock.seconds(fl, 1)
    clock.add(fl, {'seconds': 2 * guess, 'threads': 1})
    assert clock.seconds(fl, 1) == clock.seconds(finetune, 1) == pytest.approx(2 * guess)
    assert clock.left([fl] * 6, 1, 3) == pytest.approx(4 * guess)
    clock.add(finetune, {'seconds': 6 * guess, 'threads': 1})
    assert clock.left([fl, finetune], 1, 1) == pytest.approx(8 * guess)


def test_results_that_were_changed_are_refused(write, tmp_path):
    code, _ = lab.run('reproduce', [write(), '--output_dir', tmp_path / 'out', '--processes', 4], tmp_path / 'log')
    assert code == 0
    name = sorted(os.listdir(str(tmp_path / 'out' / 'cells')))[0]
    path = tmp_path / 'out' / 'cells' / name
    result = small.read_json(path)
    for changed in (dict(result, format=99), dict(result, configuration=dict(result['configuration'], seed=77))):
        small.write_json(path, changed)
        with pytest.raises(UserError) as refused:
            cells.read_result(str(path))
        assert name in str(refused.value)


@pytest.mark.stack('tf1', 'each run loads TensorFlow anew: on tf2 tests/test_report.py runs the grid demo')
@pytest.mark.slow
def test_a_real_grid(write, made, tmp_path, clear_session):
    """Cells of scripts/run on a tiny backbone have the numbers of the same run by hand."""
    path = write('[afqmc, wsc]', '[afqmc]', '[fl, ptuning_v2]', '[fl]', '[1, 2, 3]', '[1]', '[0.001, 0.002]',
                 '[0.002, 1.0e+30]', 'epochs: 4', 'epochs: 2')
    done = subprocess.run(
        [os.path.join(grids.ROOT, 'scripts', 'reproduce'), path, '--stack', compat.STACK, '--output_dir',
         str(tmp_path / 'out'), '--processes', '1', '--threads', '1'], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    found = {result['labels']['rate']: result for result in results_in(tmp_path / 'out').values()}
    assert found[1e30]['diverged'] and len(found) == 2
    result, = [result for result in found.values() if not result['diverged']]
    assert result['run']['seed'] == 1 and result['run']['settings']['learning_rate'] == 0.002
    import afqmc
    import train
    flags = dict(ffn_prompt_size=2, prompt_size=0)  # which is what the method stands for
    flags.update(epochs=2, learning_rate=0.002, seed=1, threads=1, config_path=made / 'backbone',
                 data_path=made / 'data', output_dir=tmp_path / 'by_hand')
    by_hand = subprocess.run(
        [sys.executable, afqmc.__file__] + small.flags(flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=os.path.dirname(train.__file__))
    assert by_hand.returncode == 0, by_hand.stdout
    record = small.read_json(tmp_path / 'by_hand', 'results', 'afqmc_run.json')
    ours, theirs = [[{key: value for key, value in entry.items() if key != 'seconds'} for entry in run['history']]
                    for run in (result['run'], record)]
    assert ours == theirs and len(ours) == 2


def test_a_cell_runs_where_files_cannot_be_locked(tmp_path, monkeypatch):
    """On a file system without locks, as before there were any; a run alone does, too."""
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(cell_run.fcntl, 'flock', flock)
    with cell_run.held(str(tmp_path / 'work' / 'lock'), threading.Event()) as descriptor:
        assert os.fstat(descriptor)


# In the lab environment.


@lab.IN_LAB
@pytest.mark.slow
def test_ray_loses_nothing_either(write, tmp_path):
    """The same on a Ray cluster of two nodes on this machine, one of the kills of Ray's own worker."""
    python, log, folder = lab.lab_python(), tmp_path / 'log', tmp_path / 'out'
    code = ('import sys\nfrom ray.cluster_utils import Cluster\n'
            'node = dict(num_cpus=2, object_store_memory=80 << 20)\n'
            'head = dict(node, node_ip_address="127.0.0.2", include_dashboard=False)\n'
            'cluster = Cluster(True, head_node_args=head)\n'
            'cluster.add_node(node_ip_address="127.0.0.3", **node)\n'
            'print(cluster.address, flush=True)\nsys.stdin.read()\ncluster.shutdown()')
    cluster = subprocess.Popen([python, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, universal_newlines=True,
                               env=dict(os.environ, RAY_USAGE_STATS_ENABLED='0', STAND_IN_LOG=str(log),
                                        STAND_IN_SECONDS='0.3'))
    try:
        address = cluster.stdout.readline().strip()
        assert address.startswith('127.0.0.2:')
        arguments = [write(), '--output_dir', folder, '--engine', 'ray', '--address', address]
        driver = lab.start('reproduce', arguments, log, python)
        for place in (2, 2, 3):  # a cell's process, another, and a worker of Ray's that waits for one
            lab.kill_when(driver, log, 3, lambda line, place=place: line[place])
        lab.kill_when(driver, log, 3, lambda line: driver.pid)
        assert driver.wait(20) == -signal.SIGKILL
        code, output = lab.run('reproduce', arguments, log, python=python)
        assert code == 0, output
    finally:
        cluster.stdin.close()
        cluster.wait(60)
    found = results_in(folder)
    assert len(found) == 24 and 'ray: 4 at a time' in output
    lab.check_none_twice(log, found, 4)


@lab.IN_LAB
@pytest.mark.slow
def test_slurm_through_submitit(write, tmp_path):
    """Against submitit's local executor; the job script as sbatch would get it."""
    python, log = lab.lab_python(), tmp_path / 'log'
    path = write('[afqmc, wsc]', '[afqmc]', '[0.001, 0.002]', '[0.002]', '[1, 2, 3]', '[1, 2]')
    code = ('import sys\nsys.path.insert(0, %r)\nfrom tools import engines, reproduce\n'
            'engines.SlurmEngine.__init__.__defaults__ = engines.SlurmEngine.__init__.__defaults__[:-1] + ("local",)\n'
            'sys.exit(reproduce.run(sys.argv[1:], [%r, %r]))' % (lab.ROOT, sys.executable, lab.STAND_IN))
    arguments = [path, '--output_dir', str(tmp_path / 'out'), '--engine', 'slurm']
    done = subprocess.run([python, '-c', code] + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env=dict(os.environ, STAND_IN_LOG=str(log)))
    assert done.returncode == 0, done.stdout
    lab.check_none_twice(log, results_in(tmp_path / 'out'), 4)
    code, output = lab.run('reproduce', [path, '--output_dir', tmp_path / 'other', '--engine', 'slurm', '--dry_run',
                                         '--slurm', 'slurm_partition=long'], log, python=python)
    assert code == 0, output
    for line in ('#SBATCH --array=0-3%', '#SBATCH --partition=long', '#SBATCH --cpus-per-task=1'):
        assert line in output


@lab.IN_LAB
@pytest.mark.parametrize('options, expected', [
    ('slurm_partition=gpu timeout_min=600 mem_gb=7.5',
     ['--partition=gpu', '--time=600', '--mem=7680MB', '--array=0-7%3']),
    ('slurm_time=33', ['--time=33', '--mem=']), ('timeout=3', "error: --slurm: Parameter 'timeout' need"),
    ('mem_gb=much', 'error: --slurm: Parameter "mem_gb" expected type')])
def test_the_job_script_that_is_shown(options, expected, write, tmp_path):
    """With submitit's own parameters, as --help has them, and those of sbatch."""
    path = write('[afqmc, wsc]', '[afqmc]', '[0.001, 0.002]', '[0.002]', '[1, 2, 3]', '[1, 2, 3, 4]')
    code, output = lab.run('reproduce', [path, '--output_dir', tmp_path / 'out', '--engine', 'slurm', '--dry_run',
                                         '--processes', '3', '--slurm'] + options.split(), tmp_path / 'log',
                           python=lab.lab_python())
    if isinstance(expected, str):
        assert code == 2 and expected in output and 'Traceback' not in output
    else:
        assert code == 0 and [text for text in expected if '#SBATCH ' + text not in output] == [], output


@lab.IN_LAB
@pytest.mark.slow
def test_ray_says_what_no_node_has_room_for(write, tmp_path):
    """Its tasks would wait without end, and without a word."""
    arguments = [write(), '--output_dir', tmp_path / 'out', '--engine', 'ray', '--threads', 4096]
    code, output = lab.run('reproduce', arguments, tmp_path / 'log', python=lab.lab_python())
    assert code == 2 and '--threads 4096, --gpus 0: no node of the cluster has so many cores and GPUs' in output


@lab.IN_LAB
@pytest.mark.slow
def test_tune_goes_on(write, made, tmp_path):
    """Killed and started again: so many trials in all, none twice, the best of the space."""
    python, log = lab.lab_python(), tmp_path / 'log'
    arguments = ['afqmc', '--data_path', made / 'data', '--backbone', made / 'backbone', '--rates', '1e-4', '1e-1',
                 '--sizes', 2, 16, '--epochs', 2, '--trials', 8, '--processes', 2, '--output_dir', tmp_path / 'out']
    driver = lab.start('tune', arguments, log, python, seconds=0.4)
    lab.kill_when(driver, log, 5, lambda line: driver.pid, epochs=2)
    assert driver.wait(20) == -signal.SIGKILL
    code, output = lab.run('tune', arguments, log, python=python)
    assert code == 0 and 'best of 8 trials: accuracy' in output
    found = results_in(tmp_path / 'out')
    assert len(found) == 8  # a study that goes on does not try the same again
    lab.check_none_twice(log, found, 2)
    assert all(1e-4 <= result['labels']['rate'] <= 1e-1 and 2 <= result['labels']['size'] <= 16
               for result in found.values())
    code, output = lab.run('tune', arguments[:8] + ['1e-5'] + arguments[8:8], tmp_path / 'bad', python=python)
    assert code == 2
    code, output = lab.run('tune', [1e-5 if text == '1e-4' else text for text in arguments], tmp_path / 'other',
                           python=python)
    assert code == 2 and 'a study with rates' in output and 'name another output_dir' in output


@lab.IN_LAB
@pytest.mark.slow
def test_a_study_is_of_one_search_at_a_time_and_of_one_setting(made, tmp_path):
    """A second search would take the first's trials for those of one that was stopped, which ended it."""
    python, log = lab.lab_python(), tmp_path / 'log'
    arguments = ['afqmc', '--data_path', made / 'data', '--backbone', made / 'backbone', '--trials', 4,
                 '--processes', 1, '--output_dir', tmp_path / 'out']
    driver = lab.start('tune', arguments, log, python, seconds=0.4)
    while not lab.lines(log):
        assert driver.poll() is None
        time.sleep(0.05)
    code, output = lab.run('tune', arguments, tmp_path / 'second', python=python)
    assert code == 2 and 'another run is writing here' in output
    assert driver.wait(60) == 0
    code = ('import sys\nsys.path.insert(0, %r)\nimport afqmc\nfrom fltuning.errors import run_tool\n'
            'from tools import tune\nafqmc.AFQMC.maxlen = 33\nrun_tool("tune", lambda: tune.run(sys.argv[1:]))'
            % lab.ROOT)
    done = subprocess.run([python, '-c', code] + list(map(str, arguments)), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 2 and 'a study with maxlen 128, here it is 33; name another output_dir' in done.stdout
