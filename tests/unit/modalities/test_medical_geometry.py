"""Volumes keep their place: orientation, resampling and cutting checked against nibabel and against known fields."""

import nibabel
import numpy as np
import pytest

from core.modality import Unreadable
from modalities.medical.geometry import Plane, box_above, ladder, moved, resample, spacing_of, to_ras

AFFINE = np.array([[0, 0, -2.5, 30.0], [0.9, 0, 0, -20.0], [0, -0.7, 0, 12.0], [0, 0, 0, 1]])


def field(shape, affine):
    """At each voxel a linear function of where it is in the patient."""
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return places @ np.array([3.0, -2.0, 1.0]) + 5


def test_ras_is_nibabel_s():
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    turned, placed = to_ras(volume, AFFINE)
    ours = nibabel.Nifti1Image(volume.astype(np.int16), AFFINE)
    theirs = nibabel.as_closest_canonical(ours)
    np.testing.assert_array_equal(turned, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(placed, theirs.affine)
    assert nibabel.aff2axcodes(placed) == ("R", "A", "S")


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0), (1.3, 0.9, 0.35)])
def test_resampling_leaves_everything_in_its_place(spacing):
    volume, placed = to_ras(field((12, 14, 10), AFFINE), AFFINE)
    out, there = resample(volume, placed, spacing)
    np.testing.assert_allclose(spacing_of(there), spacing)
    inside = tuple(slice(n // 3, -(n // 3)) for n in out.shape)
    np.testing.assert_allclose(out[inside], field(out.shape, there)[inside], atol=0.15)  # Of 3.7 per mm.


def test_masks_keep_their_labels():
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[4:, :, :], mask[:, :3, :] = 7, 3
    out, _ = resample(mask, np.eye(4), (0.6, 1.7, 1.0), nearest=True)
    assert out.dtype == np.uint8
    assert set(np.unique(out)) <= {0, 3, 7}


def test_coarser_voxels_are_averages():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 40, 40)).astype(np.float32)
    out, _ = resample(noise, np.eye(4), (4.0, 4.0, 4.0))
    assert out.shape == (10, 10, 10)
    assert out.std() < 0.35  # Taken voxel by voxel it would be 1.


def test_the_box_and_what_it_moves():
    volume = np.zeros((10, 11, 12))
    volume[2:5, 3:9, 7] = 4
    box = box_above(volume, 1)
    assert [(part.start, part.stop) for part in box] == [(2, 5), (3, 9), (7, 8)]
    np.testing.assert_allclose(moved(AFFINE, [2, 3, 7])[:3, 3], (AFFINE @ [2, 3, 7, 1])[:3])
    assert volume[box_above(volume, 99)].shape == volume.shape


def plane(z, orientation=(1, 0, 0, 0, 1, 0)):
    return Plane((0.0, 0.0, float(z)), orientation, (1.0, 1.0))


def test_slices_go_by_their_place():
    steps = ladder([plane(z) for z in (6, 0, 3, 9)])
    assert steps.rungs == [[1], [2], [0], [3]]
    assert steps.gaps == 0
    np.testing.assert_allclose(steps.affine[:3, 2], [0, 0, 3])


def test_gaps_are_counted_where_they_are():
    steps = ladder([plane(z) for z in (0, 2, 4, 10, 12)])
    assert steps.missing == [0, 0, 2, 0, 0]
    np.testing.assert_allclose(steps.affine[:3, 2], [0, 0, 2])


@pytest.mark.parametrize(
    ("places", "reason"), [((0, 0, 0), "one place"), ((0, 1, 2, 3.4, 4.4, 5.4), "uneven distances, 1.00 to 1.40 mm")]
)
def test_what_is_no_ladder_says_why(places, reason):
    with pytest.raises(Unreadable, match=reason):
        ladder([plane(z) for z in places])


def test_a_tilted_gantry_shears_the_affine():
    tilted = [Plane((0.0, 0.5 * k, 2.0 * k), (1, 0, 0, 0, 1, 0), (1.0, 1.0)) for k in range(5)]
    np.testing.assert_allclose(ladder(tilted).affine[:3, 2], [0, -0.5, 2.0])
