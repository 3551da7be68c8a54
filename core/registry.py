"""Finds plugins through the entry-point group ``maeflow.modalities``; imports one only when it is used."""

import importlib
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from core.config import CONTRACT_VERSION, PluginInfo
from core.errors import UserError
from core.modality import Modality, Purpose

GROUP = "maeflow.modalities"
"""The entry-point group. Each entry names a `PluginInfo`."""


@cache
def entries() -> dict[str, EntryPoint]:
    """Installed plugins by name, none of them imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


@cache
def plugin_info(name: str) -> PluginInfo:
    """The settings and whereabouts of plugin ``name``, without importing the plugin itself.

    Raises:
        UserError: if there is no such plugin, it cannot be imported, or it is for another contract.
    """
    if name not in entries():
        near = get_close_matches(name, entries(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"modality {name!r} is not installed{hint} (installed: {', '.join(entries()) or 'none'})")
    entry = entries()[name]
    try:
        info = entry.load()
    except Exception as error:
        raise UserError(
            f"modality {name!r} ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(info, PluginInfo):
        raise UserError(f"modality {name!r}: {entry.value} is not a PluginInfo; fix the package's entry point")
    if info.contract != CONTRACT_VERSION:
        raise UserError(
            f"modality {name!r} is written for contract {info.contract}, this maeflow has {CONTRACT_VERSION}"
        )
    return info


def plugin(
    name: str, settings: Any, purpose: Purpose = "pretrain", input_shape: tuple[int, ...] | None = None
) -> Modality[Any]:
    """A live plugin for a stage.

    Raises:
        UserError: if the plugin cannot be imported.
    """
    info = plugin_info(name)
    module, _, attribute = info.plugin.partition(":")
    try:
        cls: type[Modality[Any]] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"modality {name!r}: {info.plugin} cannot be imported: {error}") from error
    return cls(settings, purpose, input_shape)
