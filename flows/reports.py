"""The report of a pipeline: gathers what its stages left in their folders and has the page rendered."""

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.data.card import read_card
from core.digests import recipe_digest
from core.evaluation.report import ReportData, ReportSound, StageTime, render_report
from core.evaluation.report_words import COLUMNS
from core.records import EvalReport, PreparedData, PretrainedEncoder, TunedModel
from core.tracking import EVENTS_FILE
from core.workspace import digest_of, write_text
from flows.stages import Context, Outcome

PICTURE, MOVING = "reconstructions.png", "reconstructions.gif"


def write(context: Context) -> Path:
    """Write ``runs/reports/<digest>.html`` and give its path; an existing page of the same results stays."""
    digest = digest_of("report", recipe_digest(context.recipe), [o.record.digest for o in context.outcomes])
    file = context.home.root / "runs" / "reports" / f"{digest}.html"
    if file.exists() and all(outcome.reused for outcome in context.outcomes):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, render_report(gather(context)))
    return file


def gather(context: Context) -> ReportData:
    """What the page is made of."""
    by_stage = {outcome.stage: outcome for outcome in context.outcomes}
    prepared = [o for o in context.outcomes if isinstance(o.record, PreparedData)]
    evaluated = by_stage.get("evaluate")
    return ReportData(
        recipe=context.recipe.name,
        modality=context.recipe.modality,
        recipe_values=context.values,
        cards=[(_role(number), read_card(o.folder)) for number, o in enumerate(prepared)],
        curves=_curves(context.outcomes),
        picture=_embedded(by_stage.get("pretrain"), PICTURE),
        moving=_embedded(by_stage.get("pretrain"), MOVING),
        sounds=_sounds(by_stage.get("pretrain")),
        results=_results(evaluated),
        encoder_metrics=_metrics(by_stage.get("pretrain")),
        tuned_metrics=_metrics(by_stage.get("finetune")),
        times=[StageTime(o.stage, _worked(o.folder)) for o in context.outcomes],
        environment=_environment(context),
    )


def _role(number: int) -> str:
    return "Data" if number == 0 else f"Data, source {number + 1}"


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS_FILE).read_text().splitlines()]


def _curves(outcomes: list[Outcome[Any]]) -> dict[str, list[tuple[int, float]]]:
    """Each metric's values by step; where steps were repeated after an interruption, the last value counts."""
    curves: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        for event in _events(outcome.folder):
            if event["kind"] == "metrics" and event["step"] > 0:
                for key, value in event["values"].items():
                    curves.setdefault(key, {})[event["step"]] = value
    return {key: sorted(values.items()) for key, values in curves.items()}


def _worked(folder: Path) -> float:
    """Seconds between events, without the gaps of interruptions."""
    times = [event["t"] for event in _events(folder)]
    seconds: float = sum(min(b - a, 120.0) for a, b in pairwise(times))
    return seconds


def _embedded(outcome: Outcome[Any] | None, name: str) -> str | None:
    """A file of a stage in base64."""
    if outcome is None or not (outcome.folder / name).exists():
        return None
    return base64.b64encode((outcome.folder / name).read_bytes()).decode()


def _sounds(outcome: Outcome[Any] | None) -> list[ReportSound]:
    """What pretraining left to be heard."""
    if outcome is None:
        return []
    found = []
    for column in COLUMNS:
        for path in sorted(outcome.folder.glob(f"reconstruction-*-{column}.*")):
            sample = path.stem.split("-")[1]
            found.append(ReportSound(sample, column, path.suffix, base64.b64encode(path.read_bytes()).decode()))
    return found


def _results(outcome: Outcome[Any] | None) -> dict[str, Any] | None:
    if outcome is None or not isinstance(outcome.record, EvalReport):
        return None
    results: dict[str, Any] = json.loads((outcome.folder / outcome.record.results).read_text())
    return results


def _metrics(outcome: Outcome[Any] | None) -> dict[str, float]:
    record = outcome.record if outcome else None
    return record.metrics if isinstance(record, (PretrainedEncoder, TunedModel)) else {}


def _environment(context: Context) -> dict[str, str]:
    versions: dict[str, str] = {}
    for outcome in context.outcomes:
        versions |= outcome.record.versions
    return {**versions, "seed": str(context.recipe.seed)}
