"""Views of videos: several from one decoding equal those taken singly, and fixed ones are what test protocols use."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.modality import Record, SampleBatch, Stats
from modalities.video.config import ClipConfig, StoreConfig, VideoSettings, ViewConfig
from modalities.video.plugin import VideoModality
from modalities.video.storing import CODECS, encode_frames

sys.path.insert(0, str(Path(__file__).parents[2]))
from odd_videos import number, ramp

STORE = StoreConfig(crf=8)
WHOLE = ViewConfig(crop_scale=(1, 1), crop_ratio=(1, 1))


def record(count=32, size=(48, 48)):
    frames = ramp(count, size)
    return Record("a", encode_frames(frames, STORE), CODECS["h264"], frames.shape, "uint8", 1, meta={"fps": 20.0})


def plugin(purpose="pretrain", input_shape=None, **settings):
    defaults = {"size": (4, 32, 32), "patch": (2, 8, 8), "clip": ClipConfig(stride=2), "store": STORE}
    return VideoModality(VideoSettings(**(defaults | settings)), purpose, input_shape)


def shown(sample):
    """Numbers of the frames that a sample shows."""
    return [number(frame) for frame in sample.data]


@pytest.mark.parametrize(
    "view",
    [
        ViewConfig(),
        ViewConfig(crop="multi_scale"),
        ViewConfig(rand_augment="rand-m7-n4-mstd0.5-inc1"),
    ],
    ids=["resized", "multi_scale", "rand_augment"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_several_views_from_one_decoding_are_those_taken_singly(view, channels):
    video, rec = plugin(pretrain=view, channels=channels), record()
    together = video.repeated(rec, [np.random.default_rng(seed) for seed in range(4)])
    for seed, sample in enumerate(together):
        single = video.view(rec, np.random.default_rng(seed), train=True)
        assert np.array_equal(sample.data, single.data)
        assert sample.data.shape == (4, 32, 32, channels)
        assert sample.data.dtype == np.uint8
        assert sample.target == 1
    assert not np.array_equal(together[0].data, together[1].data)


def test_a_random_clip_has_its_stride_and_begins_anywhere():
    video, rec = plugin(pretrain=WHOLE), record()
    starts = set()
    for seed in range(40):
        frames = shown(video.view(rec, np.random.default_rng(seed), train=True))
        assert np.diff(frames).tolist() == [2, 2, 2]
        starts.add(frames[0])
    assert min(starts) <= 3
    assert max(starts) >= 22


def test_the_fixed_view_is_the_middle_clip():
    assert shown(plugin().view(record(), np.random.default_rng(0), train=False)) == [13, 15, 17, 19]


def test_testing_averages_clips_along_the_video_and_crops_across_it():
    wide = record(size=(144, 48))
    video = plugin("evaluate", test_segments=3, test_crops=3, size=(4, 24, 24), patch=(2, 8, 8))
    views = video.views(wide)
    assert len(views) == 9
    left, middle, right = (view.data[0].astype(int) for view in views[:3])
    assert left[1, 1, 0] - left[1, 1, 2] > 100, "the left crop sees the red corner"
    assert right[-2, -2, 2] - right[-2, -2, 0] > 100, "the right crop sees the blue corner"
    assert abs(middle[1, 1, 0] - middle[1, 1, 2]) < 40
    assert len({view.data.tobytes() for view in views}) == 9


def test_uniform_clips_of_fine_tuning_span_the_video():
    video = plugin("evaluate", finetune_clip=ClipConfig(by="uniform"), test_segments=2)
    first, second = (shown(view) for view in video.views(record()))
    assert first == [2, 10, 18, 26]
    assert second == [6, 14, 22, 30]
    assert shown(plugin("pretrain", finetune_clip=ClipConfig(by="uniform")).views(record())[0]) == [13, 15, 17, 19]


def test_a_stage_may_have_its_own_length_and_size():
    video = plugin("finetune", (8, 16, 40))
    assert video.view(record(), np.random.default_rng(0), train=True).data.shape == (8, 16, 40, 3)
    assert video.patches().grid == (4, 2, 5)


def test_all_frames_of_a_clip_are_augmented_alike():
    frames = np.repeat(ramp(1, (48, 48)), 32, axis=0)
    rec = Record("a", encode_frames(frames, STORE), CODECS["h264"], frames.shape, "uint8", meta={"fps": 20.0})
    video = plugin(pretrain=ViewConfig(rand_augment="rand-m9-n3-mstd0.5-inc1"))
    for seed in range(5):
        data = video.view(rec, np.random.default_rng(seed), train=True).data.astype(int)
        assert np.abs(data - data[:1]).max() <= 24  # What the codec makes of equal frames; never another motion.


@pytest.mark.parametrize("codec", ["h264", "jpeg"])
def test_channels_come_first_and_grey_is_brightness(codec):
    frames = np.zeros((32, 48, 48, 3), np.uint8)
    frames[..., 1] = 255
    payload = encode_frames(frames, StoreConfig(codec=codec, crf=4, quality=95))
    rec = Record("a", payload, CODECS[codec], frames.shape, "uint8", meta={"fps": 20.0})
    seen = {}
    for channels in (1, 3):
        video = plugin(channels=channels)
        data = video.view(rec, np.random.default_rng(0), train=False).data
        seen[channels] = video.features(SampleBatch(torch.from_numpy(data)[None], None))
        assert seen[channels].shape == (1, channels, 4, 32, 32)
    assert seen[3].mean((0, 2, 3, 4)).tolist() == pytest.approx([0, 1, 0], abs=0.03)
    assert float(seen[1].mean()) == pytest.approx(0.587, abs=0.02)


def test_clips_are_mirrored_whole_in_training_only():
    stats = Stats(torch.zeros(3), torch.ones(3))
    data = torch.from_numpy(np.stack([ramp(4, (32, 32))] * 64))
    video = plugin(pretrain=ViewConfig(flip=0.5))
    plain = video.features(SampleBatch(data, None))
    out = video.batch(SampleBatch(data, None), stats, torch.Generator().manual_seed(0), train=True).x
    same = (out == plain).flatten(1).all(1)
    mirrored = (out == plain.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 16 < mirrored.sum() < 48
    assert torch.equal(video.batch(SampleBatch(data, None), stats, torch.Generator(), train=False).x, plain)
