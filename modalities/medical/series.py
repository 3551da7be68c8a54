"""Files that belong together: images of one series, orientation and size, put in order by where they lie."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
PARALLEL = 1e-3
"""Largest difference of direction cosines within a volume."""
ALIKE = 1e-3
"""Largest relative difference of distances between pixels within a volume."""


@dataclass(frozen=True)
class Volume:
    """A volume as its series gives it: (columns, rows, slices), with the affine of RAS millimetres."""

    values: Array
    affine: NDArray[np.float64]
    filled: int
    """Missing slices that were filled in."""
    repeated: int
    """Files that held a slice again."""


def together(headers: Sequence[Header], apart: Callable[[Header], object] = lambda _: None) -> list[list[Header]]:
    """Headers in groups that may make a volume each: one patient, study, series, size, orientation and spacing.

    ``apart`` says what else must not be mixed. Files with several frames stand alone. Groups and their members are in
    the order of their paths.
    """
    groups: dict[tuple[Any, ...], list[list[Header]]] = defaultdict(list)
    for header in sorted(headers, key=lambda h: h.path):
        alone = header.path if header.frames > 1 or header.orientation is None else ""
        key = (header.patient, header.study, header.series, header.rows, header.columns, alone, apart(header))
        # Numbers are compared with the first of a group: rounded ones would fall on either side of an edge.
        fitting = next((group for group in groups[key] if _alike(group[0], header)), None)
        if fitting is None:
            groups[key].append([header])
        else:
            fitting.append(header)
    return sorted((group for several in groups.values() for group in several), key=lambda group: group[0].path)


def _alike(one: Header, other: Header) -> bool:
    """Whether two slices may be parts of one volume, by their directions and the distances of their pixels."""
    if one.orientation is None or other.orientation is None or one.spacing is None or other.spacing is None:
        return one.orientation == other.orientation and one.spacing == other.spacing
    turned = np.abs(np.subtract(one.orientation, other.orientation)).max()
    return bool(turned < PARALLEL and np.allclose(one.spacing, other.spacing, rtol=ALIKE))


def volumes(paths: Sequence[str], refuse: RefuseConfig) -> tuple[list[Volume], Header]:
    """The volumes that the files at ``paths`` hold, in the order of acquisition, and a header that speaks for all.

    Raises:
        Unreadable: with the reason.
    """
    slices: list[_Slice] = []
    headers: list[Header] = []
    scaled: set[bool] = set()
    for path in paths:  # One file at a time: its bytes, decoded pixels and values do not pile up.
        dataset = pixels.load(path)
        headers.append(_header(dataset, path))
        check(headers[-1], refuse)
        scaled.add("RescaleSlope" in dataset or "RescaleIntercept" in dataset)
        if sum(h.rows * h.columns * h.frames for h in headers) > refuse.most_voxels:
            raise Unreadable(f"claims more than {refuse.most_voxels} voxels, the limit")
        slices += _slices(headers[-1], dataset, refuse.most_voxels)
    if len(scaled) > 1:
        raise Unreadable("some of its slices say how values become units, others do not")
    slices, repeated = _once(slices)
    steps = _in_order(slices, refuse)
    return [_stack(slices, rung, steps, repeated) for rung in _phases(slices, steps)], _worst(headers)


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


def _worst(headers: Sequence[Header]) -> Header:
    """The first header, with the most that any of them says against its pixels."""
    said = {header.burned_in for header in headers}
    burned = next(word for word in ("yes", "unsaid", "no") if word in said)
    return replace(headers[0], burned_in=burned, secondary=any(header.secondary for header in headers))


def _header(dataset: Dataset, path: str) -> Header:
    header = header_of(dataset, path)
    if isinstance(header, str):
        raise Unreadable(f"no image: {header}")
    return header


# --- slices -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slice:
    """One image of a volume."""

    values: Array
    """(rows, columns) in true units."""
    plane: Plane
    order: tuple[float, ...]
    """What tells phases apart; the instance number, which a copy may change, last."""
    instance: str
    content: bytes


def _slices(header: Header, dataset: Dataset, most: int) -> Iterator[_Slice]:
    """The slices of a file: one, or the frames of an object with several."""
    if header.rows == 0:
        raise Unreadable("damaged DICOM header")
    places = list(_places(header, dataset))
    stored = pixels.frames(dataset, most)
    if stored.ndim == 4 or str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        raise Unreadable("a colour image is no slice of a volume")
    values = pixels.true_values(stored, dataset)
    if len(places) != len(values):
        raise Unreadable(f"tells where {len(places)} of its {len(values)} frames lie")
    for number, (value, (plane, time)) in enumerate(zip(values, places, strict=True)):
        yield _Slice(
            value.astype(np.float32) if value.dtype.kind == "f" else value,
            plane,
            (time, *header.order),
            f"{header.instance}#{number}" if header.instance else "",
            hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).digest(),
        )


def _places(header: Header, dataset: Dataset) -> Iterator[tuple[Plane, float]]:
    """Where each slice lies, and its place in time: said in the header, or for each frame (PS3.3, C.7.6.16)."""
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if not groups:
        if header.frames > 1:
            raise Unreadable(f"{header.frames} frames without a place in the patient")
        yield _plane(header.position, header.orientation, header.spacing), 0.0
        return
    shared = pixels.first(dataset.get("SharedFunctionalGroupsSequence"))
    for group in groups:
        yield _frame_plane(group, shared), _time(group)


def _frame_plane(group: Dataset, shared: Dataset | None) -> Plane:
    """What a frame does not say itself, all frames share."""

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


def _time(group: Dataset) -> float:
    found = pixels.first(group.get("FrameContentSequence"))
    try:
        return float(found.get("TemporalPositionIndex") or 0) if found is not None else 0.0
    except (TypeError, ValueError):
        return 0.0


def _plane(
    position: Vector | None, orientation: tuple[float, ...] | None, spacing: tuple[float, float] | None
) -> Plane:
    if position is None or orientation is None:
        raise Unreadable("does not say where it lies in the patient; images of two axes need a size of two")
    if spacing is None or min(spacing) <= 0:
        raise Unreadable("does not say how far its pixels lie apart")
    return Plane(position, orientation, spacing)


# --- volumes ----------------------------------------------------------------------------------------------------------


def _once(slices: Sequence[_Slice]) -> tuple[list[_Slice], int]:
    """Slices without those that are there already, at the same place with the same pixels.

    Empty slices of several phases are alike and no copies: phases tell themselves apart. The same instance at one place
    is a copy in any case.
    """
    kept: list[_Slice] = []
    seen: set[Any] = set()
    for one in slices:
        place = tuple(round(x, 2) for x in one.plane.position)
        names: set[Any] = {("pixels", place, one.content, one.order[:-1])}
        names |= {("instance", place, one.instance)} if one.instance else set()
        if not names & seen:
            kept.append(one)
        seen |= names
    return kept, len(slices) - len(kept)


def _in_order(slices: Sequence[_Slice], refuse: RefuseConfig) -> Ladder:
    first = slices[0].plane
    for one in slices:
        if np.abs(np.subtract(one.plane.orientation, first.orientation)).max() > PARALLEL:
            raise Unreadable("its frames lie in several directions")
        if not np.allclose(one.plane.spacing, first.spacing, rtol=ALIKE):
            raise Unreadable("its frames have pixels of several sizes")
    if len(slices) < refuse.fewest_slices:
        alone = "; a manifest names the folder of a series, not a file of it" if len(slices) == 1 else ""
        raise Unreadable(f"a volume needs {refuse.fewest_slices} slices, this has {len(slices)}{alone}")
    steps = ladder([one.plane for one in slices])
    if len(steps.rungs) < refuse.fewest_slices:
        raise Unreadable(f"a volume needs {refuse.fewest_slices} slices, this has images of {len(steps.rungs)} places")
    if steps.gaps and refuse.gaps:
        count = len(steps.rungs) + steps.gaps
        where = ", ".join(str(k + 1) for k, missing in enumerate(steps.missing) if missing)
        raise Unreadable(f"{steps.gaps} of {count} slices are missing (after slice {where})")
    return steps


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
