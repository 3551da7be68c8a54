"""The pipeline: prepare, pretrain, fine-tune, evaluate, chained by a Prefect flow; needs no server to be configured."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from core.config import (
    ComputeConfig,
    Config,
    EvaluateConfig,
    FinetuneConfig,
    ModelConfig,
    PrepareConfig,
    PretrainConfig,
    Recipe,
    TaskConfig,
)
from core.errors import UserError
from core.recipes import resolve
from core.records import PreparedData
from core.workspace import Home
from flows import console, reports, stages
from flows.privacy import discretion, refuse_paths
from infra import settings
from infra.records import RunRecords
from infra.watchdog import guard_children


class DataSource(Config):
    """Somewhere raw data are."""

    path: str
    """A folder, a manifest, or a dataset saved by Hugging Face datasets; a private one by its public name."""
    weight: float = 1.0
    """How often each of its items appears in an epoch of pretraining, in the mean."""


@flow(name="maeflow", flow_run_name="{name}", validate_parameters=True)
def pipeline(
    sources: list[DataSource],
    modality: str,
    data: dict[str, Any],
    labelled: str | None = None,
    home: str | None = None,
    name: str = "unnamed",
    seed: int = 0,
    task: TaskConfig = TaskConfig(),
    prepare: PrepareConfig = PrepareConfig(),
    model: ModelConfig = ModelConfig(),
    pretrain: PretrainConfig = PretrainConfig(),
    finetune: FinetuneConfig = FinetuneConfig(),
    evaluate: EvaluateConfig = EvaluateConfig(),
    compute: ComputeConfig = ComputeConfig(),
) -> dict[str, Any]:
    """Run all stages that have something to work on.

    Args:
        sources: Raw data to pretrain on.
        modality: Name of the plugin that reads them.
        data: The plugin's settings.
        labelled: Labelled data to fine-tune on and to evaluate with; by default the labelled part of the first source.
        home: Folder that everything is kept in.
        name: What the recipe is called.
        seed: The number all randomness comes from.
        task: What is to be predicted.
        prepare: Settings of the first stage.
        model: The encoder and its decoder.
        pretrain: Settings of the second stage.
        finetune: Settings of the third stage.
        evaluate: Settings of the last stage.
        compute: How the work is carried out; changes no results.
    """
    groups: dict[str, Config] = {
        "task": task,
        "prepare": prepare,
        "model": model,
        "pretrain": pretrain,
        "finetune": finetune,
        "evaluate": evaluate,
        "compute": compute,
    }
    values = {"modality": modality, "name": name, "seed": seed, "data": data}
    values |= {key: group.model_dump(mode="json") for key, group in groups.items()}
    with discretion(modality):
        return run(resolve(values, "of the flow"), sources, labelled, settings.home_folder(home))


def parameters(recipe: Recipe, sources: Sequence[DataSource], labelled: str | None, home: Path) -> dict[str, Any]:
    """The flow's parameters for a resolved recipe."""
    groups = {name: getattr(recipe, name) for name in type(recipe).model_fields if name != "data"}
    data = recipe.data.model_dump(mode="json")
    return {**groups, "data": data, "sources": list(sources), "labelled": labelled, "home": str(home)}


def run(recipe: Recipe, sources: Sequence[DataSource], labelled: str | None, home: Path) -> dict[str, Any]:
    """The body of the flow; call it inside one."""
    refuse_paths([*(source.path for source in sources), *([labelled] if labelled else [])], recipe.modality)
    guard_children("prefect.server")
    records = RunRecords(home, recipe, _links())
    context = stages.Context(Home.create(home), recipe, records)
    records.open()
    if records.failure:
        console.current().line(f"  note: MLflow cannot be reached ({records.failure}); the work goes on without it")
    token = stages.CONTEXT.set(context)
    try:
        first = _stages(sources, labelled)
    except BaseException as error:
        records.close("FAILED" if isinstance(error, Exception) else "KILLED", {}, None, None)
        raise
    finally:
        stages.CONTEXT.reset(token)
        stages.finish_logging(context)
    report = reports.write(context)
    records.close("FINISHED", _headline(context), first.data_digest, report)
    return {
        "stages": {o.stage: {"folder": str(o.folder), "run": o.run_id, "reused": o.reused} for o in context.outcomes},
        "pipeline_run": records.pipeline_id,
        "report": str(report),
    }


def _stages(sources: Sequence[DataSource], labelled: str | None) -> PreparedData:
    """Chain the stages; gives the first source's record."""
    data = [(stages.prepare(source.path).record, source.weight) for source in sources]
    first = data[0][0]
    if labelled is not None:
        tuning: PreparedData | None = stages.prepare(labelled, role="labelled").record
    else:
        tuning = first if first.target is not None else None
    if tuning is not None and tuning.target is not None and tuning.labelled["test"] == 0:
        raise UserError(
            "no labelled item is held out for testing, so the pipeline could not evaluate what it trains; give the "
            "source a test split, or more groups, which are never divided, or raise prepare.test_fraction; "
            "`maeflow pretrain` alone does without"
        )
    encoder = stages.pretrain(data, tuning).record
    if tuning is None or tuning.target is None:
        console.current().line(
            "  no item has a label, so the pipeline ends after pretraining; give --labelled to go on"
        )
        return first
    tuned = stages.finetune(encoder, tuning).record
    stages.evaluate(encoder, tuned, tuning)
    return first


def _headline(context: stages.Context) -> dict[str, float]:
    """Metrics of all stages that a person compares pipelines by."""
    metrics: dict[str, float] = {}
    for outcome in context.outcomes:
        metrics |= getattr(outcome.record, "metrics", {})
    return metrics


def _links() -> dict[str, str]:
    """Tags that lead from MLflow to the Prefect run and the code's commit."""
    tags = {}
    with suppress(Exception):
        tags = {"prefect.flow_run_id": str(flow_run.id or ""), "prefect.flow_run_name": str(flow_run.name or "")}
        if url := flow_run.ui_url:
            tags["prefect.flow_run_url"] = str(url)
    if commit := os.environ.get("GIT_COMMIT"):
        tags["maeflow.commit"] = commit
    return {key: value for key, value in tags.items() if value}
