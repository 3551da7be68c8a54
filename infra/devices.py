"""The GPUs of this machine, handed out in order of arrival: one lock per device, and a queue before them.

Locks are files below ``devices/`` in the home, which the kernel drops with their last holder. A stage process inherits
those of its devices, so that a device stays taken until the stage has saved and ended, whatever becomes of its flow.
"""

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.errors import UserError
from infra.settings import DEVICES_VARIABLE

POLL_SECONDS = 0.5
TELL_SECONDS = 60.0


@dataclass(frozen=True)
class Taken:
    """Devices that are ours for now."""

    names: tuple[str, ...]
    descriptors: tuple[int, ...]
    """File descriptors of their locks, for the stage process to inherit."""

    @property
    def environment(self) -> dict[str, str]:
        """What the stage sees of the machine."""
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(self.names)}


def hidden() -> dict[str, str]:
    """What keeps a stage off GPUs that are there, where ``MAEFLOW_DEVICES`` names none."""
    return {"CUDA_VISIBLE_DEVICES": ""} if DEVICES_VARIABLE in os.environ and not device_names() else {}


def device_names() -> tuple[str, ...]:
    """GPUs that may be handed out: ``MAEFLOW_DEVICES``, else ``CUDA_VISIBLE_DEVICES``, else all there are."""
    for variable in (DEVICES_VARIABLE, "CUDA_VISIBLE_DEVICES"):
        if (named := os.environ.get(variable)) is not None:
            names = tuple(name.strip() for name in named.split(",") if name.strip())
            return () if names in (("none",), ("-1",)) else names
    return tuple(str(number) for number in range(installed()))


def installed() -> int:
    """How many GPUs `nvidia-smi` lists."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


@contextmanager
def take(
    home: Path, names: Sequence[str], count: int, tell: Callable[[str], None], admit: Callable[[], object]
) -> Iterator[Taken]:
    """Wait for ``count`` of the devices ``names``, behind who came before; inside they are ours.

    ``admit`` is called once this process is first in the queue, and may wait for leave from elsewhere.

    Raises:
        UserError: if the machine has fewer.
    """
    if count > len(names):
        raise UserError(f"compute.processes asks for {count} GPUs, and this machine hands out {len(names)}")
    folder = home / "devices" / socket.gethostname()
    (folder / "queue").mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _ticket(folder) as ahead:
            _wait_turn(ahead, tell)
            admit()
            locks = _locks(folder, names, count, held, tell)
        yield Taken(tuple(locks), tuple(lock.fileno() for lock in locks.values()))


@contextmanager
def _ticket(folder: Path) -> Iterator[Callable[[], list[Path]]]:
    """A place in the queue; gives a function that lists the tickets before it, without those of the dead."""
    queue = folder / "queue"
    with _door(folder):  # A ticket is named, there and held at once, or two could be first.
        last = max((int(ticket.name) for ticket in queue.iterdir()), default=0)
        mine = queue / f"{last + 1:020d}"
        handle = mine.open("w")
        fcntl.flock(handle, fcntl.LOCK_EX)

    def ahead() -> list[Path]:
        with _door(folder):
            return [other for other in sorted(queue.iterdir()) if other.name < mine.name and _held(other)]

    with handle:
        try:
            yield ahead
        finally:
            mine.unlink(missing_ok=True)


@contextmanager
def _door(folder: Path) -> Iterator[None]:
    """Inside, nobody else changes the queue."""
    with (folder / "queue.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _held(ticket: Path) -> bool:
    try:
        with ticket.open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ticket.unlink(missing_ok=True)  # Its holder was killed.
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _wait_turn(ahead: Callable[[], list[Path]], tell: Callable[[str], None]) -> None:
    told = -TELL_SECONDS
    while before := ahead():
        if time.monotonic() - told >= TELL_SECONDS:
            tell(f"waiting for a GPU: {len(before)} other{'s' if len(before) > 1 else ''} came before")
            told = time.monotonic()
        time.sleep(POLL_SECONDS)


def _locks(
    folder: Path, names: Sequence[str], count: int, held: ExitStack, tell: Callable[[str], None]
) -> dict[str, IO[str]]:
    """Locks of ``count`` devices; only the first in the queue is here, so it may keep some while it waits for more."""
    locks: dict[str, IO[str]] = {}
    start = told = time.monotonic() - TELL_SECONDS
    while True:
        for name in names:
            if name not in locks and len(locks) < count and (lock := _lock(folder / f"{_safe(name)}.lock")):
                locks[name] = held.enter_context(lock)
        if len(locks) == count:
            return locks
        if time.monotonic() - told >= TELL_SECONDS:
            users = "; ".join(filter(None, (_user(folder / f"{_safe(name)}.lock") for name in names)))
            tell(f"waiting for a GPU: {users or 'all are taken'}")
            told = time.monotonic()
        time.sleep(POLL_SECONDS if time.monotonic() - start > 5 else POLL_SECONDS / 5)


def _lock(file: Path) -> IO[str] | None:
    handle = file.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    handle.truncate(0)
    handle.write(f"taken by process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    handle.flush()
    return handle


def _user(file: Path) -> str:
    with suppress(FileNotFoundError):
        return f"{file.stem} {file.read_text()}"
    return ""


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
