"""The environments: the pins agree everywhere, and the scripts set up, find, run and report as they say."""
import glob
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig

import pytest
import yaml

from fltuning import compat
from tasks import NAMES

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOT_NEEDED_TO_RUN = {'pytest', 'pytest-xdist', 'pyyaml', 'ruff'}


def read_requirements(path):
    """{name: what follows it} of a requirements file."""
    with open(os.path.join(ROOT, path)) as f:
        lines = [line.split('#')[0].strip() for line in f]
    return dict(re.match(r'([\w.-]+)(.*)', line.lower()).groups() for line in lines if line)


def test_the_conda_file_pins_what_the_lock_pins():
    with open(os.path.join(ROOT, 'tf1.15.yml')) as f:
        conda = yaml.safe_load(f)
    assert conda['name'] == 'fl-tuning'
    packages = [item for item in conda['dependencies'] if isinstance(item, str)]
    assert packages == ['python=3.7', 'pip', 'cudatoolkit=10.0', 'cudnn=7.6']
    pip, = [item['pip'] for item in conda['dependencies'] if isinstance(item, dict)]
    pins = dict(re.match('([^=]+)(==.+)$', line.lower()).groups() for line in pip)
    lock = read_requirements('scripts/tf1.lock')
    direct = set(read_requirements('scripts/tf1.in')) - NOT_NEEDED_TO_RUN
    assert len(pins) == len(pip)
    assert pins == {name: lock[name] for name in direct}


@pytest.mark.parametrize('stack', ['tf1', 'tf2', 'lab'])
def test_the_lock_pins_everything_and_keeps_to_the_direct_requirements(stack):
    lock = read_requirements('scripts/%s.lock' % stack)
    assert all(re.match(r'==[\w.+]+$', pin) for pin in lock.values())
    for name, wanted in read_requirements('scripts/%s.in' % stack).items():
        if wanted.startswith('=='):
            assert lock[name] == wanted
        elif wanted:
            below = re.match('<(.+)$', wanted).group(1)
            assert as_numbers(lock[name][2:]) < as_numbers(below)
        else:
            assert name in lock


def as_numbers(version):
    return [int(number) for number in version.split('.')]


def test_what_is_installed_is_what_the_lock_says():
    if not os.path.exists(os.path.join(sys.prefix, 'made-from-%s.lock' % compat.STACK)):
        pytest.skip('this environment is not of scripts/setup.sh')
    if sys.version_info < (3, 8):
        import importlib_metadata as metadata
    else:
        from importlib import metadata
    found = metadata.distributions(path=[sysconfig.get_paths()['purelib']])
    installed = {d.metadata['Name'].lower().replace('_', '-'): '==' + d.version for d in found}
    expected = read_requirements('scripts/%s.lock' % compat.STACK)
    for extra in ('fuzz', 'onnx', 'pretrain', 'torch'):
        if os.path.exists(os.path.join(sys.prefix, 'made-from-%s-%s.lock' % (compat.STACK, extra))):
            expected.update(read_requirements('scripts/%s-%s.lock' % (compat.STACK, extra)))
    # Of torch there are builds, told by what follows a +, that need packages for GPUs or do not.
    installed = {name: pin.split('+')[0] for name, pin in installed.items()
                 if name in expected or not re.match('nvidia|cuda|triton', name)}
    assert installed == expected


def test_a_lock_of_an_extra_agrees_with_its_stack():
    for stack in ('tf1', 'tf2'):
        lock = read_requirements('scripts/%s.lock' % stack)
        for extra in ('pretrain', 'torch'):
            pins = read_requirements('scripts/%s-%s.lock' % (stack, extra))
            assert {name: pin for name, pin in pins.items() if lock.get(name, pin) != pin} == {}
            assert all(pins[name] == pin for name, pin in read_requirements(
                'scripts/%s-%s.in' % (stack, extra)).items() if pin)


class Project:
    """A copy of the scripts in a folder of its own, with a `uv` and a Python that only pretend."""

    def __init__(self, folder):
        self.home = os.path.join(folder, 'home')
        self.bin = os.path.join(folder, 'bin')
        self.root = os.path.join(folder, 'a project')
        self.log = os.path.join(folder, 'uv.log')
        for path in (self.home, self.bin, self.root):
            os.makedirs(path)
        for name in ('scripts', '.ci'):
            shutil.copytree(os.path.join(ROOT, name), os.path.join(self.root, name))
        shutil.copy(os.path.join(ROOT, 'pyproject.toml'), self.root)
        self.write_file('tasks.py', "CLUE = ['afqmc']\nOWN = []\n")
        self.env = {'PATH': self.bin + ':/usr/bin:/bin', 'HOME': self.home,
                    'PIP_INDEX_URL': 'http://localhost:1', 'PIP_CERT': __file__}
        # `uv venv` makes an environment whose Python is the one of this test.
        self.write(os.path.join(self.bin, 'uv'), '''
            echo "$*" >> '%s'
            case $1 in
                --version) echo uv 1.0 ;;
                venv)
                    [ ! -e "$HOME/slow" ] || sleep 0.5
                    mkdir -p "${@: -1}/bin"
                    printf '#!/bin/sh\\nexec "%s" "$@"\\n' > "${@: -1}/bin/python"
                    chmod +x "${@: -1}/bin/python" ;;
                pip)
                    echo "$UV_DEFAULT_INDEX $SSL_CERT_FILE" > "$HOME/network"
                    [ ! -e "$HOME/fail" ] || exit 2
                    [ ! -e "$HOME/kill" ] || kill -9 $PPID ;;
            esac''' % (self.log, sys.executable))
        for version in ('3.7', '3.11'):
            self.write(os.path.join(self.bin, 'python' + version), 'echo "$0"')
        self.write(os.path.join(self.bin, 'python3'), 'exit 1')  # no pip

    @staticmethod
    def write(path, text):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write('#!/bin/bash\n%s\n' % text)
        os.chmod(path, 0o755)

    def write_file(self, name, text=''):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as f:
            f.write(text)

    def start(self, *command, **options):
        options = dict(dict(cwd=self.home, env=self.env), **options)
        return subprocess.Popen((os.path.join(self.root, command[0]),) + command[1:], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, universal_newlines=True, **options)

    def run(self, *command, **options):
        """(exit code, standard output, standard error)"""
        process = self.start(*command, **options)
        out, err = process.communicate()
        return process.returncode, out, err

    def uv_calls(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            return [line.strip() for line in f if not line.startswith('--version')]


@pytest.fixture
def project(tmp_path):
    return Project(str(tmp_path))


@pytest.fixture
def no_python37(project):
    """Of Python 3.7 there is a shim alone, as pyenv leaves one for every version that is not active."""
    for path in ('/usr/bin', '/bin', '/usr/local/bin', '/opt/*/bin', '/opt/envs/*/bin', '/opt/*/envs/*/bin'):
        if glob.glob(path + '/python3.7'):
            pytest.skip('this machine has a Python 3.7 in ' + path)
    project.write(os.path.join(project.bin, 'python3.7'), 'echo "pyenv: python3.7: command not found" >&2; exit 127')
    return project


def test_an_environment_is_set_up_once_from_the_lock_alone(project):
    code, out, err = project.run('scripts/python', '-c', 'print(6 * 7)')
    assert (code, out) == (0, '42\n')
    assert len(err.splitlines()) == 1 and '.envs/tf1' in err and 'once' in err
    venv, pip = project.uv_calls()
    assert venv == 'venv --quiet --python %s/python3.7 .envs/tf1' % project.bin
    assert pip == ('pip install --quiet --compile-bytecode --no-deps --build-constraint scripts/tf1.lock'
                   ' --python .envs/tf1/bin/python --requirement scripts/tf1.lock')
    with open(os.path.join(project.home, 'network')) as f:
        assert f.read() == 'http://localhost:1 %s\n' % __file__
    assert project.run('scripts/python', '-c', 'print(6 * 7)') == (0, '42\n', '')
    assert len(project.uv_calls()) == 2
    assert project.run('scripts/python', '--stack', 'tf2', '-c', 'print(1)')[:2] == (0, '1\n')
    assert project.uv_calls()[2] == 'venv --quiet --python %s/python3.11 .envs/tf2' % project.bin


def test_a_changed_lock_or_a_lost_python_sets_up_anew(project):
    project.run('scripts/setup.sh', 'tf1')
    project.write_file('.envs/tf1/old')
    with open(os.path.join(project.root, 'scripts/tf1.lock'), 'a') as f:
        f.write('another==1.0\n')
    assert project.run('scripts/setup.sh', 'tf1')[0] == 0
    assert len(project.uv_calls()) == 4
    assert not os.path.exists(os.path.join(project.root, '.envs/tf1/old'))
    python = os.path.join(project.root, '.envs/tf1/bin/python')
    os.remove(python)
    os.symlink('/nowhere/python', python)
    assert project.run('scripts/setup.sh', 'tf1')[0] == 0
    assert len(project.uv_calls()) == 6
    assert project.run('scripts/setup.sh', 'tf1') == (0, '', '')


@pytest.mark.parametrize('how, code', [('fail', 1), ('kill', -9)])
def test_an_interrupted_setup_is_repaired_the_next_time(project, how, code):
    open(os.path.join(project.home, how), 'w').close()
    assert project.run('scripts/setup.sh', 'tf1')[0] == code
    project.write_file('.envs/tf1/half')
    os.remove(os.path.join(project.home, how))
    assert project.run('scripts/python', '-c', 'print(6 * 7)')[:2] == (0, '42\n')
    assert len(project.uv_calls()) == 4
    assert not os.path.exists(os.path.join(project.root, '.envs/tf1/half'))


def test_two_setups_at_once_make_one_environment(project):
    open(os.path.join(project.home, 'slow'), 'w').close()
    both = [project.start('scripts/setup.sh', 'tf1') for _ in range(2)]
    outputs = sorted(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert len(project.uv_calls()) == 2
    assert [output.split()[0] for output in outputs] == ['Setting', 'Waiting']


def test_an_extra_is_added_once(project):
    """On top of the stack, which is made first where it is missing, and not made again."""
    assert project.run('scripts/setup.sh', 'tf1', 'onnx')[0] == 0
    calls = project.uv_calls()
    assert [call.split()[0] for call in calls] == ['venv', 'pip', 'pip']
    assert calls[1].endswith('scripts/tf1.lock') and calls[2].endswith('scripts/tf1-onnx.lock')
    for command in (('scripts/setup.sh', 'tf1', 'onnx'), ('scripts/setup.sh', 'tf1')):
        assert project.run(*command) == (0, '', '')
    assert project.uv_calls() == calls
    project.write_file('scripts/tf1-onnx.lock', 'changed')
    assert project.run('scripts/setup.sh', 'tf1', 'onnx')[0] == 0
    assert [call.split()[0] for call in project.uv_calls()[3:]] == ['pip']
    code, out, err = project.run('scripts/setup.sh', 'tf1', 'nosuch')
    assert (code, out) == (2, '') and "unknown extra 'nosuch'" in err


def test_torch_brings_what_its_build_needs(project):
    """Some need CUDA's packages, which no lock names; the stack itself has what its lock names."""
    assert project.run('scripts/setup.sh', 'tf2', 'torch')[0] == 0
    stack, torch = project.uv_calls()[1:]
    assert '--no-deps' in stack and '--no-deps' not in torch
    assert ' --constraint scripts/tf2.lock ' in torch and torch.endswith('scripts/tf2-torch.lock')


def test_a_python_that_only_pyenv_knows_is_found_behind_its_failing_shim(no_python37):
    python = os.path.join(no_python37.home, '.pyenv/versions/3.7.16/bin/python3.7')
    no_python37.write(python, 'echo "$0"')
    assert no_python37.run('scripts/setup.sh', 'tf1')[0] == 0
    assert no_python37.uv_calls()[0] == 'venv --quiet --python %s .envs/tf1' % python


def test_a_python_of_another_version_is_not_taken(no_python37):
    if sys.version_info[:2] == (3, 7):
        pytest.skip('needs another Python to offer')
    os.remove(os.path.join(no_python37.bin, 'python3.7'))
    os.symlink(sys.executable, os.path.join(no_python37.bin, 'python3.7'))
    assert no_python37.run('scripts/setup.sh', 'tf1')[0] == 2


def test_without_python37_one_line_offers_the_other_stack(no_python37):
    for command in (('scripts/run', 'afqmc'), ('scripts/python', '-c', ''), ('scripts/setup.sh', 'tf1')):
        no_python37.write_file('afqmc.py')
        code, out, err = no_python37.run(*command)
        assert (code, out) == (2, '')
        assert len(err.splitlines()) == 1 and 'Python 3.7' in err and '--stack tf2' in err
    assert no_python37.uv_calls() == []
    assert no_python37.run('scripts/python', '--stack', 'tf2', '-c', 'print(1)')[:2] == (0, '1\n')


def test_without_python37_one_is_downloaded_where_the_network_has_it(no_python37):
    python = os.path.join(no_python37.root, '.envs/python/cpython-3.7.9/bin/python3.7')
    no_python37.write(os.path.join(no_python37.root, '.envs/uv/bin/uv'), '''
        [ "$1" != --version ] || exec echo uv 0.6.17
        [ "$*" = "python install --quiet 3.7" ] || exit 1
        mkdir -p "$UV_PYTHON_INSTALL_DIR/cpython-3.7.9/bin"
        printf '#!/bin/sh\\necho "$0"\\n' > "$UV_PYTHON_INSTALL_DIR/cpython-3.7.9/bin/python3.7"
        chmod +x "$UV_PYTHON_INSTALL_DIR/cpython-3.7.9/bin/python3.7"''')
    assert no_python37.run('scripts/setup.sh', 'tf1')[0] == 0
    assert no_python37.uv_calls()[0] == 'venv --quiet --python %s .envs/tf1' % python


@pytest.mark.parametrize('command', [
    ('scripts/setup.sh',), ('scripts/setup.sh', 'nosuch'), ('scripts/python', '--stack', 'nosuch'),
    ('scripts/python', '--stack=nosuch'), ('scripts/python', '--stack'), ('scripts/run', '--stack', 'nosuch', 'afqmc'),
    ('scripts/run', 'afqmc', '--stack'), ('scripts/test', '--stack', 'nosuch')])
def test_an_unknown_stack_is_one_line(project, command):
    project.write_file('afqmc.py')
    code, out, err = project.run(*command)
    assert (code, out) == (2, '')
    assert len(err.splitlines()) == 1 and 'tf1 or tf2' in err
    assert not os.path.exists(os.path.join(project.root, '.envs'))


def run_here(*command):
    return subprocess.run((os.path.join(ROOT, command[0]),) + command[1:], capture_output=True,
                          text=True)


def test_run_lists_the_tasks():
    for command in (('scripts/run',), ('scripts/run', '--help')):
        result = run_here(*command)
        assert result.returncode == 0 and result.stderr == ''
        assert 'Tasks: %s\n' % ' '.join(NAMES) in result.stdout
        assert 'scripts/run TASK --help' in result.stdout


def test_an_unknown_task_is_one_line():
    result = run_here('scripts/run', 'nosuchtask')
    assert (result.returncode, result.stdout) == (2, '')
    assert len(result.stderr.splitlines()) == 1
    assert "'nosuchtask'" in result.stderr and 'afqmc' in result.stderr


def test_run_leaves_the_users_folder_and_passes_the_flags_on(project):
    project.write_file('afqmc.py', 'import os, sys, neighbour; print(os.getcwd()); print(sys.argv[1:])')
    project.write_file('neighbour.py')
    os.symlink(os.path.join(project.root, 'scripts/run'), os.path.join(project.bin, 'fl'))
    os.symlink(project.root, os.path.join(project.home, 'link'))
    expected = "%s\n['--data_path', 'my data', '']\n" % project.home
    for command in ('scripts/run', os.path.join(project.bin, 'fl'), os.path.join(project.home, 'link/scripts/run')):
        assert project.run(command, 'afqmc', '--data_path', 'my data', '')[:2] == (0, expected)
    assert len(project.uv_calls()) == 2
    for args in (['--stack', 'tf2', 'afqmc'], ['afqmc', '--stack', 'tf2'], ['afqmc', '--stack=tf2']):
        assert project.run('scripts/run', *(args + ['--data_path', 'my data', '']))[:2] == (0, expected)
    assert [call.split()[-1] for call in project.uv_calls()[2:]] == ['.envs/tf2', 'scripts/tf2.lock']


TESTS = '''import sys

import pytest


def test_good():
    assert __import__('neighbour')


def test_skipped():
    pytest.skip('')


@pytest.mark.slow
def test_slow():
    assert sys


@pytest.fixture
def broken():
    raise ValueError
'''
BAD_ON_TF1 = '''

def test_bad():
    assert 'tf1' not in sys.argv[-1]


def test_broken(request):
    assert 'tf1' not in sys.argv[-1] or request.getfixturevalue('broken')
'''


def test_the_tests_run_on_both_stacks_and_are_counted(project):
    project.write_file('neighbour.py')
    project.write_file('tests/test_it.py', TESTS + BAD_ON_TF1)
    code, out, _ = project.run('scripts/test', '-n', '0')  # sys.argv is pytest's in its own process alone
    assert code == 1
    assert out.splitlines()[-2:] == ['tf1: 1 passed, 2 failed, 1 skipped', 'tf2: 3 passed, 0 failed, 1 skipped']
    code, out, _ = project.run('scripts/test', '--stack', 'tf2', '--all', '-k', 'good or slow')
    assert code == 0
    assert out.splitlines()[-1:] == ['tf2: 2 passed, 0 failed, 0 skipped']
    assert 'tf1:' not in out


def test_ci_runs_the_slow_tests_too(project):
    project.write_file('neighbour.py')
    project.write_file('tests/test_it.py', TESTS)
    code, out, _ = project.run('.ci/run', env=dict(project.env, CI='true'))
    assert code == 0
    assert out.splitlines()[-2:] == ['tf1: 2 passed, 0 failed, 1 skipped', 'tf2: 2 passed, 0 failed, 1 skipped']


def test_code_that_ruff_finds_fault_with_fails(project):
    project.write_file('tests/test_it.py', 'import os\n\n\ndef test_good():\n    pass\n')
    code, out, _ = project.run('scripts/test', '--stack', 'tf2')
    assert code == 1 and 'F401' in out
    assert out.splitlines()[-1] == 'tf2: 1 passed, 0 failed, 0 skipped'


def test_a_run_without_tests_or_without_an_environment_has_failed(project):
    project.write_file('tests/conftest.py')
    code, out, _ = project.run('scripts/test', '--stack', 'tf1')
    assert code == 1
    assert out.splitlines()[-2:] == ['tf1: 0 passed, 0 failed, 0 skipped',
                                     'tf1: no test ran, which counts as a failure']
    project.write_file('tests/test_it.py', 'def test_good():\n    pass\n')
    open(os.path.join(project.home, 'fail'), 'w').close()
    code, out, _ = project.run('scripts/test')
    assert code == 1
    assert out.splitlines()[-2:] == ['tf1: 1 passed, 0 failed, 0 skipped',
                                     'tf2: the tests did not run to their end, exit code 1']


def test_the_scripts_can_be_executed():
    for name in ('.ci/run', 'scripts/setup.sh', 'scripts/run', 'scripts/python', 'scripts/test'):
        assert os.stat(os.path.join(ROOT, name)).st_mode & stat.S_IXUSR, name
