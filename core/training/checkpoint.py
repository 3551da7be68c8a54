"""Training state on disk: written whole or not at all, read without unpickling."""

import io
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from core.errors import StageError
from core.workspace import write_bytes

FOLDER = "checkpoints"
"""Folder of training checkpoints inside a stage's partial folder; emptied when the stage is done."""

SECONDS_TO_SHOW = 90
"""How long a network file system may take to show one machine what another has written."""


def save(workdir: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the state after ``step`` steps and remove all but the newest ``keep`` files."""
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"step": step, **state}, buffer)
    write_bytes(folder / f"step-{step:09d}.pt", buffer.getvalue())
    for old in _files(workdir)[:-keep]:
        old.unlink()


def latest(workdir: Path) -> dict[str, Any] | None:
    """The newest training state, or None."""
    files = _files(workdir)
    if not files:
        return None
    state: dict[str, Any] = torch.load(files[-1], map_location="cpu", weights_only=True)
    return state


def at(workdir: Path, step: int) -> dict[str, Any]:
    """The training state after ``step`` steps, which another process, maybe on another machine, has seen there.

    Raises:
        StageError: if it does not come into sight.
    """
    file = workdir / FOLDER / f"step-{step:09d}.pt"
    deadline = time.monotonic() + SECONDS_TO_SHOW
    while not file.exists():
        if time.monotonic() > deadline:
            raise StageError(f"{file.name} is there on one machine and not on another; all need the same home folder")
        time.sleep(0.5)
        with suppress(FileNotFoundError):
            list(file.parent.iterdir())  # Network file systems look anew.
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def clear(workdir: Path) -> None:
    """Remove all training checkpoints and what killed processes left of theirs."""
    folder = workdir / FOLDER
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _files(workdir: Path) -> list[Path]:
    return sorted((workdir / FOLDER).glob("step-*.pt"))
