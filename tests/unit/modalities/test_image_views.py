"""Views of images: random ones repeat with their generator, fixed ones are what evaluation papers use."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.modality import Item, SampleBatch, Stats
from modalities.image.augment import affine
from modalities.image.config import AffineConfig, AugmentConfig, ImageSettings, StoreConfig
from modalities.image.plugin import ImageModality

ROWS, COLUMNS = np.mgrid[0:60, 0:90]
PICTURE = np.stack([ROWS * 4, COLUMNS * 2, 128 + 0 * ROWS], axis=-1).astype(np.uint8)


def record(plugin, tmp_path, pixels=PICTURE):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return plugin.read(Item("a.png", str(tmp_path / "a.png")))[0]


def view(plugin, rec, seed, train=True):
    return plugin.view(rec, np.random.default_rng(seed), train).data


@pytest.mark.parametrize(
    "settings",
    [
        AugmentConfig(),
        AugmentConfig(affine=AffineConfig(degrees=10, translate=0.1, scale=0.1)),
        AugmentConfig(rand_augment="rand-m9-mstd0.5-inc1"),
    ],
    ids=["crop", "affine", "rand_augment"],
)
def test_views_repeat_with_their_generator(tmp_path, settings):
    plugin = ImageModality(ImageSettings(size=(32, 48), patch=(8, 8), pretrain=settings))
    rec = record(plugin, tmp_path)
    first, again = view(plugin, rec, 1), view(plugin, rec, 1)
    assert first.shape == (3, 32, 48)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, view(plugin, rec, seed)) for seed in range(2, 6))


def test_the_fixed_view_is_the_centre(tmp_path):
    plugin = ImageModality(ImageSettings(size=(32, 32), patch=(8, 8), eval_crop=0.5))
    got = view(plugin, record(plugin, tmp_path), 0, train=False)
    assert abs(float(got[0].mean()) - PICTURE[15:45, 30:60, 0].mean()) < 2
    assert abs(float(got[1].mean()) - PICTURE[15:45, 30:60, 1].mean()) < 2


@pytest.mark.parametrize("codec", ["jpeg", "webp", "raw"])
def test_a_grey_picture_stays_grey(tmp_path, codec):
    store = StoreConfig(codec=codec, quality=100)
    plugin = ImageModality(ImageSettings(size=(32, 32), patch=(8, 8), channels=1, store=store))
    got = view(plugin, record(plugin, tmp_path, PICTURE[..., 0]), 0, train=False)
    assert got.shape == (1, 32, 32)
    assert abs(float(got.mean()) - PICTURE[15:45, :, 0].mean()) < 3


def test_an_affine_motion_of_nothing_changes_nothing():
    picture = Image.fromarray(PICTURE)
    assert np.array_equal(np.asarray(affine(picture, AffineConfig(), np.random.default_rng(0))), PICTURE)


def test_each_stage_has_its_own_views_and_size(tmp_path):
    settings = ImageSettings(
        size=(32, 32),
        patch=(8, 8),
        pretrain=AugmentConfig(crop_scale=(0.2, 0.2)),
        finetune=AugmentConfig(crop_scale=(1, 1), crop_ratio=(1.5, 1.5)),
        store=StoreConfig(codec="raw"),
    )
    tuning = ImageModality(settings, "finetune", (16, 24))
    got = view(tuning, record(tuning, tmp_path), 3)
    assert got.shape == (3, 16, 24)
    assert tuning.patches().grid == (2, 3)
    whole = np.asarray(Image.fromarray(PICTURE).resize((24, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(got.astype(int) - whole).max() <= 2


def test_integers_of_any_width_become_zero_to_one():
    plugin = ImageModality(ImageSettings(size=(8, 8), patch=(4, 4)))
    for dtype, top in ((torch.uint8, 255), (torch.uint16, 65535)):
        data = torch.full((1, 3, 8, 8), top, dtype=torch.int32).to(dtype)
        assert torch.equal(plugin.features(SampleBatch(data, None)), torch.ones(1, 3, 8, 8))


def test_a_batch_is_normalised(tmp_path):
    plugin = ImageModality(ImageSettings(size=(8, 8), patch=(4, 4)))
    stats = Stats(torch.full((3,), 0.5), torch.full((3,), 0.25))
    samples = SampleBatch(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), None)
    out = plugin.batch(samples, stats, torch.Generator(), train=False)
    assert torch.allclose(out.x, torch.full_like(out.x, 2.0))


def test_sixteen_bit_arrays_keep_their_depth_through_a_view(tmp_path):
    plugin = ImageModality(ImageSettings(size=(8, 8), patch=(4, 4), channels=5, eval_crop=1))
    data = np.random.default_rng(0).integers(0, 60000, (8, 8, 5)).astype(np.uint16)
    np.save(tmp_path / "a.npy", data)
    (rec,) = plugin.read(Item("a.npy", str(tmp_path / "a.npy")))
    assert np.array_equal(view(plugin, rec, 0, train=False), data.transpose(2, 0, 1))


def test_a_picture_for_people_is_large_enough_to_see():
    plugin = ImageModality(ImageSettings(size=(28, 28), patch=(4, 4), channels=1))
    import io

    (media,) = plugin.render(np.random.default_rng(0).random((1, 28, 28)))
    assert min(Image.open(io.BytesIO(media.data)).size) >= 112
