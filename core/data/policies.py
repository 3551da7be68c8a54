"""RandAugment on pictures, by timm, drawn from the generator a view is given."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image


def rand_augment(pictures: Sequence[Image.Image], policy: str, rng: np.random.Generator) -> list[Image.Image]:
    """Change all ``pictures``, such as the frames of a clip, in one random way (Cubuk et al. 2020).

    Args:
        pictures: grey or RGB pictures.
        policy: timm's name of it, such as ``rand-m9-mstd0.5-inc1``.
        rng: timm draws from global generators; they are seeded from this one for each picture alike.
    """
    seed = int(rng.integers(2**32))
    changed = []
    for picture in pictures:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - timm draws from it
        # The policy fills what it uncovers with an RGB colour.
        changed.append(_policy(policy)(picture.convert("RGB")).convert(picture.mode))
    return changed


@cache
def _policy(name: str) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    return rand_augment_transform(name, {"translate_const": 100})
