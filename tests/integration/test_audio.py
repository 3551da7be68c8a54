"""Sound through the stages: other lengths than the checkpoint's, and several labels per recording."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score

from core import recipes
from core.data.store import PreparedStore
from core.errors import StageError
from core.model.mae import Encoder
from core.model.patches import PatchSpec
from core.model.regrid import spec_of
from core.stages.evaluate import predict_views
from core.stages.finetune import Labelled
from core.stages.work import encoder_weights, live_plugin, stats_on
from core.tasks import Task
from core.tracking import NullTracker

sys.path.insert(0, str(Path(__file__).parent))
from test_stages import Home4

RATE = 8000
SMALL = [
    f"data.rate={RATE}", "data.patch=[16, 16]", "data.size=[1008, 16]", "model.width=32", "model.depth=1",
    "model.heads=2", "model.decoder.width=32", "model.decoder.depth=2", "model.decoder.heads=2", "pretrain.epochs=1",
    "pretrain.warmup_epochs=0", "pretrain.batch=8", "pretrain.validate_every=1", "finetune.epochs=1",
    "finetune.warmup_epochs=0", "finetune.batch=8", "evaluate.label_efficiency=null", "evaluate.bootstrap=20",
    "compute.workers=0", "prepare.test_fraction=0.3",
]  # fmt: skip
VOICES = {"low": 300.0, "middle": 700.0, "high": 1900.0}


def voice(name, seconds, rng):
    """A trembling tone in one of three places."""
    time = np.arange(int(RATE * seconds)) / RATE
    pitch = VOICES[name] * (1 + 0.05 * np.sin(2 * np.pi * (4 + rng.random()) * time + rng.uniform(0, 6)))
    return np.sin(2 * np.pi * np.cumsum(pitch) / RATE) * (0.3 + 0.2 * rng.random())


def write(folder, label, seconds, count):
    """``count`` recordings of the voices that ``label(number)`` names, and their manifest."""
    rng = np.random.default_rng(0)
    with (folder / "m.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", "label"])
        for number in range(count):
            names, length = label(number), rng.uniform(*seconds)
            wave = sum(voice(name, length, rng) for name in names) + 0.02 * rng.standard_normal(int(RATE * length))
            soundfile.write(folder / f"{number}.wav", np.clip(wave, -1, 1), RATE)
            table.writerow([f"{number}.wav", "|".join(names)])
    return folder / "m.csv"


@pytest.fixture(scope="module", params=["global", "local"])
def ten_seconds(request, tmp_path_factory):
    """A checkpoint of inputs of ten seconds, with each kind of decoder."""
    names = list(VOICES)
    source = write(tmp_path_factory.mktemp("sounds"), lambda n: [names[n % 2]], (0.5, 12), 24)
    local = ["model.decoder.attention=local", "model.decoder.window=[4, 1]"] if request.param == "local" else []
    recipe = recipes.load("audio/demo", [*SMALL, *local, "model.other_size=keep"])
    at = Home4(tmp_path_factory.mktemp("home"))
    data = at.run("prepare", "d", recipe, str(source))
    return at, recipe, data, at.run("pretrain", "e", recipe, [(data, 1.0)], data)


@pytest.mark.parametrize(("seconds", "frames"), [(1, 96), (5, 496), (10, 1008)])
def test_shorter_and_longer_inputs_are_fine_tuned_from_one_checkpoint(ten_seconds, seconds, frames):
    at, recipe, data, encoder = ten_seconds
    sized = recipes.resolve(
        recipe.model_dump(mode="json")
        | {"finetune": recipe.finetune.model_dump(mode="json") | {"input_shape": [frames, 16]}},
        "of the test",
    )
    tuned = at.run("finetune", f"t{seconds}", sized, encoder, data)
    assert tuned.geometry.input_shape == (frames, 16)
    plugin = live_plugin(sized, "finetune", (frames, 16))
    assert plugin.framing.samples(frames) / RATE == pytest.approx(seconds, rel=0.05)
    report = at.run("evaluate", f"v{seconds}", sized, encoder, tuned, data)
    assert 0 <= report.metrics["eval/top1"] <= 1


def test_positions_of_a_shorter_recording_are_the_first_ones(ten_seconds):
    at, _, _, encoder = ten_seconds
    whole = spec_of(encoder.geometry)
    short = PatchSpec(1, (96, 16), whole.patch_shape)
    table, full = (encoder_weights(at.home, encoder, spec)["pos_embed"][0] for spec in (short, whole))
    assert torch.allclose(table, full[: len(table)], atol=1e-6)
    Encoder(short, encoder.model).load_state_dict(encoder_weights(at.home, encoder, short))


def test_several_labels_per_recording_are_learned_and_scored_as_scikit_learn_scores_them(tmp_path):
    names = list(VOICES)
    choices = [["low"], ["middle"], ["high"], ["low", "middle"], ["low", "high"], ["middle", "high"]]
    source = write(tmp_path, lambda n: choices[n % 6], (0.4, 1.2), 90)
    recipe = recipes.load(
        "audio/demo",
        [*SMALL, "data.size=[96, 16]", "data.patch=[8, 16]", "task.kind=multi_label", "finetune.epochs=20",
         "finetune.base_lr=0.05", "finetune.label_smoothing=0", "finetune.sampling=balanced",
         "finetune.epoch_samples=64", "data.finetune.mixup=0.5", "data.finetune.time_mask=0.1"],
    )  # fmt: skip
    at = Home4(tmp_path / "home")
    data = at.run("prepare", "d", recipe, str(source))
    encoder = at.run("pretrain", "e", recipe, [(data, 1.0)], data)
    tuned = at.run("finetune", "t", recipe, encoder, data)
    report = at.run("evaluate", "v", recipe, encoder, tuned, data)
    store, task = PreparedStore.open(at.home.resolve(data.folder)), Task.of(data.target)
    on = Labelled(store, task, live_plugin(recipe, "finetune"), stats_on(encoder.statistics, torch.device("cpu")))
    logits, truth = predict_views(_model(at, tuned, task), on, store.ids("test", labelled=True), 32)
    assert report.metrics["eval/map"] == pytest.approx(average_precision_score(truth, logits), abs=1e-6)
    assert report.metrics["eval/map"] > float(truth.mean()) + 0.2
    assert set(names) == set(task.classes)
    assert report.metrics["eval/d_prime"] > 0


def test_recordings_so_short_that_nothing_is_hidden_are_refused_and_shorter_inputs_taken(tmp_path):
    source = write(tmp_path, lambda n: [["low", "high"][n % 2]], (0.5, 1.0), 24)
    recipe = recipes.load("audio/demo", SMALL)
    at = Home4(tmp_path / "home")
    data = at.run("prepare", "d", recipe, str(source))
    with pytest.raises(StageError, match=r"masks hide 0% of them where 51% was asked for.*pretrain.input_shape"):
        at.run("pretrain", "long", recipe, [(data, 1.0)], None)
    notes, ratios, seen = [], [], NullTracker()
    seen.note = notes.append
    seen.metrics = lambda step, values: ratios.append(values.get("pretrain/mask_ratio"))
    half = recipes.load("audio/demo", [*SMALL, "pretrain.input_shape=[144, 16]", "compute.log_every=1"])
    at.run("pretrain", "half", half, [(data, 1.0)], None, tracker=seen)
    (realised,) = re.findall(r"masks hide (\d+)% of them where 56% was asked for", "".join(notes))
    assert 5 < int(realised) < 28
    ratios = [ratio for ratio in ratios if ratio is not None]
    assert ratios == pytest.approx([int(realised) / 100] * len(ratios), abs=0.15)
    assert ratios
    quarter = recipes.load("audio/demo", [*SMALL, "pretrain.input_shape=[48, 16]"])
    at.run("pretrain", "short", quarter, [(data, 1.0)], None, tracker=seen)
    assert len(notes) == 1


def _model(at, tuned, task):
    from safetensors.torch import load_file

    from core.model.heads import Classifier

    model = Classifier(spec_of(tuned.geometry), tuned.model, task.outputs, tuned.pool)
    model.load_state_dict(load_file(at.home.resolve(tuned.folder) / tuned.weights))
    return model
