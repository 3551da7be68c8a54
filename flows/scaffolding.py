"""``maeflow new-modality``: a package with a plugin that works before its first edit."""

import keyword
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from string import Template

from core.errors import UserError
from core.registry import entries

SUFFIX = ".tmpl"


def create(name: str, folder: Path | None = None) -> Path:
    """Write the package of modality ``name`` and say what to do next; gives its folder.

    Raises:
        UserError: if the name cannot be one, is taken, or the folder exists.
    """
    _refuse(name)
    dashed = name.replace("_", "-")
    folder = folder or Path(f"maeflow-{dashed}")
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it, or give another --folder")
    words = {
        "name": name,
        "dashed": dashed,
        "package": f"maeflow_{name}",
        "class_": "".join(part.title() for part in name.split("_")),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _write(Path(str(files("flows"))) / "templates", Path(scratch) / "package", words)
        shutil.move(Path(scratch) / "package", folder)
    _say(name, folder)
    return folder


def _refuse(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} cannot name a modality; use lower-case letters, digits and underscores: depth_map")
    if name in entries():
        raise UserError(f"modality {name!r} is already installed, with {entries()[name].package}; choose another name")


def _write(templates: Path, target: Path, words: dict[str, str]) -> None:
    """Fill in every template; the folder called ``package`` gets the package's name."""
    for template in sorted(templates.rglob(f"*{SUFFIX}")):
        parts = template.relative_to(templates).with_suffix("").parts
        file = target.joinpath(*(words["package"] if part == "package" else part for part in parts))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(template.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")


def _say(name: str, folder: Path) -> None:
    command = Path(sys.executable).with_name("maeflow")
    print(f"wrote {folder}: a plugin for arrays, which works as it is. Next:\n")
    print(f"  {sys.executable} -m pip install -e {folder}")
    print(f"  {command} check-modality {name}")
    print(f"  {command} demo {name}\n")
    print(f"Then make it yours: {folder / 'README.md'} says what each file holds.")
