"""Models by name in MLflow's registry: a version per finished folder, `candidate` the newest, `champion` by hand."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from core.errors import StageError, UserError
from core.records import EvalReport, PreparedData, PretrainedEncoder, TunedModel, read_record
from core.workspace import Home
from infra import mlflow_runs as runs

MOST_NAMED = 1000
"""Names looked through for one that is meant."""
CANDIDATE, CHAMPION = "candidate", "champion"
"""Aliases: what was registered last, and what people have chosen."""
DIGEST, WHOLE = "maeflow.digest", "maeflow.registered"
"""Tags of a version: whose it is; and that nothing of its registration is left to do."""
Finished = PretrainedEncoder | TunedModel


def name_of(record: Finished) -> str:
    """What a model is called: all versions of one recipe are versions of one model."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", record.recipe).strip("-")
    return f"maeflow-{plain}" if isinstance(record, TunedModel) else f"maeflow-{plain}-encoder"


def find(client: Any, record: Finished) -> Any | None:
    """The version that a finished folder was registered as, None if it was not."""
    query = f"name = '{name_of(record)}' AND tags.`{DIGEST}` = '{record.digest}'"
    found = client.search_model_versions(query)
    return found[0] if found else None


def is_whole(version: Any | None) -> bool:
    """Whether a registration was carried to its end."""
    return version is not None and WHOLE in version.tags


def add(client: Any, home: Path, record: Finished, model_id: str, run_id: str | None) -> Any:
    """Register a logged model as the next version of its name."""
    name = name_of(record)
    if not client.search_registered_models(f"name = '{name}'"):
        kind = "Tuned models" if isinstance(record, TunedModel) else "Encoders"
        text = f"{kind} of the recipe {record.recipe}. `{CANDIDATE}` is the newest, `{CHAMPION}` what people chose."
        client.create_registered_model(name, description=text)
    return client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags=_tags(home, record),
        description=_description(record),
        model_id=model_id,
    )


def complete(client: Any, version: Any) -> None:
    """Have the newest whole version be the candidate, whatever an earlier process was killed over."""
    every = client.search_model_versions(f"name = '{version.name}'")
    if not any(int(one.version) > int(version.version) and is_whole(one) for one in every):
        client.set_registered_model_alias(version.name, CANDIDATE, version.version)
    client.set_model_version_tag(version.name, version.version, WHOLE, "true")


def _tags(home: Path, record: Finished) -> dict[str, str]:
    """What a version is known and compared by."""
    tags = {
        DIGEST: record.digest,
        "maeflow.stage": record.stage,
        "maeflow.recipe": record.recipe,
        "maeflow.modality": record.modality,
        "maeflow.data_digest": _data_digest(home, record),
        "maeflow.checkpoint": record.checkpoint if isinstance(record, PretrainedEncoder) else "",
        "maeflow.encoder": record.encoder if isinstance(record, TunedModel) else "",
        **{key: f"{value:.6g}" for key, value in record.metrics.items()},
    }
    return {key: value for key, value in tags.items() if value}


def _data_digest(home: Path, record: Finished) -> str:
    """What the model was trained on; for a tuned one its labelled data, if they are still there."""
    if isinstance(record, PretrainedEncoder):
        return record.data_digest
    try:
        return read_record(Home(home).stage("prepare", record.prepared).final, PreparedData).data_digest
    except UserError:
        return ""


def _description(record: Finished) -> str:
    if isinstance(record, PretrainedEncoder):
        what = f"encoder of {record.checkpoint}" if record.checkpoint else "pretrained encoder"
    else:
        classes = f", {len(record.target.classes)} classes" if record.target.classes else ""
        what = f"tuned model ({record.target.task.kind}{classes})"
    return f"{record.recipe}: {what}, width {record.model.width}, depth {record.model.depth}; stage {record.digest}"


# --- what people choose -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Promotion:
    """A version that is to become the champion, beside the one that is."""

    name: str
    new: Any
    old: Any | None
    measured: Mapping[str, "Measured"]
    """By version, what its test said; none where it was not tested."""


@dataclass(frozen=True)
class Measured:
    """Metrics of a model on a test split."""

    on: str = ""
    """Digest of the prepared data."""
    metrics: Mapping[str, float] = field(default_factory=dict)


def promotion(client: Any, home: Path, name: str, which: str) -> Promotion:
    """What would change if ``which``, a version or an alias, became the champion of ``name``.

    Raises:
        UserError: if there is no such model or version.
        StageError: if MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = _aliases(client, name)
        number = aliases.get(which, which)
        versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
        if number not in versions:
            known = ", ".join([*sorted(versions, key=int), *sorted(aliases)])
            raise UserError(f"{name} has no version or alias {which!r}; it has {known or 'none at all'}")
        old = versions.get(aliases.get(CHAMPION, ""))
        chosen = [v for v in (versions[number], old) if v is not None]
        measured = {str(v.version): _measured(client, home, v) for v in chosen}
    except MlflowException as error:
        raise StageError(f"MLflow cannot be asked: {(str(error).splitlines() or [''])[0]}") from None
    return Promotion(name, versions[number], old, measured)


def promote(client: Any, wanted: Promotion) -> None:
    """Have the alias `champion` lead to the new version.

    Raises:
        StageError: if MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(wanted.name, CHAMPION, wanted.new.version)
    except MlflowException as error:
        raise StageError(f"MLflow cannot be told: {(str(error).splitlines() or [''])[0]}") from None


def _aliases(client: Any, name: str) -> dict[str, str]:
    """Versions by alias."""
    from mlflow.exceptions import MlflowException

    try:
        return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [model.name for model in client.search_registered_models(max_results=MOST_NAMED)]
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)) or 'none yet'}"
        raise UserError(f"no model is registered as {name!r}; {hint}") from None


def _measured(client: Any, home: Path, version: Any) -> Measured:
    """What evaluation said of a version: as the home has it, else as MLflow has it."""
    digest = version.tags.get(DIGEST, "")
    role = "encoder" if version.tags.get("maeflow.stage") == "pretrain" else "model"
    return _in_home(home, digest, role) or _in_mlflow(client, home, digest, role) or Measured()


def _in_home(home: Path, digest: str, role: str) -> Measured | None:
    files = sorted((home / "runs" / "evaluate").glob("*/record.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        if json.loads(file.read_bytes()).get(role) == digest:
            record = read_record(file, EvalReport)
            return Measured(record.prepared, record.metrics)
    return None


def _in_mlflow(client: Any, home: Path, digest: str, role: str) -> Measured | None:
    query = f"tags.`maeflow.{role}` = '{digest}' AND tags.`maeflow.reused` = 'false'"
    found = client.search_runs([runs.experiment(client, home, "evaluate")], filter_string=query, max_results=1)
    return Measured(found[0].data.tags.get("maeflow.prepared", ""), found[0].data.metrics) if found else None
