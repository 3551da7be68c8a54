"""The two ways in which a request can go wrong."""


class UserError(ValueError):
    """The request is wrong: an unknown key, a missing source, an unwritable folder. Exit code 2.

    The message names the thing, where it came from and what to do next.
    """


class StageError(RuntimeError):
    """The work itself failed: too many unreadable files, no finite loss. Exit code 1."""


class Stopped(Exception):  # noqa: N818 - it is no error: the work was saved and can go on.
    """The stage was asked to stop, saved what it had, and can be continued by the same command."""
