"""2,000 odd records and damaged files: each is read, or refused in one line; `scripts/fuzz` takes more."""
import collections

import pytest

pytest.importorskip('hypothesis', reason='no hypothesis: `scripts/test --all` adds it')

from fltuning.errors import UserError  # noqa: E402
from tools import fuzz, fuzzing  # noqa: E402

pytestmark = pytest.mark.slow


def test_records():
    found = fuzzing.fuzz_records(1600, 0)
    assert found.faults == []
    assert sum(found.counts.values()) == 1600
    outcomes = collections.Counter()
    for (_, outcome), number in found.counts.items():
        outcomes[outcome] += number
    assert min(outcomes['read'], outcomes['refused']) > 300


def test_files(tmp_path, clear_session):
    found = fuzzing.fuzz_files(str(tmp_path / 'files'), 400, 0)
    assert found.faults == []
    assert 350 < sum(found.counts.values()) <= 400
    assert len({reader for reader, _ in found.counts}) > 20


def test_faults_are_seen(monkeypatch):
    """A traceback, a hang, and what is not one line."""
    def fails(error):
        def function():
            raise error
        return function

    def hangs():
        while True:
            pass

    monkeypatch.setattr(fuzzing, 'SECONDS', 0.2)
    found = fuzzing.Found(collections.Counter(), [])
    for function, outcome in [(fails(KeyError('x')), 'fault'), (hangs, 'fault'), (fails(UserError('')), 'fault'),
                              (fails(UserError('a file: a field: expected a text')), 'refused'),
                              (lambda: None, 'read')]:
        fuzzing.try_reader(found, 'reader', function, lambda: 'input')
        assert found.counts['reader', outcome] > 0
    assert [fault['error'].split('(')[0].strip() for fault in found.faults] == [
        "KeyError: 'x'", 'tools.fuzzing.Hang: more than 0.2 seconds', 'not one line of text: \'\'']


def test_the_program_counts(monkeypatch, capsys):
    monkeypatch.setattr(fuzzing, 'fuzz_files', lambda *args: fuzzing.Found(
        collections.Counter({('delta', 'fault'): 1}), [{'reader': 'delta', 'error': 'KeyError', 'input': 'x'}]))
    assert fuzz.run(['--records', '40', '--files', '1']) == 1
    assert '41 inputs, 1 faults' in capsys.readouterr().out
