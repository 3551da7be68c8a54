"""Clips, what is changed in them at random, and what the engine is told of padding."""

import io

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.data.loading import collate
from core.modality import Record, Stats
from modalities.audio import augment
from modalities.audio.config import AudioSettings
from modalities.audio.plugin import AudioModality, roll
from modalities.audio.storing import encode_pcm

RATE = 8000
SMALL = {"rate": RATE, "size": [32, 16], "patch": [8, 8], "refuse": {"shortest": 0.1}}


def plugin(purpose="pretrain", **changes):
    return AudioModality(AudioSettings.model_validate({**SMALL, **changes}), purpose)


def record(seconds, key="x", seed=0, target=None):
    pcm = np.random.default_rng(seed).integers(-9000, 9000, round(RATE * seconds)).astype(np.int16)
    return Record(key, encode_pcm(pcm, "pcm16", RATE), "pcm16", pcm.shape, "int16", target)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


STATS = Stats(torch.tensor([-5.0]), torch.tensor([2.0]))


def batch(made, seconds, train=True, seed=0):
    views = [made.view(record(s, seed=i, target=i), np.random.default_rng(i), train) for i, s in enumerate(seconds)]
    return made.batch(collate(views, torch.tensor), STATS, rng(seed), train)


def test_a_clip_of_a_long_recording_is_a_stretch_of_it_and_a_short_one_is_padded():
    made = plugin()
    long, short = record(2.0), record(0.15)
    samples = np.frombuffer(long.payload, np.int16)
    clip = made.view(long, np.random.default_rng(3), train=True)
    starts = np.flatnonzero(samples == clip.data[0])
    assert any(np.array_equal(samples[s : s + len(clip.data)], clip.data) for s in starts)
    assert clip.length == 32
    padded = made.view(short, np.random.default_rng(3), train=False)
    assert padded.data.shape == clip.data.shape
    assert (padded.data[1200:] == 0).all()
    assert padded.length == (1200 - 200) // 80 + 1


def test_random_clips_come_from_all_of_a_recording_and_the_fixed_one_from_its_middle():
    made, whole = plugin(), record(3.0)
    samples = np.frombuffer(whole.payload, np.int16)
    starts = []
    for seed in range(200):
        clip = made.view(whole, np.random.default_rng(seed), train=True).data
        starts.append(
            next(s for s in np.flatnonzero(samples == clip[0]) if np.array_equal(samples[s : s + 99], clip[:99]))
        )
    spare = len(samples) - len(clip)
    assert min(starts) < 0.05 * spare
    assert max(starts) > 0.95 * spare
    middle = made.view(whole, np.random.default_rng(0), train=False).data
    assert np.array_equal(middle, samples[spare // 2 : spare // 2 + len(middle)])


def test_evaluation_clips_lie_along_a_long_recording():
    made, whole = plugin("evaluate", test_clips=3), record(2.0)
    samples = np.frombuffer(whole.payload, np.int16)
    first, _, last = (view.data for view in made.views(whole))
    assert np.array_equal(first, samples[: len(first)])
    assert np.array_equal(last, samples[-len(last) :])
    assert len(made.views(record(0.2))) == 1


@settings(deadline=None)
@given(st.integers(2, 5000), st.integers(0, 10**6))
def test_a_roll_changes_the_waveform_and_keeps_its_samples(count, seed):
    """Rolling along an axis of length one, as is done elsewhere, changes nothing."""
    wave = np.arange(count, dtype=np.int16)
    rolled = wave.copy()
    roll(rolled, np.random.default_rng(seed))
    assert not np.array_equal(rolled, wave)
    assert np.array_equal(np.sort(rolled), wave)


def test_a_rolled_clip_keeps_its_padding_at_the_end():
    still, made = plugin(), plugin(pretrain={"roll": 1.0})
    short = record(0.2)
    view = made.view(short, np.random.default_rng(0), train=True)
    same = still.view(short, np.random.default_rng(0), train=True)
    assert not np.array_equal(view.data, same.data)
    assert np.array_equal(np.sort(view.data[:1600]), np.sort(same.data[:1600]))
    assert (view.data[1600:] == 0).all()


def test_padding_is_told_patch_by_patch_and_is_zero():
    made = plugin()
    given_ = batch(made, [1.0, 0.2], train=False)
    assert given_.valid.view(2, 4, 2).all(dim=2).tolist() == [[True] * 4, [True, True, True, False]]
    assert given_.x.shape == (2, 1, 32, 16)
    assert (given_.x[1, 0, 18:] == 0).all()
    assert (given_.x[1, 0, :18] != 0).all()


def test_the_length_of_a_clip_does_not_change_what_is_heard_of_it():
    """A short clip alone, and in a batch with padding: the same spectrogram where it sounds."""
    made = plugin(spectrogram={"centre": "band"})
    short, long = record(0.2, seed=1), record(1.0, seed=2)
    both = collate([made.view(r, np.random.default_rng(0), train=False) for r in (short, long)], None)
    features = made.features(both)
    assert features[0, 0, :18].mean(0).abs().max() < 1e-4
    assert features[1, 0].mean(0).abs().max() < 1e-4


@pytest.mark.parametrize("centre", ["none", "clip", "band"])
def test_loudness_and_colour_are_taken_out_where_that_is_wanted(centre):
    made = plugin(spectrogram={"centre": centre})
    view = made.view(record(1.0), np.random.default_rng(0), train=False)
    softer = collate([view], None)
    softer.data = (softer.data // 4) * 2
    louder = collate([view], None)
    louder.data = (louder.data // 4) * 4
    change = (made.features(louder) - made.features(softer)).abs().max()
    assert change < 1e-3 if centre != "none" else abs(change - 2 * np.log(2)) < 1e-3


def test_loudness_changes_by_up_to_what_was_asked():
    waves = torch.ones(500, 10)
    db = 20 * torch.log10(augment.gain(waves, 6.0, rng())[:, 0])
    assert db.min() < -5.5
    assert db.max() > 5.5
    assert db.abs().max() <= 6.0


def test_noise_lies_as_far_below_a_clip_as_was_asked():
    waves = torch.sin(torch.arange(16_000) / 7.0).repeat(200, 1)
    noise = augment.add_noise(waves, 0.5, (10.0, 20.0), rng()) - waves
    below = 20 * torch.log10(waves.square().mean(1).sqrt() / noise.square().mean(1).sqrt())
    noisy = torch.isfinite(below)
    assert 0.35 < noisy.float().mean() < 0.65
    assert below[noisy].min() > 9.5
    assert below[noisy].max() < 20.5


def test_waves_are_mixed_as_the_targets_are_told_to_be():
    waves = torch.eye(64)
    mixed, how = augment.mixup(waves, 0.5, 10, rng())
    expected = waves * how.share[:, None] + waves[how.partner] * (1 - how.share[:, None])
    assert torch.equal(mixed, expected)
    assert sorted(how.partner.tolist()) == list(range(64))
    own = how.share == 1
    assert 16 < own.sum() < 48
    _, always = augment.mixup(torch.eye(2).repeat(2000, 1), 1.0, 10, rng())
    # Beta(10, 10) has mean 1/2 and variance 1/84.
    assert always.share.mean() == pytest.approx(0.5, abs=0.01)
    assert always.share.var() == pytest.approx(1 / 84, rel=0.1)


def test_only_fine_tuning_mixes_and_a_mixture_is_as_long_as_the_longer_part():
    change = {"finetune": {"mixup": 1.0}}
    assert batch(plugin("pretrain", **change), [1.0, 0.2]).mixed is None
    made = batch(plugin("finetune", **change), [1.0, 0.2] * 4)
    assert batch(plugin("finetune", **change), [1.0, 0.2], train=False).mixed is None
    patches = made.valid.sum(1)
    partner = made.mixed.partner
    alone = torch.tensor([8, 6] * 4)
    assert torch.equal(patches, torch.maximum(alone, alone[partner]))
    assert made.target.tolist() == list(range(8))


def test_what_is_not_mixed_keeps_its_own_length():
    made = batch(plugin("finetune", finetune={"mixup": 0.4}), [1.0, 0.2] * 12)
    own = made.mixed.share == 1
    assert 6 < own.sum() < 22
    alone = torch.tensor([8, 6] * 12)
    expected = torch.where(own, alone, torch.maximum(alone, alone[made.mixed.partner]))
    assert torch.equal(made.valid.sum(1), expected)
    assert (made.valid.sum(1)[own] == 6).any()


def test_noise_is_measured_against_what_sounds():
    wave = torch.sin(torch.arange(16_000) / 7.0)
    wave[4000:] = 0
    waves = wave.repeat(50, 1)
    noise = augment.add_noise(waves, 1.0, (20.0, 20.0), rng(), torch.full((50,), 4000)) - waves
    below = 20 * torch.log10(wave[:4000].square().mean().sqrt() / noise.square().mean(1).sqrt())
    assert below.min() > 19.5
    assert below.max() < 20.5


@pytest.mark.parametrize("axis", [2, 3])
def test_a_hidden_span_is_one_stretch_no_longer_than_asked(axis):
    x = augment.hide_span(torch.ones(300, 1, 40, 20), axis, 0.25, rng())
    hidden = (x == 0).all(dim=5 - axis)[:, 0]
    widths = hidden.sum(1)
    assert widths.max() <= 0.25 * x.shape[axis] + 1
    assert widths.max() >= 0.2 * x.shape[axis]
    assert (hidden[:, 1:] != hidden[:, :-1]).sum(1).max() <= 2


def rendered(real):
    """Picture (height, width, 3), sound and its rate of a clip of 32 frames, of which so many are ``real``."""
    made = plugin()
    features = made.features(collate([made.view(record(1.0), np.random.default_rng(0), train=False)], None))
    features[..., real:, :] = torch.nan
    picture, sound = made.render(features[0].numpy())
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")), *soundfile.read(io.BytesIO(sound.data))


def test_pictures_show_seconds_and_hz_and_can_be_heard():
    picture, wave, rate = rendered(32)
    assert picture.shape == (160, 240, 3)
    assert rate == RATE
    assert len(wave) / rate == pytest.approx(32 * 0.01, abs=0.02)
    assert 0.4 < np.abs(wave).max() <= 0.51


@pytest.mark.parametrize("real", [1, 8, 16])
def test_padding_is_blank_and_not_heard(real):
    picture, wave, rate = rendered(real)
    whole, _, _ = rendered(32)
    middle = picture[60, 45:230]  # Between the axes.
    blank = (middle == 255).all(axis=1)
    assert not (whole[60, 45:230] == 255).all(axis=1).any()
    assert blank.mean() == pytest.approx(1 - real / 32, abs=0.05)
    assert blank[-5:].all()
    assert len(wave) / rate == pytest.approx(real * 0.01, abs=0.03)
