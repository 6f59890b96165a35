"""What a user can put right: shown as one line, exit code 2."""


class UserError(Exception):
    """Bad input. The message names the file, the line or field, and what was expected."""
