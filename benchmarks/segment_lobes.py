"""How well are the brain's lobes segmented from a few labelled slabs: pretrained encoder beside random weights?

The encoder is the one `maeflow demo medical` has pretrained in HOME, on slabs without labels. Each seed draws which of
the training slabs are labelled, the same for both arms. Learning rates and layer decays are chosen on the validation
slabs, for both arms from one grid, with other seeds; then each arm is scored once per seed on the test slabs: Dice of
every lobe over whole slabs, by sliding windows. Intervals are Student's over seeds, the difference paired.

    python benchmarks/segment_lobes.py HOME [--labelled 2] [--seeds 1000 ... 1004] [--out FILE]
"""

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tune_label_efficiency import newest, one_thread

from core import recipes
from core.config import Recipe
from core.data.seeds import numpy_rng, seed_of
from core.evaluation.metrics import paired_interval
from core.model.mae import Encoder
from core.records import PretrainedEncoder, TunedModel
from core.segmentation import IGNORE
from core.stages import stage_function
from core.stages.work import Work, spec_of
from core.workspace import Home
from modalities.medical import demo

RATES, DECAYS, TUNED_ON = (3e-3, 1.2e-2, 4.8e-2), (0.8, 1.0), (1, 2)
CLASSES = ("elsewhere", *demo.LOBES)
SETTINGS = {
    "task.kind": "segmentation",
    "task.classes": f"[{','.join(CLASSES)}]",
    "finetune.segmenter.kind": "linear",
    "finetune.epochs": "100",
    "finetune.warmup_epochs": "10",
    "finetune.validate_every": "100",
    "finetune.batch": "16",
    "finetune.repeats": "8",
    "prepare.divided_groups": "regroup",
    "evaluate.label_efficiency": "null",
    "evaluate.batch": "16",
    "compute.threads": "1",
}


@dataclass(frozen=True)
class Cell:
    """One fine-tuning."""

    arm: str
    seed: int
    rate: float
    decay: float
    split: str


def recipe(rate: float = 1e-2, decay: float = 0.8, labelled: int = 2) -> Recipe:
    """The demo's recipe for the other task; an epoch is one step of 16 views."""
    settings = SETTINGS | {"finetune.base_lr": str(rate), "finetune.layer_decay": str(decay)}
    settings["finetune.epoch_samples"] = str(max(2, labelled))
    return recipes.load("medical/demo", [f"{key}={value}" for key, value in settings.items()])


def write_slabs(folder: Path) -> None:
    """Every slab with its mask; what lies in the limbic lobe, or in none, is not labelled."""
    brain, regions = demo.volumes()
    lobes = demo.lobes_of(regions)
    masks = np.where((lobes < 0) & (regions > 0), IGNORE, lobes + 1).astype(np.uint8)
    for number, start, _ in demo.slabs(lobes):
        part = slice(start, start + demo.SLAB)
        demo.write_nifti(folder / f"{number:02d}.nii.gz", brain[:, part], np.eye(4))
        demo.write_nifti(folder / f"{number:02d}-mask.nii.gz", masks[:, part], np.eye(4))


def manifest(folder: Path, seed: int, labelled: int) -> Path:
    """A manifest in which the seed's training slabs have masks, and all others for validation and testing."""
    numbers = sorted(int(path.stem[:2]) for path in folder.glob("??.nii.gz"))
    place = {number: demo.PLACES[number % len(demo.PLACES)] for number in numbers}
    train = [number for number in numbers if place[number] == "train"]
    chosen = set(numpy_rng(seed, "slabs").permutation(train)[:labelled].tolist())
    file = folder / f"seed-{seed}.csv"
    with file.open("w", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["path", "label", "split", "group"])
        for number in numbers:
            if place[number] != "train" or number in chosen:
                lines.writerow([f"{number:02d}.nii.gz", f"{number:02d}-mask.nii.gz", place[number], f"slab {number}"])
    return file


def work(home: Home, name: str) -> Work:
    """A fresh folder for a stage."""
    folder = home.root / "runs" / "cells" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Work(home, name, folder)


def random_encoder(home: Home, record: PretrainedEncoder, seed: int) -> PretrainedEncoder:
    """An encoder of the same shape with fresh weights."""
    torch.manual_seed(seed_of(seed, "random encoder"))
    folder = home.root / "runs" / "random" / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(Encoder(spec_of(record.geometry), record.model).state_dict(), folder / record.weights)
    return record.model_copy(update={"folder": home.uri(folder), "digest": f"random-{seed}"})


def run(cell: Cell, root: Path, pretrained: PretrainedEncoder, labelled: int) -> dict[str, float]:
    """Dice of each lobe: on whole test slabs, or on the fixed views of the validation slabs."""
    home, chosen = Home(root), recipe(cell.rate, cell.decay, labelled).model_copy(update={"seed": cell.seed})
    name = f"{cell.arm}-{cell.seed}-{cell.rate}-{cell.decay}-{cell.split}"
    at = work(home, f"data-{name}")
    prepared = stage_function("prepare")(chosen, str(manifest(root / "slabs", cell.seed, labelled)), at)
    prepared = prepared.model_copy(update={"folder": home.uri(at.folder)})
    start = pretrained if cell.arm == "pretrained" else random_encoder(home, pretrained, cell.seed)
    tuning = work(home, f"model-{name}")
    tuned: TunedModel = stage_function("finetune")(chosen, start, prepared, tuning)
    if cell.split == "val":
        return {"dice": tuned.metrics["finetune/val_dice"]}
    tuned = tuned.model_copy(update={"folder": home.uri(tuning.folder)})
    report = stage_function("evaluate")(chosen, start, tuned, prepared, work(home, f"score-{name}"))
    return {
        key.removeprefix("eval/"): value for key, value in report.metrics.items() if not key.endswith(("_low", "_high"))
    }


def run_all(cells: Sequence[Cell], root: Path, encoder: PretrainedEncoder, labelled: int) -> list[dict[str, float]]:
    """Scores of cells, side by side."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=one_thread) as pool:
        return [f.result() for f in [pool.submit(run, cell, root, encoder, labelled) for cell in cells]]


def tune(arm: str, root: Path, encoder: PretrainedEncoder, labelled: int) -> tuple[float, float]:
    """The pair of the grid with the best mean Dice on the validation slabs."""
    pairs = list(product(RATES, DECAYS))
    cells = [Cell(arm, seed, rate, decay, "val") for rate, decay in pairs for seed in TUNED_ON]
    scores = np.array([score["dice"] for score in run_all(cells, root, encoder, labelled)]).reshape(len(pairs), -1)
    for pair, row in zip(pairs, scores, strict=True):
        print(f"{arm:12s} base_lr {pair[0]:<8g} layer_decay {pair[1]:<4g} validation Dice {row.mean():.3f}", flush=True)
    return pairs[int(scores.mean(1).argmax())]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--labelled", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1000, 1001, 1002, 1003, 1004])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    root = options.home.absolute()
    Home.create(root)
    encoder = newest(root, "runs/pretrain", PretrainedEncoder)
    (root / "slabs").mkdir(exist_ok=True)
    write_slabs(root / "slabs")
    scores: dict[str, list[dict[str, float]]] = {}
    for arm in ("pretrained", "random"):
        rate, decay = tune(arm, root, encoder, options.labelled)
        print(f"{arm}: base_lr {rate:g}, layer_decay {decay:g}", flush=True)
        cells = [Cell(arm, seed, rate, decay, "test") for seed in options.seeds]
        scores[arm] = run_all(cells, root, encoder, options.labelled)
    show(scores, options.labelled)
    if options.out:
        options.out.write_text(json.dumps(scores, indent=1) + "\n")
    return 0


def show(scores: dict[str, list[dict[str, float]]], labelled: int) -> None:
    """Dice per lobe of both arms, and their difference with its interval."""
    print(f"\n{labelled} labelled slabs, {len(scores['random'])} seeds; Dice on test slabs, mean and 95 % interval")
    print(f"{'lobe':14s}{'pretrained':>26s}{'random':>26s}{'difference':>28s}")
    for name in ("dice", *[f"dice_{lobe}" for lobe in demo.LOBES]):
        arms: dict[str, Any] = {arm: [score.get(name, 0.0) for score in rows] for arm, rows in scores.items()}
        cells = [paired_interval(values) for values in arms.values()]
        cells.append(paired_interval([a - b for a, b in zip(*arms.values(), strict=True)]))
        texts = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, low, high in cells]
        print(f"{name.removeprefix('dice_'):14s}{texts[0]:>26s}{texts[1]:>26s}{texts[2]:>28s}")


if __name__ == "__main__":
    sys.exit(main())
