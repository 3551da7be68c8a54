"""Random changes of scans on the device, each sample its own, masks along with their scans."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from core.segmentation import IGNORE


def flip(
    x: Tensor, target: Tensor | None, chances: tuple[float, ...], rng: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Mirror each sample of (B, C, *axes), and its mask (B, *axes), along each axis with the chance given for it."""
    for axis, chance in enumerate(chances):
        if chance == 0:
            continue
        chosen = torch.rand(len(x), generator=rng, device=x.device) < chance
        x = torch.where(_like(chosen, x), x.flip(axis + 2), x)
        if target is not None:
            target = torch.where(_like(chosen, target), target.flip(axis + 1), target)
    return x, target


def rotate(x: Tensor, target: Tensor | None, degrees: float, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Turn each sample by up to ``degrees``: images (B, C, H, W) in their plane, volumes about their third axis.

    What comes in from outside repeats the border; in masks (B, *axes) it is not labelled.
    """
    if degrees == 0:
        return x, target
    angle = (2 * torch.rand(len(x), generator=rng, device=x.device) - 1) * math.radians(degrees)
    theta = _rotation(angle, x.shape[2:])
    grid = affine_grid(theta, [*x.shape], align_corners=False)
    turned = grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if target is None:
        return turned, None
    # Zeros come in from outside: labels are counted from 1 meanwhile.
    labels = grid_sample(
        (target[:, None] + 1).to(x.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    labels = labels[:, 0].round().long()
    return turned, torch.where(labels == 0, IGNORE, labels - 1)


def _rotation(angle_B: Tensor, shape: torch.Size) -> Tensor:
    """(B, n, n + 1) for `affine_grid`, whose coordinates run from -1 to 1 and begin with the last axis."""
    axes = len(shape)
    theta = torch.zeros(len(angle_B), axes, axes + 1, device=angle_B.device)
    theta[:, range(axes), range(axes)] = 1.0
    # Of an image the two axes there are; of a volume the first two, which are the last two coordinates.
    one, other = (0, 1) if axes == 2 else (1, 2)
    ratio = shape[axes - 1 - other] / shape[axes - 1 - one]
    cos, sin = angle_B.cos(), angle_B.sin()
    theta[:, one, one], theta[:, other, other] = cos, cos
    theta[:, one, other], theta[:, other, one] = -sin * ratio, sin / ratio
    return theta


def intensity(x: Tensor, scale: float, shift: float, rng: torch.Generator) -> Tensor:
    """Normalised values (B, C, *axes) times a factor near 1 and plus a little, the same for all of a sample."""
    if scale == 0 and shift == 0:
        return x
    u = 2 * torch.rand((2, len(x)), generator=rng, device=x.device) - 1
    return x * _like(1 + scale * u[0], x) + _like(shift * u[1], x)


def _like(per_sample: Tensor, x: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (x.ndim - 1))
