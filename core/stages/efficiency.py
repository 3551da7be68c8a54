"""Label efficiency: accuracy over labels per class, from the pretrained encoder and from random weights.

Each cell (arm, labels, seed) is a unit: one small fine-tuning, one result file. For a seed, both arms see the same
labelled items in the same order with the same augmentations, and the random arm's encoder is drawn from the seed.
"""

import json
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from core.config import ComputeConfig, LabelEfficiencyConfig, Recipe
from core.data.loading import FixedViews, Ids, Part, Stream, TrainViews, to_device
from core.data.seeds import numpy_rng, seed_of
from core.errors import Stopped
from core.evaluation.metrics import paired_interval
from core.evaluation.probes import pca_logreg
from core.processes import PATIENCE, die_with, side_by_side
from core.recipes import resolve
from core.records import PreparedData, PretrainedEncoder
from core.stages.finetune import Labelled, build, layer_groups, require_target
from core.stages.work import Work, live_plugin, open_store, stats_on
from core.tasks import Task
from core.tracking import NullTracker
from core.training.classification import ClassifierObjective
from core.training.devices import pick_device
from core.training.optim import Schedule
from core.training.trainer import Job, Trainer
from core.workspace import Home, write_text

Arm = Literal["pretrained", "random", "baseline"]
ARMS: tuple[Arm, ...] = ("pretrained", "random", "baseline")
WARMUP = 0.1
"""Share of a cell's steps that warms the learning rate up."""
LITTLE_SAMPLES = 10_000
"""Samples, over all cells, up to which they run in the stage's own process."""


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the comparison."""

    arm: Arm
    labels: int
    """Labelled training items per class."""
    seed: int

    @property
    def name(self) -> str:
        """File name of its result, without suffix."""
        return f"{self.arm}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class Bench:
    """What every cell is given; picklable, opened again in each process."""

    values: dict[str, Any]
    """The recipe in JSON form: its class is made for the modality and cannot be pickled."""
    encoder: PretrainedEncoder
    labelled: PreparedData
    home: Path
    split: Literal["val", "test"] = "test"
    """What accuracy is measured on; `val` while settings are chosen."""

    @property
    def recipe(self) -> Recipe:
        """The recipe, typed."""
        return resolve(self.values, "of the run")


def within(config: LabelEfficiencyConfig, most: int) -> LabelEfficiencyConfig | None:
    """``config`` without counts that no class has so many labels for, ``most`` being those of the largest one.

    All seeds would draw the same items, and call them more than they are. None where no count is left.
    """
    kept = tuple(count for count in config.labels_per_class if count <= most)
    return config.model_copy(update={"labels_per_class": kept}) if kept else None


def plan(config: LabelEfficiencyConfig) -> list[Cell]:
    """All cells, the longest kind first so that processes finish together."""
    return [Cell(arm, n, seed) for arm in ARMS for n in config.labels_per_class for seed in config.seeds]


def draw_labels(store: Any, labels: int, seed: int) -> Ids:
    """``labels`` training rows of each class, drawn from ``seed``; fewer where a class has fewer."""
    ids = store.ids("train", labelled=True)
    classes = np.array(store.targets(ids))
    rng = numpy_rng(seed, "labels", labels)
    chosen = [rng.permutation(ids[classes == c])[:labels] for c in np.unique(classes)]
    return np.sort(np.concatenate(chosen))


def run_cell(cell: Cell, bench: Bench) -> dict[str, float]:
    """Fine-tune, or fit the baseline, and score it."""
    recipe = bench.recipe
    config = recipe.evaluate.label_efficiency
    assert config is not None
    device = pick_device(recipe.compute.device)
    plugin = live_plugin(recipe, "finetune", recipe.finetune.input_shape)
    task = Task.of(require_target(bench.labelled))
    work = Work(Home(bench.home), "", bench.home)
    on = Labelled(
        open_store(work.home, bench.labelled, recipe), task, plugin, stats_on(bench.encoder.statistics, device)
    )
    train = draw_labels(on.store, cell.labels, cell.seed)
    test = on.store.ids(bench.split, labelled=True)
    if cell.arm == "baseline":
        return {"top1": _baseline(on, train, test, recipe.evaluate.batch, cell.seed)}
    settings = config.pretrained if cell.arm == "pretrained" else config.random
    tuned = recipe.finetune.model_copy(
        update={**settings.model_dump(), "batch": config.batch, "micro_batch": None, "ema": None}
    )
    seed = seed_of(cell.seed, "cell", cell.labels)
    model = build(recipe, bench.encoder, plugin.patches(), task, work, seed, pretrained=cell.arm == "pretrained").to(
        device
    )
    stream = Stream([Part(train)], seed)
    job = Job(
        name="finetune",
        config=tuned,
        compute=ComputeConfig(device=recipe.compute.device, workers=0, checkpoint_seconds=1e9, log_every=10**9),
        device=device,
        seed=seed,
        schedule=Schedule(tuned.lr, tuned.min_lr, round(WARMUP * config.steps), config.steps),
        per_epoch=stream.per_epoch,
        plugin=plugin,
        stats=on.stats,
        tracker=NullTracker(),
        workdir=bench.home / "nowhere",
        evaluate_every=10**9,
    )
    objective = ClassifierObjective(model, task, tuned, task.class_weights(on.store.targets(train))).to(device)
    Trainer(objective, layer_groups(model, tuned), job).run(TrainViews([on.store], stream, plugin, seed, task.tensor))
    logits, targets = on.predict(model, test, recipe.evaluate.batch)
    return {"top1": task.metrics(logits, targets)["top1"]}


def _baseline(on: Labelled, train: Ids, test: Ids, batch: int, seed: int) -> float:
    """Accuracy of principal components with logistic regression on the plain features."""
    train_x, train_y = _plain(on, train, batch)
    test_x, test_y = _plain(on, test, batch)
    return float((pca_logreg(train_x, train_y, test_x, seed) == test_y).mean())


def _plain(on: Labelled, ids: Ids, batch: int) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    views = FixedViews(on.store, ids, on.plugin, batch)
    device = on.stats.mean.device
    parts = [on.plugin.features(to_device(views[i], device)).flatten(1).cpu().numpy() for i in range(len(views))]
    return np.concatenate(parts), np.array(on.store.targets(ids))


def run_cells(
    cells: Sequence[Cell],
    bench: Bench,
    folder: Path,
    done: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Run the cells that have no result in ``folder`` yet, in processes of one thread each beside one another.

    Raises:
        Stopped: if asked to stop; finished cells keep their results.
    """
    folder.mkdir(exist_ok=True)
    missing = [cell for cell in cells if not (folder / f"{cell.name}.json").exists()]
    count = len(cells) - len(missing)
    done(count, len(cells))
    if not missing:
        return
    finished = _one_by_one(missing, bench, folder) if _little(missing, bench) else _side_by_side(missing, bench, folder)
    for more in finished:
        count += more
        if more:
            done(count, len(cells))
        if should_stop() and count < len(cells):
            finished.close()
            raise Stopped(f"evaluation saved after {count} of {len(cells)} cells")


def _little(cells: Sequence[Cell], bench: Bench) -> bool:
    """Whether starting processes would take longer than the work."""
    config = bench.recipe.evaluate.label_efficiency
    assert config is not None
    return len(cells) * config.steps * config.batch <= LITTLE_SAMPLES


def _one_by_one(cells: Sequence[Cell], bench: Bench, folder: Path) -> Generator[int, None, None]:
    """Run cells in this process, on one thread as elsewhere, so that results do not depend on where they ran.

    Gives, again and again, how many more are finished; so does `_side_by_side`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cell in cells:
            _run_and_write(cell, bench, folder)
            yield 1
    finally:
        torch.set_num_threads(threads)


def _side_by_side(cells: Sequence[Cell], bench: Bench, folder: Path) -> Generator[int, None, None]:
    """Run cells in processes; closing it keeps those that are finished, and ends the others where they are."""
    with side_by_side(min(_processes(bench.recipe.compute), len(cells)), _start) as pool:
        waiting = {pool.submit(_run_and_write, cell, bench, folder) for cell in cells}
        while waiting:
            finished, waiting = wait(waiting, PATIENCE, FIRST_COMPLETED)
            for future in finished:
                future.result()
            yield len(finished)


def _processes(compute: ComputeConfig) -> int:
    """One process per processor on the CPU; an accelerator is not shared."""
    if pick_device(compute.device).type != "cpu":
        return 1
    return compute.threads or os.cpu_count() or 1


def _start(parent: int) -> None:
    die_with(parent)
    torch.set_num_threads(1)


def _run_and_write(cell: Cell, bench: Bench, folder: Path) -> None:
    write_text(folder / f"{cell.name}.json", json.dumps(run_cell(cell, bench)) + "\n")


def collect(config: LabelEfficiencyConfig, folder: Path) -> dict[str, Any]:
    """The table of the comparison from the cells' results."""
    table = {
        arm: [[_result(folder, Cell(arm, n, s)) for s in config.seeds] for n in config.labels_per_class] for arm in ARMS
    }
    paired = []
    for n, ours, theirs in zip(config.labels_per_class, table["pretrained"], table["random"], strict=True):
        mean, low, high = paired_interval([a - b for a, b in zip(ours, theirs, strict=True)])
        paired.append({"labels": n, "mean": mean, "low": low, "high": high})
    return {
        "labels_per_class": list(config.labels_per_class),
        "seeds": list(config.seeds),
        "pretrained": table["pretrained"],
        "random": table["random"],
        "baseline": {"name": "PCA + logistic regression", "values": table["baseline"]},
        "paired": paired,
    }


def _result(folder: Path, cell: Cell) -> float:
    return float(json.loads((folder / f"{cell.name}.json").read_text())["top1"])
