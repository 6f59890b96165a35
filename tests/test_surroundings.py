"""What lies about where a program runs: settings of Keras for other programs, locales, odd paths."""
import os
import shutil
import subprocess
import sys

import pytest

from fltuning import compat

pytestmark = pytest.mark.costly

FOUND = ('from fltuning import compat; K = compat.K; '
         'print(K.backend(), K.floatx(), K.epsilon(), K.image_data_format())')


def run(script, root, **environment):
    """(last line of the output, exit code) of a Python script."""
    done = subprocess.run([sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=dict(os.environ, PYTHONPATH=root, **environment))
    return done.stdout.decode().strip().splitlines()[-1], done.returncode


@pytest.fixture
def keras_home(tmp_path):
    """A folder with settings of Keras that change everything."""
    (tmp_path / 'keras.json').write_text(
        '{"floatx": "float16", "backend": "theano", "epsilon": 1e-3, "image_data_format": "channels_first"}')
    return str(tmp_path)


@pytest.mark.parametrize('environment', [
    {'KERAS_BACKEND': 'theano'}, {'KERAS_BACKEND': 'jax'}, {'TF_KERAS': '0'}, {'TF_KERAS': '1'},
    {'TF_KERAS': ''}, {'RECOMPUTE': ''}, {'KERAS_HOME': '{keras_home}'}], ids=str)
def test_settings_of_keras_are_for_other_programs(environment, root, keras_home):
    environment = {name: value.format(keras_home=keras_home) for name, value in environment.items()}
    assert run(FOUND, root, **environment) == ('tensorflow float32 1e-07 channels_last', 0)


def test_the_environment_is_left_as_it_was(root, tmp_path):
    """And nothing is written to the user's folder."""
    script = FOUND + '; import os; print(os.environ["KERAS_HOME"], os.environ.get("KERAS_BACKEND"))'
    assert run(script, root, KERAS_HOME=str(tmp_path)) == ('%s None' % tmp_path, 0)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.stack('tf1', 'on tf2 bert4keras is given another Keras than what is imported')
def test_keras_that_was_imported_before(root, keras_home):
    (open(os.path.join(keras_home, 'keras.json'), 'w')).write('{"floatx": "float16"}')
    said, code = run('import keras; ' + FOUND, root, KERAS_HOME=keras_home)
    assert code and 'UserError: Keras was imported before, with floatx float16: expected float32' in said


@pytest.mark.stack('tf2', 'there is no Keras 3 on tf1')
def test_keras_3_that_was_imported_before(root):
    said, code = run('import tensorflow as tf; tf.keras.layers; ' + FOUND, root, TF_USE_LEGACY_KERAS='0')
    assert code and 'UserError: Keras 3 was imported before: expected tf-keras' in said


@pytest.mark.parametrize('locale', [{}, {'LC_ALL': 'C'}, {'LANG': 'xx_XX.UTF-8'}, {'LC_ALL': 'xx_XX.GBK'}],
                         ids=str)
def test_a_chinese_path_without_a_locale(locale, root, tmp_path):
    """A locale that is not installed is none, too."""
    stack = compat.STACK
    environment = os.path.join(root, '.envs', stack)
    if not os.path.exists(os.path.join(environment, 'made-from-%s.lock' % stack)):
        pytest.skip('this environment is not of scripts/setup.sh')
    copy = tmp_path / '项目'
    shutil.copytree(os.path.join(root, 'scripts'), str(copy / 'scripts'))
    shutil.copytree(os.path.join(root, 'fltuning'), str(copy / 'fltuning'))
    os.makedirs(str(copy / '.envs'))
    os.symlink(environment, str(copy / '.envs' / stack))
    (copy / 'try.py').write_text('from fltuning import compat; print(__file__ and "works")')
    done = subprocess.run(
        [str(copy / 'scripts' / 'python'), '--stack', stack, str(copy / 'try.py')],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(locale, PATH='/usr/bin:/bin', HOME=os.environ.get('HOME', '/')))
    assert done.stdout.decode('utf-8', 'replace').splitlines()[-1:] == ['works']
