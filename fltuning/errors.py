"""What a user can put right: shown as one line, exit code 2."""
import argparse
import contextlib
import os
import sys
import unicodedata

LONGEST = 1000  # characters of an error that are shown


def one_line(text: str) -> str:
    """A text to show: one line of bounded length, without what would steer a terminal.

    >>> one_line('a\\nb \\x1b[2J')
    'a b \\\\x1b[2J'
    """
    if len(text) > LONGEST:  # the place is at the beginning, what was got at the end
        text = '%s ... %s' % (text[:LONGEST - LONGEST // 4 - 5], text[-(LONGEST // 4):])
    return ''.join(character if unicodedata.category(character) not in ('Cc', 'Cf', 'Cs')
                   else character.encode('unicode_escape').decode('ascii')
                   for character in ' '.join(text.splitlines()))


class UserError(Exception):
    """Bad input. The message names the file, the line or field, and what was expected."""

    def __str__(self):
        """One line, whatever the names and values in it."""
        return one_line(super().__str__())


class NotFinite(UserError):
    """A loss, a weight or an output that is infinite or not a number."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, without the usage text."""

    def error(self, message):
        raise UserError(message)


class Output:
    """A stream that a program prints to: what cannot be written is lost, and the program goes on.

    failure: the OSError that ended it, or None. That nobody reads any more is no failure.
    """

    def __init__(self, stream):
        self.stream, self.failure, self.ended = stream, None, False

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def attempt(self, action):
        if self.ended:
            return
        try:
            action()
        except OSError as error:
            self.ended = True
            self.failure = None if isinstance(error, BrokenPipeError) else error
            with contextlib.suppress(OSError, ValueError):  # what is buffered would fail again at the end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def write(self, text):
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        self.attempt(self.stream.flush)


def run_tool(name, run):
    """Run a program and end it with the exit code that `run` returns, or 2 after a UserError.

    A standard output that nobody reads any more, or whose disk is full, does not end it before its
    work is done.
    """
    if sys.stderr is None:  # it was closed; print would take standard output instead
        sys.stderr = open(os.devnull, 'w')
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = [stream and Output(stream) for stream in streams]
    try:
        sys.exit(exit_code(name, run))
    finally:
        sys.stdout, sys.stderr = streams


def exit_code(name, run):
    try:
        try:
            code = run()
        except SystemExit as ended:  # --help
            code = ended.code
        if sys.stdout:
            sys.stdout.flush()
            if sys.stdout.failure:
                raise UserError('standard output: %s: not all is there'
                                % sys.stdout.failure.strerror)
        return code
    except UserError as error:
        print('%s: error: %s' % (name, error), file=sys.stderr)
        return 2
    except BrokenPipeError:  # what was asked for goes to nobody: as a shell says of SIGPIPE
        return 141
    except KeyboardInterrupt:
        return 130
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
