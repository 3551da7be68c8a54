"""The pipeline: prepare, pretrain, fine-tune, evaluate, chained inside a Prefect flow, with a server or without."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect.runtime import deployment, flow_run

from core.config import Recipe
from core.errors import UserError
from core.records import PreparedData
from core.workspace import Home
from flows import console, reports, stages
from flows.privacy import refuse_paths
from flows.sources import DataSource
from infra import settings
from infra.output import outlive_readers
from infra.reconcile import register
from infra.records import RunRecords
from infra.watchdog import guard_children


def parameters(
    recipe: Recipe, sources: Sequence[DataSource], labelled: str | None, checkpoint: str | None
) -> dict[str, Any]:
    """The pipeline flow's parameters for a resolved recipe."""
    groups = {name: getattr(recipe, name) for name in type(recipe).model_fields if name != "modality"}
    given = {"sources": [source.model_dump() for source in sources], "labelled": labelled, "checkpoint": checkpoint}
    return {**groups, **given}


def run(
    recipe: Recipe, sources: Sequence[DataSource], labelled: str | None, checkpoint: str | None, home: Path
) -> dict[str, Any]:
    """The body of the pipeline flow; call it inside one."""
    refuse_nothing(sources, labelled, checkpoint)
    refuse_paths([*(source.path for source in sources), *([labelled] if labelled else [])], recipe.modality)
    with open_context(recipe, home) as context:
        first = _stages(sources, labelled, checkpoint)
        report = reports.write(context)
        if context.served:
            console.current().line(f"report: {report}")
        context.records.close("FINISHED", _headline(context), first.data_digest, report)
    return {
        "stages": {o.stage: {"folder": str(o.folder), "run": o.run_id, "reused": o.reused} for o in context.outcomes},
        "pipeline_run": context.records.pipeline_id,
        "report": str(report),
    }


@contextmanager
def open_context(recipe: Recipe, home: Path) -> Iterator[stages.Context]:
    """What the stages of a flow share; the flow's MLflow run ends with it, however that comes."""
    settings.calm()
    guard_children("prefect.server")
    served = deployment.id is not None
    if served:
        outlive_readers()
    records = RunRecords(home, recipe, _links(), flow_run=_flow_run_id())
    context = stages.Context(Home.create(home), recipe, records, served=served)
    register(home, records.flow_run, served=served)
    with console.for_flow(served=served):
        records.open()
        if records.failure:
            console.current().line(f"  note: MLflow cannot be reached ({records.failure}); the work goes on without it")
        token = stages.CONTEXT.set(context)
        try:
            yield context
        except BaseException as error:
            records.close("FAILED" if isinstance(error, Exception) else "KILLED", {}, None, None)
            if not isinstance(error, Exception):
                stages.stop_registering(context)
            raise
        finally:
            stages.CONTEXT.reset(token)
            stages.finish_registering(context)


def refuse_nothing(sources: Sequence[DataSource], labelled: str | None, checkpoint: str | None) -> None:
    """Refuse a pipeline that has no data to begin with.

    Raises:
        UserError: if there is neither anything to pretrain on, nor a checkpoint with labelled data to tune it on.
    """
    if not sources and not (labelled and checkpoint):
        raise UserError(
            "there is nothing to pretrain on: give --data; or --checkpoint and --labelled, to tune what others made"
        )


def _stages(sources: Sequence[DataSource], labelled: str | None, checkpoint: str | None) -> PreparedData:
    """Chain the stages; gives the record of the first source, or of the labelled data where there is none."""
    data = [(stages.prepare(source.path).record, source.weight) for source in sources]
    tuning = stages.prepare(labelled, role="labelled").record if labelled is not None else None
    first = data[0][0] if data else tuning
    assert first is not None, "this is refused before"
    if tuning is None and first.target is not None:
        tuning = first
    if tuning is not None and tuning.target is not None and tuning.labelled["test"] == 0:
        raise UserError(
            "no labelled item is held out for testing, so the pipeline could not evaluate what it trains; give the "
            "source a test split, or more groups, which are never divided, or raise prepare.test_fraction; "
            "`maeflow pretrain` alone does without"
        )
    start = stages.adopt(checkpoint, first, further=bool(data)).record if checkpoint else None
    encoder = stages.pretrain(data, tuning, start).record if data else start
    assert encoder is not None, "this is refused before"
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


def _flow_run_id() -> str | None:
    with suppress(Exception):
        return str(flow_run.id) if flow_run.id else None
    return None


def _links() -> dict[str, str]:
    """Tags that lead from MLflow to the Prefect run, its deployment and the code's commit."""
    tags = {}
    with suppress(Exception):
        tags = {"prefect.flow_run_id": str(flow_run.id or ""), "prefect.flow_run_name": str(flow_run.name or "")}
        tags["prefect.deployment"] = str(deployment.name or "")
        if os.environ.get("PREFECT_API_URL") and (url := flow_run.ui_url):
            tags["prefect.flow_run_url"] = str(url)
    if commit := os.environ.get("GIT_COMMIT"):
        tags["maeflow.commit"] = commit
    return {key: value for key, value in tags.items() if value}
