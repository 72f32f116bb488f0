"""The one exception that the command line reports instead of raising."""


class UserError(Exception):
    """An error that the user can correct: `main` prints its message as one line and returns status 2."""
