"""Several labels per clip: two languages spoken at once, from the encoder of the audio demo.

Clips of the demo are mixed in pairs of different languages within their split (a third stays alone), prepared,
and tuned as a multi-label task from the newest encoder in HOME. Prints the test mAP of the pipeline, scikit-learn's of
the same predictions, and what guessing gives.

    python benchmarks/mixed_languages.py HOME [--set KEY=VALUE ...] [--out FILE]
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from core import recipes
from core.data.store import PreparedStore
from core.model.heads import Classifier
from core.records import EvalReport, PreparedData, PretrainedEncoder, TunedModel, read_record
from core.stages.evaluate import predict_views
from core.stages.finetune import Labelled
from core.stages.work import live_plugin, spec_of, stats_on
from core.tasks import Task

CLIPS = {"train": 1500, "val": 200, "test": 500}
ALONE = 1 / 3
RATE, SHORTEST = 8000, 4000
SETTINGS = ["task.kind=multi_label", "finetune.label_smoothing=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    home = Path(options.home).absolute()
    settings = [*SETTINGS, *options.overrides]
    encoder = max((home / "runs" / "pretrain").glob("*/record.json"), key=lambda p: p.stat().st_mtime).parent
    with tempfile.TemporaryDirectory() as folder:
        manifest = mixtures(home / "demo" / "languages", Path(folder))
        run(home, settings, "prepare", "--data", str(manifest))
    data = newest(home, "prepared")
    run(home, settings, "finetune", "--from", str(encoder), "--labelled", str(data))
    run(home, settings, "evaluate", "--from", str(newest(home, "runs/finetune")), "--labelled", str(data))
    result = compared(home, settings, data)
    for name, value in result.items():
        print(f"{name:34s} {value}")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def mixtures(source: Path, folder: Path) -> Path:
    """Mixed clips as WAV files, and their manifest."""
    rows = list(csv.DictReader((source / "manifest.csv").open()))
    waves = {row["path"]: soundfile.read(source / row["path"], dtype="float32")[0] for row in rows}
    rng = np.random.default_rng(0)
    lines = [("path", "label", "split")]
    for split, count in CLIPS.items():
        usable = [row for row in rows if row["split"] == split and len(waves[row["path"]]) >= SHORTEST]
        for number in range(count):
            one, other = rng.choice(len(usable), 2)
            pair = [usable[one], usable[other]]
            chosen = pair[:1] if rng.random() < ALONE or pair[0]["label"] == pair[1]["label"] else pair
            name = f"{split}-{number:04d}.wav"
            soundfile.write(folder / name, mixed([waves[row["path"]] for row in chosen]), RATE)
            lines.append((name, "|".join(row["label"] for row in chosen), split))
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows(lines)
    return folder / "manifest.csv"


def mixed(waves: list[np.ndarray]) -> np.ndarray:
    """The sum of equally loud waves, as long as the shorter."""
    length = min(map(len, waves))
    total = sum(wave[:length] / max(float(np.sqrt(np.mean(wave[:length] ** 2))), 1e-4) for wave in waves)
    return 0.5 * total / np.abs(total).max()


def run(home: Path, settings: list[str], stage: str, *arguments: str) -> None:
    sets = [part for value in settings for part in ("--set", value)]
    command = [sys.executable, "-m", "flows.cli", stage, "audio/demo", *arguments, *sets, "--home", str(home)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def newest(home: Path, kind: str) -> Path:
    return max((home / kind).glob("*/record.json"), key=lambda path: path.stat().st_mtime).parent


def compared(home: Path, settings: list[str], data: Path) -> dict[str, float]:
    recipe = recipes.load("audio/demo", settings)
    prepared, tuned = read_record(data, PreparedData), read_record(newest(home, "runs/finetune"), TunedModel)
    report = read_record(newest(home, "runs/evaluate"), EvalReport)
    encoder = read_record(home / "runs" / "pretrain" / tuned.encoder, PretrainedEncoder)
    assert prepared.target is not None
    task, store = Task.of(prepared.target), PreparedStore.open(data)
    model = Classifier(spec_of(tuned.geometry), tuned.model, task.outputs, tuned.pool)
    model.load_state_dict(load_file(newest(home, "runs/finetune") / tuned.weights))
    on = Labelled(store, task, live_plugin(recipe, "finetune"), stats_on(encoder.statistics, torch.device("cpu")))
    logits, truth = predict_views(model, on, store.ids("test", labelled=True), 128)
    theirs = float(average_precision_score(truth, logits, average="macro"))
    return {
        "mAP of the pipeline": round(report.metrics["eval/map"], 6),
        "mAP by scikit-learn": round(theirs, 6),
        "difference": abs(theirs - report.metrics["eval/map"]),
        "guessing (mean share of positives)": round(float(truth.mean()), 4),
        "AUROC": round(report.metrics["eval/auroc"], 4),
        "d-prime": round(report.metrics["eval/d_prime"], 3),
        "test clips": float(len(truth)),
    }


if __name__ == "__main__":
    main()
