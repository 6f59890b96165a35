"""The programs behind scripts/: `scripts/NAME` runs tools/NAME.py."""
