"""Which frames of a video make a clip, and which part of them is seen."""

import math

import numpy as np
from numpy.typing import NDArray

from core.data.crops import Box, random_box
from modalities.video.config import ClipConfig, ViewConfig

Frames = NDArray[np.int64]
POINTS = [(x / 4, y / 4) for x in range(5) for y in range(5) if (x + y) % 2 == 0]
"""Where a multi-scale crop may stand, as shares of the free room on either side: 13 places (Wang et al. 2016)."""


def frames_at(length: int, rate: float, count: int, clip: ClipConfig, place: float | NDArray[np.float64]) -> Frames:
    """The frames (count,) of a clip; a video that is too short stands still at its end.

    Args:
        length: frames of the video.
        rate: its frames per second.
        count: frames of the clip.
        clip: how far apart they are.
        place: 0 to 1: where the clip stands in the video, or a frame in its part of it; or (count,) of the latter.
    """
    number = np.arange(count)
    if clip.by == "uniform":
        return _within(np.floor((number + place) * length / count), length)
    step = clip.stride if clip.by == "stride" else clip.seconds * rate / count
    room = max(0, math.floor(length - (count - 1) * step - 1))
    start = np.minimum(np.floor(np.asarray(place) * (room + 1)), room)
    # A little is added since 0.1 * 30 is less than 3.
    return _within(np.floor(start + number * step + 1e-6), length)


def random_frames(length: int, rate: float, count: int, clip: ClipConfig, rng: np.random.Generator) -> Frames:
    """The frames of a random clip: one somewhere, or one frame from each of ``count`` equal parts of the video."""
    return frames_at(length, rate, count, clip, rng.random(count) if clip.by == "uniform" else float(rng.random()))


def random_crop(size: tuple[int, int], view: ViewConfig, rng: np.random.Generator) -> Box:
    """The part of all frames of a (width, height) video that a training view takes."""
    if view.crop == "resized":
        return random_box(size, view.crop_scale, view.crop_ratio, rng)
    return _multi_scale(size, view.crop_sides, rng)


def _multi_scale(size: tuple[int, int], sides: tuple[float, ...], rng: np.random.Generator) -> Box:
    """Width and height from a few shares of the short side, next to each other at most, at one of 13 places."""
    pairs = [(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1]
    across, down = pairs[rng.integers(len(pairs))]
    w, h = max(1, round(min(size) * across)), max(1, round(min(size) * down))
    x, y = POINTS[rng.integers(len(POINTS))]
    left, upper = math.floor((size[0] - w) * x), math.floor((size[1] - h) * y)
    return left, upper, left + w, upper + h


def _within(frames: NDArray[np.float64], length: int) -> Frames:
    return np.clip(frames, 0, length - 1).astype(np.int64)
