"""Finds plugins through the entry-point group ``maeflow.modalities``; imports one only when it is used.

Nothing that a plugin does wrong may cost more than that plugin: every fault becomes one `UserError` that names the
plugin, the package it came in and what to do.
"""

import importlib
import traceback
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from core.config import CONTRACT_VERSION, PluginInfo, PluginSettings, Recipe
from core.errors import UserError
from core.modality import Modality, Purpose

GROUP = "maeflow.modalities"
"""The entry-point group. Each entry names a `PluginInfo`."""
OURS = "maeflow"
"""The distribution whose plugins come first where a name is taken twice."""


@dataclass(frozen=True)
class Claim:
    """One package's claim to a modality name: its entry point, not imported."""

    name: str
    """Name of the modality."""
    value: str
    """Where its `PluginInfo` is, as ``module:attribute``."""
    package: str
    """Distribution it was installed with."""
    version: str
    """Version of that distribution."""
    entry: EntryPoint

    @property
    def folder(self) -> str:
        """The import package that holds the plugin's modules and its ``recipes`` folder; "" for a bare module."""
        return self.value.partition(":")[0].rpartition(".")[0]


@cache
def claims() -> tuple[Claim, ...]:
    """Every installed entry of the group, by name, none of them imported; maeflow's own before others of a name."""
    found = {}
    for entry in entry_points(group=GROUP):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
        # One distribution seen through two folders of the path, as an editable install may be, claims once.
        found[entry.name, package.lower(), entry.value] = Claim(entry.name, entry.value, package, version, entry)
    return tuple(sorted(found.values(), key=lambda c: (c.name, c.package != OURS, c.package, c.value)))


@cache
def entries() -> dict[str, Claim]:
    """The claim that counts for each name: the only one, or maeflow's own."""
    first: dict[str, Claim] = {}
    for claim in claims():
        first.setdefault(claim.name, claim)
    return first


def refresh() -> None:
    """Look again at what is installed; for tests, and after an installation in this process."""
    importlib.invalidate_caches()
    for cached in (claims, entries, plugin_info):
        cached.cache_clear()


def fault(claim: Claim) -> str | None:
    """What is wrong with a claim, in one line; None where the plugin's description is sound."""
    counted = entries()[claim.name]
    if claim != counted and counted.package == OURS:
        return f"the name is taken by {OURS} itself; rename the entry point of {claim.package}"
    try:
        plugin_info(claim.name)
    except UserError as error:
        return " ".join(str(error).split())
    return None


@cache
def plugin_info(name: str) -> PluginInfo:
    """The settings and whereabouts of plugin ``name``, without importing the plugin itself.

    Raises:
        UserError: if there is no such plugin, two packages claim its name, it cannot be imported, or it was written
            for another version of the contract.
    """
    claim = _claim(name)
    where = f"modality {name!r} ({claim.value} of {claim.package} {claim.version})"
    try:
        info = claim.entry.load()
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} cannot be imported: {_what_happened(error)}") from error
    if not isinstance(info, PluginInfo):
        kind = type(info).__name__
        raise UserError(f"{where} is a {kind}, not a PluginInfo; correct the entry point in its pyproject.toml")
    if info.contract != CONTRACT_VERSION:
        raise UserError(
            f"{where} was written for version {info.contract} of the plugin contract, this maeflow has version "
            f"{CONTRACT_VERSION}; install a matching release of {claim.package} or of maeflow"
        )
    if info.name != name:
        raise UserError(f"{where} calls itself {info.name!r}; give entry point and PluginInfo the same name")
    if not (isinstance(info.settings, type) and issubclass(info.settings, PluginSettings)):
        raise UserError(f"{where}: PluginInfo.settings is {info.settings!r}, not a subclass of PluginSettings")
    return info


def _claim(name: str) -> Claim:
    if name not in entries():
        near = get_close_matches(name, entries(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"modality {name!r} is not installed{hint} (installed: {', '.join(entries()) or 'none'})")
    rivals = [claim for claim in claims() if claim.name == name]
    if len(rivals) > 1 and rivals[0].package != OURS:
        packages = " and ".join(f"{claim.package} ({claim.value})" for claim in rivals)
        raise UserError(f"modality {name!r} is claimed by {packages}; uninstall one of them, or rename its entry point")
    return rivals[0]


def plugin_class(name: str) -> type[Modality[Any]]:
    """The `Modality` subclass of plugin ``name``; imports it, and torch with it.

    Raises:
        UserError: if it cannot be imported or is no plugin.
    """
    info = plugin_info(name)
    where = f"modality {name!r} of {entries()[name].package}: its plugin {info.plugin}"
    module, _, attribute = info.plugin.partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise UserError(f"{where} cannot be imported: {_what_happened(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, Modality)):
        raise UserError(f"{where} is no subclass of core.modality.Modality")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{where} lacks the method{'s' * (len(missing) > 1)} {', '.join(missing)}")
    return cls


def plugin(
    name: str, settings: Any, purpose: Purpose = "pretrain", input_shape: tuple[int, ...] | None = None
) -> Modality[Any]:
    """A live plugin for a stage.

    Raises:
        UserError: if the plugin cannot be imported.
    """
    return plugin_class(name)(settings, purpose, input_shape)


def plugin_for(recipe: Recipe, purpose: Purpose, input_shape: tuple[int, ...] | None = None) -> Modality[Any]:
    """The recipe's plugin for a stage, told what the recipe has to say beside its ``data`` group.

    Raises:
        UserError: if the plugin cannot be imported.
    """
    live = plugin(recipe.modality, recipe.data, purpose, input_shape)
    live.task, live.overlap = recipe.task, recipe.evaluate.overlap
    return live


def recipe_files(name: str) -> dict[str, Path]:
    """The recipes that plugin ``name`` brings, by name (``modality/stem``); only its package is imported.

    Raises:
        UserError: if there is no such plugin, or its package cannot be imported.
    """
    claim = _claim(name)
    if not claim.folder:
        return {}
    try:
        folder = Path(str(files(claim.folder))) / "recipes"
    except (Exception, SystemExit) as error:
        what = _what_happened(error)
        raise UserError(f"modality {name!r} ({claim.package} {claim.version}) cannot be imported: {what}") from error
    return {f"{name}/{file.stem}": file for file in sorted(folder.glob("*.yaml"))}


def companion(name: str, module: str) -> ModuleType | None:
    """The module called ``module`` beside the plugin's ``config``, or None where it has none.

    Raises:
        UserError: if it cannot be imported.
    """
    folder = _claim(name).folder
    if not folder or find_spec(f"{folder}.{module}") is None:
        return None
    try:
        return importlib.import_module(f"{folder}.{module}")
    except (Exception, SystemExit) as error:
        raise UserError(f"modality {name!r}: {folder}.{module} cannot be imported: {_what_happened(error)}") from error


def _what_happened(error: BaseException) -> str:
    """The error in one line, with the last place of the plugin's own that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}{place}"
