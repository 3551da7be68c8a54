"""Where the masks of a source stand: in the label column of its manifest, or in a folder of their own."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from core.data.sources import called, kind_of
from core.errors import UserError
from core.modality import Item, Unreadable

FOLDERS = {"images": "masks", "imagesTr": "labelsTr"}
"""Folders of data, and what the folders of their masks are called beside them; the second pair is nnU-Net's."""
CHANNEL = "_0000"
"""What nnU-Net appends to the name of a case for its first channel."""
PACKED = frozenset({".gz", ".bz2", ".zst"})
"""Suffixes behind which the real one stands."""


def with_masks(items: Iterable[Item], source: str) -> list[Item]:
    """The items of ``source`` whose ``target`` is now the absolute path of the mask, or None where there is none.

    In a manifest the column ``label`` holds the path of the mask, relative to the manifest. In a folder with the
    sub-folders ``images`` and ``masks``, or ``imagesTr`` and ``labelsTr``, what lies below the first is an item and its
    mask is the file of the same place and stem below the second; all else is left out. Other sources have no masks.

    Raises:
        UserError: if a case of the folder has several channels, or two masks, or shares one with another.
    """
    given, kind = list(items), kind_of(source)
    if kind == "manifest":
        base = Path(source).absolute().parent
        return [replace(i, target=None if i.target is None else str(base / str(i.target))) for i in given]
    if kind == "folder":
        root = Path(source).absolute()
        pairs = [
            (folder, root / FOLDERS[folder.name])
            for folder in (root / name for name in FOLDERS)
            if folder.is_dir() and (root / FOLDERS[folder.name]).is_dir()
        ]
        if pairs:
            return [found for data, masks in pairs for found in _in_folders(given, data, masks, source)]
    return [replace(item, target=None) for item in given]


def mask_file(item: Item) -> Path | None:
    """The file of an item's mask; None where it is not labelled.

    Raises:
        Unreadable: if the file is missing.
    """
    if item.target is None:
        return None
    file = Path(str(item.target))
    if not file.is_file():
        raise Unreadable("its mask is missing")
    return file


def _in_folders(items: list[Item], data: Path, masks: Path, source: str) -> list[Item]:
    """The items below ``data`` with their masks below ``masks``."""
    files: dict[str, str] = {}
    for file in sorted(path for path in masks.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if files.setdefault(_stem(file.relative_to(masks).as_posix()), str(file)) != str(file):
            raise UserError(f"{called(source)} has two masks for one item, which differ in their suffix; remove one")
    named = data.name == "imagesTr"
    found = []
    for item in items:
        path = Path(item.path).absolute()
        if not path.is_relative_to(data):
            continue
        inside = path.relative_to(data)
        case = _case(_stem(inside.as_posix()), source) if named else _stem(inside.as_posix())
        # A series of files is called like a folder that holds it.
        folders = [folder.as_posix() for folder in inside.parents] if item.parts else []
        target = next((files[name] for name in (case, *folders) if name in files), None)
        found.append(replace(item, target=target))
    times = Counter(item.target for item in found if item.target is not None)
    if any(count > 1 for count in times.values()):
        raise UserError(f"{called(source)} has a mask that stands for several items; name the pairs in a manifest")
    return found


def _stem(name: str) -> str:
    """A relative path without its suffix, a double one such as .nii.gz included."""
    path = PurePosixPath(name)
    path = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return path.with_suffix("").as_posix()


def _case(stem: str, source: str) -> str:
    """The name of a case of nnU-Net's, without the number of the channel."""
    if stem.endswith(CHANNEL):
        return stem.removesuffix(CHANNEL)
    if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal():
        raise UserError(
            f"{called(source)} has cases of several channels (names ending in _0001 ...), which are not read"
        )
    return stem
