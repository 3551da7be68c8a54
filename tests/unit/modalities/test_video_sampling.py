"""Which frames and which part of them a clip takes."""

import numpy as np
import pytest

from modalities.video.config import ClipConfig, ViewConfig
from modalities.video.sampling import POINTS, frames_at, random_crop, random_frames


def test_a_stride_takes_every_so_many_frames():
    clip = ClipConfig(by="stride", stride=4)
    assert frames_at(100, 30, 5, clip, 0).tolist() == [0, 4, 8, 12, 16]
    assert frames_at(100, 30, 5, clip, 1).tolist() == [83, 87, 91, 95, 99]
    assert frames_at(17, 30, 5, clip, 0.7).tolist() == [0, 4, 8, 12, 16]


def test_a_video_too_short_for_its_clip_stands_still_at_its_end():
    assert frames_at(6, 30, 5, ClipConfig(by="stride", stride=2), 0.5).tolist() == [0, 2, 4, 5, 5]
    assert frames_at(1, 30, 3, ClipConfig(by="uniform"), 0.5).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rate", "step"), [(10, 1), (30, 3), (60, 6)])
def test_seconds_mean_the_same_time_at_any_frame_rate(rate, step):
    got = frames_at(1000, rate, 16, ClipConfig(by="seconds", seconds=1.6), 0)
    assert got.tolist() == (np.arange(16) * step).tolist()


def test_a_rate_that_does_not_divide_evenly_still_spans_the_time():
    got = frames_at(1000, 29.97, 16, ClipConfig(by="seconds", seconds=4), 0.3)
    assert np.all(np.diff(got) >= 7)
    assert np.all(np.diff(got) <= 8)


def test_uniform_takes_one_frame_of_each_part():
    clip = ClipConfig(by="uniform")
    assert frames_at(32, 30, 4, clip, 0.5).tolist() == [4, 12, 20, 28]
    for seed in range(20):
        got = random_frames(32, 30, 4, clip, np.random.default_rng(seed))
        assert (got // 8).tolist() == [0, 1, 2, 3]


def test_random_clips_begin_anywhere_equally_often():
    clip = ClipConfig(by="stride", stride=2)
    rng = np.random.default_rng(0)
    starts = [int(random_frames(10, 30, 4, clip, rng)[0]) for _ in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 4
    assert abs(counts - 1000).max() < 120


def test_multi_scale_crops_have_the_sides_and_places_of_their_lists():
    view = ViewConfig(crop="multi_scale", crop_sides=(1.0, 0.875, 0.75, 0.66))
    rng = np.random.default_rng(0)
    sides, boxes = {round(200 * share) for share in view.crop_sides}, set()
    for _ in range(3000):
        left, upper, right, lower = random_crop((300, 200), view, rng)
        assert 0 <= left < right <= 300
        assert 0 <= upper < lower <= 200
        assert {right - left, lower - upper} <= sides
        boxes.add((left, upper, right, lower))
    assert len(POINTS) == 13
    assert len({(r - x, b - y) for x, y, r, b in boxes}) == 10
    assert max(abs((r - x) - (b - y)) for x, y, r, b in boxes) <= 25
