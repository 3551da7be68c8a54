"""Cutting arrays of 1 to 4 axes into patches and putting them together again.

Axis letters used in tensor names: B samples, C channels, N patches, P values per patch, D features, K visible
patches, M hidden patches.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchSpec:
    """Geometry of a patched array: (H, W), (T, H, W), (time, mel), (D, H, W), (time,) ...

    Raises:
        ValueError: if an axis of the input is not a multiple of the patch along it.
    """

    channels: int
    """Channels of the input."""
    input_shape: tuple[int, ...]
    """Extent along each axis."""
    patch_shape: tuple[int, ...]
    """Extent of one patch along each axis."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.input_shape) <= 4 or len(self.input_shape) != len(self.patch_shape):
            raise ValueError(f"input {self.input_shape} and patch {self.patch_shape} need the same 1 to 4 axes")
        if any(size < 1 for size in (self.channels, *self.input_shape, *self.patch_shape)):
            raise ValueError(f"sizes must be positive: {self}")
        if any(size % patch for size, patch in zip(self.input_shape, self.patch_shape, strict=True)):
            raise ValueError(f"input {self.input_shape} is not a multiple of patch {self.patch_shape} on every axis")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(size // patch for size, patch in zip(self.input_shape, self.patch_shape, strict=True))

    @property
    def count(self) -> int:
        """Patches in all: N."""
        return math.prod(self.grid)

    @property
    def values(self) -> int:
        """Values in one patch: P."""
        return self.channels * math.prod(self.patch_shape)

    def patchify(self, x: Tensor) -> Tensor:
        """(B, C, *input_shape) to (B, N, P); patches in row-major order of the grid, channels last inside a patch.

        The order is einops ``b c (g1 p1) (g2 p2) ... -> b (g1 g2 ...) (p1 p2 ... c)``, MAE's own.
        """
        axes = len(self.grid)
        split = [n for pair in zip(self.grid, self.patch_shape, strict=True) for n in pair]
        grid_axes = [2 + 2 * i for i in range(axes)]
        patch_axes = [3 + 2 * i for i in range(axes)]
        x = x.reshape(x.shape[0], self.channels, *split).permute(0, *grid_axes, *patch_axes, 1)
        return x.reshape(x.shape[0], self.count, self.values)

    def unpatchify(self, patches_BNP: Tensor) -> Tensor:
        """The inverse of `patchify`: (B, N, P) to (B, C, *input_shape)."""
        axes = len(self.grid)
        x = patches_BNP.reshape(patches_BNP.shape[0], *self.grid, *self.patch_shape, self.channels)
        order = [n for i in range(axes) for n in (1 + i, 1 + axes + i)]
        x = x.permute(0, 1 + 2 * axes, *order)
        return x.reshape(x.shape[0], self.channels, *self.input_shape)


def gather_tokens(x_BND: Tensor, ids_BK: Tensor) -> Tensor:
    """The tokens (B, K, D) of ``x_BND`` at ``ids_BK``."""
    return torch.gather(x_BND, 1, ids_BK.unsqueeze(-1).expand(-1, -1, x_BND.shape[-1]))
