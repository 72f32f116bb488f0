"""The one exception that the command line reports instead of raising."""


class UserError(Exception):
    """A mistake that its user can mend: `main` prints the message as one line, status 2."""
