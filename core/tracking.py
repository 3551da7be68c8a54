"""What a stage reports while it runs: metrics, pictures, progress.

A stage writes to a `Tracker` and knows nothing of where the reports go. `JsonlTracker` appends them to
``events.jsonl``, one JSON object per line, from which they can be mirrored elsewhere at leisure.

Every event has ``t`` (seconds since the epoch) and ``kind``:
``metrics`` (step, values) · ``picture`` and ``media`` (key, step, path relative to the file's folder) ·
``progress`` (what, done, total, unit, per_second) ·
``rewind`` (step: later metrics come again) · ``note`` (text).
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

EVENTS_FILE = "events.jsonl"
"""Name of the event log inside a stage's folder."""


class Tracker(Protocol):
    """Where a stage sends its reports."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalar ``values`` at optimiser step ``step``."""

    def picture(self, key: str, step: int, png: bytes) -> None:
        """Record a picture for people, a PNG, under ``key`` at ``step``."""

    def media(self, key: str, step: int, data: bytes, suffix: str) -> None:
        """Record something else for people, a file whose name ends in ``suffix``: an animation, a sound."""

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Tell that ``done`` of ``total`` units of ``what`` are finished."""

    def rewind(self, step: int) -> None:
        """Tell that work continues after ``step`` and that later metrics will come again."""

    def note(self, text: str) -> None:
        """Record one sentence a person should see."""


class NullTracker:
    """A tracker that forgets everything."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Forget."""

    def picture(self, key: str, step: int, png: bytes) -> None:
        """Forget."""

    def media(self, key: str, step: int, data: bytes, suffix: str) -> None:
        """Forget."""

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Forget."""

    def rewind(self, step: int) -> None:
        """Forget."""

    def note(self, text: str) -> None:
        """Forget."""


class JsonlTracker:
    """Appends events to ``events.jsonl`` in ``folder``; a torn last line of a killed process is cut off."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / EVENTS_FILE
        _cut_torn_line(self._file)
        self._out = self._file.open("ab", buffering=0)
        self._started: dict[str, tuple[float, int]] = {}
        self._last_progress: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values."""
        self._append("metrics", step=step, values=dict(values))

    def picture(self, key: str, step: int, png: bytes) -> None:
        """Write the picture beside the log and append its path."""
        self._keep("picture", key, step, png, ".png")

    def media(self, key: str, step: int, data: bytes, suffix: str) -> None:
        """Write the file beside the log and append its path."""
        self._keep("media", key, step, data, suffix)

    def _keep(self, kind: str, key: str, step: int, data: bytes, suffix: str) -> None:
        path = self._folder / "pictures" / f"{key.replace('/', '-')}-{step:08d}{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self._append(kind, key=key, step=step, path=str(path.relative_to(self._folder)))

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Append at most four times a second, and always the end; the rate is over this process's own work."""
        now = time.time()
        started, first = self._started.setdefault(what, (now, done))
        if done < total and now - self._last_progress.get(what, 0.0) < 0.25:
            return
        self._last_progress[what] = now
        rate = (done - first) / (now - started) if now > started else 0.0
        self._append("progress", what=what, done=done, total=total, unit=unit, per_second=round(rate, 3))

    def rewind(self, step: int) -> None:
        """Append the mark."""
        self._append("rewind", step=step)

    def note(self, text: str) -> None:
        """Append the sentence."""
        self._append("note", text=text)

    def _append(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"t": round(time.time(), 3), "kind": kind, **fields}, separators=(",", ":"))
        self._out.write(line.encode() + b"\n")


def _cut_torn_line(file: Path) -> None:
    """Remove what follows the last newline: the half-written event of a process that was killed."""
    if not file.exists():
        return
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(file, end)
