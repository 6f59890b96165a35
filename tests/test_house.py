"""The house: three floors, imports that run downwards only, no TensorFlow where nothing is computed."""
import ast
import glob
import os
import re
import subprocess
import sys

import pytest

import small
import tasks

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FLOORS = ['fltuning', '', 'tools']  # from the ground; '' is the root


def files(folder):
    return sorted(name for name in os.listdir(os.path.join(ROOT, folder)) if name.endswith('.py'))


def module_files():
    """{module: (floor, path)} of the program."""
    found = {}
    for floor, folder in enumerate(FLOORS):
        for name in files(folder):
            parts = [folder] * bool(folder) + [name[:-3]]
            found['.'.join(parts).replace('.__init__', '')] = floor, os.path.join(ROOT, folder, name)
    return found


def imports(path, modules):
    """The program's modules that a file imports, anywhere in it."""
    with open(path, encoding='utf-8') as reader:
        tree = ast.parse(reader.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names = ['%s.%s' % (node.module, alias.name) for alias in node.names]
            found |= {name if name in modules else node.module for name in names}
    return found & set(modules)


@pytest.fixture(scope='module')
def graph():
    """({module: floor}, {module: modules that it imports})"""
    modules = module_files()
    return ({name: floor for name, (floor, _) in modules.items()},
            {name: imports(path, modules) for name, (_, path) in modules.items()})


def test_imports_run_downwards_only(graph):
    floors, imported = graph
    assert len(floors) > 40 and sum(map(len, imported.values())) > 100
    upwards = [(name, other) for name, others in imported.items() for other in others
               if floors[other] > floors[name]]
    assert upwards == []


def test_there_is_no_cycle(graph):
    _, imported = graph
    left = {name: set(others) for name, others in imported.items()}
    while left:
        free = [name for name, others in left.items() if not others & set(left)]
        assert free, 'cycles among %s' % sorted(left)
        for name in free:
            del left[name]


def test_nobody_imports_a_task_script(graph):
    _, imported = graph
    assert {name: others & set(tasks.NAMES) for name, others in imported.items()
            if others & set(tasks.NAMES)} == {}


def test_the_root_is_seen_at_a_glance():
    assert len(files('')) - len(tasks.OWN) <= 16
    assert set(tasks.NAMES) < {name[:-3] for name in files('')}
    with open(os.path.join(ROOT, 'models.py'), encoding='utf-8') as reader:
        assert len(reader.readlines()) < 200


def test_the_design_names_every_file():
    said = small.read_text(os.path.join(ROOT, 'docs', 'design.md'))
    for folder in ('fltuning', 'tools'):
        table = said.split('| in `%s/` |' % folder)[1].split('\n\n')[0]
        named = re.findall(r'`(\w+\.py)`', table)
        assert sorted(named) == [name for name in files(folder) if not name.startswith('__')]


def is_ignored(path):
    """By git; where there is none, or this is no repository of it, nothing is."""
    try:
        return subprocess.call(['git', '-C', ROOT, 'check-ignore', '-q', path], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


PAGES = sorted(os.path.relpath(path, ROOT)
               for pattern in ('*.md', 'docs/**/*.md', 'clue_dataset/*.md', 'pretrained/**/*.md')
               for path in glob.glob(os.path.join(ROOT, pattern), recursive=True))


def anchors(text):
    """Those that GitHub makes of headings."""
    return {re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)', text, re.M)}


@pytest.mark.parametrize('page', PAGES)
def test_links_within_the_repository_lead_somewhere(page):
    """To a file that git keeps: one that it ignores is missing in every clone."""
    text = small.read_text(os.path.join(ROOT, page))
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'[a-z]+:', link):
            continue
        name, _, anchor = link.partition('#')
        path = os.path.normpath(os.path.join(os.path.dirname(page), name)) if name else page
        assert os.path.exists(os.path.join(ROOT, path)), link
        assert not is_ignored(path), link
        assert not anchor or anchor in anchors(small.read_text(os.path.join(ROOT, path))), link


def test_the_scripts_read_the_registry():
    listed = subprocess.check_output([os.path.join(ROOT, 'scripts', 'run'), '--help'],
                                     universal_newlines=True)
    assert 'Tasks: %s\n' % ' '.join(tasks.NAMES) in listed


PROGRAMS = ([[name + '.py'] for name in tasks.NAMES] + [['predict.py']]
            + [['tools', name[:-3]] for name in files('tools')
               if os.path.exists(os.path.join(ROOT, 'scripts', name[:-3]))])


@pytest.mark.parametrize('program', PROGRAMS, ids=' '.join)
def test_help_loads_no_tensorflow(program):
    """Asked for as a user does, and of the process itself: what has it loaded by then?"""
    script = ('import runpy, sys\nsys.argv = %r\ntry:\n    runpy.run_path(%r, run_name="__main__")\n'
              'except SystemExit as end:\n    assert not end.code\n'
              'assert not {"tensorflow", "bert4keras", "keras", "torch"} & set(sys.modules)'
              % ([program[0]] + program[1:] + ['--help'], os.path.join(ROOT, program[0])))
    shown = subprocess.check_output([sys.executable, '-c', script], universal_newlines=True,
                                    env=dict(os.environ, PYTHONPATH=ROOT))
    assert shown.startswith('usage: ') and '--' in shown


def test_the_programs_are_those_of_the_scripts():
    assert [program[1] for program in PROGRAMS if program[0] == 'tools'] == [
        'benchmark', 'data', 'download', 'export', 'fuzz', 'pretrain', 'report', 'reproduce', 'submit', 'tune',
        'verify']


@pytest.mark.parametrize('program', [['tools', 'data'], ['tools', 'submit']], ids=' '.join)
def test_checking_files_loads_no_tensorflow(program, tmp_path):
    """On the bundled samples, reading comprehension's among them."""
    script = ('import runpy, sys\nsys.argv = %r\ntry:\n    runpy.run_path(%r, run_name="__main__")\n'
              'except SystemExit as end:\n    assert end.code in (1, 2), end.code\n'
              'assert not {"tensorflow", "bert4keras", "keras"} & set(sys.modules)')
    flags = ['--data_path', os.path.join(ROOT, 'clue_dataset', 'sample')]
    if program[1] == 'submit':
        os.makedirs(str(tmp_path / 'results'))
        for name in ('afqmc_predict.json', 'cmrc2018_predict.json', 'chid10_predict.json'):
            (tmp_path / 'results' / name).write_text('{}')
        flags += ['--output_dir', str(tmp_path)]
    shown = subprocess.check_output(
        [sys.executable, '-c', script % (program + flags, os.path.join(ROOT, 'tools'))],
        universal_newlines=True, env=dict(os.environ, PYTHONPATH=ROOT))
    assert 'cmrc2018' in shown


@pytest.mark.slow
def test_the_task_in_the_contributing_guide_works(tmp_path):
    """As a reader would make it: the script as it stands, its name in the registry, files in the folder."""
    with open(os.path.join(ROOT, 'CONTRIBUTING.md'), encoding='utf-8') as reader:
        code = reader.read().split('```python\n')[1].split('```')[0]
    assert len(code.splitlines()) <= 20
    small.write_text(tmp_path / 'reviews.py', code)
    os.makedirs(str(tmp_path / 'data' / 'reviews'))
    for file in ('train', 'dev', 'test'):
        small.write_lines(tmp_path / 'data' / 'reviews' / (file + '.json'), [
            {'id': i, 'text': small.sentence(i, 8), 'label': ['bad', 'good'][i % 2]} for i in range(6)])
    flags = small.flags(dict(small.write_backbone(tmp_path / 'backbone'), data_path=tmp_path / 'data',
                             output_dir=tmp_path, epochs=1, ffn_prompt_size=2))
    program = ('import runpy, sys\nimport tasks\ntasks.NAMES.append("reviews")\n'
               'sys.path.append(%r)\nsys.argv = ["reviews.py"] + %r\n'
               'try:\n    runpy.run_path(%r, run_name="__main__")\n'
               'except SystemExit as end:\n    assert not end.code\n'
               'import predict\nfrom predict import Predictor\n'
               'model = Predictor(*%r).load(%r)\n'
               'print(model.predict([{"text": "好"}]))' % (
                   str(tmp_path), flags, str(tmp_path / 'reviews.py'),
                   [flags[flags.index('--' + name) + 1] for name in (
                       'config_path', 'checkpoint_path', 'dict_path')],
                   str(tmp_path / 'weights' / 'reviews.weights')))
    shown = subprocess.check_output([sys.executable, '-c', program], universal_newlines=True,
                                    env=dict(os.environ, PYTHONPATH=ROOT))
    assert "'label': " in shown.splitlines()[-1]
    assert len(small.read_lines(tmp_path / 'results' / 'reviews_predict.json')) == 6
