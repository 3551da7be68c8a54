"""Crops of pictures and clips: the shares asked for, one rectangle through all frames, equal for one frame and many."""

import numpy as np
import pytest
import torch

from core.data import crops


def test_crops_take_the_asked_share_of_the_area():
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, upper, right, lower = crops.random_box((90, 60), (0.3, 0.5), (0.75, 4 / 3), rng)
        assert 0 <= left < right <= 90
        assert 0 <= upper < lower <= 60
        assert 0.26 <= (right - left) * (lower - upper) / 5400 <= 0.54


def test_a_crop_that_cannot_fit_is_the_whole_picture():
    assert crops.random_box((10, 1000), (1, 1), (1, 1), np.random.default_rng(0)) == (0, 0, 10, 1000)


@pytest.mark.parametrize(("along", "left"), [(0, 0), (0.5, 15), (1, 30)])
def test_a_fixed_box_slides_along_the_long_side(along, left):
    assert crops.centre_box((90, 60), (32, 32), 1.0, along) == (left, 0, left + 60, 60)


def test_a_clip_is_resized_frame_by_frame():
    clip = torch.randint(0, 256, (5, 3, 40, 50), dtype=torch.uint8)
    box, size = (3, 4, 33, 40), (16, 24)
    each = torch.stack([crops.resize(frame, box, size) for frame in clip])
    assert torch.equal(crops.resize(clip, box, size), each)
    assert crops.resize(clip[None], box, size).shape == (1, 5, 3, 16, 24)


@pytest.mark.parametrize("shape", [(200, 3, 4, 6), (200, 3, 2, 4, 6)])
def test_flips_mirror_about_half_of_a_batch_and_repeat(shape):
    x = torch.randn(shape)
    first, again = (crops.flip(x, 0.5, torch.Generator().manual_seed(0)) for _ in range(2))
    mirrored = (first == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(first, again)
    assert torch.equal(first[~mirrored], x[~mirrored])
    assert 60 < mirrored.sum() < 140


@pytest.mark.parametrize("shape", [(200, 3, 32, 32), (200, 3, 4, 32, 32)])
def test_erasing_replaces_rectangles_of_some_samples(shape):
    x = torch.full(shape, 7.0)
    out = crops.erase(x, 0.25, torch.Generator().manual_seed(0))
    touched = (out != 7.0).flatten(1, -3).any(dim=1).flatten(1).float().mean(1)
    chosen = touched > 0
    assert 30 < chosen.sum() < 70
    assert touched[chosen].max() <= 0.4
    assert torch.equal(crops.erase(x, 0.0, torch.Generator()), x)


def test_the_erased_rectangle_stands_still_in_a_clip():
    x = torch.full((20, 1, 4, 32, 32), 7.0)
    touched = crops.erase(x, 1.0, torch.Generator().manual_seed(0)) != 7.0
    assert torch.equal(touched.all(dim=2), touched.any(dim=2))
