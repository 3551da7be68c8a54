"""A volume written as a series reads back to the bit and in its place, whatever its files are called."""

import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from core.modality import Unreadable
from modalities.medical import series
from modalities.medical.config import RefuseConfig
from modalities.medical.geometry import to_ras
from modalities.medical.headers import look

sys.path.insert(0, str(Path(__file__).parents[2]))
import scans

OBLIQUE = scans.affine(rotation=scans.turned())


def read(paths, **refuse):
    found, _ = series.volumes([str(path) for path in paths], RefuseConfig(**refuse))
    return found


@pytest.mark.parametrize(
    "matrix", [scans.affine(), OBLIQUE, OBLIQUE @ np.diag([1, 1, -1, 1]), OBLIQUE[:, [1, 2, 0, 3]]]
)
def test_a_shuffled_oblique_series_is_bit_exact_and_in_place(tmp_path, matrix):
    values = scans.phantom()
    (volume,) = read(sorted(scans.write_series(tmp_path, values, matrix)))
    ours, placed = to_ras(volume.values, volume.affine)
    theirs = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, matrix))
    np.testing.assert_array_equal(ours, np.asarray(theirs.dataobj))
    np.testing.assert_allclose(placed, theirs.affine, atol=1e-6)
    assert (volume.filled, volume.repeated) == (0, 0)


def test_duplicates_are_dropped(tmp_path):
    values = scans.phantom()
    paths = scans.write_series(tmp_path, values, OBLIQUE)
    shutil.copyfile(paths[3], tmp_path / "copy")  # The same file again,
    rewritten = scans.write_series(tmp_path / "again", values, OBLIQUE)  # and the same slice under another number.
    (volume,) = read([*paths, tmp_path / "copy", rewritten[5]])
    assert volume.repeated == 2
    np.testing.assert_array_equal(volume.values, read(paths)[0].values)


def test_a_missing_slice_is_reported_and_filled_only_on_request(tmp_path):
    values = scans.phantom()
    paths = scans.write_series(tmp_path, values, OBLIQUE)
    del paths[4]
    with pytest.raises(Unreadable, match=r"1 of 16 slices are missing \(after slice 4\)"):
        read(paths)
    (volume,) = read(paths, gaps=False)
    assert volume.filled == 1
    assert volume.values.shape == values.shape
    np.testing.assert_array_equal(np.delete(volume.values, 4, 2), np.delete(values, 4, 2))
    between = (values[:, :, 3].astype(float) + values[:, :, 5]) / 2
    assert np.abs(volume.values[:, :, 4] - between).max() <= 0.5


def test_several_images_of_every_place_are_several_volumes(tmp_path):
    uid = generate_uid()
    phases = [scans.phantom(seed=seed) for seed in range(3)]
    paths = [
        path
        for number, values in enumerate(phases)
        for path in scans.write_series(
            tmp_path / str(number), values, OBLIQUE, SeriesInstanceUID=uid, TemporalPositionIdentifier=number + 1
        )
    ]
    found = read(paths[::-1])
    assert len(found) == 3
    for volume, values in zip(found, phases, strict=True):
        np.testing.assert_array_equal(volume.values, values)
    with pytest.raises(Unreadable, match="some places hold 2 images, others 3"):
        read(paths[1:])


def test_an_enhanced_object_is_read_by_the_places_of_its_frames(tmp_path):
    values = scans.phantom()
    path = scans.write_enhanced(tmp_path / "one", values, OBLIQUE, order=list(np.random.default_rng(0).permutation(16)))
    (volume,) = read([path])
    np.testing.assert_array_equal(volume.values, values)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)


def test_frames_without_a_place_are_no_volume(tmp_path):
    path = scans.write_image(tmp_path / "cine", np.arange(20 * 8 * 8, dtype=np.uint16).reshape(20, 8, 8))
    with pytest.raises(Unreadable, match="20 frames without a place"):
        read([path])


def test_one_series_of_many_kinds_falls_into_groups(tmp_path):
    uid = generate_uid()
    for name, matrix, shape in (
        ("axial", scans.affine(), (20, 24, 16)),
        ("coronal", scans.affine()[:, [0, 2, 1, 3]], (20, 24, 16)),
        ("large", scans.affine(), (40, 48, 16)),
    ):
        scans.write_series(tmp_path / name, scans.phantom(shape), matrix, SeriesInstanceUID=uid)
    headers = [look(str(path)) for path in sorted(tmp_path.rglob("IM*"), reverse=True)]
    groups = series.together(headers)
    assert sorted(len(group) for group in groups) == [16, 16, 16]
    for group in groups:
        assert len({(h.rows, h.columns) for h in group}) == 1
        read([h.path for h in group])


REFUSED = {
    "a localiser": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, {}),
    "writing in its pixels": ({"BurnedInAnnotation": "YES"}, {}),
    "not said to be free": ({}, {"burned_in": "unless_denied"}),
    "a secondary capture": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, {"secondary_capture": True}),
    "needs 17 slices, this has 16": ({}, {"fewest_slices": 17}),
    "does not say where it lies": ({"ImagePositionPatient": None}, {}),
    "does not say how far": ({"PixelSpacing": None}, {}),
    "claims more than 10 voxels": ({}, {"most_voxels": 10}),
    "claims more than 1000 voxels": ({}, {"most_voxels": 1000}),
    "all its slices lie at one place": ({"ImagePositionPatient": [0, 0, 0]}, {}),
    "a colour image": ({"PhotometricInterpretation": "PALETTE COLOR"}, {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_refused_says_why(tmp_path, reason):
    fields, refuse = REFUSED[reason]
    paths = scans.write_series(tmp_path, scans.phantom(), scans.affine(), **fields)
    with pytest.raises(Unreadable, match=reason):
        read(paths, **refuse)


def test_a_cut_off_slice_costs_its_volume_with_the_reason(tmp_path):
    paths = scans.write_series(tmp_path, scans.phantom(), scans.affine())
    paths[5].write_bytes(paths[5].read_bytes()[:-100])
    with pytest.raises(Unreadable, match="cut off"):
        read(paths)


def grouped(folder):
    headers = [look(str(path)) for path in sorted(folder.rglob("IM*"))]
    return [[header.path for header in group] for group in series.together(headers)]


def test_patients_that_share_a_series_number_stay_apart(tmp_path):
    for patient in "AB":
        scans.write_series(tmp_path / patient, scans.phantom(), scans.affine(), PatientID=patient)
    groups = grouped(tmp_path)
    assert [len(group) for group in groups] == [16, 16]
    assert all(len({path.split("/")[-2] for path in group}) == 1 for group in groups)


def test_directions_are_compared_and_not_rounded(tmp_path):
    """A cosine near 0.05 would be rounded to 0.0 in one slice and to 0.1 in the next."""
    angle = np.degrees(np.arcsin(0.05))
    matrix = scans.affine(rotation=scans.turned(angle))
    paths = scans.write_series(tmp_path, scans.phantom(), matrix)
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        jitter = 1e-7 if number % 2 else -1e-7
        dataset.ImageOrientationPatient = [f"{float(x) + jitter:.12f}"[:16] for x in dataset.ImageOrientationPatient]
        dataset.save_as(path)
    (group,) = grouped(tmp_path)
    (volume,) = read(group)
    assert np.linalg.norm(volume.affine[:3, 2]) == pytest.approx(2.5)


def edited(tmp_path, numbers, **fields):
    paths = scans.write_series(tmp_path, scans.phantom(), scans.affine(), **fields.pop("base", {}))
    for number in numbers:
        dataset = pydicom.dcmread(paths[number])
        for name, value in fields.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.save_as(paths[number])
    return paths


def test_a_unit_that_cannot_be_read_is_not_guessed(tmp_path):
    paths = edited(tmp_path / "a", [3], RescaleIntercept=None, RescaleSlope=None)
    with pytest.raises(Unreadable, match="some of its slices say how values become units"):
        read(paths)
    paths = scans.write_series(tmp_path / "b", scans.phantom(), scans.affine())
    data = paths[3].read_bytes()
    assert data.count(b"-1024") == 1
    paths[3].write_bytes(data.replace(b"-1024", b"-1O24"))
    with pytest.raises(Unreadable, match="its RescaleIntercept is no number"):
        read(paths)


def test_one_slice_with_writing_is_enough(tmp_path):
    paths = edited(tmp_path, [9], BurnedInAnnotation="YES", base={"BurnedInAnnotation": "NO"})
    with pytest.raises(Unreadable, match="writing in its pixels"):
        read(paths)
    _, header = series.volumes([str(path) for path in paths], RefuseConfig(burned_in="never"))
    assert header.burned_in == "yes"


def test_slices_of_other_pixels_are_another_volume(tmp_path):
    edited(tmp_path, range(8), PixelSpacing=[2.0, 2.0])
    assert [len(group) for group in grouped(tmp_path)] == [8, 8]


def test_slices_beside_one_another_are_no_volume(tmp_path):
    paths = scans.write_series(tmp_path, scans.phantom(), scans.affine())
    dataset = pydicom.dcmread(paths[7])
    dataset.ImagePositionPatient = [float(x) + 30 * (axis == 0) for axis, x in enumerate(dataset.ImagePositionPatient)]
    dataset.save_as(paths[7])
    with pytest.raises(Unreadable, match=r"do not lie behind one another, one is 30\.0 mm aside"):
        read(paths)


def test_empty_slices_of_several_echoes_are_no_copies(tmp_path):
    uid = generate_uid()
    echoes = [scans.phantom(seed=seed) for seed in range(2)]
    for values in echoes:
        values[:, :, 0] = -1024
    paths = [
        path
        for number, values in enumerate(echoes)
        for path in scans.write_series(
            tmp_path / str(number), values, OBLIQUE, SeriesInstanceUID=uid, EchoNumbers=number + 1
        )
    ]
    found = read(paths)
    assert [volume.repeated for volume in found] == [0, 0]
    for volume, values in zip(found, echoes, strict=True):
        np.testing.assert_array_equal(volume.values, values)


def test_one_instance_number_for_all_is_an_anonymiser_s_fault_and_no_copy(tmp_path):
    paths = scans.write_series(tmp_path, scans.phantom(), OBLIQUE, SOPInstanceUID="1.2.3")
    assert read(paths)[0].values.shape == (20, 24, 16)


def test_few_places_with_many_images_are_no_volume(tmp_path):
    uid = generate_uid()
    paths = [
        path
        for echo in range(4)
        for path in scans.write_series(
            tmp_path / str(echo), scans.phantom((20, 24, 3), echo), OBLIQUE, SeriesInstanceUID=uid, EchoNumbers=echo
        )
    ]
    with pytest.raises(Unreadable, match="this has images of 3 places"):
        read(paths)
