"""Whatever tree a hospital hands over: series and images are found, others counted, patients never divided."""

import shutil
import sys
from collections import defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from core import recipes
from core.config import PrepareConfig
from core.data.indexing import index
from core.data.splits import Member, assign
from core.errors import UserError
from modalities.medical.config import MedicalSettings
from modalities.medical.finding import find

sys.path.insert(0, str(Path(__file__).parents[2]))
import scans

VOLUMES = MedicalSettings()
IMAGES = MedicalSettings(size=(32, 32), patch=(8, 8))
SMALL = (6, 7, 8)


def uids(**more):
    return {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid(), **more}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two patients, three series, an image, a report, a plan, a directory, text, a hidden file and NIfTI of BIDS."""
    root = tmp_path_factory.mktemp("ward")
    scans.write_series(root / "a" / "x", scans.phantom(SMALL), scans.affine(), **uids(PatientID="A"))
    scans.write_series(root / "a" / "y", scans.phantom(SMALL), scans.affine(), **uids(PatientID="A"))
    scans.write_series(root / "b", scans.phantom(SMALL), scans.affine(), **uids(PatientID="B"))
    for name in ("reportsi.dcm", "rtplan.dcm", "DICOMDIR"):
        shutil.copyfile(get_testdata_file(name), root / name)
    (root / "README.txt").write_text("made by a viewer\n" * 30)
    (root / ".hidden").write_text("x")
    for subject in ("01", "02"):
        path = root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(scans.phantom(SMALL), np.eye(4)), path)
    return root


def test_a_tree_becomes_series_and_the_rest_is_counted(tree):
    items, noticed = find(str(tree), VOLUMES)
    groups = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    assert {group: len(members) for group, members in groups.items()} == {
        "A": 2,
        "B": 1,
        "1": 1,
        "2": 1,
    }
    assert all(len(item.parts) == 8 for item in groups["A"])
    assert groups["B"][0].size == sum(path.stat().st_size for path in (tree / "b").iterdir())
    assert noticed == {
        "structured reports": 1,
        "radiotherapy plans": 1,
        "DICOM directories": 1,
        "files that are not DICOM": 1,
    }


def test_for_images_every_file_is_an_item(tree):
    items, _ = find(str(tree), IMAGES)
    assert sum(item.group == "A" for item in items) == 16
    assert not any(item.parts for item in items)


def test_names_of_folders_are_no_classes_unless_the_recipe_says_so(tree):
    assert {item.target for item in find(str(tree), VOLUMES)[0]} == {None}
    labelled = VOLUMES.model_copy(update={"folder_labels": True})
    assert {item.target for item in find(str(tree), labelled)[0]} == {"a", "b", "sub-01", "sub-02"}


def test_splits_on_top_are_taken(tmp_path):
    for split, patient in (("train", "A"), ("test", "B")):
        folder = tmp_path / split / "anything"
        scans.write_series(folder, scans.phantom(SMALL), scans.affine(), **uids(PatientID=patient))
    assert {item.group: item.split for item in find(str(tmp_path), VOLUMES)[0]} == {
        "A": "train",
        "B": "test",
    }


def test_a_manifest_may_name_folders_and_a_header_knows_its_patient_better(tree, tmp_path):
    lines = ["path,label,group", f"{tree / 'a' / 'x'},ill,who", f"{tree / 'sub-01'},well,who"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    items, _ = find(str(tmp_path / "m.csv"), VOLUMES)
    assert [(item.target, item.group) for item in items] == [("ill", "1"), ("well", "1")]


def test_what_a_manifest_names_and_is_not_there_stays_an_item(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\nnowhere.dcm,ill\n")
    (item,), _ = find(str(tmp_path / "m.csv"), VOLUMES)
    assert item.size == -1


def test_a_dicomdir_leads_to_its_files():
    directory = get_testdata_file("DICOMDIR")
    items, _ = find(directory, IMAGES)
    inside, _ = find(str(Path(directory).parent), IMAGES)
    assert items
    assert {item.path for item in items} <= {item.path for item in inside}


@pytest.mark.parametrize("kind", ["empty", "missing"])
def test_without_a_scan_it_says_what_it_looked_for(tmp_path, kind):
    with pytest.raises(UserError, match=r"no scan|does not exist"):
        find(str(tmp_path / ("" if kind == "empty" else "nowhere")), VOLUMES)


def test_many_files_are_looked_at_side_by_side(monkeypatch, tree):
    monkeypatch.setattr("core.data.indexing.FEW", 4)
    paths = sorted(str(path) for path in tree.rglob("*") if path.is_file())
    assert index(paths, len, workers=2) == [len(path) for path in paths]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_patient_is_in_two_splits(data):
    """Patients of many studies, with labels, duplicates and given splits as they come."""
    patients = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=25))
    members = [
        Member(
            f"{patient}/{study}",
            data.draw(st.sampled_from([None, 0, 1])),
            f"patient {patient}",
            data.draw(st.sampled_from([None, None, "train", "val", "test"])),
            data.draw(st.sampled_from([f"{patient}/{study}", "the same"])),
        )
        for patient, studies in enumerate(patients)
        for study in range(studies)
    ]
    config = PrepareConfig(divided_groups="regroup", val_fraction=0.2, test_fraction=0.2)
    where = defaultdict(set)
    for member, split in zip(members, assign(members, config, data.draw(st.integers(0, 3))), strict=True):
        where[member.group].add(split)
    assert all(len(splits) == 1 for splits in where.values())


def test_a_recipe_cannot_allow_divided_patients():
    with pytest.raises(UserError, match="divided_groups"):
        recipes.load("medical/demo", ["prepare.divided_groups=allow"])


def one_line(tmp_path, *lines):
    (tmp_path / "m.csv").write_text("\n".join(["path,label,group", *lines]) + "\n")
    return {item.key: item.group for item in find(str(tmp_path / "m.csv"), VOLUMES)[0]}


def test_a_patient_is_one_whoever_names_them(tmp_path):
    """Case, spaces, zeros in front, BIDS and manifests; a study whose header lost its patient goes along."""
    for name, fields in {
        "a": uids(PatientID="P1 "),
        "b": uids(PatientID="p1"),
        "c": {**uids(PatientID="P1"), "StudyInstanceUID": "1.2.3"},
        "d": {**uids(PatientID=""), "PatientName": "", "StudyInstanceUID": "1.2.3"},
        "e": uids(PatientID="ANONYMOUS", PatientName="ANON"),
    }.items():
        scans.write_series(tmp_path / name, scans.phantom(SMALL), scans.affine(), **fields)
    (tmp_path / "sub-P1").mkdir()
    nibabel.save(nibabel.Nifti1Image(scans.phantom(SMALL), np.eye(4)), tmp_path / "sub-P1" / "x.nii.gz")
    groups = one_line(tmp_path, *[f"{name},ill," for name in "abcd"], "e,ill,sub-P1", "sub-P1/x.nii.gz,ill,")
    assert set(groups.values()) == {"P1"}
    assert len(groups) == 6


def test_a_manifest_s_groups_are_kept_too(tmp_path):
    """What a manifest puts together, a family or a device, stays together, though headers tell people apart."""
    for patient in "ABC":
        scans.write_series(tmp_path / patient, scans.phantom(SMALL), scans.affine(), **uids(PatientID=patient))
    groups = one_line(tmp_path, "A,ill,twins", "B,well,twins", "C,ill,alone")
    assert len(set(groups.values())) == 2
    assert groups[next(k for k in groups if k[0] == "A")] == groups[next(k for k in groups if k[0] == "B")]


def test_placeholders_are_nobody(tmp_path):
    for name in "ab":
        fields = {**uids(PatientID="ANONYMOUS"), "PatientName": "UNKNOWN"}
        scans.write_series(tmp_path / name, scans.phantom(SMALL), scans.affine(), **fields)
    groups = one_line(tmp_path, "a,ill,P0", "b,ill,P1")
    assert set(groups.values()) == {"P0", "P1"}


def test_scans_that_tell_nobody_are_counted(tmp_path):
    nibabel.save(nibabel.Nifti1Image(scans.phantom(SMALL), np.eye(4)), tmp_path / "x.nii.gz")
    (item,), noticed = find(str(tmp_path), VOLUMES)
    assert item.group is None
    assert noticed == {"scans that do not tell their patient; group them in a manifest": 1}


def test_slices_listed_one_by_one_are_a_series(tmp_path):
    paths = scans.write_series(tmp_path / "s", scans.phantom(SMALL), scans.affine())
    groups = one_line(tmp_path, *[f"{path.relative_to(tmp_path)},ill," for path in paths])
    assert len(groups) == 1


def test_a_dicomdir_that_promises_more_than_there_is_says_so(tmp_path):
    folder = Path(get_testdata_file("DICOMDIR")).parent
    shutil.copytree(folder, tmp_path / "d")
    whole, _ = find(str(tmp_path / "d" / "DICOMDIR"), IMAGES)
    victim = next(path for path in (tmp_path / "d").rglob("*") if str(path) == whole[0].path)
    victim.unlink()
    items, noticed = find(str(tmp_path / "d" / "DICOMDIR"), IMAGES)
    assert len(items) == len(whole) - 1
    assert noticed["files that the DICOMDIR names and that are missing"] >= 1
