"""What people see of a run on Prefect's pages: a bar while a stage works, a page of its results when it has ended."""

import base64
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from core.records import PreparedData
from flows.console import PlainConsole
from infra import mlflow_runs, settings

EVERY_SECONDS = 2.0
PICTURE = "reconstructions.png"
PICTURE_SIDE = 900
"""Longest side, in pixels, of a picture that is put into a page; Prefect keeps pages in its database."""


class PrefectConsole(PlainConsole):
    """Lines go into the run's log, and progress becomes an artifact; a server that is away holds nothing up."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(write)
        self._bar: _Bar | None = None

    def stage(self, title: str) -> None:
        """A line and a bar."""
        super().stage(title)
        self._end()
        self._bar = _Bar(title)

    def update(self, what: str, done: int, total: int, unit: str, rate: float) -> None:
        """Move the bar; a line now and then."""
        super().update(what, done, total, unit, rate)
        if self._bar is not None and total:
            self._bar.value = 100.0 * done / total

    def finished(self, text: str) -> None:
        """A line, and the end of the bar."""
        super().finished(text)
        self._end()

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.end()
            self._bar = None


class _Bar:
    """A progress artifact that follows ``value``, in per cent, from a thread of its own."""

    def __init__(self, title: str) -> None:
        self.value, self._title = 0.0, title
        self._ended = threading.Event()
        self._id: UUID | None = None
        context = copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._follow), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Send the last value; waits a little for a slow server."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        shown = -1.0
        while True:
            ended = self._ended.wait(EVERY_SECONDS)
            if self.value != shown:
                with suppress(Exception):  # A picture of the work is not the work.
                    self._send(self.value)
                    shown = self.value
            if ended:
                return

    def _send(self, value: float) -> None:
        if self._id is None:
            made = create_progress_artifact(progress=value, key=_key(self._title, "progress"), description=self._title)
            self._id = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self._id, progress=value)


def tell_stage(
    name: str, title: str, record: Any, folder: Path, links: Mapping[str, str], *, picture: bool = True
) -> None:
    """Put a stage's key figures, its picture and links to its MLflow runs on a page; failing costs nothing else.

    Args:
        name: The recipe's name.
        title: What the stage is called here.
        record: Its record.
        folder: Its finished folder.
        links: Further lines of the page, text to address.
        picture: Whether the page may show what the data look like.
    """
    lines = [f"# {name}: {title}", "", "| figure | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in _figures(record)]
    if picture and (folder / PICTURE).exists():
        lines += ["", "Original, what the encoder saw, what the decoder made of it:", "", _picture(folder / PICTURE)]
    if links:
        lines += ["", *(f"- [{text}]({address})" for text, address in links.items())]
    lines += ["", f"Finished folder: `{folder}`"]
    with suppress(Exception):
        create_markdown_artifact("\n".join(lines), key=_key(name, title), description=f"{name}: {title}")


def run_links(experiment: str | None, run_id: str | None) -> dict[str, str]:
    """Addresses of a stage's MLflow run and of the page that compares it with all runs of that stage."""
    pages = settings.mlflow_pages()
    if pages is None or experiment is None or run_id is None:
        return {}
    return {
        "curves, parameters and files in MLflow": f"{pages}/{mlflow_runs.link(run_id, experiment)}",
        "all runs of this stage beside each other": f"{pages}/{mlflow_runs.chart(experiment)}",
    }


def _figures(record: Any) -> list[tuple[str, str]]:
    if isinstance(record, PreparedData):
        counts = [(split, f"{number} items") for split, number in record.counts.items()]
        return [*counts, ("unreadable", str(record.unreadable)), ("duplicates", str(record.duplicates))]
    metrics: dict[str, float] = record.metrics
    plain = {key: value for key, value in metrics.items() if not key.endswith(("_low", "_high"))}
    return [(key, _with_interval(key, value, metrics)) for key, value in plain.items()]


def _with_interval(key: str, value: float, metrics: Mapping[str, float]) -> str:
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    interval = f" ({low:.4g} to {high:.4g})" if low is not None and high is not None else ""
    return f"{value:.4g}{interval}"


def _picture(file: Path) -> str:
    from io import BytesIO

    from PIL import Image

    with Image.open(file) as picture:
        small = picture.convert("RGB")
        small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        out = BytesIO()
        small.save(out, "WEBP", quality=85)
    return f"![reconstructions](data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()})"


def _key(*words: str) -> str:
    """Lower-case letters, digits and dashes: what Prefect allows."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
