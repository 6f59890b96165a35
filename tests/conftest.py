"""What the tests share: where things are, and a clean Keras for each model."""
import os
import random
import sys

import numpy as np
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import compat  # noqa: E402  (before bert4keras, in every test)
import tensorflow as tf  # noqa: E402

from functions import weights_random  # noqa: E402


def find_shared(name):
    path = os.path.join(ROOT, '..', 'shared', name)
    if not os.path.isdir(path):
        pytest.skip('../shared/%s is not here' % name)
    return os.path.normpath(path)


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
def golden():
    """The folder of numbers that were recorded from the original implementation."""
    return find_shared('golden')


@pytest.fixture(scope='session')
def clue():
    """The folder of CLUE's data sets."""
    return find_shared('clue')


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
