"""Where voxels are: slices into volumes, RAS orientation, resampling to a spacing, the box around the body.

Arrays are (R, A, S): the first axis runs to the patient's right, the second to the front, the third upwards; affines
take voxel numbers to millimetres in these directions, as nibabel has them. DICOM counts to the left and to the back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from core.modality import Unreadable

Array = NDArray[Any]
Floats = NDArray[np.float64]
SAME_PLACE = 0.01
"""Millimetres within which two slices lie at one place."""
UNEVEN = 0.05
"""Largest difference of a distance between slices from a multiple of the usual one, as a share of it."""
ASIDE = 0.1
"""Millimetres by which slices may lie beside the line through the first and the last."""
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's directions to RAS."""


@dataclass(frozen=True)
class Plane:
    """Where one slice lies, in DICOM's millimetres."""

    position: tuple[float, float, float]
    """Centre of its first pixel."""
    orientation: tuple[float, ...]
    """Directions of a row and of a column."""
    spacing: tuple[float, float]
    """From row to row and from column to column."""

    @property
    def normal(self) -> Floats:
        """The direction that is upright on the slice."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def along(self) -> float:
        """Place on the normal."""
        return float(np.dot(self.position, self.normal))


@dataclass(frozen=True)
class Ladder:
    """Slices in their order."""

    rungs: list[list[int]]
    """For each place, the numbers of the slices that lie there."""
    missing: list[int]
    """How many slices are missing after each place."""
    affine: Floats
    """(4, 4) from (column, row, slice) to RAS millimetres, missing slices counted."""

    @property
    def gaps(self) -> int:
        """Slices that are missing in all."""
        return sum(self.missing)


def ladder(planes: Sequence[Plane]) -> Ladder:
    """Slices sorted by their place on the normal, whatever their names and numbers.

    Raises:
        Unreadable: if they lie at one place only, or at uneven distances.
    """
    order = sorted(range(len(planes)), key=lambda number: planes[number].along)
    rungs: list[list[int]] = []
    for number in order:
        if rungs and planes[number].along - planes[rungs[-1][0]].along < SAME_PLACE:
            rungs[-1].append(number)
        else:
            rungs.append([number])
    if len(rungs) < 2:
        raise Unreadable("all its slices lie at one place")
    places = np.array([planes[rung[0]].along for rung in rungs])
    distances = np.diff(places)
    usual = float(np.median(distances))
    steps = np.maximum(np.round(distances / usual), 1)
    if np.any(np.abs(distances / usual - steps) > UNEVEN * steps):
        raise Unreadable(f"its slices lie at uneven distances, {distances.min():.2f} to {distances.max():.2f} mm")
    first, last = planes[rungs[0][0]], planes[rungs[-1][0]]
    step = (np.array(last.position) - first.position) / steps.sum()
    for rung, count in zip(rungs, np.cumsum([0, *steps]), strict=True):
        for number in rung:
            beside = np.linalg.norm(np.array(planes[number].position) - first.position - count * step)
            if beside > max(ASIDE, UNEVEN * usual):
                raise Unreadable(f"its slices do not lie behind one another, one is {beside:.1f} mm aside")
    return Ladder(rungs, [int(count) - 1 for count in steps] + [0], _affine(first, step))


def _affine(first: Plane, step: Floats) -> Floats:
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.position
    return np.asarray(FLIP @ affine)


def to_ras(volume: Array, affine: Floats) -> tuple[Array, Floats]:
    """Axes exchanged and turned so that they run as nearly as can be to the right, the front and upwards; exact."""
    orientation = io_orientation(affine)
    if np.isnan(orientation).any():
        raise Unreadable("its axes have no direction in the patient")
    turned = np.asarray(apply_orientation(volume, orientation))
    return turned, np.asarray(affine @ inv_ornt_aff(orientation, volume.shape))


def spacing_of(affine: Floats) -> tuple[float, float, float]:
    """Millimetres from voxel to voxel along each axis."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return float(lengths[0]), float(lengths[1]), float(lengths[2])


def resample(
    volume: Array, affine: Floats, spacing: Sequence[float], most: int = 2**31, *, nearest: bool = False
) -> tuple[Array, Floats]:
    """``volume`` with voxels ``spacing`` apart along its own axes, averaged over where it gets coarser.

    Linear between voxels, in float32; the nearest voxel, of the same type, for masks. The volume keeps its extent as
    nearly as whole voxels allow, and its centre.

    Raises:
        Unreadable: if it would have more than ``most`` voxels.
    """
    old = spacing_of(affine)
    if np.allclose(old, spacing, rtol=1e-3):
        return volume, affine
    shape = [max(1, round(n * a / b)) for n, a, b in zip(volume.shape, old, spacing, strict=True)]
    if math.prod(shape) > most:
        claimed = " x ".join(f"{a:g}" for a in old)
        raise Unreadable(f"says that its voxels are {claimed} mm, so it would become {math.prod(shape)}; limit {most}")
    out = volume if nearest else volume.astype(np.float32)
    changed = affine.copy()
    for axis, (count, a, b) in enumerate(zip(shape, old, spacing, strict=True)):
        ratio, size = b / a, volume.shape[axis]
        start = (size - 1) / 2 - ratio * (count - 1) / 2
        places = start + ratio * np.arange(count)
        if nearest:
            out = out.take(np.clip(np.round(places), 0, size - 1).astype(int), axis=axis)
        else:
            out = np.moveaxis(np.tensordot(_weights(places, size, ratio), out, axes=(1, axis)), 0, axis)
        changed[:3, 3] += affine[:3, axis] * start
        changed[:3, axis] = affine[:3, axis] * ratio
    return np.ascontiguousarray(out), changed


def _weights(places: Floats, size: int, ratio: float) -> NDArray[np.float32]:
    """(new, old) weights of a triangle as wide as the coarser of the two spacings; each row sums to 1."""
    distance = np.abs(places[:, None] - np.arange(size)[None, :]) / max(ratio, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    beyond = weights.sum(1) < 1e-6
    weights[beyond, np.clip(np.round(places[beyond]), 0, size - 1).astype(int)] = 1.0
    normed: NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normed


def tilt(affine: Floats) -> float:
    """Degrees by which the axes of a volume are off a right angle, as in CT with a tilted gantry."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(np.triu(axes.T @ axes, 1)).max()
    return float(np.degrees(np.arcsin(min(1.0, cosines))))


def box_above(volume: Array, least: float) -> tuple[slice, ...]:
    """The smallest box that holds all that is larger than ``least``; the whole where nothing is."""
    inside = volume > least
    slices = []
    for axis in range(volume.ndim):
        others = tuple(a for a in range(volume.ndim) if a != axis)
        places = np.flatnonzero(inside.any(axis=others))
        slices.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(None))
    return tuple(slices)


def moved(affine: Floats, corner: Sequence[int]) -> Floats:
    """The affine of a volume of which everything before ``corner`` was cut away."""
    changed = affine.copy()
    changed[:3, 3] += affine[:3, :3] @ np.asarray(corner, dtype=np.float64)
    return changed
