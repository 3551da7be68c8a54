"""Items in whatever tree of files a hospital hands over: DICOM series or images, and NIfTI files."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom

from core.data.files import facts
from core.data.indexing import index
from core.data.sources import SPLITS, discover, walk
from core.errors import UserError
from core.modality import Item
from modalities.medical import series
from modalities.medical.config import MedicalSettings
from modalities.medical.headers import DIRECTORY, Header, called, is_dicom, look, quiet

NIFTI = (".nii", ".nii.gz")
SUBJECT = re.compile(r"(?:^|/)sub-([A-Za-z0-9]+)(?=[_/.]|$)")
"""A person in the names that BIDS gives to folders and files."""
PREFIX = re.compile(r"^sub-", re.IGNORECASE)
STUDY = "study "
CLOSED = "files and folders that cannot be opened"
LOST = "files that the DICOMDIR names and that are missing"
SLICES = "images that are slices of volumes, each taken by itself; a size of three axes puts them together"
NAMELESS = "scans that do not tell their patient; group them in a manifest"


@dataclass(frozen=True)
class _Found:
    """An item, and every name under which its patient may be known."""

    item: Item
    patient: str | None = None
    study: str | None = None


def is_nifti(path: str) -> bool:
    """Whether a file is called NIfTI."""
    return path.lower().endswith(NIFTI)


def find(source: str, settings: MedicalSettings) -> tuple[list[Item], Counter[str]]:
    """Items of ``source``, grouped by patient, and what was passed over, by kind.

    Raises:
        UserError: if the source is missing, of no known kind, or holds no scan.
    """
    passed: Counter[str] = Counter()
    path = Path(source)
    if path.is_file() and _is_directory(path):
        files, lost = _referenced(path)
        passed[LOST] += lost
    elif path.is_dir():
        files = _by_folders(_files(path, passed), settings)
    else:
        listed = discover(source, frozenset({".nii", ".gz", ".dcm"}), is_dicom)
        files = [file for item in listed for file in _inside(item, passed)]
    found = _formed(files, settings, passed)
    if not found:
        raise UserError("there is no scan in the source; looked for DICOM files of any name, .nii and .nii.gz")
    items = _grouped(found)
    passed[NAMELESS] += sum(item.group is None for item in items)
    return sorted(items, key=lambda item: item.key), +passed


# --- files ------------------------------------------------------------------------------------------------------------


def _files(folder: Path, passed: Counter[str]) -> list[Item]:
    """Every visible file below a folder, by path."""
    files = []
    for key, path in sorted(walk(str(folder))):
        try:
            there = Path(path).is_file()
            empty = not there and Path(path).is_dir() and not any(Path(path).iterdir())
        except OSError:
            there = empty = False
        if there:
            files.append(Item(key, path))
        elif not empty:
            passed[CLOSED] += 1
    return files


def _inside(item: Item, passed: Counter[str]) -> list[Item]:
    """What a line of a manifest names: a file, or all files of a folder."""
    if not Path(item.path).is_dir():
        return [item]
    inside = _files(Path(item.path), passed)
    return [replace(item, key=f"{item.key}/{file.key}", path=file.path) for file in inside] or [item]


def _by_folders(files: Sequence[Item], settings: MedicalSettings) -> list[Item]:
    """Splits, where all of the tree lies in folders so named, and classes, where the recipe says that folders are."""
    tops = {item.key.split("/")[0] for item in files if "/" in item.key}
    divided = bool(tops) and {top.lower() for top in tops} <= SPLITS.keys()
    placed = []
    for item in files:
        folders = item.key.split("/")[:-1]
        split = SPLITS[folders.pop(0).lower()] if divided and folders else None
        label = folders[0] if folders and settings.folder_labels else None
        placed.append(replace(item, split=split, target=label))
    return placed


def _is_directory(path: Path) -> bool:
    if not is_dicom(str(path)):
        return False
    with quiet():
        try:
            meta = pydicom.dcmread(path, specific_tags=["SOPClassUID"]).file_meta
        except Exception:  # noqa: BLE001 - a damaged file is no directory
            return False
    return str(meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY


def _referenced(directory: Path) -> tuple[list[Item], int]:
    """The files that a DICOMDIR names, in whatever case they are written, and how many of them are missing."""
    with quiet():
        try:
            records = list(pydicom.dcmread(directory).DirectoryRecordSequence)
        except Exception as error:  # noqa: BLE001 - a damaged directory fails in any way
            raise UserError(f"source {directory} is a damaged DICOMDIR ({type(error).__name__})") from None
    there = {key.lower(): (key, path) for key, path in walk(str(directory.parent))}
    items, lost = [], 0
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        name = parts if isinstance(parts, str) else "/".join(str(part) for part in parts)
        match = there.get(name.lower().removesuffix("."))
        lost += match is None
        items += [Item(*match)] if match else []
    return items, lost


# --- items ------------------------------------------------------------------------------------------------------------


def _formed(files: Sequence[Item], settings: MedicalSettings, passed: Counter[str]) -> list[_Found]:
    """Files put together to items."""
    found = [_nifti(item) for item in files if is_nifti(item.path)]
    rest = {item.path: item for item in files if not is_nifti(item.path)}
    headers: list[Header] = []
    for path, seen in zip(rest, index(list(rest), look), strict=True):
        if not isinstance(seen, str):
            headers.append(seen)
        elif rest[path].target is not None or rest[path].size < 0:
            found.append(_Found(_sized(rest[path])))  # A manifest names it: reading it says what is wrong.
        else:
            passed[seen] += 1
    passed += Counter(_flags(headers))
    if settings.volumes:
        # What a manifest says of slices must hold for their volume.
        groups = series.together(headers, lambda h: (rest[h.path].target, rest[h.path].split, rest[h.path].group))
        return found + [_series(group, rest) for group in groups]
    passed[SLICES] += sum(h.position is not None and h.orientation is not None for h in headers)
    return found + [_Found(_sized(rest[h.path]), h.patient, h.study) for h in headers]


def _sized(item: Item) -> Item:
    size, mtime = facts(item.path)
    return replace(item, size=size, mtime_ns=mtime)


def _nifti(item: Item) -> _Found:
    subject = SUBJECT.search(item.key)
    return _Found(_sized(item), called(subject[1]) if subject else None)


def _series(headers: Sequence[Header], files: dict[str, Item]) -> _Found:
    """One item of many files, called like the first of them."""
    sizes = [facts(header.path) for header in headers]
    item = replace(
        files[headers[0].path],
        parts=tuple(header.path for header in headers),
        size=sum(size for size, _ in sizes),
        mtime_ns=max(mtime for _, mtime in sizes),
    )
    return _Found(item, headers[0].patient, headers[0].study)


def _flags(headers: Sequence[Header]) -> dict[str, int]:
    return {
        "images said to have writing in them": sum(header.burned_in == "yes" for header in headers),
        "secondary captures": sum(header.secondary for header in headers),
    }


# --- patients ---------------------------------------------------------------------------------------------------------


def _grouped(found: Sequence[_Found]) -> list[Item]:
    """Items in groups that hold all of a patient, of a study, and of what a manifest groups.

    Any of these may be missing or finer than another; whatever two items share, a number, a study, a group, puts them
    together. A group is called by its patient where one is known, so that other sources call it alike.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name] = parent[parent[name]]
        return name

    names = [_names(one) for one in found]
    for several in names:
        for other in several:
            parent[root(other)] = root(several[0])
    patients = {one.patient for one in found}
    best: dict[str, str] = {}
    for name in sorted(parent, key=lambda name: (name not in patients, name.startswith(STUDY), name)):
        best.setdefault(root(name), name)
    return [replace(one.item, group=best[root(own[0])] if own else None) for one, own in zip(found, names, strict=True)]


def _names(one: _Found) -> list[str]:
    """A patient is called alike in headers, folders of BIDS and manifests; studies have a kind of name of their own."""
    given = one.item.group
    group = None if given is None else called(PREFIX.sub("", given)) or given
    study = f"{STUDY}{one.study}" if one.study else None
    return [name for name in (one.patient, group, study) if name]
