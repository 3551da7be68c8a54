"""A hospital's tree goes through the whole pipeline, and nothing that tells whose scans these are comes out."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.sequence import Sequence

sys.path.insert(0, str(Path(__file__).parents[1]))
import one_server
import scans
from leaks import find

pytestmark = pytest.mark.slow
PLACE, NAME, ID = "Saint-Elsewhere-Infirmary", "Lovelace^Augusta", "MRN-4711-0815"
BORN, DATE, UID = "18151210", "20260229", "1.2.826.0.1.3680043.99.7"
INSTITUTION, DOCTOR, PRIVATE, NESTED = "Ockham Park Clinic", "Somerville^Mary", "ward-7-bed-12", "OLD-MRN-1834"
NEEDLES = (PLACE, NAME, ID, BORN, DATE, UID, INSTITUTION, DOCTOR, PRIVATE, NESTED)
QUICK = [
    *("--set", "data.size=[16,8,16]"),
    *("--set", "data.patch=[8,4,8]"),
    *("--set", "data.crop_above=null"),
    *("--set", "data.intensity.windows=[[-1000,300]]"),
    *("--set", "pretrain.epochs=2"),
    *("--set", "pretrain.repeats=1"),
    *("--set", "pretrain.warmup_epochs=1"),
    *("--set", "pretrain.validate_every=2"),
    *("--set", "finetune.epochs=2"),
    *("--set", "evaluate.bootstrap=20"),
    *("--set", "evaluate.label_efficiency=null"),
    *("--set", "compute.threads=1"),
]
SHAPE = (20, 12, 20)


def fields(patient, number):
    """Identities in standard fields; nested and private ones are added by `planted`."""
    return {
        "PatientName": f"{NAME}-{patient}",
        "PatientID": f"{ID}-{patient}",
        "PatientBirthDate": BORN,
        "StudyDate": DATE,
        "SeriesDescription": f"for {DOCTOR}",
        "ReferringPhysicianName": DOCTOR,
        "InstitutionName": INSTITUTION,
        "StudyInstanceUID": f"{UID}.{patient}",
        "SeriesInstanceUID": f"{UID}.{patient}.{number}",
        "StudyDescription": PRIVATE,
        "OtherPatientIDsSequence": Sequence([nested()]),
        "Manufacturer": INSTITUTION,
        "ImageComments": NAME,
    }


def nested():
    inner = scans.item(PatientID=NESTED, PatientName=NAME)
    inner.ReferencedStudySequence = Sequence([scans.item(ReferencedSOPInstanceUID=f"{UID}.9")])
    block = inner.private_block(0x0011, "MAEFLOW TEST", create=True)
    block.add_new(0x01, "LO", PRIVATE)
    return inner


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    """Below a folder with a name: twelve patients' series, a broken one, an incomplete one, a report, a NIfTI file."""
    root = tmp_path_factory.mktemp("x") / PLACE / f"{NAME} {DATE}"
    lines = ["path,label"]
    for patient in range(12):
        folder = root / f"{NAME}-{patient}" / f"{ID}-{DATE}"
        values = scans.phantom(SHAPE, seed=patient)
        if patient % 2:
            values[6:14, 3:9, 6:14] = 250
        paths = scans.write_series(folder, values, scans.affine((1, 1, 1)), **fields(patient, 0))
        for path in paths:
            path.rename(path.with_name(f"{ID}-{path.name}.dcm"))
        lines.append(f"{folder.relative_to(root)},{('plain', 'dense')[patient % 2]}")
    incomplete = scans.write_series(root / "cut", scans.phantom(SHAPE), scans.affine(), **fields(99, 0))
    incomplete[7].unlink()
    damaged = scans.write_series(root / "damaged", scans.phantom(SHAPE), scans.affine(), **fields(98, 0))
    damaged[3].write_bytes(damaged[3].read_bytes()[:-200])
    damaged[4].write_bytes(damaged[4].read_bytes()[:700])
    report = scans.base(root / "report.dcm", Modality="SR", **fields(97, 0))
    report.save_as(root / f"{NAME}-report.dcm", enforce_file_format=True)
    image = nibabel.Nifti1Image(scans.phantom(SHAPE, seed=50), np.eye(4))
    image.header["descrip"] = NAME.encode()
    nibabel.save(image, root / f"sub-{ID}_T1w.nii.gz")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def run(home, *arguments, alone=False):
    """Run a command; ``alone`` it has no Prefect server but its own, whose database is in the home."""
    command = [str(Path(sys.executable).with_name("maeflow")), *map(str, arguments), "--home", str(home)]
    variables = one_server.environment()
    if alone:
        del variables["PREFECT_API_URL"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=600, env=variables, cwd=home.parent)
    return done.returncode, done.stdout, done.stderr


def test_nothing_that_was_planted_comes_out(ward, tmp_path):
    home = tmp_path / "home"
    code, out, err = run(
        home, "run", "medical/demo", "--data", ward, "--labelled", ward / "labels.csv", *QUICK, alone=True
    )
    assert code == 0, (out + err).decode()
    cards = [path.read_text() for path in (home / "prepared").glob("*/card.md")]
    assert any("1 of 20 slices are missing" in card for card in cards)
    assert any("1 structured reports" in card for card in cards)
    assert any("cut off" in card or "damaged" in card for card in cards)
    for name in ("mlflow.db", "prefect/prefect.db"):
        assert (home / name).exists()
    assert list((home / "runs" / "reports").glob("*.html"))
    assert find(home, NEEDLES, extra=(out, err)) == []
    # The search sees what was read: the owner's key file holds the paths.
    assert find(home / "private", NEEDLES)
    for path in (home / "private", *(home / "private").glob("*")):
        assert path.stat().st_mode & 0o077 == 0
    # Pixels may tell as much as names: what was made of them is closed to others.
    made = [path for folder in ("prepared", "runs") for path in (home / folder).rglob("*") if path.is_file()]
    assert not [path.name for path in made if path.stat().st_mode & 0o007]


def test_errors_name_nobody(ward, tmp_path):
    home = tmp_path / "home"
    said = []
    for arguments in (
        ("run", "medical/demo", "--data", ward / "nowhere", *QUICK),
        ("run", "medical/demo", "--data", ward / "cut", *QUICK),
        ("prepare", "medical/demo", "--data", ward / "damaged", *QUICK),
        ("run", "medical/demo", "--data", ward / "labels.csv", "--set", "task.kind=regression", *QUICK),
    ):
        code, out, err = run(home, *arguments)
        assert code in (1, 2)
        said += [out, err]
    assert find(home, NEEDLES, extra=said) == []
    assert find(one_server.folder(), NEEDLES) == []


def test_headers_that_are_kept_are_numbers_and_known_words(ward):
    """The allow-list: whatever else stands in a header never leaves the reader."""
    from core.modality import Item
    from modalities.medical.config import MedicalSettings
    from modalities.medical.reading import read

    folder = ward / f"{NAME}-0" / f"{ID}-{DATE}"
    paths = tuple(str(path) for path in sorted(folder.iterdir()))
    (record,) = read(Item("key", paths[0], parts=paths, group="someone"), MedicalSettings())
    assert set(record.meta) == {
        "modality", "burned_in", "secondary", "filled", "repeated_slices", "spacing", "affine", "tilt", "least",
    }  # fmt: skip
    words = [value for value in record.meta.values() if isinstance(value, str)]
    assert set(words) <= {"CT", "yes", "no", "unsaid"}


def test_masks_name_nobody(tmp_path):
    source = tmp_path / PLACE
    for kind in ("images", "masks"):
        (source / kind).mkdir(parents=True)
    for number in range(6):
        values = scans.phantom(SHAPE, seed=number)
        name = f"{NAME}-{ID}-{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), source / "images" / name)
        if number < 5:  # The last one's is damaged.
            nibabel.save(nibabel.Nifti1Image((values > -500).astype(np.uint8), np.eye(4)), source / "masks" / name)
        else:
            (source / "masks" / name).write_bytes(NAME.encode() * 20)
    home, task = tmp_path / "home", ["--set", "task.kind=segmentation", "--set", "task.classes=[outside,inside]"]
    code, out, err = run(home, "prepare", "medical/demo", "--data", source, *task, *QUICK)
    assert code == 0, (out + err).decode()
    assert b"1 unreadable" in out
    assert find(home, NEEDLES, extra=(out, err)) == []
    assert find(one_server.folder(), NEEDLES) == []
