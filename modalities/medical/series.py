"""Files that belong together: images of one series, orientation and size, put in order by where they lie."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from core.modality import Unreadable
from modalities.medical import pixels
from modalities.medical.config import RefuseConfig
from modalities.medical.geometry import Ladder, Plane, ladder
from modalities.medical.headers import Header, Vector, header_of

Array = NDArray[Any]
MIXED = 1
"""Decimals to which directions have to agree in one volume."""


@dataclass(frozen=True)
class Volume:
    """A volume as its series gives it: (columns, rows, slices), with the affine of RAS millimetres."""

    values: Array
    affine: NDArray[np.float64]
    filled: int
    """Missing slices that were filled in."""
    repeated: int
    """Files that held a slice again."""


def together(headers: Sequence[Header]) -> list[list[Header]]:
    """Headers in groups that may make a volume each: one series, one orientation, one size.

    Files with several frames stand alone. Groups and their members are in the order of their paths.
    """
    groups: dict[tuple[Any, ...], list[Header]] = defaultdict(list)
    for header in sorted(headers, key=lambda h: h.path):
        alone = header.path if header.frames > 1 or header.orientation is None else ""
        turned = tuple(round(x, MIXED) + 0.0 for x in header.orientation or ())
        groups[header.series, header.rows, header.columns, turned, alone].append(header)
    return list(groups.values())


def volumes(paths: Sequence[str], refuse: RefuseConfig) -> tuple[list[Volume], Header]:
    """The volumes that the files at ``paths`` hold, in the order of acquisition, and a header of theirs.

    Raises:
        Unreadable: with the reason.
    """
    datasets = [pixels.load(path) for path in paths]
    headers = [_header(dataset, path) for dataset, path in zip(datasets, paths, strict=True)]
    check(headers[0], refuse)
    slices = [s for h, d in zip(headers, datasets, strict=True) for s in _slices(h, d, refuse.most_voxels)]
    del datasets
    slices, repeated = _once(slices)
    if len(slices) < refuse.fewest_slices:
        raise Unreadable(f"a volume needs {refuse.fewest_slices} slices, this has {len(slices)}")
    if len({tuple(round(x, MIXED) + 0.0 for x in s.plane.orientation) for s in slices}) > 1:
        raise Unreadable("its frames lie in several directions")
    steps = ladder([s.plane for s in slices])
    if steps.gaps and refuse.gaps:
        count = len(steps.rungs) + steps.gaps
        where = ", ".join(str(k + 1) for k, missing in enumerate(steps.missing) if missing)
        raise Unreadable(f"{steps.gaps} of {count} slices are missing (after slice {where})")
    return [_stack(slices, rung, steps, repeated) for rung in _phases(slices, steps)], headers[0]


def check(header: Header, refuse: RefuseConfig) -> None:
    """Refuse what the recipe does not want.

    Raises:
        Unreadable: with the reason.
    """
    if header.localiser and refuse.localisers:
        raise Unreadable("a localiser")
    if header.secondary and refuse.secondary_capture:
        raise Unreadable("a secondary capture")
    if header.burned_in == "yes" and refuse.burned_in != "never":
        raise Unreadable("said to have writing in its pixels (BurnedInAnnotation)")
    if header.burned_in == "unsaid" and refuse.burned_in == "unless_denied":
        raise Unreadable("not said to be free of writing in its pixels (BurnedInAnnotation)")


def _header(dataset: Dataset, path: str) -> Header:
    header = header_of(dataset, path)
    if isinstance(header, str):
        raise Unreadable(f"no image: {header}")
    return header


@dataclass(frozen=True)
class _Slice:
    """One image of a volume."""

    values: Array
    """(rows, columns) in true units."""
    plane: Plane
    order: tuple[float, ...]
    instance: str
    content: bytes


def _slices(header: Header, dataset: Dataset, most: int) -> list[_Slice]:
    """The slices of a file: one, or the frames of an object with several."""
    if header.rows == 0:
        raise Unreadable("damaged DICOM header")
    planes = _planes(header, dataset)
    stored = pixels.frames(dataset, most)
    if stored.ndim == 4 or str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        raise Unreadable("a colour image is no slice of a volume")
    values = pixels.true_values(stored, dataset)
    if len(planes) != len(values):
        raise Unreadable(f"tells where {len(planes)} of its {len(values)} frames lie")
    several = len(planes) > 1
    return [
        _Slice(
            value,
            plane,
            (*header.order, float(number)),
            f"{header.instance}#{number}" if several or not header.instance else header.instance,
            hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).digest(),
        )
        for number, (value, plane) in enumerate(zip(values, planes, strict=True))
    ]


def _planes(header: Header, dataset: Dataset) -> list[Plane]:
    """Where each slice lies: said in the header, or for each frame."""
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if not groups:
        if header.frames > 1:
            raise Unreadable(f"{header.frames} frames without a place in the patient")
        return [_plane(header.position, header.orientation, header.spacing)]
    shared = pixels.first(dataset.get("SharedFunctionalGroupsSequence"))
    return [_frame_plane(group, shared) for group in groups]


def _frame_plane(group: Dataset, shared: Dataset | None) -> Plane:
    """PS3.3, C.7.6.16: what a frame does not say itself, all frames share."""

    def said(macro: str, field: str) -> Any:
        for source in (group, shared):
            found = pixels.first(source.get(macro)) if source is not None else None
            if found is not None and found.get(field) is not None:
                return tuple(float(number) for number in found.get(field))
        return None

    return _plane(
        said("PlanePositionSequence", "ImagePositionPatient"),
        said("PlaneOrientationSequence", "ImageOrientationPatient"),
        said("PixelMeasuresSequence", "PixelSpacing"),
    )


def _plane(
    position: Vector | None, orientation: tuple[float, ...] | None, spacing: tuple[float, float] | None
) -> Plane:
    if position is None or orientation is None:
        raise Unreadable("does not say where it lies in the patient")
    if spacing is None or min(spacing) <= 0:
        raise Unreadable("does not say how far its pixels lie apart")
    return Plane(position, orientation, spacing)


def _once(slices: Sequence[_Slice]) -> tuple[list[_Slice], int]:
    """Slices without those that are there already: the same instance, or the same pixels at the same place."""
    kept: dict[Any, _Slice] = {}
    seen: set[str] = set()
    for one in slices:
        place = (one.content, tuple(round(x, 2) for x in one.plane.position))
        if place in kept or (one.instance and one.instance in seen):
            continue
        kept[place] = one
        seen.add(one.instance)
    return list(kept.values()), len(slices) - len(kept)


def _phases(slices: Sequence[_Slice], steps: Ladder) -> list[list[int]]:
    """For each volume the slice at each place: several images of every place are several volumes."""
    counts = {len(rung) for rung in steps.rungs}
    if len(counts) > 1:
        raise Unreadable(f"some places hold {min(counts)} images, others {max(counts)}")
    ordered = [sorted(rung, key=lambda number: slices[number].order) for rung in steps.rungs]
    return [[rung[phase] for rung in ordered] for phase in range(counts.pop())]


def _stack(slices: Sequence[_Slice], chosen: Sequence[int], steps: Ladder, repeated: int) -> Volume:
    """(columns, rows, slices); missing slices are linear between their neighbours."""
    stack: list[Array] = []
    for place, number in enumerate(chosen):
        here = slices[number].values
        stack.append(here)
        for gap in range(steps.missing[place]):
            share = (gap + 1) / (steps.missing[place] + 1)
            between = here * (1 - share) + slices[chosen[place + 1]].values * share
            stack.append(np.round(between).astype(here.dtype) if here.dtype.kind in "iu" else between)
    return Volume(np.stack(stack).transpose(2, 1, 0), steps.affine, steps.gaps, repeated)
