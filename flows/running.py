"""From the command line into a flow, and the last lines a person reads."""

import shlex
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow

from core.config import Recipe
from core.errors import UserError
from core.records import PreparedData, PretrainedEncoder, TunedModel, read_record
from core.workspace import Home
from flows import console, stages
from flows.pipeline import DataSource, parameters, pipeline
from flows.privacy import discretion, refuse_paths
from infra import settings
from infra.records import RunRecords
from infra.watchdog import guard_children


def run_pipeline(recipe: Recipe, sources: Sequence[DataSource], labelled: str | None, home: Path) -> None:
    """Run the pipeline flow with live progress, then say where everything is."""
    start = time.monotonic()
    out = console.for_terminal()
    out.line(f"maeflow {recipe.name}: results go to {home}")
    _warm_up(home)
    token = console.CURRENT.set(out)
    try:
        summary: dict[str, Any] = pipeline(**parameters(recipe, sources, labelled, home))
    finally:
        console.CURRENT.reset(token)
    _farewell(out, home, time.monotonic() - start, summary["report"])


def _farewell(out: console.Console, home: Path, seconds: float, report: str | None) -> None:
    out.line(f"\ndone in {seconds:.0f} s")
    if "://" in settings.tracking_uri(home) and settings.tracking_uri(home).startswith("sqlite"):
        mlflow = Path(sys.executable).with_name("mlflow")
        out.line(f"compare runs:  {mlflow} ui --backend-store-uri {settings.tracking_uri(home)} --workers 1")
    if report:
        out.line(f"report:        {report}")


def _warm_up(home: Path) -> None:
    """Import MLflow and open its database while Prefect starts: each takes seconds of mostly waiting."""

    def work() -> None:
        from contextlib import suppress

        from infra.mlflow_runs import connect

        with suppress(Exception):
            connect(home).search_experiments(max_results=1)

    threading.Thread(target=work, daemon=True).start()


@flow(name="maeflow-stage", flow_run_name="{stage}", validate_parameters=False)
def one_stage(stage: str, recipe: dict[str, Any], home: str, inputs: dict[str, str | None]) -> str:
    """Run one stage from the folders of those before it; gives its finished folder.

    Args:
        stage: Which stage.
        recipe: The resolved recipe in JSON form.
        home: Folder that everything is kept in.
        inputs: Folders or record files of the stages before.
    """
    from core.recipes import resolve

    guard_children("prefect.server")
    resolved = resolve(recipe, "of the flow")
    refuse_paths([source] if (source := inputs.get("source")) else [], resolved.modality)
    with discretion(resolved.modality):
        return _one_stage(stage, resolved, home, inputs)


def _one_stage(stage: str, resolved: Recipe, home: str, inputs: dict[str, str | None]) -> str:
    records = RunRecords(Path(home), resolved)
    context = stages.Context(Home.create(Path(home)), resolved, records)
    records.open()
    token = stages.CONTEXT.set(context)
    try:
        outcome = _call(stage, context.home, inputs)
    except BaseException as error:
        records.close("FAILED" if isinstance(error, Exception) else "KILLED", {}, None, None)
        raise
    finally:
        stages.CONTEXT.reset(token)
        stages.finish_logging(context)
    records.close("FINISHED", getattr(outcome.record, "metrics", {}), None, None)
    return str(outcome.folder)


def run_stage(stage: str, recipe: Recipe, home: Path, spelled: Sequence[str], **inputs: str | None) -> None:
    """Run one stage with live progress and say where its folder is, and what comes next.

    ``spelled`` is how the recipe was asked for: its name or file, and the options that change it.
    """
    start = time.monotonic()
    out = console.for_terminal()
    _warm_up(home)
    token = console.CURRENT.set(out)
    try:
        folder = one_stage(stage, recipe.model_dump(mode="json"), str(home), inputs)
    finally:
        console.CURRENT.reset(token)
    out.line(f"\ndone in {time.monotonic() - start:.0f} s; {stage} is in {folder}")
    following = {"prepare": "pretrain", "pretrain": "finetune", "finetune": "evaluate"}.get(stage)
    if following:
        name, *options = spelled
        words = ["maeflow", following, name, "--from", folder, "--home", str(home), *options]
        out.line(f"next:  {shlex.join(words)}")


def _call(stage: str, home: Home, inputs: dict[str, str | None]) -> stages.Outcome[Any]:
    """The stage's task with the records behind ``inputs``; what is not given is found through the records."""
    if stage == "prepare":
        return stages.prepare(_given(inputs, "source"))
    given = inputs.get("labelled")
    labelled = read_record(Path(given), PreparedData) if given else None
    if stage == "pretrain":
        data = read_record(Path(_given(inputs, "data")), PreparedData)
        return stages.pretrain([(data, 1.0)], labelled or (data if data.target else None))
    if stage == "finetune":
        encoder = read_record(Path(_given(inputs, "encoder")), PretrainedEncoder)
        return stages.finetune(encoder, labelled or _beside(home, "prepare", encoder.prepared, PreparedData))
    tuned = read_record(Path(_given(inputs, "tuned")), TunedModel)
    encoder = _beside(home, "pretrain", tuned.encoder, PretrainedEncoder)
    return stages.evaluate(encoder, tuned, labelled or _beside(home, "prepare", tuned.prepared, PreparedData))


def _given(inputs: dict[str, str | None], name: str) -> str:
    value = inputs.get(name)
    if value is None:
        raise UserError(f"the stage needs its {name}; give the folder with --from")
    return value


def _beside(home: Home, stage: str, digest: str, kind: type[stages.R]) -> stages.R:
    """The record of an earlier stage in the same home."""
    return read_record(home.stage(stage, digest).final, kind)
