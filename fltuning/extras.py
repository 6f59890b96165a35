"""Packages that only some of it needs: extras of scripts/setup.sh."""
import importlib
import sys

from fltuning.errors import UserError


def setup_command(extra: str) -> str:
    """The command that adds an extra to the environment that this runs in, or makes the one called lab."""
    if extra == 'lab':
        return 'scripts/setup.sh lab'
    return 'scripts/setup.sh %s %s' % ('tf1' if sys.version_info < (3, 8) else 'tf2', extra)


def import_extra(module: str, extra: str):
    """A module of an extra. Raises UserError with the command that adds it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError('%s is not installed: `%s` adds it'
                        % (getattr(error, 'name', None) or module, setup_command(extra)))
