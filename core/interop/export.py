"""Exporting: a finished model in the form of another tool, in a folder that is whole or not there."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from core.interop import formats, hubs
from core.interop.layouts import targets
from core.interop.model_card import Written, card
from core.interop.outgoing import CARD_FILE, CONTRACT_FILE, check_format, check_place
from core.interop.subject import Subject, as_json, contract
from core.workspace import sync_folder, temporary_beside, write_text

Writer = Callable[[Subject, Path], Written]
OLD = ".old"
"""What the name of an export ends in while it is replaced."""


def writers() -> dict[str, Writer]:
    """What writes each format, by the name that `maeflow export --to` gives it."""
    layouts: dict[str, Writer] = {
        name: partial(hubs.hf if name in hubs.AXES.values() else formats.state_dict, layout)
        for name, layout in targets().items()
    }
    own: dict[str, Writer] = {
        "timm": hubs.timm,
        "hf": partial(hubs.hf, None),
        "safetensors": formats.safetensors,
        "onnx": formats.onnx,
        "torch-export": formats.program,
    }
    return layouts | own


def export(subject: Subject, to: str, out: Path, *, overwrite: bool = False) -> Written:
    """Write ``subject`` as ``to`` into the folder ``out``, with a card and its preprocessing.

    Raises:
        UserError: if there is no such format, the format has no place for the model, or ``out`` is in the way.
        StageError: if what was written disagrees with the model.
    """
    check_format(to)
    tidy(out)
    check_place(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(out) as scratch:
        written = writers()[to](subject, scratch)
        write_text(scratch / CONTRACT_FILE, as_json(contract(subject)))
        write_text(scratch / CARD_FILE, card(subject, to, written, out.name))
        put(scratch, out)
    return written


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out``, held by this process and gone in the end."""
    scratch = temporary_beside(out)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with _hold(scratch):
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def put(scratch: Path, out: Path) -> None:
    """Move ``scratch`` to ``out``; what is there already goes once the new folder is whole."""
    for file in scratch.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    sync_folder(scratch)
    old = scratch.with_suffix(OLD)
    if out.exists():
        out.rename(old)
    try:
        scratch.rename(out)
    except OSError:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def tidy(out: Path) -> None:
    """Remove what exports to ``out`` left that were killed; one that went while it was replaced comes back."""
    if not out.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(out.name)}\.\d+-[0-9a-f]+\.(tmp|old)")
    stems = {file.stem for file in out.parent.iterdir() if name.fullmatch(file.name) and file.is_dir()}
    for stem in sorted(stems):
        scratch, old = (out.with_name(stem + suffix) for suffix in (".tmp", OLD))
        if not scratch.exists():  # Killed once the new one was in its place.
            shutil.rmtree(old, ignore_errors=True)
            continue
        with _hold(scratch) as mine:
            if mine and old.exists() and not out.exists():
                old.rename(out)
            for left in (scratch, old) if mine else ():
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _hold(folder: Path) -> Iterator[bool]:
    """Hold ``folder`` for this process until it ends, however it does; tells whether nobody else held it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except OSError:  # Also where a file system has no locks: then nothing is known to be dead.
        mine = False
    try:
        yield mine
    finally:
        os.close(handle)
