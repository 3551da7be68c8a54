"""Small random motions of a picture that must be seen whole."""

import math

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
