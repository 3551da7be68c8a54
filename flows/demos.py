"""Data for ``maeflow demo``: a plugin with a demo has a module ``demo`` beside its settings, with ``fetch(home)``."""

import importlib
from importlib.util import find_spec
from pathlib import Path

from core.errors import UserError
from core.registry import entries, plugin_info


def fetch(modality: str, home: Path) -> Path:
    """The demo data of ``modality``, fetched into ``home`` the first time.

    Raises:
        UserError: if there is no such plugin, it has no demo, or its data cannot be fetched.
    """
    module = plugin_info(modality).settings.__module__.rpartition(".")[0] + ".demo"
    if find_spec(module) is None:
        raise UserError(f"modality {modality!r} has no demo (installed modalities: {', '.join(entries())})")
    folder: Path = importlib.import_module(module).fetch(home)
    return folder
