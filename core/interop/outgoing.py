"""What can be said of an export before it begins, and without torch: which formats there are, if its place is free."""

from pathlib import Path

from core.errors import UserError
from core.recipes import nearest

CONTRACT_FILE, CARD_FILE = "preprocessing.json", "README.md"
"""What every export holds beside its weights: inputs for programs, and all else for people."""
FORMATS = ("timm", "hf", "safetensors", "onnx", "torch-export")
"""Formats of many tools, by the names that `maeflow export --to` gives them."""
LAYOUTS = ("mae", "mae_st", "videomae", "audiomae", "monai", "hf-vit", "hf-videomae")
"""Whose code is to load it, likewise."""


def check_format(to: str) -> None:
    """Refuse a format that there is not.

    Raises:
        UserError: with the nearest one.
    """
    known = (*FORMATS, *LAYOUTS)
    if to not in known:
        raise UserError(f"--to {to}: no such format{nearest(to, known)} (there are: {', '.join(known)})")


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, unless by an earlier export that may go.

    Raises:
        UserError: that says what to do.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{out} is there already; give another --out, or --overwrite to replace it")
    if not out.is_dir() or out.is_symlink() or not all((out / f).is_file() for f in (CONTRACT_FILE, CARD_FILE)):
        raise UserError(f"{out} is no export, so --overwrite does not remove it; give another --out")
