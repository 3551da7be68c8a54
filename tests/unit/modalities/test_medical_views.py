"""Crops, windows and motions: the middle is the middle, HU are HU, and a mask goes wherever its scan goes."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.data import bricks
from core.data.loading import collate
from core.modality import Item, Record, SampleBatch, Stats
from core.segmentation import IGNORE
from modalities.medical import augment, pictures
from modalities.medical.config import MedicalSettings
from modalities.medical.plugin import MedicalModality
from modalities.medical.reading import read

sys.path.insert(0, str(Path(__file__).parents[2]))
import scans

SIZE, PATCH = (16, 8, 12), (8, 4, 4)


def made(**more):
    return MedicalSettings.model_validate({"size": SIZE, "patch": PATCH} | more)


def record(shape=(20, 24, 16), seed=0):
    values = scans.phantom(shape, seed)
    return Record("k", bricks.encode(values, 8), bricks.CODEC, shape, "int16", meta={"least": -1024}), values


def stats(channels=1):
    return Stats(torch.zeros(channels), torch.ones(channels))


def test_the_fixed_view_is_the_middle_and_random_ones_are_boxes():
    plugin, (rec, values) = MedicalModality(made()), record()
    middle = plugin.view(rec, np.random.default_rng(0), train=False).data
    np.testing.assert_array_equal(middle, values[2:18, 8:16, 2:14])
    boxes = {plugin.view(rec, np.random.default_rng(seed), train=True).data.tobytes() for seed in range(20)}
    assert len(boxes) > 10


def test_a_small_volume_is_padded_with_its_lowest_value():
    plugin = MedicalModality(made())
    rec, values = record((10, 24, 16))
    view = plugin.view(rec, np.random.default_rng(0), train=False).data
    np.testing.assert_array_equal(view[3:13], values[:, 8:16, 2:14])
    assert (view[:3] == -1024).all()
    assert (view[13:] == -1024).all()


def test_each_window_is_a_channel_of_0_to_1():
    plugin = MedicalModality(made(intensity={"windows": [[-1000, 0], [0, 80]]}))
    rec, _ = record()
    x = plugin.features(collate([plugin.view(rec, np.random.default_rng(0), train=False)], None))
    assert x.shape == (1, 2, *SIZE)
    hu = torch.from_numpy(plugin.view(rec, np.random.default_rng(0), train=False).data).float()
    torch.testing.assert_close(x[0, 0], ((hu + 1000) / 1000).clamp(0, 1))
    torch.testing.assert_close(x[0, 1], (hu / 80).clamp(0, 1))


@pytest.mark.parametrize("kind", ["percentile", "zscore"])
@pytest.mark.parametrize("values", ["int16", "float32"])
def test_relative_values_are_the_whole_scan_s(tmp_path, kind, values):
    paths = scans.write_series(tmp_path, scans.phantom((20, 24, 16)), scans.affine())
    settings = made(intensity={"kind": kind}, store={"values": values})
    (rec,) = read(Item("k", str(paths[0]), parts=tuple(map(str, paths))), settings)
    plugin = MedicalModality(settings.model_copy(update={"size": (20, 24, 16), "patch": (4, 4, 4)}))
    x = plugin.features(collate([plugin.view(rec, np.random.default_rng(0), train=False)], None)).numpy()
    if kind == "zscore":
        assert abs(x.mean()) < 0.02
        assert abs(x.std() - 1) < 0.02
    else:
        low, high = np.percentile(x, [0.5, 99.5])
        assert abs(low) < 0.01
        assert abs(high - 1) < 0.01


def test_evaluation_may_look_along_the_longest_axis():
    plugin = MedicalModality(made(views=3))
    rec, values = record((20, 40, 16))
    views = [sample.data for sample in plugin.views(rec)]
    np.testing.assert_array_equal(views[0], values[2:18, 0:8, 2:14])
    np.testing.assert_array_equal(views[2], values[2:18, 32:40, 2:14])
    assert len(views) == 3


def mark(shape):
    """A scan whose values say where its mask is 1."""
    scan = torch.zeros(shape)
    scan[:, :, 3:9, 1:5] = 1.0
    return scan


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(12, 8), (12, 8, 10)]), st.booleans())
def test_a_mask_goes_where_its_scan_goes(seed, shape, turn):
    rng = torch.Generator().manual_seed(seed)
    scan = mark((3, 1, *shape))
    mask = (scan[:, 0] > 0.5).long()
    moved, target = augment.flip(scan, mask, (0.5,) * len(shape), rng)
    if turn:
        moved, target = augment.rotate(moved, target, 30.0, rng)
    sure = (moved[:, 0] < 0.2) | (moved[:, 0] > 0.8)  # Between them lies the blurred border.
    known = sure & (target != IGNORE)
    assert known.float().mean() > 0.6
    assert torch.equal((moved[:, 0] > 0.5)[known], (target == 1)[known])


def test_a_rotation_by_nothing_changes_nothing_and_a_full_one_turns():
    scan = torch.rand(2, 1, 9, 9)
    theta = augment._rotation(torch.tensor([0.0, torch.pi / 2]), scan.shape[2:])
    grid = torch.nn.functional.affine_grid(theta, [*scan.shape], align_corners=False)
    turned = torch.nn.functional.grid_sample(scan, grid, align_corners=False)
    torch.testing.assert_close(turned[0], scan[0], atol=1e-5, rtol=0)
    other = [scan[1].rot90(k, (1, 2)) for k in (1, 3)]
    assert any(torch.allclose(turned[1], side, atol=1e-4) for side in other)


def test_intensities_change_sample_by_sample():
    x = torch.ones(200, 1, 4, 4)
    changed = augment.intensity(x, 0.1, 0.2, torch.Generator().manual_seed(0))
    assert changed.flatten(1).std(1).max() == 0
    assert 0.7 <= changed.min() < 0.8
    assert 1.2 < changed.max() <= 1.3


def test_training_batches_are_changed_and_others_are_not():
    change = {"flip": [0.5, 0, 0.5], "rotate": 10, "scale": 0.1, "shift": 0.1}
    plugin, (rec, _) = MedicalModality(made(pretrain=change)), record()
    samples = collate([plugin.view(rec, np.random.default_rng(0), train=False)] * 4, None)
    still = plugin.batch(samples, stats(), torch.Generator().manual_seed(0), train=False).x
    torch.testing.assert_close(still, plugin.features(samples))
    moving = plugin.batch(samples, stats(), torch.Generator().manual_seed(0), train=True).x
    assert not torch.equal(moving, still)


def test_images_keep_colours_and_their_place(tmp_path):
    ramp = np.tile(np.arange(64, dtype=np.uint16) * 20, (48, 1))
    path = scans.write_image(tmp_path / "x", ramp)
    settings = made(size=[24, 32], patch=[8, 8], intensity={"windows": [[0, 1260]]})
    (rec,) = read(Item("k", str(path)), settings)
    plugin = MedicalModality(settings)
    sample = plugin.view(rec, np.random.default_rng(0), train=False)
    assert sample.data.shape == (24, 32)
    x = plugin.features(SampleBatch(torch.from_numpy(sample.data)[None], None))
    assert x.shape == (1, 1, 24, 32)
    assert (x[0, 0, :, 1:] > x[0, 0, :, :-1]).all()


def test_pictures_hang_as_radiologists_have_them():
    volume = np.zeros((6, 8, 10))
    volume[-1, 4, 5] = 1  # On the patient's right,
    axial, coronal, _ = pictures.orthogonal(volume)
    assert axial.shape == (8, 6)
    assert axial[:, 0].max() == 1  # which is on the left of the picture.
    assert coronal[:, 0].max() == 1
    volume = np.zeros((6, 8, 10))
    volume[3, -1, 5] = 1  # In front,
    axial, _, sagittal = pictures.orthogonal(volume)
    assert axial[0].max() == 1  # which is on top, and on the left of the side view.
    assert sagittal[:, 0].max() == 1
    volume = np.zeros((6, 8, 10))
    volume[3, 4, -1] = 1
    _, coronal, sagittal = pictures.orthogonal(volume)
    assert coronal[0].max() == 1
    assert sagittal[0].max() == 1


@pytest.mark.parametrize("shape", [(1, 16, 8, 12), (1, 24, 32), (3, 24, 32)])
def test_a_picture_opens_and_states_its_window(shape):
    more = {} if len(shape) == 4 else {"size": [24, 32], "patch": [8, 8]}
    if shape[0] == 3:
        more |= {"channels": 3, "intensity": {"kind": "percentile"}}
    media = MedicalModality(made(**more)).render(np.random.default_rng(0).random(shape))
    picture = Image.open(io.BytesIO(media[0].data))
    words = np.asarray(picture.convert("L"))[-pictures.LINE :]
    assert words.max() > 100
    assert pictures._words(made()) == "window -175 to 250"
