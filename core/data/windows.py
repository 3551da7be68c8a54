"""Windows that cover an array of any number of axes, and boxes cut out of it that may reach beyond its borders."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def window_places(whole: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """Corners of windows that cover an array, the last axis fastest, as few as the overlap allows.

    They stand at even distances along each axis, the first at its start and the last at its end, so that neighbours
    share ``overlap`` of a window or more. An axis shorter than the window has one corner, 0; the window ends beyond it.

    Args:
        whole: extent of the array along each axis.
        window: extent of a window along each axis.
        overlap: share of a window that its neighbour covers as well, 0 to 1.
    """
    along = [_corners(extent, size, overlap) for extent, size in zip(whole, window, strict=True)]
    return list(product(*along))


def _corners(extent: int, size: int, overlap: float) -> list[int]:
    spare = extent - size
    if spare <= 0:
        return [0]
    # Decimal shares are no binary ones: 0.9 of 10 shall leave 1, not 0.9999.
    step = max(1, math.floor(size * (1 - overlap) + 1e-9))
    count = math.ceil(spare / step) + 1
    return [int(corner) for corner in np.linspace(0, spare, count).round()]


def cut_window(array: Array, corner: Sequence[int], size: Sequence[int], fill: float) -> Array:
    """The box of ``size`` at ``corner`` of the last axes of ``array``, a copy; ``fill`` stands where it reaches out."""
    lead = array.shape[: array.ndim - len(size)]
    out: Array = np.full((*lead, *size), fill, dtype=array.dtype)
    there, here = overlap_of(corner, size, array.shape[len(lead) :])
    every = (slice(None),) * len(lead)
    out[every + here] = array[every + there]
    return out


def overlap_of(
    corner: Sequence[int], size: Sequence[int], whole: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a box of ``size`` at ``corner`` meets an array of extent ``whole``: slices of the array, and of the box."""
    starts = [max(0, c) for c in corner]
    ends = [max(start, min(c + s, n)) for start, c, s, n in zip(starts, corner, size, whole, strict=True)]
    there = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
    here = tuple(slice(start - c, end - c) for start, end, c in zip(starts, ends, corner, strict=True))
    return there, here
