"""Clips for people: the strip and the moving picture show the frames they are made of."""

import io

import numpy as np
from PIL import Image, ImageSequence

from modalities.video.pictures import MILLISECONDS, SMALLEST, film


def clip(channels=3, frames=8, height=16, width=24):
    """(C, T, H, W): frame t has brightness t / (T - 1)."""
    levels = np.linspace(0, 1, frames).reshape(1, -1, 1, 1)
    return np.broadcast_to(levels, (channels, frames, height, width))


def test_the_strip_runs_from_the_first_frame_to_the_last():
    still, _ = film(clip())
    picture = np.asarray(Image.open(io.BytesIO(still.data)))
    assert still.kind == "image"
    assert picture.shape[0] >= SMALLEST
    assert picture[5, 5].tolist() == [0, 0, 0]
    assert picture[-5, -5].tolist() == [255, 255, 255]


def test_the_animation_has_every_frame_in_order():
    for channels in (1, 3):
        _, moving = film(clip(channels))
        assert (moving.kind, moving.suffix) == ("animation", ".gif")
        with Image.open(io.BytesIO(moving.data)) as frames:
            seen = [
                (np.asarray(f.convert("L")).mean() / 255, f.info["duration"]) for f in ImageSequence.Iterator(frames)
            ]
        assert np.allclose([level for level, _ in seen], np.linspace(0, 1, 8), atol=0.01)
        assert all(duration == MILLISECONDS for _, duration in seen)


def test_a_strip_of_large_frames_stays_small():
    still, moving = film(clip(height=300, width=400))
    assert Image.open(io.BytesIO(still.data)).height <= 160
    assert Image.open(io.BytesIO(moving.data)).size == (400, 300)
