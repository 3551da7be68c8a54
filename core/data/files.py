"""Files as readers meet them: everything that keeps one from being read becomes a plain reason, without the path."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.modality import Unreadable


def facts(path: str | Path) -> tuple[int, int]:
    """Bytes and modification time in ns; -1 and 0 for what is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - called for every file of a source
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def readable(path: Path) -> Path:
    """``path``, if it is a regular file with something in it.

    Raises:
        Unreadable: with the reason.
    """
    with _plain_reasons(path):
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            raise Unreadable("is a folder, not a file")
        if not stat.S_ISREG(facts.st_mode):
            raise Unreadable("is not a regular file")
        with path.open("rb") as source:
            if not source.read(1):
                raise Unreadable("empty file")
    return path


def content(path: Path) -> bytes:
    """All of a file.

    Raises:
        Unreadable: with the reason.
    """
    with _plain_reasons(path):
        return readable(path).read_bytes()


@contextmanager
def _plain_reasons(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise Unreadable("dangling link" if path.is_symlink() else "missing file") from None
    except PermissionError:
        raise Unreadable("permission denied") from None
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
