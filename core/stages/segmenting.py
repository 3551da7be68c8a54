"""Scores of a tuned segmenter: each test case whole, from windows; its masks beside the true ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from core.config import Recipe
from core.data.loading import Ids
from core.data.seeds import seed_of
from core.errors import Stopped
from core.evaluation.metrics import bootstrap_interval
from core.evaluation.sliding import predict_whole
from core.evaluation.surfaces import distances
from core.modality import Record
from core.model.heads import Head
from core.segmentation import IGNORE, Segmentation
from core.stages.finetune import Labelled
from core.stages.work import Work

Case = dict[str, Any]
DISTANCES = ("hd95", "hausdorff")


def score_segmenter(recipe: Recipe, model: Head, on: Labelled, test: Ids, work: Work) -> dict[str, Any]:
    """Dice and Hausdorff distances of every class, in the mean and case by case, with intervals over groups.

    Raises:
        Stopped: if asked to stop.
    """
    task = on.task
    assert isinstance(task, Segmentation)
    model.eval()
    cases: list[Case] = []
    for number, row in enumerate(test):
        if work.should_stop():
            raise Stopped(f"evaluation stopped after {number} of {len(test)} cases")
        cases.append({"case": number + 1} | _case(recipe, model, on, on.store.rows([int(row)])[0]))
        work.tracker.progress("evaluate", number + 1, len(test), "cases")
    groups = _groups(on.store.groups(test))
    rng = np.random.default_rng(seed_of(recipe.seed, "bootstrap"))
    # The background last: it is nearly everything, and says little.
    named = [*task.classes[1:], task.classes[0]]
    results: dict[str, Any] = {"test": {}, "intervals": {}, "cases": cases}
    for metric in ("dice", *DISTANCES):
        for name in named if metric == "dice" else task.classes[1:]:
            _add(results, f"{metric}_{name}", [case[metric][name] for case in cases], groups, recipe, rng)
    headline: dict[str, Any] = {"test": {"dice": 0.0}, "intervals": {}}
    pairs = [
        (case["dice"][name], group) for case, group in zip(cases, groups, strict=True) for name in task.classes[1:]
    ]
    _add(headline, "dice", [value for value, _ in pairs], [group for _, group in pairs], recipe, rng)
    results["test"], results["intervals"] = (headline[key] | results[key] for key in ("test", "intervals"))
    results["groups"] = len({group for group in on.store.groups(test) if group is not None})
    return results


def _case(recipe: Recipe, model: Head, on: Labelled, record: Record) -> Case:
    """Scores of one record, by metric and class; None where undefined."""
    config, task = recipe.evaluate, on.task
    assert isinstance(task, Segmentation)
    logits, mask = predict_whole(
        lambda batch: model.classify(batch.x, batch.valid),
        record,
        on.plugin,
        on.stats,
        outputs=task.outputs,
        batch=min(config.batch, recipe.finetune.micro),  # What fits into training fits.
        blend=config.blend,
    )
    predicted = logits.argmax(0).masked_fill(mask == IGNORE, IGNORE)
    each = task.dice(task.counts(predicted[None], mask[None]))[0].tolist()
    dice = {name: _number(value) for name, value in zip(task.classes, each, strict=True)}
    return {"dice": dice} | surfaces(predicted, mask, task.classes, record.meta.get("spacing"))


def surfaces(
    predicted: Tensor, mask: Tensor, classes: Sequence[str], spacing: Sequence[float] | None
) -> dict[str, dict[str, float | None]]:
    """``hd95`` and ``hausdorff`` of each class but the background; None where it is not in both."""
    one, other = predicted.numpy(), mask.numpy()
    along = spacing or [1.0] * one.ndim
    found = {name: distances(one == c, other == c, along) for c, name in enumerate(classes) if c}
    return {
        metric: {name: None if both is None else float(getattr(both, metric)) for name, both in found.items()}
        for metric in DISTANCES
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _groups(groups: Sequence[str | None]) -> list[str]:
    """A group for every case, so that values of one case stay together."""
    return [f"alone {number}" if group is None else f"in {group}" for number, group in enumerate(groups)]


def _add(
    results: dict[str, Any],
    name: str,
    values: Sequence[float | None],
    groups: Sequence[str],
    recipe: Recipe,
    rng: np.random.Generator,
) -> None:
    """The mean of what is defined among ``values``, and its interval."""
    known = [(value, group) for value, group in zip(values, groups, strict=True) if value is not None]
    if known:
        numbers = np.array([value for value, _ in known])
        results["test"][name] = float(numbers.mean())
        results["intervals"][name] = bootstrap_interval(
            numbers, rng, recipe.evaluate.bootstrap, [group for _, group in known]
        )
