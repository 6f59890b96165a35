"""`python tools NAME [flags]`: what scripts/NAME runs."""
import importlib
import os
import sys

if __name__ == '__main__':
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the root, not this folder
    from fltuning.errors import run_tool
    name = sys.argv.pop(1)
    run_tool('scripts/' + name, importlib.import_module('tools.' + name).run)
