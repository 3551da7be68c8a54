"""Scores of one case's mask: Dice, and Hausdorff distances between surfaces, in the units of its spacing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
PERCENTILE = 95.0
"""Of the distances from each surface to the other, what `hd95` is."""


@dataclass(frozen=True)
class Distances:
    """Hausdorff distances between two surfaces."""

    hausdorff: float
    """The largest distance from a point of either surface to the other."""
    hd95: float
    """The larger of the two 95th percentiles, which a few stray voxels do not decide."""


def distances(one: Mask, other: Mask, spacing: Sequence[float]) -> Distances | None:
    """Hausdorff distances between the surfaces of two masks (*shape); None where one of them is empty.

    Surfaces are the elements with a neighbour along an axis that is not in the mask, or none at all.

    Args:
        one: elements of one mask.
        other: elements of the other.
        spacing: distance of neighbours along each axis, in mm or whatever the result is to be in.
    """
    if not one.any() or not other.any():
        return None
    box = _box(one | other)
    first, second = _surface(one[box]), _surface(other[box])
    there, back = _to(second, spacing)[first], _to(first, spacing)[second]
    percentiles = [float(np.percentile(d, PERCENTILE)) for d in (there, back)]
    return Distances(max(float(there.max()), float(back.max())), max(percentiles))


def _box(mask: Mask) -> tuple[slice, ...]:
    """What holds all of the mask; nearest surfaces are never outside of it."""
    ends = []
    for axis in range(mask.ndim):
        found = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        ends.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(ends)


def _surface(mask: Mask) -> Mask:
    from scipy.ndimage import binary_erosion

    surface: Mask = mask & ~binary_erosion(mask)
    return surface


def _to(surface: Mask, spacing: Sequence[float]) -> NDArray[Any]:
    """Distance of each element to the nearest of ``surface``."""
    from scipy.ndimage import distance_transform_edt

    found: NDArray[Any] = distance_transform_edt(~surface, sampling=spacing)
    return found
