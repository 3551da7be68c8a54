"""What a person sees while a flow runs: bars on a terminal, a line now and then elsewhere."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from core.tracking import EVENTS_FILE

SHOWN_METRICS = ("loss", "val_loss", "knn", "val_top1", "val_map", "val_r2")
"""Curves worth a place beside the bar, by the last part of their names."""
PLAIN_EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


class Console(Protocol):
    """Where progress goes."""

    def stage(self, title: str) -> None:
        """A stage begins."""

    def update(self, what: str, done: int, total: int, unit: str, rate: float) -> None:
        """Part of its work is done."""

    def metrics(self, values: dict[str, float]) -> None:
        """Its curves moved."""

    def line(self, text: str) -> None:
        """Something to tell."""

    def finished(self, text: str) -> None:
        """The stage has ended, with this result."""


class PlainConsole:
    """Lines for logs and pipes."""

    def __init__(self, write: Callable[[str], None] = print) -> None:
        self._write, self._title, self._last = write, "", 0.0
        self._metrics: dict[str, float] = {}

    def stage(self, title: str) -> None:
        """One line."""
        self._title, self._last, self._metrics = title, time.monotonic(), {}
        self._write(f"{title} ...")

    def update(self, what: str, done: int, total: int, unit: str, rate: float) -> None:
        """At most a line in ten seconds."""
        if time.monotonic() - self._last < PLAIN_EVERY:
            return
        self._last = time.monotonic()
        left = f", {_clock((total - done) / rate)} left" if rate > 0 else ""
        self._write(f"{self._title}: {done}/{total} {unit}{_pace(rate, ', ')}{left}{_text(self._metrics)}")

    def metrics(self, values: dict[str, float]) -> None:
        """Kept for the next line."""
        self._metrics |= _worth_showing(values)

    def line(self, text: str) -> None:
        """One line."""
        self._write(text)

    def finished(self, text: str) -> None:
        """One line."""
        self._write(text)


class RichConsole:
    """Live bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._terminal = Terminal(highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:10s}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[about]}"),
            TimeRemainingColumn(compact=True),
            console=self._terminal,
            transient=True,
        )
        self._task: Any = None
        self._about = ""

    def stage(self, title: str) -> None:
        """Start its bar."""
        self._about = ""
        self._task = self._bars.add_task(title, total=None, about="")
        self._bars.start()

    def update(self, what: str, done: int, total: int, unit: str, rate: float) -> None:
        """Move its bar."""
        about = f"{unit}{_pace(rate, '  ')}{self._about}"
        self._bars.update(self._task, completed=done, total=total, about=about)

    def metrics(self, values: dict[str, float]) -> None:
        """Show them beside the bar."""
        shown = _text(_worth_showing(values))
        self._about = shown or self._about

    def line(self, text: str) -> None:
        """Print above the bar."""
        self._terminal.print(text, markup=False)

    def finished(self, text: str) -> None:
        """Replace the bar by its result."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._bars.stop()
            self._task = None
        self._terminal.print(text, markup=False)


def command(home: Path, *words: str) -> str:
    """A command of maeflow's that finds ``home`` from wherever it is given."""
    return shlex.join(["maeflow", *words, "--home", str(home)])


def _pace(rate: float, before: str) -> str:
    """``rate``, which is a second's, in the unit of time that people count in; empty where nothing is known yet."""
    for seconds, name in ((1, "s"), (60, "min"), (3600, "h")):
        if rate * seconds >= 1:
            return f"{before}{rate * seconds:.0f}/{name}"
    return ""


CURRENT: ContextVar[Console | None] = ContextVar("console", default=None)


def current() -> Console:
    """The console of this flow: the command line's, or the flow run's log."""
    return CURRENT.get() or PlainConsole(_to_log)


@contextmanager
def for_flow(*, served: bool) -> Iterator[None]:
    """Inside, a flow that a worker has started reports to Prefect; any other goes on as before."""
    if not served:
        yield
        return
    from flows.artifacts import PrefectConsole

    token = CURRENT.set(PrefectConsole(_to_log))
    try:
        yield
    finally:
        CURRENT.reset(token)


def for_terminal() -> Console:
    """Bars where standard output is a terminal, lines elsewhere."""
    return RichConsole() if sys.stdout.isatty() else PlainConsole(lambda text: print(text, flush=True))


def _to_log(text: str) -> None:
    from prefect.logging import get_run_logger

    get_run_logger().info(text)


class Follower:
    """Reads a stage's event log as it grows and tells the console."""

    def __init__(self, folder: Callable[[], Path], console: Console) -> None:
        self._folder, self._console = folder, console
        self._offset = _end_of_lines(folder() / EVENTS_FILE)

    def tick(self) -> None:
        """Tell what is new."""
        try:
            with (self._folder() / EVENTS_FILE).open("rb") as source:
                source.seek(self._offset)
                data = source.read()
        except FileNotFoundError:
            return  # Not begun; or the folder got its final name this moment, and the next tick finds it.
        end = data.rfind(b"\n") + 1
        self._offset += end
        for line in data[:end].splitlines():
            self._tell(json.loads(line))

    def _tell(self, event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            self._console.update(event["what"], event["done"], event["total"], event["unit"], event["per_second"])
        elif event["kind"] == "metrics":
            self._console.metrics(event["values"])
        elif event["kind"] == "note":
            self._console.line(f"  note: {event['text']}")


def _end_of_lines(file: Path) -> int:
    """Where the next event will be written: a torn last line, as a full disk leaves it, is cut off before."""
    return file.read_bytes().rfind(b"\n") + 1 if file.exists() else 0


def _worth_showing(values: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in values.items() if k.rpartition("/")[2] in SHOWN_METRICS}


def _text(values: dict[str, float]) -> str:
    return "".join(f"  {key.rpartition('/')[2]} {value:.4g}" for key, value in values.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
