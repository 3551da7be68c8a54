"""Flows with one modality's own settings as parameters: what forms show, and what is checked before anything runs.

``flows.typed.image`` is the pipeline for images and ``flows.typed.image_pretrain`` its second stage, for whatever
modalities are installed; deployments name them so.
"""

import inspect
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from prefect import Flow
from prefect.runtime import deployment
from prefect.utilities.callables import ParameterSchema, parameter_schema
from pydantic import Field

from core.config import Config, Recipe
from core.data.private import TOKEN
from core.errors import UserError
from core.recipes import recipe_class, resolve
from core.registry import entries, plugin_info
from core.request import STAGES, StageName
from flows.privacy import discretion
from flows.sources import DataSource
from infra import settings
from infra.orchestrator import forget_parameters

PRIVATE = rf"^{TOKEN}[0-9a-f]+$"
FINISHED = r"(^|/)[0-9a-f]{16}(/record\.json)?$"
CHECKPOINT = "a file, a folder, a name on the Hugging Face hub, or one of timm's"
FOLDER = "its folder in the home, or the 16 digits that name it"
INPUTS: dict[StageName, dict[str, str]] = {
    "prepare": {"source": "Raw data: a folder, a manifest, or a dataset saved by Hugging Face datasets."},
    "pretrain": {
        "prepared": f"Prepared data to learn from: {FOLDER}.",
        "labelled": "Labelled prepared data, whose test items are kept out; by default those of the former.",
        "checkpoint": f"Weights to go on from, in place of random ones: {CHECKPOINT}.",
    },
    "finetune": {
        "encoder": f"The pretrained encoder: {FOLDER}. Or give a checkpoint.",
        "labelled": "Labelled prepared data to tune on; by default those the encoder has learnt from.",
        "checkpoint": f"The encoder of others to tune: {CHECKPOINT}.",
    },
    "evaluate": {
        "tuned": f"The tuned model: {FOLDER}. Or give a checkpoint.",
        "labelled": "Labelled prepared data to test on; by default those the model was tuned on.",
        "checkpoint": f"The model of others to test, or an encoder whose frozen features to test: {CHECKPOINT}.",
    },
}
"""What each stage starts from, and the text of its field."""
SOURCES = "Raw data to pretrain on; an empty list where a checkpoint is only to be tuned on labelled data."
OPTIONAL = ("labelled", "checkpoint", "encoder", "tuned")
"""Inputs that may be left out; a stage says by itself what it cannot do without."""


class PrivateSource(DataSource):
    """A source whose path may tell who somebody is."""

    path: Annotated[str, Field(json_schema_extra={"pattern": PRIVATE})]
    """The source's public name; `maeflow source MODALITY PATH` gives it."""


def pipeline_flow(modality: str) -> "Flow[..., dict[str, Any]]":
    """The pipeline for one modality.

    Raises:
        UserError: if it is not installed.
    """
    from flows.pipeline import run

    private = plugin_info(modality).private
    text = _text(PRIVATE if private else None)
    inputs: dict[str, Any] = {
        "sources": (list[PrivateSource] if private else list[DataSource], ..., SOURCES),
        "labelled": (text | None, None, "Labelled data to fine-tune on and to test with; by default the first source."),
        "checkpoint": (str | None, None, f"Weights to begin with, in place of random ones: {CHECKPOINT}."),
    }

    def body(**given: Any) -> dict[str, Any]:
        sources, labelled, checkpoint = (given.pop(name) for name in ("sources", "labelled", "checkpoint"))
        if private:
            _refuse([(PRIVATE, text) for text in [*(source.path for source in sources), labelled]])
        with discretion(modality):
            return run(_recipe(modality, given), sources, labelled, checkpoint, served_home())

    return _flow(modality, None, body, inputs, f"Prepare, pretrain, fine-tune and evaluate ({modality}).")


def stage_flow(modality: str, stage: StageName) -> "Flow[..., dict[str, Any]]":
    """One stage for one modality, from the folders of those before it.

    Raises:
        UserError: if the modality is not installed.
    """
    from flows.running import run_one_stage

    private = plugin_info(modality).private
    inputs: dict[str, Any] = {}
    for name, about in INPUTS[stage].items():
        text = _text(_pattern(name) if private and name != "checkpoint" else None)
        inputs[name] = (text | None, None, about) if name in OPTIONAL else (text, ..., about)

    def body(**given: Any) -> dict[str, Any]:
        wanted = {name: given.pop(name) for name in INPUTS[stage]}
        if private:
            _refuse([(_pattern(name), value) for name, value in wanted.items() if name != "checkpoint"])
        with discretion(modality):
            return run_one_stage(stage, _recipe(modality, given), served_home(), wanted)

    return _flow(modality, stage, body, inputs, f"Stage {stage} ({modality}), from the folders of those before it.")


def _pattern(name: str) -> str:
    """What a stage's input looks like where sources are private."""
    return PRIVATE if name == "source" else FINISHED


def _text(pattern: str | None) -> Any:
    """Text that forms and the server hold to ``pattern``; Pydantic does not: its errors quote what they refuse."""
    return Annotated[str, Field(json_schema_extra={"pattern": pattern})] if pattern else str


def _refuse(given: Sequence[tuple[str, str | None]]) -> None:
    """Refuse texts that may be paths of somebody's data, and have Prefect forget them.

    Forms refuse them before there is a run, unless who fills one in turns its check off.

    Raises:
        UserError: without the text.
    """
    if all(text is None or re.search(pattern, text) for pattern, text in given):
        return
    forget_parameters()
    raise UserError(
        "a private source was given by its path, or something else stands where its public name, or a finished "
        "folder, has to be; `maeflow source MODALITY PATH` gives the name, and `maeflow trigger` uses it by itself"
    )


def form(modality: str) -> ParameterSchema:
    """The form of the pipeline for ``modality``, as Prefect makes it.

    Raises:
        UserError: if it is not installed.
    """
    return parameter_schema(pipeline_flow(modality).fn)


def served_home() -> Path:
    """The home of this process.

    Raises:
        UserError: if a worker has started it without one: its folder is of Prefect's choice, and soon removed.
    """
    if deployment.id is not None and settings.HOME_VARIABLE not in os.environ:
        raise UserError("MAEFLOW_HOME is not set where this worker runs; start it with `maeflow worker --home FOLDER`")
    return settings.home_folder()


def _recipe(modality: str, given: dict[str, Any]) -> Recipe:
    values = {name: v.model_dump(mode="json") if isinstance(v, Config) else v for name, v in given.items()}
    return resolve({"modality": modality, **values}, "of the flow")


def _flow(
    modality: str, stage: StageName | None, body: Any, inputs: dict[str, tuple[Any, Any, str]], about: str
) -> "Flow[..., dict[str, Any]]":
    """A flow whose parameters are ``inputs`` and the groups of the modality's recipes."""
    fields = {name: f for name, f in recipe_class(modality).model_fields.items() if name != "modality"}
    order = sorted(fields, key=lambda name: (name != "name", name != stage, name != "data"))
    parameters = [_parameter(name, kind, default) for name, (kind, default, _) in inputs.items()]
    for name in order:
        field = fields[name]
        default = ... if field.is_required() else field.get_default(call_default_factory=True)
        parameters.append(_parameter(name, field.annotation, default))
    help_ = {name: text for name, (_, _, text) in inputs.items()}
    help_ |= {
        name: " ".join((fields[name].description or Recipe.model_fields[name].description or "").split())
        for name in order
    }
    body.__signature__ = inspect.Signature(parameters)
    body.__doc__ = "\n".join([about, "", "Args:", *(f"    {name}: {text}" for name, text in help_.items())])
    body.__name__ = body.__qualname__ = modality if stage is None else f"{modality}_{stage}"
    body.__module__ = __name__
    title = modality if stage is None else f"{modality}-{stage}"
    run_name = "{name}" if stage is None else f"{{name}} {stage}"
    return Flow(body, name=title, flow_run_name=run_name, description=about, validate_parameters=True)


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    given = empty if default is ... else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=given, annotation=kind)


@cache
def _named(name: str) -> "Flow[..., dict[str, Any]]":
    if name in entries():
        return pipeline_flow(name)
    modality, _, stage = name.rpartition("_")
    for known in STAGES:
        if stage == known and modality in entries():
            return stage_flow(modality, known)
    raise AttributeError(f"module {__name__} has no flow {name!r}: no such modality is installed")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _named(name)
