"""The error a user sees: what was found, what was expected, what to do."""


class FsadError(ValueError):
    """A problem the user can repair; the command line prints its message without a traceback, exit status 2."""
