"""Masks of images: kept without loss, cut and mirrored like their images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.config import TaskConfig
from core.data.loading import collate
from core.errors import UserError
from core.evaluation.sliding import blend_weights
from core.modality import Item, Stats, Unreadable
from core.tasks import Task, encode_targets
from modalities.image.config import ImageSettings
from modalities.image.masks import CODEC, mask_of, resize_mask
from modalities.image.plugin import ImageModality

CONFIG = TaskConfig(kind="segmentation", classes=("a", "b", "c"))
ENCODE = Task.of(encode_targets([[0, 1]], CONFIG)[0]).tensor
PLAIN = Stats(torch.zeros(1), torch.ones(1))


def plugin(overlap=0.5, **data):
    live = ImageModality(ImageSettings(**{"size": (16, 16), "patch": (4, 4), "channels": 1} | data), "finetune")
    live.task, live.overlap = CONFIG, overlap
    return live


def pair(folder, shape, seed=0, cell=4, suffix=".png"):
    """An item whose image is its mask, in values 0, 100 and 200, in cells."""
    rng = np.random.default_rng(seed)
    rows, columns = -(-shape[0] // cell), -(-shape[1] // cell)
    mask = np.kron(rng.integers(0, 3, (rows, columns)), np.ones((cell, cell)))[: shape[0], : shape[1]].astype(np.uint8)
    Image.fromarray(mask * 100).save(folder / "image.png")
    if suffix == ".npy":
        np.save(folder / "mask.npy", mask.astype(np.int64))
    else:
        Image.fromarray(mask).save(folder / "mask.png")
    return Item("image.png", str(folder / "image.png"), target=str(folder / f"mask{suffix}")), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masks")


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    seed=st.integers(0, 10**6),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    zoom=st.sampled_from([(1.0, 1.0), (0.3, 0.6)]),
)
def test_an_image_and_its_mask_move_alike(folder, shape, seed, flip, zoom):
    live = plugin(finetune={"crop_scale": zoom, "flip": flip}, store={"codec": "raw"})
    record = live.read(pair(folder, shape, seed, cell=8)[0])[0]
    views = [live.view(record, np.random.default_rng(seed + i), train=True) for i in range(4)]
    batch = live.batch(collate(views, ENCODE), PLAIN, torch.Generator().manual_seed(seed), train=True)
    assert batch.target.dtype == torch.int64
    assert batch.target.shape == (4, 16, 16)
    known = batch.target != 255
    shown = batch.x[:, 0] * 255 / 100
    alike = (shown.round() == batch.target)[known].float().mean()
    # Resizing an image mixes what lies beside a border of cells; a mask has one value or the other there.
    assert alike == 1.0 if zoom == (1.0, 1.0) else alike > 0.8
    if zoom == (1.0, 1.0):
        assert (shown[~known] == 0).all()


def test_flips_do_happen_to_both(folder):
    live = plugin(finetune={"crop_scale": (1.0, 1.0), "flip": 1.0}, store={"codec": "raw"})
    record = live.read(pair(folder, (16, 16))[0])[0]
    samples = collate([live.view(record, np.random.default_rng(0), train=True)], ENCODE)
    batch = live.batch(samples, PLAIN, torch.Generator(), train=True)
    assert torch.equal(batch.target, samples.target.flip(-1))
    assert not torch.equal(batch.target, samples.target)
    still = live.batch(samples, PLAIN, torch.Generator(), train=False)
    assert torch.equal(still.target, samples.target)


@pytest.mark.parametrize("suffix", [".png", ".npy"])
@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_a_mask_is_kept_without_loss_behind_its_image(tmp_path, suffix, codec):
    live = plugin(store={"codec": codec})
    item, mask = pair(tmp_path, (37, 21), suffix=suffix)
    record = live.read(item)[0]
    assert (record.codec, record.target, record.meta["spacing"]) == (CODEC, [0, 1, 2], [1.0, 1.0])
    assert np.array_equal(mask_of(record), mask)
    alone = ImageModality(live.settings).read(item)[0]
    assert record.payload.startswith(alone.payload)
    assert len(record.payload) > len(alone.payload)
    assert alone.target == item.target
    assert live.view(record, np.random.default_rng(0), train=False).data.shape == (1, 16, 16)


def test_windows_cover_an_image_and_tell_their_place(folder):
    live = plugin(overlap=0.25)
    record = live.read(pair(folder, (40, 10))[0])[0]
    views = live.views(record)
    assert [view.place for view in views] == [(0, 0), (12, 0), (24, 0)]
    assert {view.whole for view in views} == {(40, 10)}
    whole = mask_of(record)
    for view in views:
        top = view.place[0]
        assert np.array_equal(view.target[:, :10], whole[top : top + 16])
        assert (view.target[:, 10:] == 255).all()
    assert blend_weights((16, 16), "constant").min() == 1


def test_masks_are_shrunk_with_their_images(tmp_path):
    live = plugin(store={"short_side": 20, "codec": "raw"})
    record = live.read(pair(tmp_path, (40, 60), cell=20)[0])[0]
    assert record.shape == (20, 30, 1)
    assert record.meta["spacing"] == [2.0, 2.0]
    mask = mask_of(record)
    assert mask.shape == (20, 30)
    assert {len(np.unique(mask[:10, at : at + 10])) for at in (0, 10, 20)} == {1}


def test_resizing_takes_the_value_at_the_centre():
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(resize_mask(mask, (0, 0, 4, 4), (4, 4)), mask)
    assert resize_mask(mask, (0, 0, 4, 4), (2, 2)).tolist() == [[5, 7], [13, 15]]
    assert resize_mask(mask, (1, 2, 3, 3), (1, 4)).tolist() == [[9, 9, 10, 10]]


def test_wrong_masks_are_reasons(tmp_path):
    live, (item, mask) = plugin(), pair(tmp_path, (20, 20))
    file = tmp_path / "mask.png"
    for wrong, reason in (
        (Image.fromarray(mask[:, :12]), "12x20 pixels, which is not the image's size"),
        (Image.fromarray(np.stack([mask] * 3, axis=-1)), "not \\(rows, columns\\)"),
        (Image.fromarray(mask.astype(np.uint16) + 254), "holds values of 254 to 256"),
    ):
        wrong.save(file)
        with pytest.raises(Unreadable, match=reason):
            live.read(item)
    file.write_bytes(b"nothing")
    with pytest.raises(Unreadable, match="damaged"):
        live.read(item)
    file.unlink()
    with pytest.raises(Unreadable, match="its mask is missing"):
        live.read(item)


def test_what_cannot_move_a_mask_is_refused(folder):
    live = plugin(finetune={"affine": {"degrees": 5}})
    record = live.read(pair(folder, (20, 20))[0])[0]
    with pytest.raises(UserError, match="not their masks"):
        live.view(record, np.random.default_rng(0), train=True)
