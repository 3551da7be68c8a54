"""What can be said of an export before it begins, and without torch: which formats there are, if its place is free."""

import sys
from importlib.util import find_spec
from pathlib import Path

from core.errors import UserError
from core.recipes import nearest

CONTRACT_FILE, CARD_FILE = "preprocessing.json", "README.md"
"""What every export holds beside its weights: inputs for programs, and all else for people."""
FORMATS = ("timm", "hf", "safetensors", "onnx", "torch-export")
"""Formats of many tools, by the names that `maeflow export --to` gives them."""
LAYOUTS = ("mae", "mae_st", "videomae", "audiomae", "monai", "hf-vit", "hf-videomae")
"""Whose code is to load it, likewise."""
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages that not everybody has, by the format that needs them."""
EXTRA = "maeflow[export]"


def check_format(to: str) -> None:
    """Refuse a format that there is not.

    Raises:
        UserError: with the nearest one.
    """
    known = (*FORMATS, *LAYOUTS)
    if to not in known:
        raise UserError(f"--to {to}: no such format{nearest(to, known)} (there are: {', '.join(known)})")


def check_packages(to: str) -> None:
    """Refuse a format that a package is missing for.

    Raises:
        UserError: that says what to install.
    """
    if missing := [name for name in NEEDED.get(to, ()) if find_spec(name) is None]:
        command = f"{sys.executable} -m pip install '{EXTRA}'"
        raise UserError(f"--to {to} needs {', '.join(missing)}: run {command} and try again")


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
