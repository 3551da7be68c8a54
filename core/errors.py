"""The two ways in which a request can go wrong, and what may be said of what nobody foresaw."""

import traceback
from pathlib import Path


class UserError(ValueError):
    """The request is wrong: an unknown key, a missing source, an unwritable folder. Exit code 2.

    The message names the thing, where it came from and what to do next.
    """


class StageError(RuntimeError):
    """The work itself failed: too many unreadable files, no finite loss. Exit code 1."""


class Stopped(Exception):  # noqa: N818 - it is no error: the work was saved and can go on.
    """The stage was asked to stop, saved what it had, and can be continued by the same command."""


def discreet(error: BaseException) -> str:
    """What an unforeseen error may tell where sources are private: its type and place in the code, never its text."""
    root = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(root) and _is_ours(frame.filename, root)]
    if not ours:
        return f"unforeseen {type(error).__name__}"
    place = Path(ours[-1].filename).relative_to(root).as_posix()
    return f"unforeseen {type(error).__name__} at {place}:{ours[-1].lineno}"


def _is_ours(file: str, root: Path) -> bool:
    return Path(file).relative_to(root).parts[0] in ("core", "modalities", "flows", "infra")
