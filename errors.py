"""What a user can put right: shown as one line, exit code 2."""
import argparse
import sys


class UserError(Exception):
    """Bad input. The message names the file, the line or field, and what was expected."""

    def __str__(self):
        """One line, whatever the names and values in it."""
        return ' '.join(super(UserError, self).__str__().splitlines())


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, without the usage text."""

    def error(self, message):
        raise UserError(message)


def run_tool(name, run):
    """Run a program and end it with the exit code that `run` returns, or 2 after a UserError."""
    try:
        sys.exit(run())
    except UserError as error:
        print('%s: error: %s' % (name, error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
