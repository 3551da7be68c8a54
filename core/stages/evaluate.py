"""Stage 4: what the models are worth on data that no stage trained on."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import EvaluateConfig, LabelEfficiencyConfig, Recipe, TaskKind
from core.data.loading import Ids, collate, to_device
from core.data.seeds import seed_of, torch_rng
from core.errors import StageError, Stopped, UserError
from core.evaluation.metrics import bootstrap_interval, confusion_matrix, per_class
from core.evaluation.probes import knn_predict, linear_probe
from core.model.heads import Head
from core.model.mae import Encoder
from core.model.segmentation import tuned_from
from core.records import EvalReport, PreparedData, PretrainedEncoder, TunedModel
from core.stages.efficiency import Bench, collect, plan, run_cells, within
from core.stages.finetune import Labelled, require_target
from core.stages.segmenting import score_segmenter
from core.stages.work import (
    Work,
    encoder_weights,
    extract,
    live_plugin,
    open_store,
    stats_on,
)
from core.tasks import Task
from core.training.devices import configure
from core.workspace import write_text

RESULTS_FILE = "results.json"


def evaluate(
    recipe: Recipe, encoder: PretrainedEncoder, tuned: TunedModel | None, labelled: PreparedData, work: Work
) -> EvalReport:
    """Score the tuned model if there is one, the frozen encoder beside a random one, and the arms of label efficiency.

    Raises:
        UserError: if there is no tuned model where only that could be scored.
        StageError: if no test item is labelled.
        Stopped: if asked to stop; calling again continues.
    """
    device = configure(recipe.compute)
    target = require_target(labelled)
    plugin = live_plugin(recipe, "evaluate", recipe.finetune.input_shape)
    task = Task.of(target)
    if tuned is None and task.kind is TaskKind.SEGMENTATION:
        raise UserError("an encoder alone gives no masks to score; fine-tune it first")
    on = Labelled(
        open_store(work.home, labelled, recipe), task, plugin, stats_on((tuned or encoder).statistics, device)
    )
    test = on.store.ids("test", labelled=True)
    if len(test) == 0:
        raise StageError(
            "no test item is labelled; give the source a test split, or more groups, which are never divided, "
            "or raise prepare.test_fraction"
        )
    clock = time.monotonic()
    results: dict[str, Any] = {"classes": list(target.classes), "seconds": {}}
    results |= score_tuned(recipe, tuned, on, test, work) if tuned else {"test": {}, "intervals": {}}
    results["seconds"]["tuned"] = time.monotonic() - clock
    results["probes"] = {} if task.kind is TaskKind.SEGMENTATION else probe_frozen(recipe, encoder, on, work)
    results["seconds"]["probes"] = time.monotonic() - clock - results["seconds"]["tuned"]
    efficiency = _efficiency(recipe, on, work)
    if efficiency:
        clock = time.monotonic()
        folder = work.folder / "cells"
        bench = Bench(recipe.model_dump(mode="json"), encoder, labelled, work.home.root)

        def done(count: int, total: int) -> None:
            work.tracker.progress("evaluate", count, total, "fine-tunings")

        run_cells(plan(efficiency), bench, folder, done, work.should_stop)
        results["label_efficiency"] = collect(efficiency, folder)
        results["seconds"]["label_efficiency"] = time.monotonic() - clock
    metrics = flat_metrics(results)
    seconds = results.pop("seconds")
    write_text(work.folder / "seconds.json", json.dumps(seconds) + "\n")
    write_text(work.folder / RESULTS_FILE, json.dumps(results, indent=1) + "\n")
    work.tracker.metrics(0, metrics)
    return EvalReport(
        **work.origin("evaluate", recipe, device),
        metrics=metrics,
        results=RESULTS_FILE,
        encoder=encoder.digest,
        model=tuned.digest if tuned else "",
        prepared=labelled.digest,
    )


def _efficiency(recipe: Recipe, on: Labelled, work: Work) -> LabelEfficiencyConfig | None:
    """What of label efficiency these data allow; None where nothing is wanted or possible."""
    wanted = recipe.evaluate.label_efficiency
    if wanted is None or on.task.kind is not TaskKind.SINGLE:
        return None
    most = max(Counter(on.store.targets(on.store.ids("train", labelled=True))).values(), default=0)
    allowed = within(wanted, most)
    if left := [count for count in wanted.labels_per_class if count > most]:
        counts = ", ".join(map(str, left))
        work.tracker.note(f"label efficiency is left out at {counts} labels per class: no class has more than {most}")
    return allowed


def score_tuned(recipe: Recipe, tuned: TunedModel, on: Labelled, test: Ids, work: Work) -> dict[str, Any]:
    """Test metrics of the tuned model with their intervals, per class, and as a confusion matrix or case by case."""
    model = tuned_from(work.home.resolve(tuned.folder), tuned).to(on.stats.mean.device)
    if on.task.kind is TaskKind.SEGMENTATION:
        return score_segmenter(recipe, model, on, test, work)
    logits, targets = predict_views(model, on, test, recipe.evaluate.batch)
    results: dict[str, Any] = {"test": on.task.metrics(logits, targets), "intervals": {}}
    rng = np.random.default_rng(seed_of(recipe.seed, "bootstrap"))
    groups = on.store.groups(test)
    results["groups"] = len({group for group in groups if group is not None})
    if on.task.kind is TaskKind.SINGLE:
        order = logits.topk(min(5, on.task.outputs), dim=1).indices == targets[:, None]
        for name, correct in (("top1", order[:, 0]), ("top5", order.any(dim=1))):
            if name in results["test"]:
                interval = bootstrap_interval(correct.numpy(), rng, recipe.evaluate.bootstrap, groups)
                results["intervals"][name] = interval
        confusion = confusion_matrix(logits.argmax(1).numpy(), targets.numpy(), on.task.outputs)
        results["confusion"] = confusion.tolist()
        results["per_class"] = per_class(confusion, on.task.classes)
    return results


@torch.no_grad()
def predict_views(model: Head, on: Labelled, ids: Ids, batch: int) -> tuple[Tensor, Tensor]:
    """Logits averaged over each row's evaluation views, and targets, on the CPU."""
    model.eval()
    device = on.stats.mean.device
    logits, targets = [], []
    for start in range(0, len(ids), batch):
        records = on.store.rows(ids[start : start + batch])
        views = [on.plugin.views(record) for record in records]
        samples = collate([view for several in views for view in several], None)
        rng = torch_rng(device, 0, "views", start)
        inputs = on.plugin.batch(to_device(samples, device), on.stats, rng, train=False)
        scores = model.classify(inputs.x, inputs.valid).cpu()
        counts = [len(several) for several in views]
        logits.append(torch.stack([part.mean(0) for part in torch.split(scores, counts)]))
        targets.append(on.task.tensor([record.target for record in records]))
    return torch.cat(logits), torch.cat(targets)


def probe_frozen(recipe: Recipe, encoder: PretrainedEncoder, on: Labelled, work: Work) -> dict[str, dict[str, float]]:
    """k-NN and linear probe of the frozen encoder and of a random one of the same shape."""
    config = recipe.evaluate
    plugin = live_plugin(recipe, "evaluate", recipe.pretrain.input_shape)
    spec = plugin.patches()
    frozen = Labelled(on.store, on.task, plugin, stats_on(encoder.statistics, on.stats.mean.device))
    probes: dict[str, dict[str, float]] = {"knn": {}, "linear": {}}
    for arm in ("pretrained", "random"):
        if work.should_stop():
            raise Stopped("evaluation stopped before its probes were done")
        torch.manual_seed(seed_of(recipe.seed, "random encoder"))
        model = Encoder(spec, encoder.model)
        if arm == "pretrained":
            model.load_state_dict(encoder_weights(work.home, encoder, spec))
        scores = _probe(model.to(on.stats.mean.device), frozen, config)
        for kind, value in scores.items():
            probes[kind][arm] = value
    return {kind: values for kind, values in probes.items() if values}


def _probe(model: Encoder, on: Labelled, config: EvaluateConfig) -> dict[str, float]:
    """Headline metric of each probe on the test split."""
    splits = {name: on.store.ids(name, labelled=True) for name in ("train", "val", "test")}
    x = {name: extract(model, on.store, ids, on.plugin, on.stats, config.batch) for name, ids in splits.items()}
    y = {name: on.task.tensor(on.store.targets(ids)) for name, ids in splits.items()}
    headline = on.task.headline
    scores = {}
    if on.task.kind is not TaskKind.REGRESSION:
        neighbours = knn_predict(
            x["train"],
            y["train"],
            x["test"],
            k=config.knn_k,
            temperature=config.knn_temperature,
            classes=on.task.outputs,
        )
        scores["knn"] = on.task.metrics(neighbours, y["test"])[headline]
    linear = linear_probe((x["train"], y["train"]), (x["val"], y["val"]), x["test"], config.linear_c, on.task)
    scores["linear"] = on.task.metrics(linear, y["test"])[headline]
    return scores


def flat_metrics(results: dict[str, Any]) -> dict[str, float]:
    """All scalar results under their metric names."""
    flat = {f"eval/{name}": float(value) for name, value in results["test"].items()}
    for name, (low, high) in results["intervals"].items():
        flat |= {f"eval/{name}_low": low, f"eval/{name}_high": high}
    for kind, arms in results["probes"].items():
        flat[f"eval/{kind}"] = arms["pretrained"]
        flat[f"eval/{kind}_random_init"] = arms["random"]
    flat |= _efficiency_metrics(results.get("label_efficiency"))
    return flat


def _efficiency_metrics(table: dict[str, Any] | None) -> dict[str, float]:
    if table is None:
        return {}
    flat = {}
    for number, labels in enumerate(table["labels_per_class"]):
        flat[f"eval/top1_{labels}_labels"] = _mean(table["pretrained"][number])
        flat[f"eval/top1_{labels}_labels_random_init"] = _mean(table["random"][number])
        flat[f"eval/top1_{labels}_labels_baseline"] = _mean(table["baseline"]["values"][number])
    return flat


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
