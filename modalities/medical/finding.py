"""Items in whatever tree of files a hospital hands over: DICOM series or images, and NIfTI files."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pydicom

from core.data.indexing import index
from core.data.sources import SPLITS, discover, walk
from core.errors import UserError
from core.modality import Item
from modalities.medical import series
from modalities.medical.config import MedicalSettings
from modalities.medical.headers import DIRECTORY, Header, facts, is_dicom, look, quiet

NIFTI = (".nii", ".nii.gz")
SUBJECT = re.compile(r"(?:^|/)sub-([A-Za-z0-9]+)(?=[_/.]|$)")
"""A person in the names that BIDS gives to folders and files."""
NOT_READ = "files that are not DICOM"


def is_nifti(path: str) -> bool:
    """Whether a file is called NIfTI."""
    return path.lower().endswith(NIFTI)


def find(source: str, settings: MedicalSettings) -> tuple[list[Item], Counter[str]]:
    """Items of ``source``, and what was passed over, by kind.

    Raises:
        UserError: if the source is missing, of no known kind, or holds no scan.
    """
    path = Path(source)
    if path.is_file() and _is_directory(path):
        return _formed(_referenced(path), settings, source)
    if path.is_dir():
        return _formed([Item(key, file) for key, file in _files(path)], settings, source)
    listed = discover(source, frozenset({".nii", ".gz", ".dcm"}), is_dicom)
    items: list[Item] = []
    passed: Counter[str] = Counter()
    for item in listed:
        if Path(item.path).is_dir():
            inside = [
                replace(item, key=f"{item.key}/{k}", path=f, size=0, mtime_ns=0) for k, f in _files(Path(item.path))
            ]
            found, others = _formed(inside, settings, source, labelled=True)
            items += found or [item]
            passed += others
        else:
            items += _formed([item], settings, source, labelled=True)[0] or [item]
    return sorted(items, key=lambda item: item.key), passed


def _files(folder: Path) -> list[tuple[str, str]]:
    """(relative posix path, path) of every visible file, by path."""
    return sorted((key, path) for key, path in walk(str(folder)) if Path(path).is_file())


def _formed(
    files: Sequence[Item], settings: MedicalSettings, source: str, *, labelled: bool = False
) -> tuple[list[Item], Counter[str]]:
    """Files put together to items; ``labelled`` says that they carry what a manifest tells of them."""
    placed = files if labelled else _by_folders(files, settings)
    items = [_alone(item, _subject(item.key)) for item in placed if is_nifti(item.path)]
    rest = {item.path: item for item in placed if not is_nifti(item.path)}
    headers: list[Header] = []
    passed: Counter[str] = Counter()
    for found in index(list(rest), look):
        if isinstance(found, str):
            passed[found] += 1
        else:
            headers.append(found)
    passed += _flags(headers)
    groups = series.together(headers) if settings.volumes else [[h] for h in headers]
    items += [
        _series(group, rest) if settings.volumes else _alone(rest[group[0].path], _who(group)) for group in groups
    ]
    if not items and not labelled:
        raise UserError(f"source {source} holds no scan; looked for DICOM files of any name, .nii and .nii.gz")
    return sorted(items, key=lambda item: item.key), passed


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


def _alone(item: Item, group: str | None) -> Item:
    size, mtime = facts(item.path)
    return replace(item, group=item.group if group is None else group, size=size, mtime_ns=mtime)


def _series(headers: Sequence[Header], files: dict[str, Item]) -> Item:
    """One item of many files, called like the first of them."""
    first = files[headers[0].path]
    sizes = [facts(header.path) for header in headers]
    return replace(
        first,
        group=_who(headers) or first.group,
        parts=tuple(header.path for header in headers),
        size=sum(size for size, _ in sizes),
        mtime_ns=max(mtime for _, mtime in sizes),
    )


def _who(headers: Sequence[Header]) -> str | None:
    """The patient, whatever a manifest says of groups: a patient is never divided."""
    return headers[0].patient


def _subject(key: str) -> str | None:
    found = SUBJECT.search(key)
    return f"subject {found[1]}" if found else None


def _flags(headers: Sequence[Header]) -> Counter[str]:
    flags = {
        "images said to have writing in them": sum(header.burned_in == "yes" for header in headers),
        "secondary captures": sum(header.secondary for header in headers),
    }
    return Counter({name: count for name, count in flags.items() if count})


def _is_directory(path: Path) -> bool:
    if not is_dicom(str(path)):
        return False
    with quiet():
        try:
            meta = pydicom.dcmread(path, specific_tags=["SOPClassUID"]).file_meta
        except Exception:  # noqa: BLE001 - a damaged file is no directory
            return False
    return str(meta.get("MediaStorageSOPClassUID", "")) == DIRECTORY


def _referenced(directory: Path) -> list[Item]:
    """The files that a DICOMDIR names, as they lie beside it; names outside of its folder are passed over."""
    with quiet():
        try:
            records = list(pydicom.dcmread(directory).DirectoryRecordSequence)
        except Exception as error:  # noqa: BLE001 - a damaged directory fails in any way
            raise UserError(f"source {directory} is a damaged DICOMDIR ({type(error).__name__})") from None
    items = []
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        names = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        if not any(name in ("..", "") or "/" in name for name in names):
            items.append(Item("/".join(names), str(directory.parent.joinpath(*names))))
    return items
