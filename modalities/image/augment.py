"""Random views: boxes and motions drawn in the worker, flips and erasing on the device."""

import math
import random
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from modalities.image.config import AffineConfig, AugmentConfig

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""


def crop_box(size: tuple[int, int], settings: AugmentConfig, rng: np.random.Generator) -> Box:
    """A random resized crop of a (width, height) image (Szegedy et al. 2015), the centre where ten draws do not fit."""
    width, height = size
    low, high = math.log(settings.crop_ratio[0]), math.log(settings.crop_ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*settings.crop_scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    return centre_box(size, (height, width), 1.0)


def centre_box(size: tuple[int, int], target: tuple[int, int], share: float) -> Box:
    """The centred box with the aspect of ``target`` (height, width) and ``share`` of the largest such box's sides."""
    width, height = size
    aspect = target[1] / target[0]
    w, h = (width, width / aspect) if width / height < aspect else (height * aspect, height)
    w, h = max(1, round(w * share)), max(1, round(h * share))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def affine(picture: Image.Image, settings: AffineConfig, rng: np.random.Generator) -> Image.Image:
    """Rotate, shift and scale about the centre by small random amounts; what comes in from outside is black."""
    width, height = picture.size
    angle = math.radians(rng.uniform(-settings.degrees, settings.degrees))
    factor = math.exp(rng.uniform(-1, 1) * math.log1p(settings.scale))
    dx = rng.uniform(-settings.translate, settings.translate) * width
    dy = rng.uniform(-settings.translate, settings.translate) * height
    cos, sin = math.cos(angle) / factor, math.sin(angle) / factor
    cx, cy = (width - 1) / 2, (height - 1) / 2
    matrix = (cos, sin, cx - cos * cx - sin * cy + dx, -sin, cos, cy + sin * cx - cos * cy + dy)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


@cache
def _policy(name: str) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform(name, {"translate_const": 100})


def rand_augment(picture: Image.Image, policy: str, rng: np.random.Generator) -> Image.Image:
    """Timm's RandAugment (Cubuk et al. 2020); it draws from global generators, which are seeded from ``rng``."""
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm draws from it
    out: Image.Image = _policy(policy)(picture)
    return out


def resize(pixels: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
    """``box`` of a (C, H, W) image of any type, resized bicubically with antialiasing to ``size`` (height, width).

    torch's kernel for uint8 takes less than half of Pillow's time.
    """
    left, upper, right, lower = box
    part = pixels[:, upper:lower, left:right]
    if tuple(part.shape[1:]) == size:
        return part.contiguous()
    if pixels.dtype is torch.uint8:
        return interpolate(part[None], size, mode="bicubic", antialias=True)[0]
    out = interpolate(part[None].float(), size, mode="bicubic", antialias=True)[0]
    if pixels.dtype.is_floating_point:
        return out
    limits = torch.iinfo(pixels.dtype)
    return out.round().clamp(limits.min, limits.max).to(pixels.dtype)


def flip(x: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Mirror each (C, H, W) of a batch left to right with ``probability``, without waiting for the device."""
    if probability == 0:
        return x
    chosen = torch.rand(x.shape[0], 1, 1, 1, generator=rng, device=x.device) < probability
    return torch.where(chosen, x.flip(-1), x)


def erase(x: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    """Replace a random rectangle of each image by noise with ``probability`` (Zhong et al. 2020).

    Areas and aspects as in timm: 2 to 33 % of the image, ratios 0.3 to 1/0.3; rectangles are cut at the border
    instead of drawn anew, so that the device is never waited for.
    """
    if probability == 0:
        return x
    count, _, height, width = x.shape
    u = torch.rand(5, count, 1, 1, 1, generator=rng, device=x.device)
    area = (0.02 + 0.31 * u[0]) * height * width
    ratio = torch.exp((2 * u[1] - 1) * math.log(1 / 0.3))
    h, w = (area * ratio).sqrt(), (area / ratio).sqrt()
    top, left = u[2] * (height - h).clamp_min(0), u[3] * (width - w).clamp_min(0)
    rows = torch.arange(height, device=x.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, 1, -1)
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    noise = torch.randn(x.shape, generator=rng, device=x.device)
    return torch.where(inside & (u[4] < probability), noise, x)
