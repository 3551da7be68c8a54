"""Folders on disk: the home, one folder per stage digest, exclusive work and atomic completion.

Work happens in ``<digest>.partial`` under a lock; a finished folder appears by rename, so it is whole or absent.
"""

import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from core.errors import UserError

SCHEMA = 1
"""Version of the home's layout; part of every digest."""
_RUN = secrets.token_hex(4)
"""Tells processes apart that have one number on two machines, or in two containers."""


def digest_of(*parts: Any) -> str:
    """A 16-digit hex name for the JSON value of ``parts``, independent of key order."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def temporary_beside(path: Path) -> Path:
    """A name beside ``path`` that no other process uses, on whatever machine; what was killed leaves it behind."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_RUN}.tmp")


def own_temporaries(folder: Path) -> list[Path]:
    """Temporary files of this process in ``folder``."""
    return list(folder.glob(f".*.{os.getpid()}-{_RUN}.tmp"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is either the old file or the whole new one, at any moment of a crash."""
    temporary = temporary_beside(path)
    with temporary.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """``folder``, filled by ``make`` the first time: there whole or not at all, whoever else makes it meanwhile."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / folder.name
            made.mkdir()
            make(made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.is_dir():  # Otherwise another process was quicker, and its folder is as good.
                    raise
    return folder


@dataclass(frozen=True)
class Home:
    """The folder everything lives under."""

    root: Path
    """Absolute path."""

    @classmethod
    def create(cls, root: Path) -> "Home":
        """The home at ``root``, made if absent.

        Raises:
            UserError: if it cannot be written to, or holds a layout this version does not know.
        """
        root = root.expanduser().absolute()
        marker = root / "home.json"
        try:
            for folder in (root, root / "prepared", root / "runs"):
                folder.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                write_text(marker, json.dumps({"schema": SCHEMA}) + "\n")
        except OSError as error:
            raise UserError(
                f"home folder {root} cannot be written to: {error.strerror}; set MAEFLOW_HOME to another"
            ) from None
        found = json.loads(marker.read_text())["schema"]
        if found != SCHEMA:
            raise UserError(
                f"home folder {root} has layout {found}, this version knows {SCHEMA}; set MAEFLOW_HOME to another"
            )
        if not os.access(root, os.W_OK | os.X_OK):
            raise UserError(f"home folder {root} cannot be written to; set MAEFLOW_HOME to another")
        return cls(root)

    def stage(self, stage: str, digest: str) -> "StageFolder":
        """The folder of a stage with ``digest``."""
        return StageFolder(self.root / ("prepared" if stage == "prepare" else f"runs/{stage}") / digest)

    def uri(self, path: Path) -> str:
        """``path`` relative to the home."""
        return path.relative_to(self.root).as_posix()

    def resolve(self, uri: str) -> Path:
        """The absolute path of a home-relative ``uri``."""
        return self.root / uri


@dataclass(frozen=True)
class StageFolder:
    """Where one stage's results are, or will be."""

    final: Path
    """The finished folder; exists only when the stage is done."""

    @property
    def partial(self) -> Path:
        """Where work is done until then."""
        return self.final.with_name(f"{self.final.name}.partial")

    @property
    def lock_file(self) -> Path:
        """Held by the process that works here; never removed, or two processes could hold two files."""
        return self.final.with_name(f"{self.final.name}.lock")

    @property
    def done(self) -> bool:
        """Whether the stage is finished."""
        return self.final.is_dir()

    @property
    def current(self) -> Path:
        """The folder to read events from now."""
        return self.final if self.done else self.partial

    def finish(self) -> None:
        """Turn the partial folder into the finished one."""
        sync_folder(self.partial)
        self.partial.rename(self.final)
        sync_folder(self.final.parent)

    @contextmanager
    def exclusive(
        self, waiting: Callable[[str], None], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Hold the folder for this process alone; ``waiting`` is told, once, who holds it meanwhile.

        The kernel drops the lock with the process, however it ends, so there is no stale holder to guess about.
        """
        with held(self.lock_file, waiting, should_stop):
            yield


@contextmanager
def held(file: Path, waiting: Callable[[str], None], should_stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold ``file``, made if absent, for this process alone; ``waiting`` is told, once, who holds it meanwhile.

    Where the holder removes it in the end, whoever waited holds the file that has its name then.

    Raises:
        InterruptedError: if asked to stop while it waits.
    """
    with _locked(file, waiting, should_stop) as handle:
        handle.seek(0)
        handle.truncate()
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        yield


def _locked(file: Path, waiting: Callable[[str], None], should_stop: Callable[[], bool]) -> TextIO:
    """``file``, open and locked; a lock on one that was removed meanwhile would keep nobody out."""
    told = False
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = file.open("a+")
        except FileNotFoundError:  # Its folder was removed in between.
            continue
        try:
            while not _try_lock(handle.fileno()):
                if not told:
                    handle.seek(0)
                    waiting(handle.read().strip() or "another process")
                    told = True
                if should_stop():
                    raise InterruptedError  # noqa: TRY301 - to be told from an error, by whoever asked
                time.sleep(0.2)
            if _is_called(handle.fileno(), file):
                return handle
        except BaseException:
            handle.close()
            raise
        handle.close()


def _is_called(descriptor: int, file: Path) -> bool:
    """Whether ``file`` is the name of what is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
