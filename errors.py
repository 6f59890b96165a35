"""What a user can put right: shown as one line, exit code 2."""


class UserError(Exception):
    """Bad input. The message names the file, the line or field, and what was expected."""

    def __str__(self):
        """One line, whatever the names and values in it."""
        return ' '.join(super(UserError, self).__str__().splitlines())
