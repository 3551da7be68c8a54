"""Random motions and RandAugment of one picture, in the worker."""

import math
import random
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from modalities.image.config import AffineConfig


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
