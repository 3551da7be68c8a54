"""Which learning rate and layer decay suit each arm of the label-efficiency comparison?

Both arms, the pretrained encoder and random weights, get the same grid, the same seeds and the same steps. Scores are
accuracies on the validation split; the test split is never read. The seeds are not those of the recipe.

    python benchmarks/tune_label_efficiency.py HOME RECIPE [--labels 5] [--seeds 1 2] [--rates ...] [--decays ...]
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from core import recipes
from core.records import PreparedData, PretrainedEncoder, read_record
from core.stages.efficiency import Arm, Bench, Cell, run_cell

RATES = (6e-3, 1.2e-2, 2.4e-2, 4.8e-2)
DECAYS = (0.8, 1.0)


def main() -> int:
    options = arguments()
    recipe = recipes.load(options.recipe, options.overrides)
    home = Path(options.home).absolute()
    encoder = newest(home, "runs/pretrain", PretrainedEncoder)
    labelled = read_record(home / "prepared" / encoder.prepared, PreparedData)
    if labelled.target is None:
        labelled = newest_labelled(home)
    jobs = list(product(("pretrained", "random"), options.rates, options.decays, options.seeds))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=one_thread) as pool:
        values = recipe.model_dump(mode="json")
        futures = [pool.submit(score, values, encoder, labelled, home, options.labels, *job) for job in jobs]
        scores = [future.result() for future in futures]
    table: dict[tuple[str, float, float], list[float]] = {}
    for (arm, rate, decay, _), value in zip(jobs, scores, strict=True):
        table.setdefault((arm, rate, decay), []).append(value)
    show(table)
    if options.out:
        rows = [{"arm": a, "base_lr": r, "layer_decay": d, "top1": v} for (a, r, d), v in table.items()]
        Path(options.out).write_text(
            json.dumps({"labels": options.labels, "seeds": options.seeds, "rows": rows}, indent=1)
        )
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("recipe")
    parser.add_argument("--labels", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--decays", type=float, nargs="+", default=DECAYS)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def newest(home: Path, folder: str, kind: type[PretrainedEncoder]) -> PretrainedEncoder:
    """The record of the stage that was finished last."""
    done = [p for p in (home / folder).iterdir() if (p / "record.json").exists() and p.suffix != ".partial"]
    return read_record(max(done, key=lambda p: p.stat().st_mtime), kind)


def newest_labelled(home: Path) -> PreparedData:
    """The labelled data that were prepared last, where the encoder saw others."""
    done = [p for p in (home / "prepared").iterdir() if (p / "record.json").exists() and p.suffix != ".partial"]
    records = [read_record(p, PreparedData) for p in sorted(done, key=lambda p: p.stat().st_mtime)]
    return next(record for record in reversed(records) if record.target is not None)


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def score(
    values: dict[str, Any],
    encoder: PretrainedEncoder,
    labelled: PreparedData,
    home: Path,
    labels: int,
    arm: Arm,
    rate: float,
    decay: float,
    seed: int,
) -> float:
    """Validation accuracy of one fine-tuning."""
    settings = {arm: {"base_lr": rate, "layer_decay": decay}}
    efficiency = values["evaluate"]["label_efficiency"] | settings
    chosen = values | {"evaluate": values["evaluate"] | {"label_efficiency": efficiency}}
    return run_cell(Cell(arm, labels, seed), Bench(chosen, encoder, labelled, home, split="val"))["top1"]


def show(table: dict[tuple[str, float, float], list[float]]) -> None:
    print(f"{'arm':12s} {'base_lr':>8s} {'decay':>6s} {'val top1':>9s} {'sd':>6s}")
    for arm in ("pretrained", "random"):
        rows = sorted(((mean(v), k, v) for k, v in table.items() if k[0] == arm), reverse=True)
        for number, (value, (_, rate, decay), values) in enumerate(rows):
            mark = " <- chosen" if number == 0 else ""
            spread = stdev(values) if len(values) > 1 else 0.0
            print(f"{arm:12s} {rate:8.4f} {decay:6.2f} {value:9.4f} {spread:6.4f}{mark}")


if __name__ == "__main__":
    sys.exit(main())
