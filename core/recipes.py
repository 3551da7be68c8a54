"""Recipes: whole YAML files, dotted overrides, one typed result, and errors a person can act on."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails

from core.config import PluginInfo, Recipe, TaskKind
from core.errors import UserError
from core.registry import entries, plugin_info, recipe_files


def recipe_class(modality: str) -> type[Recipe]:
    """`Recipe` with the ``data`` group of one modality."""
    return _recipe_of(plugin_info(modality))


@cache
def _recipe_of(info: PluginInfo) -> type[Recipe]:
    fields: dict[str, Any] = {"modality": (Literal[info.name], info.name), "data": (info.settings, ...)}
    return create_model(f"{info.name.title()}Recipe", __base__=Recipe, __doc__=Recipe.__doc__, **fields)


def available() -> dict[str, Path]:
    """Packaged recipes of all plugins, by name (``modality/stem``); a broken plugin's are left out."""
    found: dict[str, Path] = {}
    for modality in entries():
        # `maeflow modalities` tells what is wrong with a broken one.
        with suppress(UserError):
            found |= recipe_files(modality)
    return found


def header(file: Path) -> str:
    """The comment that opens a recipe file, without its comment signs; empty where there is none."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n".join(lines)


def load(reference: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe called ``reference``, a packaged name or a YAML file, with ``key.key=value`` overrides.

    Raises:
        UserError: if there is no such recipe, or a key or value is wrong; names the key and the nearest valid one.
    """
    file = locate(reference)
    values = _read_yaml(file)
    for override in overrides:
        _apply(values, override)
    if file.parent.name == "recipes":
        values.setdefault("name", f"{values.get('modality')}/{file.stem}")
    else:
        values.setdefault("name", file.stem)
    return resolve(values, str(reference))


def overridden(values: Mapping[str, Any], overrides: Iterable[str], origin: str) -> Recipe:
    """The typed recipe of a mapping with ``key.key=value`` overrides; ``origin`` names where it came from in errors.

    Raises:
        UserError: if a key or value is wrong; names the key and the nearest valid one.
    """
    changed = deepcopy(dict(values))
    for override in overrides:
        _apply(changed, override)
    return resolve(changed, origin)


def resolve(values: Mapping[str, Any], origin: str) -> Recipe:
    """The typed recipe of a mapping; ``origin`` names where it came from in errors.

    Raises:
        UserError: if a key or value is wrong.
    """
    modality = values.get("modality")
    if not isinstance(modality, str):
        raise UserError(f"{origin}: `modality` is missing; give one of: {', '.join(entries())}")
    cls = recipe_class(modality)
    try:
        recipe = cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, detail) for detail in error.errors()]
        count = f"{len(lines)} errors" if len(lines) > 1 else "1 error"
        raise UserError(f"{count} in recipe {origin}:\n" + "\n".join(f"  {line}" for line in lines)) from None
    _check_task(recipe, origin)
    _check_privacy(recipe, origin)
    return recipe


def _check_task(recipe: Recipe, origin: str) -> None:
    """Refuse ways of fine-tuning that the task has no use for, before anything is computed."""
    kind, config = recipe.task.kind, recipe.finetune
    if kind is not TaskKind.SINGLE and (config.mixup or config.cutmix):
        raise UserError(
            f"recipe {origin}: finetune.mixup and finetune.cutmix are for single_label tasks, this one is {kind}; "
            "set both to 0"
        )
    if kind in (TaskKind.REGRESSION, TaskKind.SEGMENTATION) and config.sampling == "balanced":
        why = (
            "needs classes, a {} task has none"
            if kind is TaskKind.REGRESSION
            else "is not for {}, whose items have many"
        )
        raise UserError(f"recipe {origin}: finetune.sampling=balanced {why.format(kind)}; set it to uniform")


def _check_privacy(recipe: Recipe, origin: str) -> None:
    """Refuse to divide people between training and testing, before anything is read."""
    if recipe.prepare.divided_groups == "allow" and plugin_info(recipe.modality).private:
        raise UserError(
            f"recipe {origin}: prepare.divided_groups=allow is not for {recipe.modality!r}, whose groups are people: "
            "figures would be too good; set it to refuse, or to regroup to move each group to where most of it is"
        )


def locate(reference: str) -> Path:
    """The file of a recipe, given as a packaged name or as a path.

    Raises:
        UserError: if there is none; names the nearest.
    """
    if reference.endswith((".yaml", ".yml")):
        if not Path(reference).is_file():
            raise UserError(f"recipe file {reference} does not exist")
        return Path(reference)
    # The plugin it names is asked first, so that no other plugin can be in the way.
    modality = reference.partition("/")[0]
    own = recipe_files(modality) if modality in entries() else {}
    if reference in own:
        return own[reference]
    if modality in entries():
        plugin_info(modality)  # What is wrong with a plugin says more than which recipes it lacks.
    hint = nearest(reference, own or available())
    raise UserError(f"no recipe {reference!r}{hint} (see `maeflow recipes`, or give a .yaml file)")


def nearest(name: str, known: Iterable[str]) -> str:
    """What an error about an unknown ``name`` adds: the known one it may stand for, if any comes near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{node.start_mark.name}: key {key!r} is written twice in one group")
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8") as source:
            values = yaml.load(source, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {file} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"recipe {file} must be a mapping of groups, not {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"override {override!r} is not of the form key.key=value")
    group = values
    for key in keys[:-1]:
        inner = group.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"override {override!r}: {key!r} is a value, not a group")
        group = inner
    try:
        group[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None


def _explain(cls: type[BaseModel], detail: ErrorDetails) -> str:
    """One line for one error: the dotted key, what is wrong, and the nearest valid name for an unknown key."""
    path = [part for part in detail["loc"] if isinstance(part, str)]
    dotted = ".".join(path) or "(whole recipe)"
    if detail["type"] == "extra_forbidden":
        known = _fields_at(cls, path[:-1])
        near = get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{dotted}: missing; this group must be given"
    return f"{dotted}: {detail['msg'].removeprefix('Value error, ')} (given: {detail['input']!r})"


def _fields_at(cls: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(part)
        inner = model_in(field.annotation) if field else None
        if inner is None:
            return []
        cls = inner
    return list(cls.model_fields)


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as ``Block | None``."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
