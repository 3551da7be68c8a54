"""Finished models on sound, scans and masks: several records of a file, names that nobody sees, files of masks."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from core import recipes
from core.data.private import remember_source
from core.errors import Stopped, UserError
from core.evaluation.sliding import predict_whole
from core.stages.applying import apply
from core.stages.ready import ready
from modalities.medical import demo

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import odd_audio
import scans
from leaks import find
from test_applying import Models, about, environment, rows
from test_audio import RATE, voice

CPU = torch.device("cpu")
SMALL = ["model.width=24", "model.depth=1", "model.heads=2", "model.decoder.width=24", "model.decoder.depth=1",
         "model.decoder.heads=2", "pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch=8",
         "pretrain.repeats=1", "finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.batch=8",
         "evaluate.label_efficiency=null", "compute.workers=1"]  # fmt: skip
NAME, PLACE = "Lovelace^Augusta", "Saint-Elsewhere-Infirmary"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A model of recordings that are cut into stretches of two seconds."""
    source, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(24):
        name = ("low", "high")[number % 2]
        (source / name).mkdir(exist_ok=True)
        soundfile.write(source / name / f"{number}.wav", voice(name, 1 + number % 3, rng), RATE)
    sets = [f"data.rate={RATE}", "data.patch=[16,16]", "data.size=[96,16]", "data.store.seconds=2"]
    return Models(tmp_path_factory.mktemp("home"), source, recipes.load("audio/demo", [*SMALL, *sets]))


def test_stretches_of_a_recording_are_rows_of_their_own(sounds, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    odd = odd_audio.write_odd(source)
    broken = odd_audio.write_broken(source)
    sounds.run(tmp_path / "p.parquet", source, kind="predict")
    found = rows(tmp_path / "p.parquet")
    with (tmp_path / "p.parquet.unreadable.csv").open(newline="") as lines:
        listed = {row["key"]: row["reason"] for row in csv.DictReader(lines)}
    assert set(listed) == set(broken)
    assert {row["key"] for row in found} == set(odd)
    long = [row["part"] for row in found if row["key"] == "long.flac"]
    assert long == list(range(300))
    assert [row["part"] for row in found if row["key"] == "telephone.wav"] == [0]
    assert all(abs(sum(row["probabilities"]) - 1) < 1e-5 for row in found)
    assert {row["label"] for row in found} == {None}


def test_patches_of_padding_are_nan(sounds, tmp_path):
    (tmp_path / "source").mkdir()
    soundfile.write(tmp_path / "source" / "short.wav", voice("low", 0.3, np.random.default_rng(0)), RATE)
    sounds.run(tmp_path / "f.parquet", tmp_path / "source", patches=True)
    (row,) = rows(tmp_path / "f.parquet")
    values = np.array(row["features"]).reshape(about(tmp_path / "f.parquet")["shape"])
    blank = np.isnan(values).all(axis=(1, 2))
    assert blank.tolist() == sorted(blank.tolist())
    assert 0 < blank.sum() < len(blank)
    assert not np.isnan(values[~blank]).any()


# --- private sources --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    sets = ["data.size=[16,8,16]", "data.patch=[8,4,8]", "data.crop_above=null", "finetune.batch=4"]
    source = demo.sample(tmp_path_factory.mktemp("heads"))
    return Models(tmp_path_factory.mktemp("home"), source, recipes.load("medical/demo", [*SMALL, *sets]))


@pytest.fixture
def ward(tmp_path):
    """Patients by name, and one whose scan is damaged."""
    place = tmp_path / PLACE
    for patient in range(4):
        scans.write_series(
            place / f"{NAME}-{patient}",
            scans.phantom((20, 12, 20), seed=patient),
            scans.affine(),
            PatientID=f"{NAME}-{patient}",
            StudyInstanceUID=f"1.2.{patient}",
            SeriesInstanceUID=f"1.2.{patient}.1",
        )
    (damaged,) = [file for number, file in enumerate(sorted((place / f"{NAME}-3").iterdir())) if number == 5]
    damaged.write_bytes(damaged.read_bytes()[:-300])
    return place


def test_nothing_tells_whose_scans_they_are_and_only_their_owner_may_look(heads, ward, tmp_path):
    out, encoder = tmp_path / "out" / "f.parquet", heads.encoder.digest
    command = [str(Path(sys.executable).with_name("maeflow")), "embed", encoder, "--data", str(ward), "--out", str(out)]
    command += ["--home", str(heads.home.root), "--set", "compute.device=cpu"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment(), cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    found = rows(out)
    assert len(found) == 3
    assert all(len(row["key"]) == 16 and int(row["key"], 16) >= 0 for row in found)
    assert [row["key"] for row in found] == sorted(row["key"] for row in found)
    assert b"1 could not be read" in done.stdout
    needles = (NAME, PLACE)
    assert find(out.parent, needles, extra=(done.stdout, done.stderr)) == []
    assert find(heads.home.root, needles) == []
    for path in out.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    known = [path for path in (heads.home.root / "private").glob("items-*.jsonl") if NAME in path.read_text()]
    with Path(f"{out}.unreadable.csv").open(newline="") as lines:
        (lost,) = csv.DictReader(lines)
    (line,) = [line for path in known for line in path.open() if lost["key"] in line]
    assert f"{NAME}-3" in line
    assert str(known[0].relative_to(heads.home.root)).encode() in done.stdout


def test_a_private_source_is_known_by_its_public_name(heads, ward, tmp_path):
    token = remember_source(heads.home, ward)
    heads.run(tmp_path / "a.parquet", token)
    heads.run(tmp_path / "b.parquet", ward)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert PLACE not in json.dumps(about(tmp_path / "a.parquet"))


# --- masks ------------------------------------------------------------------------------------------------------------


def test_scans_become_masks_that_lie_where_the_scans_lie(tmp_path):
    source, matrix = tmp_path / "source", np.diag([2.0, 1.5, 3.0, 1.0])
    matrix[:3, 3] = (-10, 20, 5)
    for kind in ("images", "masks"):
        (source / kind).mkdir(parents=True)
    for number in range(6):
        values = scans.phantom((20, 12, 20), seed=number)
        nibabel.save(nibabel.Nifti1Image(values, matrix), source / "images" / f"{number}.nii.gz")
        inside = (values > -500).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(inside, matrix), source / "masks" / f"{number}.nii.gz")
    sets = ["data.size=[16,8,16]", "data.patch=[8,4,8]", "data.crop_above=null", "finetune.batch=4",
            "data.intensity.windows=[[-1000,300]]", "task.kind=segmentation", "task.classes=[outside,inside]",
            "finetune.segmenter.width=4"]  # fmt: skip
    models = Models(tmp_path / "home", source, recipes.load("medical/demo", [*SMALL, *sets]))
    new = tmp_path / "new"
    new.mkdir()
    nibabel.save(nibabel.Nifti1Image(scans.phantom((30, 12, 20), seed=9), matrix), new / "scan.nii.gz")
    models.run(tmp_path / "out", new, kind="predict")
    (row,) = rows(tmp_path / "out" / "index.parquet")
    image = nibabel.load(tmp_path / "out" / row["file"])
    assert np.allclose(image.affine, matrix)
    assert image.shape == (30, 12, 20)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    # The same as evaluation makes of a scan that was prepared with its mask.
    model, store = ready(models.home.resolve(models.tuned.folder), CPU), models.store
    (record,) = store.rows([0])
    logits, _ = predict_whole(
        lambda batch: model.model.classify(batch.x, batch.valid), record, model.plugin, model.stats,
        outputs=2, batch=4, blend=models.recipe.evaluate.blend,
    )  # fmt: skip
    models.run(tmp_path / "again", source, kind="predict")
    (file,) = [row["file"] for row in rows(tmp_path / "again" / "index.parquet") if row["key"] == record.key]
    mask = np.asarray(nibabel.load(tmp_path / "again" / file).dataobj)
    assert np.array_equal(mask, logits.argmax(0).numpy())
    before = {path.name: path.read_bytes() for path in (tmp_path / "again" / "masks").iterdir()}
    assert models.run(tmp_path / "again", source, kind="predict") == ["reused: already done"]
    models.run(tmp_path / "again", source, kind="predict", overwrite=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "again" / "masks").iterdir()}


def test_pictures_become_pictures_of_their_classes(tmp_path, monkeypatch):
    source, rng = tmp_path / "source", np.random.default_rng(0)
    for kind in ("images", "masks"):
        (source / kind).mkdir(parents=True)
    for number in range(12):
        mask = np.zeros((24, 20), np.uint8)
        top, left = rng.integers(0, 12, 2)
        mask[top : top + 10, left : left + 8] = 1
        picture = (60 + 150 * mask + rng.normal(0, 5, mask.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(source / "images" / f"{number}.png")
        Image.fromarray(mask).save(source / "masks" / f"{number}.png")
    sets = ["data.size=[16,16]", "data.patch=[4,4]", "data.pretrain.affine=null", "data.finetune.affine=null",
            "task.kind=segmentation", "task.classes=[ground,thing]", "finetune.segmenter.kind=linear",
            "finetune.epochs=40"]  # fmt: skip
    models = Models(tmp_path / "home", source, recipes.load("image/tiny", [*SMALL, *sets]))
    models.run(tmp_path / "out", source, kind="predict", sets=("evaluate.overlap=0.25",))
    found = rows(tmp_path / "out" / "index.parquet")
    assert [row["file"] for row in found] == [f"masks/images/{name}.png" for name in sorted(map(str, range(12)))]
    assert about(tmp_path / "out" / "index.parquet")["classes"] == ["ground", "thing"]
    alike = []
    for row in found:
        mask = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        assert row["found"] == (["thing"] if mask.any() else [])
        alike.append((mask == np.asarray(Image.open(source / "masks" / Path(row["file"]).name))).mean())
    assert np.mean(alike) > 0.8
    with pytest.raises(UserError, match="name a folder by --out"):
        models.run(tmp_path / "out.parquet", source, kind="predict")
    # Stopped and resumed, the folder is the same.
    monkeypatch.setattr("core.stages.applying.UNIT_ITEMS", 4)
    asked = []
    request = models.request(tmp_path / "stopped", source, kind="predict", batch=2)
    with pytest.raises(Stopped):
        apply(request, models.home, print, lambda: asked.append(1) or len(asked) > 5)
    assert list((tmp_path / "stopped.partial" / "parts").iterdir())
    for name in ("stopped", "whole"):
        models.run(tmp_path / name, source, kind="predict", batch=2)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_of_masks_lead_nowhere_else_and_are_their_own():
    from core.stages.rows import stems

    keys = ["a.png", "a.jpg", "b/c.nii.gz", "../up.png", "/etc/passwd.png", "d#001.png", "no-suffix", "B/C.nii"]
    named = stems(keys)
    assert (named["no-suffix"], len(set(named.values()))) == ("no-suffix", len(keys))
    assert not [stem for key, stem in named.items() if key != "no-suffix" and not stem.isalnum()]
    assert stems(["b/c.nii.gz", "e.png"]) == {"b/c.nii.gz": "b/c", "e.png": "e"}
