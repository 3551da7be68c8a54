"""Positions of patches on a grid of 1 to 4 axes: sine-cosine tables, and resampling to another grid."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def sincos(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed positions (N, width) in float32: the features are shared out evenly over the axes.

    For two axes this is MAE's table: its first half encodes the last axis, its second half the first axis,
    each as sines then cosines of ``position / 10000**(i / n)``. Features left over when the width is not a
    multiple of twice the number of axes are zero.
    """
    pairs = width // (2 * len(grid))
    if pairs == 0:
        raise ValueError(f"width {width} is too small for sine-cosine positions on {len(grid)} axes")
    frequencies = 1.0 / 10000 ** (torch.arange(pairs, dtype=torch.float64) / pairs)
    parts = []
    for axis in reversed(range(len(grid))):
        angles = torch.arange(grid[axis], dtype=torch.float64)[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], dim=1)
        shape = [1] * len(grid) + [2 * pairs]
        shape[axis] = grid[axis]
        parts.append(table.reshape(shape).expand(*grid, -1))
    positions = torch.cat(parts, dim=-1).reshape(math.prod(grid), -1)
    return functional.pad(positions, (0, width - positions.shape[1])).float()


def sincos_joint(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed positions (N, width) in float32 of patches numbered in row-major order, as VideoMAE has them.

    Feature j of patch n is sin(n / 10000**(2 * (j // 2) / width)) where j is even, the cosine where it is odd
    (Vaswani et al. 2017, section 3.5).
    """
    number = torch.arange(math.prod(grid), dtype=torch.float64)[:, None]
    feature = torch.arange(width)
    angles = number / 10000 ** (2 * (feature // 2).to(torch.float64) / width)
    return torch.where(feature % 2 == 0, angles.sin(), angles.cos()).float()


def resample(positions_1ND: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Positions learned on grid ``old``, interpolated linearly along each axis to grid ``new``: (1, N', D).

    Bicubic for two axes, as is usual for images; linear, one axis after the other, otherwise.

    Raises:
        ValueError: if the grids have different numbers of axes.
    """
    if old == new:
        return positions_1ND
    if len(old) != len(new):
        raise ValueError(f"positions on grid {old} cannot be resampled to grid {new}: other number of axes")
    table = positions_1ND.float().reshape(1, *old, -1).movedim(-1, 1)
    if len(old) == 2:
        table = functional.interpolate(table, size=new, mode="bicubic", antialias=True, align_corners=False)
    else:
        for axis, size in enumerate(new):
            table = _linear(table, axis + 2, size)
    return table.movedim(1, -1).reshape(1, math.prod(new), -1).to(positions_1ND.dtype)


def cut_or_extend(positions_1ND: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Positions learned on grid ``old``, as far apart as they were, on grid ``new``: (1, N', D).

    A shorter axis takes the first of them; a longer one, for which there are none, has them stretched.

    Raises:
        ValueError: if the grids have different numbers of axes.
    """
    longer = tuple(max(a, b) for a, b in zip(old, new, strict=False)) if len(old) == len(new) else new
    table = resample(positions_1ND, old, longer).reshape(1, *longer, -1)
    for axis, size in enumerate(new):
        table = table.narrow(axis + 1, 0, size)
    return table.reshape(1, math.prod(new), -1)


def _linear(table: Tensor, axis: int, size: int) -> Tensor:
    """Interpolate one axis."""
    moved = table.movedim(axis, -1)
    flat = moved.reshape(1, -1, moved.shape[-1])
    out = functional.interpolate(flat, size=size, mode="linear", align_corners=False)
    return out.reshape(*moved.shape[:-1], size).movedim(-1, axis)
