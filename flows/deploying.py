"""``maeflow deploy``: every recipe becomes a pipeline and four stages that people start from Prefect's pages.

Deployments that did not change are left alone: registering one again would drop the runs that wait for it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from rich.progress import track as bar

from core.config import Recipe
from core.errors import UserError
from core.recipes import available, header, load, locate
from core.request import STAGES, StageName
from core.workspace import digest_of
from flows import console
from flows.privacy import source_name
from flows.sources import DataSource, weighted
from infra.orchestrator import client, ensure_pool

if TYPE_CHECKING:
    from prefect import Flow

TAG = "maeflow"
PACKAGED = "packaged"
"""Tag of what a plugin brings; the rest belongs to people and is never called gone."""
SOURCES = ("sources", "source", "labelled")
PAGE = 100
"""Most deployments that Prefect lists at once."""
EXAMPLE = CronSchedule(cron="0 2 * * *", timezone="UTC")
"""A schedule that every pipeline is given once, paused: for people to turn on or to change."""


@dataclass(frozen=True)
class Wanted:
    """A deployment as it should be."""

    flow: "Flow[..., Any]"
    name: str
    description: str
    parameters: dict[str, Any]
    tags: tuple[str, ...]
    pool: str
    scheduled: bool

    @property
    def full_name(self) -> str:
        """``FLOW/NAME``."""
        return f"{self.flow.name}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """Where a worker finds the flow: an installed module, and never a file."""
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"

    @property
    def schema(self) -> dict[str, Any]:
        """What its form shows and what the server checks."""
        return self.flow.parameters.model_dump(exclude_unset=True)

    @property
    def version(self) -> str:
        """Of maeflow, and of all that is registered."""
        parts = (self.description, self.parameters, self.tags, self.pool, self.schema, self.entrypoint)
        return f"{version('maeflow')}+{digest_of('deployment', *parts)}"


def deploy(
    home: Path, recipes: Sequence[str], data: Sequence[str], labelled: str | None, pool: str, *, prune: bool
) -> None:
    """Register the deployments of ``recipes``, by default of all installed ones, and say what changed.

    Raises:
        UserError: if a recipe is wrong, or sources are given for all recipes at once.
    """
    if (data or labelled) and not recipes:
        raise UserError("--data and --labelled go with the recipes they are for; name these as well")
    wanted = [one for name in recipes or available() for one in _of_recipe(home, name, data, labelled, pool)]
    with client() as prefect:
        ensure_pool(prefect, pool)
        there = registered(prefect)
        changes = [
            (_register(prefect, one, there.get(one.full_name)), one)
            for one in bar(wanted, "registering", transient=True, disable=not sys.stdout.isatty())
        ]
        known = {one.full_name for one in wanted}
        gone = [] if recipes else sorted(n for n, one in there.items() if n not in known and PACKAGED in one.tags)
        if prune:
            for name in gone:
                prefect.delete_deployment(there[name].id)
                print(f"removed    {name}")
    _tell(home, changes, [] if prune else gone)


def registered(prefect: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """The deployments that were registered here, by ``FLOW/NAME``."""
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    found: list[DeploymentResponse] = []
    while page := prefect.read_deployments(deployment_filter=ours, limit=PAGE, offset=len(found)):
        found += page
    flows: dict[Any, str] = {}
    for one in found:
        if one.flow_id not in flows:
            flows[one.flow_id] = prefect.read_flow(one.flow_id).name
    return {f"{flows[one.flow_id]}/{one.name}": one for one in found}


def _of_recipe(home: Path, name: str, data: Sequence[str], labelled: str | None, pool: str) -> list[Wanted]:
    from flows.typed import pipeline_flow, stage_flow

    recipe = load(name)
    groups = {key: value for key, value in recipe.model_dump(mode="json").items() if key != "modality"}
    short = recipe.name.removeprefix(f"{recipe.modality}/").replace("/", "-")
    about = header(locate(name))
    tags = (TAG, recipe.modality, *([PACKAGED] if locate(name).parent.name == "recipes" else []))
    given = _sources(home, recipe, data, labelled)
    pipeline = Wanted(pipeline_flow(recipe.modality), short, about, groups | given, (*tags, "pipeline"), pool, True)

    def stage(which: StageName) -> Wanted:
        source = {"source": given["sources"][0]["path"]} if which == "prepare" and given.get("sources") else {}
        text = f"The stage `{which}` of {recipe.name} alone.\n\n{about}"
        return Wanted(stage_flow(recipe.modality, which), short, text, groups | source, (*tags, which), pool, False)

    return [pipeline, *(stage(which) for which in STAGES)]


def _sources(home: Path, recipe: Recipe, data: Sequence[str], labelled: str | None) -> dict[str, Any]:
    """What forms begin with; nothing where nothing is given, so that they ask for it."""
    found: dict[str, Any] = {}
    if data:
        sources: list[DataSource] = [weighted(text, recipe.modality, home) for text in data]
        found["sources"] = [source.model_dump(mode="json") for source in sources]
    if labelled:
        found["labelled"] = source_name(labelled, recipe.modality, home)
    return found


def _register(prefect: SyncPrefectClient, wanted: Wanted, found: DeploymentResponse | None) -> str:
    """Make or change a deployment; gives what was done."""
    if found is None:
        _create(prefect, wanted)
        return "new"
    kept = {name: found.parameters[name] for name in SOURCES if name in found.parameters}
    wanted = replace(wanted, parameters=kept | wanted.parameters)  # Sources that were given once stay.
    if found.version == wanted.version:
        return "unchanged"
    update = DeploymentUpdate(**_fields(wanted))
    prefect.update_deployment(found.id, update)
    return "changed"


def _create(prefect: SyncPrefectClient, wanted: Wanted) -> None:
    example = [DeploymentScheduleCreate(schedule=EXAMPLE, active=False)] if wanted.scheduled else None
    flow = prefect.create_flow(wanted.flow)
    prefect.create_deployment(flow_id=flow, name=wanted.name, schedules=example, pull_steps=[], **_fields(wanted))


def _fields(wanted: Wanted) -> dict[str, Any]:
    """What a new deployment and a changed one are told alike."""
    return {
        "version": wanted.version,
        "description": wanted.description,
        "parameters": wanted.parameters,
        "tags": list(wanted.tags),
        "work_pool_name": wanted.pool,
        "entrypoint": wanted.entrypoint,
        "enforce_parameter_schema": True,
        "parameter_openapi_schema": wanted.schema,
    }


def _tell(home: Path, changes: Sequence[tuple[str, Wanted]], gone: Sequence[str]) -> None:
    pipelines = [(done, one) for done, one in changes if one.scheduled]
    for done, one in pipelines:
        print(f"{done:10s} {one.full_name}")
    count = {what: sum(done == what for done, _ in changes) for what in ("new", "changed", "unchanged")}
    print(f"\n{len(pipelines)} pipelines and their stages: {', '.join(f'{n} {what}' for what, n in count.items())}")
    for name in gone:
        print(f"note: {name} is of a recipe that is gone; `maeflow deploy --prune` removes it")
    if pipelines:
        trigger = console.command(home, "trigger", pipelines[0][1].full_name)
        print(f"next:  {trigger} --data SRC, or its form in Prefect")
