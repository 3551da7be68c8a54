"""Weights brought to another geometry: other channels, other patches, more or fewer axes, another grid."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from core.interop.building import with_fixed_positions
from core.interop.foreign import Foreign
from core.model.patches import PatchSpec
from core.model.positions import resample

PROJECTION, POSITIONS = "encoder.patch_embed.proj.weight", "encoder.pos_embed"


def adapted(model: Foreign, spec: PatchSpec, *, native: bool = True) -> tuple[Foreign, tuple[str, ...]]:
    """``model`` for the channels and patches of ``spec``, and what was done, a phrase each.

    The grid stays the checkpoint's own, from which later stages resample once, unless the axes differ or its inputs
    were of another kind (not ``native``): then positions are brought to the grid of ``spec`` here. The last layer of a
    decoder is left out where patches have other values.
    """
    old = model.geometry
    whole = with_fixed_positions(model)
    # Half precision would round each sum; what is written is in single precision anyway.
    state = {name: value if value.dtype is torch.float64 else value.float() for name, value in whole.items()}
    done: list[str] = []
    kernel = state[PROJECTION]
    axes = len(spec.grid)
    if kernel.shape[1] != spec.channels:
        done.append(_said_of_channels(kernel.shape[1], spec.channels))
        kernel = with_channels(kernel, spec.channels)
    if len(old.grid) != axes:
        done.append(_said_of_axes(old.grid, spec.grid))
        kernel = with_axes(kernel, axes, spec.patch_shape)
    if tuple(kernel.shape[2:]) != spec.patch_shape:
        done.append(f"patches {_by(kernel.shape[2:])} -> {_by(spec.patch_shape)}: kernels by pseudo-inverse resizing")
        kernel = with_patch(kernel, spec.patch_shape)
    state[PROJECTION] = kernel
    if old.grid != spec.grid:
        done.append(f"positions of {_by(old.grid)} patches -> {_by(spec.grid)}: resampled along each axis")
    grid = old.grid
    if len(old.grid) != axes or not native:
        grid = spec.grid
        for name in (POSITIONS, "decoder.pos_embed"):
            if name in state:
                state[name] = with_grid(state[name], old.grid, grid)
    if (old.channels, old.patch_shape) != (spec.channels, spec.patch_shape):
        state = {name: value for name, value in state.items() if not name.startswith("decoder.pred.")}
    geometry = PatchSpec(
        spec.channels, tuple(n * p for n, p in zip(grid, spec.patch_shape, strict=True)), spec.patch_shape
    )
    config = model.model
    # Resampled positions are no fixed table any more, and repeated ones tell nothing of a new axis until they learn.
    if grid != old.grid:
        config = config.model_copy(update={"positions": "learned"})
    return replace(model, state=state, geometry=geometry, model=config), tuple(done)


def with_channels(kernel: Tensor, channels: int) -> Tensor:
    """A kernel (D, C, *patch) for another number of channels.

    To one: the sum, which on a grey picture gives what three equal channels gave. To more: they are repeated in turn
    and scaled, so that outputs keep their size.
    """
    old = kernel.shape[1]
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    return kernel[:, torch.arange(channels) % old] * (old / channels)


def with_axes(kernel: Tensor, axes: int, patch: Sequence[int]) -> Tensor:
    """A kernel (D, C, *patch) with axes put before its own, or its first ones taken away.

    A new axis repeats the kernel and divides it, so that an input that does not change along it gives what it gave
    (Carreira and Zisserman 2017, section 2.3); an axis that goes is summed over, the inverse of that.
    """
    have = kernel.ndim - 2
    if have > axes:
        kernel = kernel.sum(dim=tuple(range(2, 2 + have - axes)))
    for number in range(axes - have):
        along = patch[axes - have - 1 - number]
        kernel = kernel.unsqueeze(2).repeat_interleave(along, dim=2) / along
    return kernel


def with_patch(kernel: Tensor, patch: Sequence[int]) -> Tensor:
    """A kernel (D, C, *patch) for patches of another extent, such that it says of a resized patch what it said before.

    Each axis by the pseudo-inverse of the matrix that resizes along it (Beyer et al. 2023, section 3.4).
    """
    for axis, size in enumerate(patch, start=2):
        old = kernel.shape[axis]
        if old != size:
            matrix = torch.linalg.pinv(resizing(old, size).T)
            moved = kernel.movedim(axis, -1).double() @ matrix.T
            kernel = moved.movedim(-1, axis).to(kernel.dtype)
    return kernel


def resizing(old: int, new: int) -> Tensor:
    """The matrix (new, old) in float64 that resizes one axis, bicubic with antialiasing."""
    # Two columns, of which one is looked at: torch 2.11 resizes pictures of one column wrongly.
    each = torch.eye(old, dtype=torch.float64).reshape(old, 1, old, 1).repeat(1, 1, 1, 2)
    return functional.interpolate(each, size=(new, 2), mode="bicubic", antialias=True)[:, 0, :, 0].T


def with_grid(table_1ND: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Positions with whatever stands before them, on a grid of other extents, or with axes more or fewer.

    Axes that are common are the last ones; those are resampled, new ones repeat them, and lost ones are averaged over.
    """
    prefix = table_1ND.shape[1] - prod(old)
    before, places = table_1ND[:, :prefix], table_1ND[:, prefix:]
    if len(old) > len(new):
        lost = len(old) - len(new)
        places = places.reshape(1, prod(old[:lost]), prod(old[lost:]), -1).mean(dim=1)
        old = old[lost:]
    added = new[: len(new) - len(old)]
    places = resample(places, old, new[len(added) :])
    places = places.repeat(1, prod(added), 1)
    return torch.cat([before, places], dim=1)


def _said_of_channels(old: int, new: int) -> str:
    how = "summed" if new == 1 else f"repeated in turn, times {old / new:.3g}"
    return f"input channels {old} -> {new}: kernels {how}"


def _said_of_axes(old: Sequence[int], new: Sequence[int]) -> str:
    if len(old) < len(new):
        return (
            f"axes {len(old)} -> {len(new)}: kernels and positions repeated along the first, and learned from here on"
        )
    return f"axes {len(old)} -> {len(new)}: kernels summed and positions averaged along the first"


def _by(extents: Sequence[int]) -> str:
    return " x ".join(map(str, extents))
