"""Training state on disk: written whole or not at all, read without unpickling."""

import io
from pathlib import Path
from typing import Any

import torch

from core.workspace import write_bytes

FOLDER = "checkpoints"
"""Folder of training checkpoints inside a stage's partial folder; emptied when the stage is done."""


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


def clear(workdir: Path) -> None:
    """Remove all training checkpoints and what killed processes left of theirs."""
    folder = workdir / FOLDER
    if folder.is_dir():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _files(workdir: Path) -> list[Path]:
    return sorted((workdir / FOLDER).glob("step-*.pt"))
