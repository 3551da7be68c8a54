"""``maeflow trigger``: a run of a deployment with some values changed; what is wrong is said before anything starts."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from core.errors import UserError
from core.recipes import nearest, overridden
from core.request import STAGES, StageName
from flows import console
from flows.deploying import registered
from flows.privacy import discretion, refuse_strangers, source_name
from flows.sources import anywhere, weighted
from infra.orchestrator import client

FROM = {"pretrain": "prepared", "finetune": "encoder", "evaluate": "tuned"}
"""What ``--from`` is called in the forms of stages."""
POLL_SECONDS = 1.0
LATE_LOOKS = 4
"""Looks at the log after a run has ended: its last lines are sent every other second."""


def trigger(
    home: Path,
    deployment: str,
    data: Sequence[str],
    labelled: str | None,
    from_: str | None,
    overrides: Sequence[str],
    *,
    checkpoint: str | None = None,
    watch: bool,
) -> bool:
    """Start a run; with ``watch`` follow it to its end, and give whether that was a good one.

    Raises:
        UserError: if there is no such deployment, or a key, a value or a source is wrong.
    """
    with client() as prefect:
        found = _find(prefect, deployment)
        parameters = changed(home, deployment, found, data, labelled, from_, overrides, checkpoint)
        try:
            run = prefect.create_flow_run_from_deployment(found.id, parameters=parameters)
        except PrefectHTTPStatusError as error:
            raise UserError(f"{deployment}: {_detail(error)}") from None
        print(f"a run of {deployment} ({run.id}) is scheduled: {_page(run)}", flush=True)
        if not watch:
            print(f"next:  {console.command(home, 'status')}, or its page; --watch follows the log of a run here")
            return True
        return _follow(prefect, run)


def changed(
    home: Path,
    name: str,
    deployment: DeploymentResponse,
    data: Sequence[str],
    labelled: str | None,
    from_: str | None,
    overrides: Sequence[str],
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """The parameters that differ from the deployment's own: whole groups, since Prefect merges no deeper.

    Raises:
        UserError: if a key, a value or a source is wrong, or one is missing.
    """
    flow, _, _ = name.partition("/")
    modality, stage = _kind(flow)
    before = dict(deployment.parameters)
    recipe = {
        k: v for k, v in before.items() if k not in {"sources", "labelled", "source", "checkpoint", *FROM.values()}
    }
    wanted = overridden({"modality": modality, **recipe}, overrides, name)
    after = {key: value for key, value in wanted.model_dump(mode="json").items() if key != "modality"}
    given = {key: value for key, value in after.items() if value != before.get(key)}
    with discretion(modality):
        given |= _inputs(home, modality, stage, data, labelled, from_)
    if checkpoint and stage == "prepare":
        raise UserError("the stage prepare reads data and no --checkpoint")
    given |= {"checkpoint": anywhere(checkpoint)} if checkpoint else {}
    if checkpoint and labelled and not data and stage is None:  # Nothing is pretrained; no form says so by itself.
        given["sources"] = []
    _complete(deployment, stage, before | given)
    return given


def _kind(flow: str) -> tuple[str, StageName | None]:
    """Modality and stage of a flow's name."""
    for stage in STAGES:
        if flow.endswith(f"-{stage}"):
            return flow.removesuffix(f"-{stage}"), stage
    return flow, None


def _inputs(
    home: Path,
    modality: str,
    stage: StageName | None,
    data: Sequence[str],
    labelled: str | None,
    from_: str | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if data and stage not in (None, "prepare"):
        raise UserError(f"--data is for pipelines and the stage prepare; give {stage} a folder with --from")
    if from_ and stage not in FROM:
        raise UserError("--from is for the stages after prepare; give this one its source with --data")
    if data and stage is None:
        found["sources"] = [weighted(text, modality, home).model_dump(mode="json") for text in data]
    elif data:
        if len(data) > 1:
            raise UserError("the stage prepare takes one --data at a time")
        found["source"] = source_name(data[0], modality, home)
    if from_ and stage:
        refuse_strangers({"from": from_}, modality)
        found[FROM[stage]] = anywhere(from_)
    if labelled:
        found["labelled"] = source_name(labelled, modality, home) if stage is None else anywhere(labelled)
    return found


def _complete(deployment: DeploymentResponse, stage: StageName | None, parameters: dict[str, Any]) -> None:
    required = list((deployment.parameter_openapi_schema or {}).get("required", []))
    if stage in {"finetune", "evaluate"} and not parameters.get("checkpoint"):  # One of the two, which no form can say.
        required.append(FROM[stage])
    options = {"sources": "--data SRC", "source": "--data SRC"} | dict.fromkeys(FROM.values(), "--from FOLDER")
    if missing := [name for name in required if parameters.get(name) is None]:
        raise UserError(f"the run needs {' and '.join(missing)}; add {', '.join(options.get(n, n) for n in missing)}")


def _find(prefect: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return prefect.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError):
        known = registered(prefect)
        hint = nearest(name, known) if known else "; `maeflow deploy` registers them"
        raise UserError(f"there is no deployment {name!r}{hint}") from None


def _detail(error: PrefectHTTPStatusError) -> str:
    try:
        detail = error.response.json().get("detail", "")
    except ValueError:
        detail = ""
    return str(detail) or f"the server refused it ({error.response.status_code})"


def _page(run: FlowRun) -> str:
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=run.id) or ""


def _follow(prefect: SyncPrefectClient, run: FlowRun) -> bool:
    """Print the run's log until it ends; whether it completed."""
    about, seen, late = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])), 0, LATE_LOOKS
    while True:
        state = prefect.read_flow_run(run.id).state
        while page := prefect.read_logs(about, limit=200, offset=seen, sort=LogSort.TIMESTAMP_ASC):
            seen += len(page)
            for line in page:
                print(f"{line.timestamp.astimezone():%H:%M:%S} {line.message}", flush=True)
        if state is not None and state.is_final():
            late -= 1
            if late == 0:
                print(f"{state.name}{f': {state.message}' if state.message else ''}", flush=True)
                return state.is_completed()
        time.sleep(POLL_SECONDS)
