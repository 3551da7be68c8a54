"""From the command line into a flow, and the last lines a person reads."""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.config import Recipe
from core.errors import UserError
from core.records import PreparedData, PretrainedEncoder, TunedModel, read_record
from core.request import StageName
from core.workspace import Home
from flows import console, stages
from flows.finished import finished_folder
from flows.pipeline import open_context, parameters, refuse_nothing
from flows.privacy import refuse_paths
from flows.sources import DataSource
from flows.typed import pipeline_flow, stage_flow
from infra import settings


def run_pipeline(
    recipe: Recipe, sources: Sequence[DataSource], labelled: str | None, checkpoint: str | None, home: Path
) -> None:
    """Run the pipeline flow with live progress, then say where everything is."""
    refuse_nothing(sources, labelled, checkpoint)
    start = time.monotonic()
    out = console.for_terminal()
    out.line(f"maeflow {recipe.name}: results go to {home}")
    _warm_up(home)
    token = console.CURRENT.set(out)
    try:
        summary: dict[str, Any] = pipeline_flow(recipe.modality)(**parameters(recipe, sources, labelled, checkpoint))
    finally:
        console.CURRENT.reset(token)
    _farewell(out, home, time.monotonic() - start, summary["report"])


def _farewell(out: console.Console, home: Path, seconds: float, report: str | None) -> None:
    out.line(f"\ndone in {seconds:.0f} s")
    if settings.tracking_uri(home).startswith("sqlite"):
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


def run_one_stage(stage: StageName, recipe: Recipe, home: Path, inputs: dict[str, str | None]) -> dict[str, Any]:
    """The body of a stage's flow; call it inside one. ``inputs`` are those of `flows.typed.INPUTS`."""
    refuse_paths([source] if (source := inputs.get("source")) else [], recipe.modality)
    with open_context(recipe, home) as context:
        outcome = _call(stage, context.home, inputs)
        context.records.close("FINISHED", getattr(outcome.record, "metrics", {}), None, None)
    return {"folder": str(outcome.folder), "run": outcome.run_id, "reused": outcome.reused}


def run_stage(stage: StageName, recipe: Recipe, home: Path, spelled: Sequence[str], inputs: dict[str, Any]) -> None:
    """Run one stage with live progress and say where its folder is, and what comes next.

    ``spelled`` is how the recipe was asked for: its name or file, and the options that change it.
    """
    start = time.monotonic()
    out = console.for_terminal()
    _warm_up(home)
    token = console.CURRENT.set(out)
    try:
        folder = stage_flow(recipe.modality, stage)(**_groups(recipe), **inputs)["folder"]
    finally:
        console.CURRENT.reset(token)
    out.line(f"\ndone in {time.monotonic() - start:.0f} s; {stage} is in {folder}")
    following = {"prepare": "pretrain", "pretrain": "finetune", "finetune": "evaluate"}.get(stage)
    if following:
        name, *options = spelled
        out.line(f"next:  {console.command(home, following, name, '--from', folder, *options)}")


def _groups(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in type(recipe).model_fields if name != "modality"}


def _call(stage: StageName, home: Home, inputs: dict[str, str | None]) -> stages.Outcome[Any]:
    """The stage's task with the records behind ``inputs``; what is not given is found through the records."""
    if stage == "prepare":
        return stages.prepare(str(inputs["source"]))
    given = inputs.get("labelled")
    labelled = read_record(finished_folder(home, given, "prepare"), PreparedData) if given else None
    checkpoint = inputs.get("checkpoint")
    if stage == "pretrain":
        data = read_record(finished_folder(home, str(inputs["prepared"]), "prepare"), PreparedData)
        start = stages.adopt(checkpoint, data, further=True).record if checkpoint else None
        return stages.pretrain([(data, 1.0)], labelled or (data if data.target else None), start)
    if checkpoint:
        if inputs.get("encoder") or inputs.get("tuned"):
            raise UserError("--from and --checkpoint both say what to start from; give one of them")
        return _from_checkpoint(stage, checkpoint, labelled)
    if stage == "finetune":
        encoder = read_record(finished_folder(home, _required(inputs, "encoder"), "pretrain"), PretrainedEncoder)
        return stages.finetune(encoder, labelled or _beside(home, "prepare", encoder.prepared, PreparedData))
    tuned = read_record(finished_folder(home, _required(inputs, "tuned"), "finetune"), TunedModel)
    encoder = _beside(home, "pretrain", tuned.encoder, PretrainedEncoder)
    return stages.evaluate(encoder, tuned, labelled or _beside(home, "prepare", tuned.prepared, PreparedData))


def _from_checkpoint(stage: StageName, checkpoint: str, labelled: PreparedData | None) -> stages.Outcome[Any]:
    """Fine-tune or evaluate what is in a foreign checkpoint; of an encoder alone its frozen features are evaluated.

    Raises:
        UserError: if there are no labelled data.
    """
    if labelled is None:
        raise UserError(
            f"{stage} from a checkpoint needs labelled data: prepare them and give the folder as --labelled"
        )
    adopted = stages.adopt(checkpoint, labelled)
    if stage == "finetune":
        return stages.finetune(adopted.record, labelled)
    head, classes = adopted.record.head, labelled.target.outputs if labelled.target else 0
    if head and head != classes:
        console.current().line(
            f"  its head has {head} outputs for your {classes} classes: the frozen encoder is evaluated"
        )
    tuned = stages.adopt_tuned(checkpoint, adopted.record, labelled).record if head and head == classes else None
    return stages.evaluate(adopted.record, tuned, labelled)


def _required(inputs: dict[str, str | None], name: str) -> str:
    """The input ``name``.

    Raises:
        UserError: if it was not given.
    """
    given = inputs.get(name)
    if not given:
        raise UserError("nothing says what to start from: give --from, the folder of the stage before, or --checkpoint")
    return given


def _beside(home: Home, stage: StageName, digest: str, kind: type[stages.R]) -> stages.R:
    """The record of an earlier stage in the same home."""
    return read_record(home.stage(stage, digest).final, kind)
