"""The ways in which a request can go wrong, and what may be said of what nobody foresaw."""

import errno
import traceback
from pathlib import Path


class UserError(ValueError):
    """The request is wrong: an unknown key, a missing source, an unwritable folder. Exit code 2.

    The message names the thing, where it came from and what to do next.
    """


class StageError(RuntimeError):
    """The work itself failed: too many unreadable files, no finite loss. Exit code 1."""


class StageLost(StageError):  # noqa: N818 - named for what happened to the stage
    """The stage's process vanished, or its disk is full: no fault of the work, which goes on from its last checkpoint.

    Worth another try, unlike every other error.
    """


class StagePreempted(StageLost):
    """Somebody else than its launcher asked the stage to stop, as a cluster does; it has saved its work."""


class PeerLost(StageLost):
    """Another of the processes that train together is gone; this one cannot go on alone."""


class Stopped(Exception):  # noqa: N818 - it is no error: the work was saved and can go on.
    """The stage was asked to stop, saved what it had, and can be continued by the same command."""


class NotThis(Exception):  # noqa: N818 - what is said of a file that is not right, not a failure.
    """Why a checkpoint cannot be used, in a clause for people that follows the file's name."""


def disk_full(error: BaseException) -> bool:
    """Whether ``error``, or what led to it, was a full disk or a used-up quota."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # Libraries written in other languages tell it in words.
        if any(words in str(seen) for words in ("No space left on device", "Disk quota exceeded")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


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
