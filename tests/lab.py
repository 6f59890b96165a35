"""Programs of tools/ in processes of their own: with a stand-in for scripts/run, and in the lab environment."""
import collections
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAND_IN = os.path.join(ROOT, 'tests', 'stand_in.py')
IN_LAB = pytest.mark.stack('tf2', 'of the environment lab, which has no stack: tested along with tf2')
LAB = os.path.join(ROOT, '.envs', 'lab', 'bin', 'python')


def lab_python():
    """The interpreter of the lab environment; a test is skipped without it."""
    if not os.path.exists(LAB):
        pytest.skip('no environment lab: `scripts/setup.sh lab` makes it')
    return LAB


def start(tool, arguments, log, python=sys.executable, stand_in=True, seconds=0.0, **environment):
    """A process of tools/TOOL.py, its output in log + '.out'."""
    code = ('import sys\nsys.path.insert(0, %r)\nfrom fltuning.errors import run_tool\nfrom tools import %s as tool\n'
            'run_tool("tool", lambda: tool.run(sys.argv[1:]%s))' % (
                ROOT, tool, ', [%r, %r]' % (sys.executable, STAND_IN) if stand_in else ''))
    with open(str(log) + '.out', 'a') as output:
        return subprocess.Popen(
            [python, '-c', code] + list(map(str, arguments)), stdout=output, stderr=output,
            env=dict(os.environ, STAND_IN_LOG=str(log), STAND_IN_SECONDS=str(seconds), **environment))


def run(tool, arguments, log, **options):
    """(exit code, output) of such a process."""
    process = start(tool, arguments, log, **options)
    code = process.wait(900)
    with open(str(log) + '.out') as reader:
        return code, reader.read()


def lines(log):
    """[(what, cell, process id, its parent's)] of the stand-ins, as far as they are."""
    if not os.path.exists(str(log)):
        return []
    with open(str(log)) as reader:
        parts = [line.rsplit(' ', 3) for line in reader if line.endswith('\n')]
    return [(what, cell, int(pid), int(parent)) for what, cell, pid, parent in parts]


def kill_when(driver, log, count, choose, epochs=4):
    """Kill a process of a cell that has `count` more lines to come; choose(line) -> process id. Returns the line.

    The cell's process is stopped before it is looked at: one that is in its last steps, or just ended, is let go.
    """
    had, until = len(lines(log)), time.time() + 120
    while time.time() < until:
        new = [line for line in lines(log)[had:] if line[0].startswith('epoch')]
        for line in reversed(new if len(new) >= count else []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(line[2], signal.SIGSTOP)
                try:
                    last = [other for other in lines(log) if other[2] == line[2]][-1]
                    if last[0].startswith('epoch') and last[0] != 'epoch %d' % epochs:
                        os.kill(choose(last), signal.SIGKILL)
                        return last
                finally:
                    os.kill(line[2], signal.SIGCONT)
        assert driver.poll() is None, 'the driver has ended'
        time.sleep(0.02)
    raise AssertionError('nothing to kill: %s' % lines(log)[-5:])


def check_none_twice(log, cells, epochs):
    """Each cell ended once, and no epoch that was finished was run again."""
    ended = collections.Counter(cell for what, cell, _, _ in lines(log) if what == 'end')
    assert set(ended) == set(cells) and set(ended.values()) == {1}
    done = collections.Counter((cell, what) for what, cell, _, _ in lines(log) if what.startswith('epoch'))
    # One that is killed between keeping an epoch and saying so, as all at once with their driver, does not say it.
    assert epochs * len(cells) - 4 <= len(done) <= epochs * len(cells)
    assert set(done.values()) == {1}
