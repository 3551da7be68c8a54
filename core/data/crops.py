"""Crops of pictures and clips, and what plugins do to whole batches of them: arithmetic on the last two axes."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""
Range = tuple[float, float]


def random_box(size: tuple[int, int], scale: Range, ratio: Range, rng: np.random.Generator) -> Box:
    """A random resized crop of a (width, height) picture (Szegedy et al. 2015), all in its centre where none fits.

    Args:
        size: width and height of the picture, in pixels.
        scale: smallest and largest share of its area.
        ratio: smallest and largest aspect, width over height.
        rng: where the crop is drawn from.
    """
    width, height = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    return centre_box(size, (height, width), 1.0)


def centre_box(size: tuple[int, int], target: tuple[int, int], share: float, along: float = 0.5) -> Box:
    """The box with the aspect of ``target`` (height, width) and ``share`` of the largest such box's sides.

    ``along`` says where it stands on either side's free room: 0 left and top, 0.5 in the centre, 1 right and bottom.
    """
    width, height = size
    aspect = target[1] / target[0]
    w, h = (width, width / aspect) if width / height < aspect else (height * aspect, height)
    w, h = max(1, round(w * share)), max(1, round(h * share))
    left, upper = math.floor((width - w) * along), math.floor((height - h) * along)
    return left, upper, left + w, upper + h


def resize(pixels: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """``box`` of pixels (..., C, H, W) of any type, resized bicubically with antialiasing to ``size`` (height, width).

    torch's kernel for uint8 takes less than half of Pillow's time.
    """
    left, upper, right, lower = box
    part = pixels[..., upper:lower, left:right]
    if tuple(part.shape[-2:]) == size:
        return part.contiguous()
    lead = part.shape[:-3]
    stack = part.reshape(-1, *part.shape[-3:])
    return _interpolated(stack, size).reshape(*lead, -1, *size)


def _interpolated(stack: Tensor, size: tuple[int, int]) -> Tensor:
    if stack.dtype is torch.uint8:
        return interpolate(stack, size, mode="bicubic", antialias=True)
    out = interpolate(stack.float(), size, mode="bicubic", antialias=True)
    if stack.dtype.is_floating_point:
        return out
    limits = torch.iinfo(stack.dtype)
    return out.round().clamp(limits.min, limits.max).to(stack.dtype)


def flip(x: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Mirror each sample of (B, ..., H, W) left to right with ``probability``, without waiting for the device."""
    if probability == 0:
        return x
    chosen = torch.rand(_one_each(x), generator=rng, device=x.device) < probability
    return torch.where(chosen, x.flip(-1), x)


def erase(x: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Replace a random rectangle of each sample of (B, ..., H, W) by noise with ``probability`` (Zhong et al. 2020).

    The rectangle stands at the same place in every frame of a clip. Areas and aspects as in timm: 2 to 33 % of the
    picture, ratios 0.3 to 1/0.3; rectangles are cut at the border instead of drawn anew, so that the device is never
    waited for.
    """
    if probability == 0:
        return x
    height, width = x.shape[-2:]
    u = torch.rand((5, *_one_each(x)), generator=rng, device=x.device)
    area = (0.02 + 0.31 * u[0]) * height * width
    ratio = torch.exp((2 * u[1] - 1) * math.log(1 / 0.3))
    h, w = (area * ratio).sqrt(), (area / ratio).sqrt()
    top, left = u[2] * (height - h).clamp_min(0), u[3] * (width - w).clamp_min(0)
    rows = torch.arange(height, device=x.device).view(-1, 1)
    columns = torch.arange(width, device=x.device)
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    noise = torch.randn(x.shape, generator=rng, device=x.device)
    return torch.where(inside & (u[4] < probability), noise, x)


def _one_each(x: Tensor) -> tuple[int, ...]:
    return (x.shape[0],) + (1,) * (x.ndim - 1)
