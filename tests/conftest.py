"""What the tests share: where things are, and a clean Keras for each model."""
import os
import random
import sys
import zlib

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from fltuning import compat  # noqa: E402  (before bert4keras, in every test)
import tensorflow as tf  # noqa: E402

import record_hashes  # noqa: E402
import small  # noqa: E402
import snippets  # noqa: E402
import tasks  # noqa: E402
from pytorch import PyTorch  # noqa: E402
from fltuning.initializers import weights_random  # noqa: E402

collect_ignore = ['run_transformers.py']  # a program for the environment with PyTorch; nothing to test


def pytest_addoption(parser):
    parser.addoption('--data_path', metavar='DIR',
                     help="a folder with a folder for each of CLUE's tasks, and with BERT's vocab.txt; "
                          'unless it is given, ../shared/clue and clue_dataset are looked into')


def pytest_configure(config):
    path = config.getoption('--data_path')
    if path and not os.path.isdir(path):
        raise pytest.UsageError('--data_path: no folder %s' % path)


def pytest_collection_modifyitems(config, items):
    """A test of one stack is skipped on the other, for the reason that its marker gives.

    With LONG_TESTS=divided, the stacks share the slow and the costly tests: each runs on one of them.
    """
    for item in items:
        only = item.get_closest_marker('stack')
        if only and only.args[0] != compat.STACK:
            item.add_marker(pytest.mark.skip(reason=only.args[1]))
    if small.DIVIDED:
        others = {item for item in items if (item.get_closest_marker('slow') or item.get_closest_marker('costly'))
                  and not item.get_closest_marker('stack')  # no other could run it
                  and zlib.crc32(item.nodeid.encode('utf-8')) % 2 == compat.TF2}
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=list(others))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """What is skipped is listed by the line of the test, not of the fixture that found nothing."""
    report = (yield).get_result()
    if report.skipped and isinstance(report.longrepr, tuple):
        path, line, _ = item.reportinfo()
        report.longrepr = (str(path), (line or 0) + 1, report.longrepr[2])


@pytest.fixture(autouse=True)
def seed():
    """The same weights in every run, whichever tests ran before."""
    random.seed(0)
    np.random.seed(0)
    weights_random.seed(0)
    tf.compat.v1.set_random_seed(0)


@pytest.fixture(scope='session')
def root():
    """The project's folder."""
    return ROOT


@pytest.fixture(scope='session')
def pytorch():
    """transformers and peft, in a process of their own; set up where they are missing."""
    process = PyTorch()
    yield process
    process.end()


@pytest.fixture(scope='session')
def golden():
    """The folder of numbers that were recorded from the original implementation."""
    return os.path.join(ROOT, 'tests', 'golden')


@pytest.fixture(scope='session')
def data_paths(pytestconfig):
    """The folders where the user may have CLUE's data."""
    given = pytestconfig.getoption('--data_path')
    if given:
        return [os.path.abspath(given)]
    return [os.path.join(os.path.dirname(ROOT), 'shared', 'clue'), os.path.join(ROOT, 'clue_dataset')]


def skip_without_data(names, data_paths):
    names = ' '.join(names)
    pytest.skip("no CLUE data of %s in %s: `scripts/download %s` fetches it, --data_path=DIR names "
                'another folder' % (names, ' or '.join(data_paths), names))


@pytest.fixture(scope='session')
def clue_folder(data_paths):
    """A function that gives the folder of a task's CLUE data; a test is skipped where there is none."""
    def find(name):
        for path in data_paths:
            if os.path.isdir(os.path.join(path, name)):
                return os.path.join(path, name)
        return skip_without_data([name], data_paths)
    return find


def find_clue(data_paths):
    """(a folder of CLUE's data sets, all of them, or None; the names of those that are missing)."""
    missing = tasks.CLUE
    for path in data_paths:
        missing = [name for name in tasks.CLUE if not os.path.isdir(os.path.join(path, name))]
        if not missing:
            return path, missing
    return None, missing


@pytest.fixture(scope='session')
def clue(data_paths):
    """The folder of CLUE's data sets, all of them; a test is skipped where there is none."""
    found, missing = find_clue(data_paths)
    return found or skip_without_data(missing, data_paths)


@pytest.fixture(scope='session')
def any_data(data_paths):
    """The folder of CLUE's data sets, or else of the bundled sample."""
    return find_clue(data_paths)[0] or os.path.join(ROOT, 'clue_dataset', 'sample')


def find_vocab(data_paths):
    """(path of BERT's Chinese vocabulary or None, the paths of other vocabularies in its place)."""
    others = []
    for path in [os.path.join(path, 'vocab.txt') for path in data_paths] + [snippets.dict_path]:
        if os.path.isfile(path):
            if record_hashes.digest_file(path) == record_hashes.load()['vocabulary']['sha256']:
                return path, others
            others.append(path)
    return None, others


@pytest.fixture(scope='session')
def vocab(data_paths):
    """Path of BERT's Chinese vocabulary; a test is skipped where there is none, or only another."""
    found, others = find_vocab(data_paths)
    if found is None:
        pytest.skip("no vocab.txt with BERT's 21,128 Chinese tokens in %s, nor as dict_path of snippets.py%s"
                    % (' or '.join(data_paths), ''.join('; another is ' + path for path in others)))
    return found


@pytest.fixture(scope='session')
def any_vocab(data_paths):
    """Path of BERT's Chinese vocabulary, or else of the bundled one."""
    return find_vocab(data_paths)[0] or os.path.join(ROOT, 'pretrained', 'roberta', 'vocab.txt')


@pytest.fixture(autouse=True, scope='module')
def clear_module():
    """A file's models are forgotten with it; they would hold gigabytes by the end."""
    yield
    compat.K.clear_session()


@pytest.fixture
def clear_session():
    """Forget the models of earlier tests: graphs only grow, and building gets slower with them."""
    compat.K.clear_session()
    yield
    compat.K.clear_session()
