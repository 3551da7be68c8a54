"""Data for ``maeflow demo``: a plugin with a demo has a module ``demo`` beside its settings.

Its function ``fetch(home)`` gives a source, or two: one without labels and one with them.
"""

from pathlib import Path

from core.errors import UserError
from core.registry import companion, entries, plugin_info


def fetch(modality: str, home: Path) -> tuple[Path, Path | None]:
    """The demo data of ``modality``, fetched into ``home`` the first time; and what is labelled, if that lies apart.

    Raises:
        UserError: if there is no such plugin, it has no demo, or its data cannot be fetched.
    """
    plugin_info(modality)
    demo = companion(modality, "demo")
    if demo is None or not hasattr(demo, "fetch"):
        raise UserError(f"modality {modality!r} has no demo (installed modalities: {', '.join(entries())})")
    print(f"data of the {modality} demo: fetched once, then kept in {home / 'demo'}", flush=True)
    found: Path | tuple[Path, Path] = demo.fetch(home)
    return found if isinstance(found, tuple) else (found, None)
