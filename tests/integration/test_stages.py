"""The four stages called as plain functions: tasks, kinds of data and settings that the demo does not use."""

import csv
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core import digests, recipes
from core.config import LabelEfficiencyConfig
from core.data.sources import listing
from core.errors import Stopped, UserError
from core.records import write_record
from core.stages import efficiency, stage_function
from core.stages.work import Work
from core.tracking import NullTracker
from core.workspace import Home

sys.path.insert(0, str(Path(__file__).parents[1]))
from broken_images import photo

SMALL = ["data.size=[16, 16]", "data.patch=[4, 4]", "pretrain.epochs=2", "evaluate.bootstrap=20", "compute.workers=0"]


class Home4:
    """Runs stages in a home, each in its own folder, as the launcher would."""

    def __init__(self, root):
        self.home = Home.create(root)

    def run(self, stage, digest, *inputs, tracker=None):
        folder = self.home.stage(stage, digest)
        folder.partial.mkdir(parents=True)
        record = stage_function(stage)(*inputs, Work(self.home, digest, folder.partial, tracker or NullTracker()))
        write_record(record, folder.partial)
        folder.finish()
        return record


def pipeline(root, source, *overrides):
    recipe = recipes.load("image/tiny", [*SMALL, *overrides])
    at = Home4(root)
    data = at.run("prepare", digests.prepare_digest(recipe, listing(str(source))), recipe, str(source))
    encoder = at.run("pretrain", "e", recipe, [(data, 1.0)], data)
    tuned = at.run("finetune", "t", recipe, encoder, data)
    report = at.run("evaluate", "v", recipe, encoder, tuned, data)
    results = json.loads((at.home.resolve(report.folder) / report.results).read_text())
    return data, encoder, tuned, report, results


def manifest(folder, label, count=60):
    with (folder / "m.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", "label", "group"])
        for number in range(count):
            picture = photo(number, (20, 20))
            picture.save(folder / f"{number}.png")
            red, green, _ = np.asarray(picture).reshape(-1, 3).mean(0)
            table.writerow([f"{number}.png", label(red, green), f"camera-{number % 12}"])
    return folder / "m.csv"


def test_several_labels_per_image(tmp_path):
    def label(red, green):
        return "|".join(name for name, value in (("red", red), ("green", green)) if value > 127) or "dark"

    source = manifest(tmp_path, label)
    data, _, tuned, report, _ = pipeline(tmp_path / "home", source, "data.channels=3", "task.kind=multi_label",
                                         "task.class_weights=balanced")  # fmt: skip
    assert data.target.classes == ("dark", "green", "red")
    assert tuned.target.outputs == 3
    assert {"eval/map", "eval/auroc", "eval/knn", "eval/linear"} <= set(report.metrics)
    groups = {}
    from core.data.store import PreparedStore

    store = PreparedStore.open(Home.create(tmp_path / "home").resolve(data.folder))
    for split in ("train", "val", "test"):
        for group in store.groups(store.ids(split)):
            assert groups.setdefault(group, split) == split


def test_numbers_as_labels(tmp_path):
    source = manifest(tmp_path, lambda red, green: f"{red / 255:.4f}")
    _, _, tuned, report, _ = pipeline(tmp_path / "home", source, "data.channels=3", "task.kind=regression")
    assert tuned.target.classes == ()
    assert {"eval/r2", "eval/mae", "eval/linear"} <= set(report.metrics)
    assert "eval/knn" not in report.metrics


def test_six_channels_learned_positions_no_class_token_and_another_size_for_tuning(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        place = tmp_path / "source" / ("a", "b")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{number}.npy", rng.normal(number % 2, 1, (6, 24, 24)).astype(np.float32))
    overrides = ["data.channels=6", "model.cls_token=false", "model.positions=learned", "finetune.input_shape=[24, 24]"]
    overrides += ["pretrain.mask.kind=block", "pretrain.mask.block=[2, 2]", "pretrain.norm_pix=channel_var"]
    overrides += ["finetune.ema=0.9", "finetune.micro_batch=16", "pretrain.decode_fraction=0.5", "data.eval_crop=1"]
    _, encoder, tuned, _, results = pipeline(tmp_path / "home", tmp_path / "source", *overrides)
    assert encoder.geometry.input_shape == (16, 16)
    assert tuned.geometry.input_shape == (24, 24)
    assert len(results["label_efficiency"]["pretrained"][0]) == 2


def test_label_efficiency_says_nothing_of_more_labels_than_there_are(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(NullTracker, "note", lambda _, text: said.append(text))
    source = manifest(tmp_path, lambda red, green: "warm" if red > green else "cold", count=40)
    counts = "evaluate.label_efficiency.labels_per_class=[1, 100]"
    more = ["data.channels=3", counts, "evaluate.label_efficiency.steps=2", "evaluate.label_efficiency.seeds=[1]"]
    *_, results = pipeline(tmp_path / "home", source, *more)
    assert results["label_efficiency"]["labels_per_class"] == [1]
    assert len(results["label_efficiency"]["pretrained"]) == 1
    assert any("left out at 100 labels per class: no class has more than" in text for text in said)


def test_cells_that_are_left_when_evaluation_has_to_stop_are_run_the_next_time(tmp_path, monkeypatch):
    overrides = ["data.channels=3", "evaluate.label_efficiency=null", "compute.threads=2"]
    source = manifest(tmp_path, lambda red, green: "warm" if red > green else "cold")
    data, encoder, *_ = pipeline(tmp_path / "home", source, *overrides)
    config = LabelEfficiencyConfig(labels_per_class=(1,), seeds=(1, 2, 3, 4, 5), steps=50)
    recipe = recipes.load("image/tiny", [*SMALL, *overrides])
    changed = recipe.evaluate.model_copy(update={"label_efficiency": config})
    values = recipe.model_copy(update={"evaluate": changed}).model_dump(mode="json")
    bench, folder = efficiency.Bench(values, encoder, data, tmp_path / "home"), tmp_path / "cells"
    monkeypatch.setattr(efficiency, "LITTLE_SAMPLES", 0)
    cells, told = efficiency.plan(config), []

    def run(should_stop):
        efficiency.run_cells(cells, bench, folder, lambda count, _: told.append(count), should_stop)

    def written():
        return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}

    with pytest.raises(Stopped, match=r"saved after \d+ of 15 cells"):
        run(lambda: len(written()) > 1)
    kept = written()
    assert 2 <= len(kept) <= 5
    time.sleep(2)
    assert written() == kept  # Nobody works on.
    run(lambda: False)
    assert told[-1] == len(written()) == 15
    assert written().items() >= kept.items()


def test_a_plugins_own_mask_is_the_one_that_hides(tmp_path, monkeypatch):
    from core.model.masking import split_by_score
    from modalities.image.plugin import ImageModality

    def half(self, config):
        return lambda samples, rng, valid: split_by_score(torch.rand(samples, 16, generator=rng), 8)

    monkeypatch.setattr(ImageModality, "mask", half)
    ratios = []
    monkeypatch.setattr(
        NullTracker, "metrics", lambda self, step, values: ratios.append(values.get("pretrain/mask_ratio"))
    )
    recipe = recipes.load("image/tiny", SMALL)
    at = Home4(tmp_path / "home")
    data = at.run("prepare", "d", recipe, str(manifest(tmp_path, lambda red, green: None)))
    at.run("pretrain", "e", recipe, [(data, 1.0)], None)
    assert set(ratios) - {None} == {0.5}


def test_mixing_augmenting_and_bf16(tmp_path):
    for number in range(48):
        place = tmp_path / "source" / str(number % 3)
        place.mkdir(parents=True, exist_ok=True)
        photo(number, (20, 20)).save(place / f"{number}.jpg")
    overrides = ["data.channels=3", "finetune.mixup=0.8", "finetune.cutmix=1.0", "finetune.label_smoothing=0.1"]
    overrides += ["data.finetune.affine=null", "data.finetune.rand_augment=rand-m9-mstd0.5-inc1"]
    overrides += ["data.finetune.erasing=0.25", "finetune.precision=bf16", "pretrain.precision=bf16"]
    overrides += ["finetune.pool=cls", "finetune.drop_path=0.1", "evaluate.label_efficiency=null"]
    _, _, tuned, _, _ = pipeline(tmp_path / "home", tmp_path / "source", *overrides)
    assert tuned.pool == "cls"
    assert np.isfinite(tuned.metrics["finetune/loss"])


@pytest.mark.slow
def test_a_compiled_model_trains(tmp_path):
    for number in range(24):
        photo(number, (20, 20)).save(tmp_path / f"{number}.png")
    recipe = recipes.load("image/tiny", [*SMALL, "data.channels=3", "compute.compile=true", "model.depth=1"])
    at = Home4(tmp_path / "home")
    data = at.run("prepare", digests.prepare_digest(recipe, listing(str(tmp_path))), recipe, str(tmp_path))
    encoder = at.run("pretrain", "e", recipe, [(data, 1.0)], None)
    assert np.isfinite(encoder.metrics["pretrain/loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pretrain.predict_stride=3", "predict_stride 3 does not divide"),
        ("pretrain.decode_kind=running_cell", "running cells"),
        ("pretrain.mask={kind: block, block: [2]}", "one extent for each axis"),
        ("pretrain.mask={kind: axes, ratios: [0.5]}", "one share for each axis"),
        ("model.decoder={attention: local, window: [2, 2, 2], width: 64, depth: 1, heads: 4}", "one extent for each"),
    ],
)
def test_what_only_meets_the_plugins_geometry_in_pretraining_is_the_requests_fault(tmp_path, change, message):
    recipe = recipes.load("image/tiny", [*SMALL, change])
    at = Home4(tmp_path / "home")
    data = at.run("prepare", "d", recipe, str(manifest(tmp_path, lambda red, _: "warm" if red > 127 else "cold", 30)))
    with pytest.raises(UserError, match=message):
        at.run("pretrain", "e", recipe, [(data, 1.0)], data)


def test_data_prepared_with_other_settings_are_refused_by_every_stage(tmp_path):
    recipe = recipes.load("image/tiny", SMALL)
    at = Home4(tmp_path / "home")
    data = at.run("prepare", "d", recipe, str(manifest(tmp_path, lambda red, _: "warm" if red > 127 else "cold", 40)))
    encoder = at.run("pretrain", "e", recipe, [(data, 1.0)], data)
    tuned = at.run("finetune", "t", recipe, encoder, data)
    other = recipes.load("image/tiny", [*SMALL, "data.size=[24, 24]"])
    harmless = recipes.load("image/tiny", [*SMALL, "data.finetune.erasing=0.5"])
    message = re.escape("data.size: [16, 16] there, [24, 24] in the recipe")
    for stage, *inputs in (
        ("pretrain", [(data, 1.0)], None),
        ("finetune", encoder, data),
        ("evaluate", encoder, tuned, data),
    ):
        with pytest.raises(UserError, match=message):
            at.run(stage, f"other-{stage}", other, *inputs)
    at.run("finetune", "again", harmless, encoder, data)
    notes = []
    seen = NullTracker()
    seen.note = notes.append
    elsewhere = encoder.model_copy(update={"settings": other.data.model_dump(mode="json")})
    at.run("finetune", "elsewhere", recipe, elsewhere, data, tracker=seen)
    assert "data.size: [24, 24] there, [16, 16] in the recipe" in "".join(notes)
