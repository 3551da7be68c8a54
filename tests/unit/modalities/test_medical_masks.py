"""Masks move with their scans: into RAS, to another spacing, into boxes; windows put them together again."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from core.config import TaskConfig
from core.data.bricks import Bricks
from core.data.loading import collate
from core.errors import UserError
from core.modality import Item, Stats, Unreadable
from core.segmentation import IGNORE
from modalities.medical.config import MedicalSettings
from modalities.medical.plugin import MedicalModality
from modalities.medical.reading import read

sys.path.insert(0, str(Path(__file__).parents[2]))
import scans

TASK = TaskConfig.model_validate({"kind": "segmentation", "classes": ["outside", "organ"]})
OBLIQUE = scans.affine((1.0, 1.5, 2.0), scans.turned())[:, [2, 0, 1, 3]]


def plugin(**more):
    made = MedicalModality(MedicalSettings.model_validate({"size": [16, 8, 12], "patch": [8, 4, 4]} | more), "finetune")
    made.task = TASK
    return made


def write(folder, shape=(20, 24, 16), matrix=OBLIQUE, name="case"):
    """A scan that is bright just where its mask is 1."""
    mask = np.zeros(shape, np.uint8)
    mask[5:15, 6:18, 4:12] = 1
    scan = np.where(mask == 1, 200, -900).astype(np.int16)
    for kind, values in (("images", scan), ("masks", mask)):
        (folder / kind).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, matrix), folder / kind / f"{name}.nii.gz")
    return scan, mask


def one(made, folder):
    (item,) = made.discover(str(folder))
    (record,) = made.read(item)
    return record


@pytest.mark.parametrize("more", [{}, {"spacing": [1.2, 0.9, 1.7]}, {"crop_above": -500}])
def test_a_mask_moves_with_its_scan_into_place(tmp_path, more):
    write(tmp_path)
    record = one(plugin(**more), tmp_path)
    payload = Bricks(record.payload)
    scan, mask = payload.whole(), payload.whole(mask=True)
    assert scan.shape == mask.shape
    assert record.target == ([1] if "crop_above" in more else [0, 1])  # The organ fills the box around itself.
    sure = (scan > 150) | (scan < -850)  # Between them lie borders that resampling has blurred.
    assert sure.mean() > 0.6
    assert (mask == 1).sum() * np.prod(record.meta["spacing"]) == pytest.approx(10 * 12 * 8 * 3.0, rel=0.15)
    np.testing.assert_array_equal(scan[sure] > 0, mask[sure] == 1)


def test_windows_cover_a_scan_and_put_its_mask_together_again(tmp_path):
    write(tmp_path)
    made = plugin()
    record = one(made, tmp_path)
    mask = Bricks(record.payload).whole(mask=True)
    put = np.full(mask.shape, IGNORE, np.uint8)
    for view in made.views(record):
        assert view.whole == mask.shape
        assert view.place is not None
        here = tuple(slice(c, c + n) for c, n in zip(view.place, view.target.shape, strict=True))
        put[here] = view.target[tuple(slice(0, s) for s in put[here].shape)]
    np.testing.assert_array_equal(put, mask)


def test_beyond_a_small_scan_nothing_is_labelled(tmp_path):
    write(tmp_path, (8, 8, 10), np.eye(4))
    made = plugin()
    (view,) = made.views(one(made, tmp_path))
    assert view.target.shape == (16, 8, 12)
    assert view.place == (-4, 0, -1)  # In the middle, as in training.
    inside = np.zeros((16, 8, 12), bool)
    inside[4:12, :, 1:11] = True
    np.testing.assert_array_equal(view.target != IGNORE, inside)


def test_training_batches_move_both_alike(tmp_path):
    write(tmp_path, matrix=np.eye(4))
    made = plugin(finetune={"flip": [0.5, 0.5, 0.5], "rotate": 20}, intensity={"windows": [[-900, 200]]})
    record = one(made, tmp_path)
    views = [made.view(record, np.random.default_rng(seed), train=True) for seed in range(16)]
    samples = collate(views, lambda masks: torch.from_numpy(np.stack(masks).astype(np.int64)))
    stats = Stats(torch.zeros(1), torch.ones(1))
    batch = made.batch(samples, stats, torch.Generator().manual_seed(0), train=True)
    assert batch.target.dtype == torch.int64
    sure = ((batch.x[:, 0] < 0.1) | (batch.x[:, 0] > 0.9)) & (batch.target != IGNORE)
    assert torch.equal((batch.x[:, 0] > 0.5)[sure], (batch.target == 1)[sure])
    assert not torch.equal(batch.target, samples.target)


def test_a_scan_without_a_mask_is_not_labelled(tmp_path):
    write(tmp_path)
    (tmp_path / "masks" / "case.nii.gz").rename(tmp_path / "masks" / "other.nii.gz")
    made = plugin()
    record = one(made, tmp_path)
    assert record.target is None
    assert made.view(record, np.random.default_rng(0), train=True).target is None


def test_a_series_has_its_mask_by_the_name_of_its_folder(tmp_path):
    values = scans.phantom((20, 24, 16))
    scans.write_series(tmp_path / "images" / "case", values, OBLIQUE)
    (tmp_path / "masks").mkdir()
    mask = nibabel.Nifti1Image((values > -500).astype(np.uint8), OBLIQUE)
    nibabel.save(mask, tmp_path / "masks" / "case.nii.gz")
    payload = Bricks(one(plugin(), tmp_path).payload)
    np.testing.assert_array_equal(payload.whole() > -500, payload.whole(mask=True) == 1)


def test_two_series_do_not_share_a_mask(tmp_path):
    values = scans.phantom((20, 24, 16))
    (tmp_path / "masks").mkdir()
    mask = nibabel.Nifti1Image((values > -500).astype(np.uint8), OBLIQUE)
    nibabel.save(mask, tmp_path / "masks" / "case.nii.gz")
    for number in "12":
        folder = tmp_path / "images" / "case" / number
        scans.write_series(folder, values, OBLIQUE, SeriesInstanceUID=f"1.2.{number}")
    with pytest.raises(UserError, match="stands for several items"):
        list(plugin().discover(str(tmp_path)))


BAD = {
    "is of .3, 3, 3. voxels": np.zeros((3, 3, 3), np.uint8),
    "not whole numbers": np.full((20, 24, 16), 0.5, np.float32),
    "not whole numbers of 0 to 255": np.full((20, 24, 16), 700, np.int16),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_mask_that_does_not_fit_says_why(tmp_path, reason):
    write(tmp_path)
    nibabel.save(nibabel.Nifti1Image(BAD[reason], OBLIQUE), tmp_path / "masks" / "case.nii.gz")
    with pytest.raises(Unreadable, match=reason):
        one(plugin(), tmp_path)


@pytest.mark.parametrize("kind", ["elsewhere", "a class too many", "not a number"])
def test_a_mask_of_something_else_is_refused(tmp_path, kind):
    _, mask = write(tmp_path)
    matrix, values = OBLIQUE.copy(), mask.astype(np.float32)
    if kind == "elsewhere":
        matrix[0, 3] += 1.0
    else:
        values[0, 0, 0] = 2 if kind == "a class too many" else np.nan
    nibabel.save(nibabel.Nifti1Image(values, matrix), tmp_path / "masks" / "case.nii.gz")
    reason = {"elsewhere": "lies elsewhere", "a class too many": "holds 2, and task.classes names 2"}
    with pytest.raises(Unreadable, match=reason.get(kind, "not whole numbers")):
        one(plugin(), tmp_path)


def test_a_mask_written_the_other_way_round_still_fits(tmp_path):
    """Tools store one volume with its rows flipped or not, and say so in the affine."""
    scan, mask = write(tmp_path)
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = mask.shape[1] - 1
    other = nibabel.Nifti1Image(np.ascontiguousarray(mask[:, ::-1]), OBLIQUE @ flip)
    nibabel.save(other, tmp_path / "masks" / "case.nii.gz")
    payload = Bricks(one(plugin(), tmp_path).payload)
    np.testing.assert_array_equal(payload.whole() > 0, payload.whole(mask=True) == 1)
    assert scan.shape == mask.shape


def test_a_manifest_may_name_a_mask_that_is_missing(tmp_path):
    write(tmp_path)
    (tmp_path / "m.csv").write_text("path,label\nimages/case.nii.gz,masks/none.nii.gz\n")
    with pytest.raises(Unreadable, match="its mask is missing"):
        one(plugin(), tmp_path / "m.csv")


def test_masks_of_images_are_for_the_image_plugin(tmp_path):
    path = scans.write_image(tmp_path / "x", np.arange(64, dtype=np.uint16).reshape(8, 8))
    flat = MedicalSettings.model_validate({"size": [8, 8], "patch": [4, 4]})
    with pytest.raises(Unreadable, match="modality image"):
        read(Item("k", str(path), target="mask.png"), flat, classes=2)
