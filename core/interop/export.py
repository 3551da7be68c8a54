"""Exporting: a finished model in the form of another tool, in a folder that is whole or not there."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from core.interop import formats, hubs
from core.interop.layouts import LAYOUTS
from core.interop.model_card import Written, card
from core.interop.outgoing import CARD_FILE, CONTRACT_FILE, check_format, check_place
from core.interop.subject import Subject, as_json, contract
from core.workspace import sync_folder, temporary_beside, write_text

Writer = Callable[[Subject, Path], Written]


def writers() -> dict[str, Writer]:
    """What writes each format, by the name that `maeflow export --to` gives it."""
    layouts: dict[str, Writer] = {
        layout.target: partial(hubs.hf if layout.target in hubs.AXES.values() else formats.state_dict, layout)
        for layout in LAYOUTS
        if layout.target
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
    check_place(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = temporary_beside(out)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir()
        written = writers()[to](subject, scratch)
        write_text(scratch / CONTRACT_FILE, as_json(contract(subject)))
        write_text(scratch / CARD_FILE, card(subject, to, written, out.name))
        _put(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return written


def _put(scratch: Path, out: Path) -> None:
    """Move ``scratch`` to ``out``; what is there already goes once the new folder is whole."""
    for file in scratch.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    sync_folder(scratch)
    old = scratch.with_suffix(".old")
    if out.exists():
        out.rename(old)
    scratch.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)
