"""What the contract kit cannot know of inertial signals: vectors, segments, padding, pictures."""

import io

import numpy as np
import pytest
import torch
from maeflow_inertial.augment import augment, rotate, rotations
from maeflow_inertial.config import AugmentConfig, InertialSettings
from maeflow_inertial.plugin import InertialModality
from maeflow_inertial.reading import fit, read, starts
from PIL import Image

from core.data.codecs import decode
from core.data.loading import collate
from core.modality import Item, Stats

RNG = np.random.default_rng(0)
HEADER = "ax,ay,az,wx,wy,wz"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def saved(folder, signal, name="a.npy", **facts):
    np.save(folder / name, signal, allow_pickle=True)
    return Item(name, str(folder / name), **facts)


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_a_rotation_keeps_the_lengths_of_both_vectors_and_the_angle_between_them():
    x = torch.randn(5, 6, 40, generator=rng())
    turned = rotate(x, rotations(5, 180.0, rng(1), x.device))
    before, after = (torch.einsum("bsit,brit->bsrt", v, v) for v in (x.view(5, 2, 3, 40), turned.view(5, 2, 3, 40)))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(x, turned, atol=0.1)


def test_rotations_stay_within_the_angle():
    turns = rotations(1000, 20.0, rng(), torch.device("cpu"))
    angles = torch.rad2deg(torch.acos(((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    assert 19 < float(angles.max()) <= 20.01
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(1000))


def test_each_window_is_changed_by_a_draw_of_its_own():
    x = torch.randn(1, 6, 32, generator=rng()).expand(4, -1, -1)
    for settings in (AugmentConfig(rotation=30), AugmentConfig(scale=0.2), AugmentConfig(noise=0.1)):
        out = augment(x, torch.ones(6), settings, rng())
        assert len({tuple(window.flatten().tolist()) for window in out}) == 4


def test_without_settings_nothing_is_changed_and_nothing_drawn():
    x, generator = torch.randn(2, 6, 32), rng()
    assert torch.equal(augment(x, torch.ones(6), AugmentConfig(), generator), x)
    assert torch.equal(generator.get_state(), rng().get_state())


# --- segments, windows, padding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 511, 512, 513, 1024, 1500, 2618])
def test_segments_cover_the_recording_in_as_few_as_possible(length):
    places = starts(length, 512)
    covered = np.zeros(length, bool)
    for start in places:
        assert 0 <= start <= max(0, length - 512)
        covered[start : start + 512] = True
    assert covered.all()
    assert len(places) == max(1, -(-length // 512))


def test_segments_hold_what_the_file_holds_with_its_label_and_group(tmp_path):
    signal = RNG.normal(size=(1300, 6))
    records = read(saved(tmp_path, signal, target="walk", group="ann"), 512)
    assert [r.key for r in records] == ["a.npy#000", "a.npy#001", "a.npy#002"]
    assert {(r.target, r.group, r.dtype) for r in records} == {("walk", "ann", "float16")}
    for record in records:
        start = record.meta["start"]
        np.testing.assert_allclose(decode(record), signal[start : start + 512].T, rtol=6e-4, atol=1e-6)


def test_csv_and_npy_give_the_same_record(tmp_path):
    signal = RNG.normal(size=(300, 6)).round(4).astype(np.float32)
    np.savetxt(tmp_path / "a.csv", signal, "%.4f", ",", header=HEADER, comments="")
    (one,), (other,) = read(saved(tmp_path, signal), 512), read(Item("a.csv", str(tmp_path / "a.csv")), 512)
    assert one.payload == other.payload


def test_a_short_recording_is_padded_with_its_last_sample_and_the_engine_is_told(tmp_path):
    live = InertialModality(InertialSettings(window=64, patch=16, segment=64))
    short, whole = np.ones((20, 6)), np.ones((80, 6))
    records = [read(saved(tmp_path, s), 64)[0] for s in (short, whole)]
    samples = collate([live.view(r, np.random.default_rng(0), train=True) for r in records], None)
    assert samples.length is not None
    assert samples.length.tolist() == [20, 64]
    batch = live.batch(samples, Stats(torch.zeros(8), torch.ones(8)), rng(), train=False)
    assert batch.valid is not None
    assert batch.valid.tolist() == [[True, True, False, False], [True] * 4]
    data, real = fit(np.arange(12.0).reshape(6, 2), 0, 4)
    assert (data[:, 2:] == data[:, 1:2]).all()
    assert real == 2


def test_features_add_the_lengths_of_both_vectors(tmp_path):
    live = InertialModality(InertialSettings(), input_shape=(32,))
    (record,) = read(saved(tmp_path, np.tile([3, 4, 0, 0, 6, 8], (100, 1))), 512)
    x = live.features(collate(list(live.views(record)), None))
    assert x.shape == (3, live.patches().channels, 32)
    assert x[0, :, 0].tolist() == [3, 4, 0, 0, 6, 8, 5, 10]


def test_windows_differ_from_epoch_to_epoch_and_evaluation_spans_the_segment(tmp_path):
    live = InertialModality(InertialSettings(window=64, segment=256))
    (record,) = read(saved(tmp_path, np.arange(256)[:, None] * np.ones(6)), 256)
    draws = np.random.default_rng(0)
    firsts = [int(live.view(record, draws, train=True).data[0, 0]) for _ in range(200)]
    assert len(set(firsts)) > 50
    assert [int(view.data[0, 0]) for view in live.views(record)] == [0, 96, 192]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_picture_shows_curves_of_three_colours():
    time = np.linspace(0, 20, 256, dtype=np.float32)
    x = np.stack([np.sin(time + phase) for phase in range(6)] + [np.ones(256), np.ones(256)])
    (media,) = InertialModality(InertialSettings()).render(x)
    with Image.open(io.BytesIO(media.data)) as picture:
        assert picture.size == (300, 200)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for channel in range(3):
        others = np.delete(pixels, channel, axis=2).max(axis=2)
        assert (pixels[..., channel] - others > 20).sum() > 100
