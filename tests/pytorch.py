"""PyTorch for the tests: one process of .envs/torch for all of them, since importing it takes many seconds."""
import json
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def torch_python(environment=None):
    """Python of the environment with PyTorch, which is set up where it is missing."""
    done = subprocess.run([os.path.join(ROOT, 'scripts', 'setup.sh'), 'torch'], stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return os.path.join(ROOT, '.envs', 'torch', 'bin', 'python')


class PyTorch:
    """run_transformers.py, waiting for commands; it starts with the first."""

    def __init__(self):
        self.process = None
        self.environment = dict(os.environ)  # not that of the first test, which may be cut off from any network

    def run(self, *args):
        """A command of run_transformers.py. Returns what it printed."""
        if self.process is None:
            environment = {name: value for name, value in self.environment.items() if not name.startswith('TF_')}
            self.process = subprocess.Popen(
                [torch_python(self.environment), os.path.join(HERE, 'run_transformers.py'), 'serve'],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
                env=dict(environment, HF_HUB_OFFLINE='1'))
        self.process.stdin.write(json.dumps([str(arg) for arg in args]) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, 'run_transformers.py ended: %s' % self.process.poll()
        printed, error = json.loads(answer)
        assert error is None, error
        return printed

    def end(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
