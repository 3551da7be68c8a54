"""What is taken from DICOM headers: a fixed list of fields, and nothing of them leaves this process but numbers.

Identities are used to put files together and are replaced by keyed hashes before anything is written.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # Its messages quote values.

Vector = tuple[float, float, float]
PREAMBLE = 128
"""Bytes before the letters DICM."""
NOT_IMAGES = {
    "SR": "structured reports",
    "RTSTRUCT": "radiotherapy structures",
    "RTPLAN": "radiotherapy plans",
    "RTDOSE": "dose grids",
    "SEG": "segmentation objects",
    "PR": "presentation states",
    "KO": "key object selections",
    "REG": "registrations",
    "ECG": "waveforms",
    "HC": "hard copies",
    "DOC": "documents",
}
"""Objects that are no scans, by their modality, as people call them."""
# fmt: off
MODALITIES = frozenset({
    "BMD", "CR", "CT", "DG", "DX", "ES", "GM", "IO", "IVOCT", "IVUS", "LS", "MG", "MR", "NM", "OCT", "OP", "OPT",
    "PT", "PX", "RF", "RG", "SM", "US", "XA", "XC",
})
"""Kinds of scan that may be named in prepared data."""
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
"""Beginning of the UIDs of secondary captures (DICOM PS3.4, B.5)."""
DIRECTORY = "1.2.840.10008.1.3.10"
"""Class of a DICOMDIR."""
FIELDS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName",
    "PatientBirthDate", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "ImageType",
    "InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "TriggerTime",
    "DiffusionBValue", "BurnedInAnnotation",
]
# fmt: on
PLACEHOLDER = re.compile(
    r"(ANON(YM\w*)?|DE-?IDENTIFIED|UNKNOWN|NONE|NULL|N/?A|NO ?(NAME|ID)|PATIENT|TEST|XX*|-+|\?+)"
    r"( ?(PATIENT|NAME|ID))?"
)
"""What stands for a patient's name or number and tells nobody."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of one image file before its pixels are read."""

    path: str
    patient: str | None
    """Whatever tells patients apart; never written anywhere."""
    study: str
    series: str
    instance: str
    modality: str
    """One of `MODALITIES`, or ``other``."""
    rows: int
    columns: int
    frames: int
    orientation: tuple[float, ...] | None
    """Directions of a row and of a column (PS3.3, C.7.6.2.1.1)."""
    position: Vector | None
    """Centre of the first pixel in millimetres, to the left, back and up."""
    spacing: tuple[float, float] | None
    """Millimetres from row to row and from column to column."""
    thickness: float | None
    localiser: bool
    burned_in: str
    """``yes``, ``no`` or ``unsaid``."""
    secondary: bool
    order: tuple[float, ...]
    """Tells several images of one place apart: acquisition, time, echo, diffusion weighting, number."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings, which quote what stands in headers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(path: str) -> bool:
    """Whether a file begins like DICOM, with the usual preamble or, as some old ones, without."""
    try:
        with Path(path).open("rb") as source:
            head = source.read(PREAMBLE + 4)
    except OSError:
        return False
    if head[PREAMBLE:] == b"DICM":
        return True
    # The first element of a bare dataset is of group 2 or 8, in either order of bytes.
    first = head[:4]
    little = first[:2] in (b"\x02\x00", b"\x08\x00") and first[3:4] == b"\x00" and len(head) > PREAMBLE
    big = first[:2] in (b"\x00\x02", b"\x00\x08") and first[2:3] == b"\x00" and len(head) > PREAMBLE
    return little or big


def look(path: str) -> Header | str:
    """The header of an image; for every other file what it is, in the plural, for people."""
    if not is_dicom(path):
        return "files that are not DICOM"
    try:
        with quiet():
            return header_of(pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=FIELDS), path)
    except Exception:  # noqa: BLE001 - a header may be damaged in any way; reading it says so with the reason
        return _unknown(path)


def header_of(dataset: Dataset, path: str) -> Header | str:
    """The facts of a dataset, or what it is if it is no image."""
    if str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", "")) == DIRECTORY:
        return "DICOM directories"
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    if modality in NOT_IMAGES:
        return NOT_IMAGES[modality]
    if not all(_whole(dataset.get(name)) for name in ("Rows", "Columns")):
        return "DICOM objects without pixels"
    kinds = [str(kind).upper() for kind in _several(dataset.get("ImageType"))]
    return Header(
        path=path,
        patient=_patient(dataset),
        study=str(dataset.get("StudyInstanceUID", "") or "").strip(),
        series=str(dataset.get("SeriesInstanceUID", "") or f"file {path}"),
        instance=str(dataset.get("SOPInstanceUID", "")),
        modality=modality if modality in MODALITIES else "other",
        rows=_whole(dataset.Rows),
        columns=_whole(dataset.Columns),
        frames=max(1, _whole(dataset.get("NumberOfFrames"))),
        orientation=_numbers(dataset.get("ImageOrientationPatient"), 6),
        position=_numbers(dataset.get("ImagePositionPatient"), 3),  # type: ignore[arg-type]  # three of them
        spacing=_numbers(dataset.get("PixelSpacing"), 2),  # type: ignore[arg-type]  # two of them
        thickness=next(iter(_numbers(dataset.get("SliceThickness"), 1) or ()), None),
        localiser="LOCALIZER" in kinds,
        burned_in={"YES": "yes", "NO": "no"}.get(str(dataset.get("BurnedInAnnotation", "")).strip().upper(), "unsaid"),
        secondary=str(dataset.get("SOPClassUID", "")).startswith(SECONDARY),
        order=_order(dataset),
    )


def _unknown(path: str) -> Header:
    """Stands for a DICOM file whose header cannot be parsed, so that it becomes an item, and is listed."""
    nothing: dict[str, Any] = dict.fromkeys(("patient", "orientation", "position", "spacing", "thickness"))
    return Header(
        path=path,
        study="",
        series=f"file {path}",
        instance="",
        modality="other",
        rows=0,
        columns=0,
        frames=1,
        localiser=False,
        burned_in="unsaid",
        secondary=False,
        order=(),
        **nothing,
    )


def _patient(dataset: Dataset) -> str | None:
    """The patient's number; without one, name and birth date."""
    number = called(str(dataset.get("PatientID", "") or ""))
    if number is not None:
        return number
    name = called(str(dataset.get("PatientName", "") or ""))
    return None if name is None else f"{name} {str(dataset.get('PatientBirthDate', '') or '').strip()}"


def called(text: str) -> str | None:
    """A patient's name or number as it is compared: case, spaces around and zeros in front do not tell people apart.

    None for what anonymisers write in its place.
    """
    plain = " ".join(text.replace("^", " ").upper().split())
    plain = plain.lstrip("0") if plain.isdecimal() else plain
    return None if not plain or PLACEHOLDER.fullmatch(plain) else plain


def _order(dataset: Dataset) -> tuple[float, ...]:
    names = "AcquisitionNumber TemporalPositionIdentifier EchoNumbers DiffusionBValue TriggerTime InstanceNumber"
    return tuple(next(iter(_numbers(dataset.get(name), 1) or ()), -1.0) for name in names.split())


def _several(value: Any) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] if value else []
    try:
        return list(value)
    except TypeError:
        return [value]


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """The first ``count`` numbers of a value; None where there are fewer, or what stands there are none."""
    try:
        found = tuple(float(number) for number in _several(value)[:count])
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(abs(number) < 1e12 for number in found) else None


def _whole(value: Any) -> int:
    """A whole number, 0 where there is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return 0
