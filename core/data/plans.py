"""Plans: what processes on other machines need to write shards beforehand, in files of the home that all of them see.

A plan is a folder: the request of the preparation, facts about who plans, and one file per unit with its items. What
JSON cannot say without change is left to the stage, and so is whatever another machine sees otherwise: a shard is the
same bytes wherever it was written. Whoever made the plan holds its lock; the kernel drops it with that process, and all
who work on the plan then end.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core.config import TaskKind
from core.data.files import facts
from core.data.shards import Unit
from core.errors import UserError
from core.modality import Item, Modality
from core.workspace import digest_of, write_text

REQUEST, PLAN, LOCK, UNIT = "request.json", "plan.json", "lock", ".unit.json"


@dataclass(frozen=True)
class Plan:
    """What holds for all units of a plan."""

    reading: str
    """Digest of how items are read: the plugin, its settings, the form of shards."""
    environment: dict[str, str]
    """Versions of the packages that read them."""
    seconds: float | None
    """How long an item may take; None where the stage itself would read them without such a limit."""


def write_plan(folder: Path, plan: Plan, units: Sequence[Unit], plugin: Modality[Any]) -> None:
    """Write ``plan`` and those of ``units`` that JSON can say into ``folder``."""
    write_text(folder / PLAN, json.dumps(asdict(plan)) + "\n")
    for unit in units:
        if (text := _unit_text(unit, plugin)) is not None:
            write_text(folder / f"{unit.digest}{UNIT}", text)


def read_plan(folder: Path) -> Plan:
    """The plan in ``folder``."""
    return Plan(**json.loads((folder / PLAN).read_bytes()))


def planned(folder: Path) -> list[str]:
    """Digests of the units in a plan, sorted."""
    return sorted(file.name.removesuffix(UNIT) for file in folder.glob(f"*{UNIT}"))


def read_unit(folder: Path, digest: str, plugin: Modality[Any]) -> Unit:
    """A unit of the plan in ``folder``.

    Raises:
        UserError: if this machine sees other files than the one that planned, or may not read them.
    """
    value = json.loads((folder / f"{digest}{UNIT}").read_bytes())
    unit = _unit(digest, value)
    if _seen(unit, plugin) != value["seen"]:
        raise UserError(
            "this machine sees other files than the one that planned; the source has to lie under the same path on "
            "all machines, and be readable there"
        )
    return unit


def _unit_text(unit: Unit, plugin: Modality[Any]) -> str | None:
    """A unit as JSON, or None where that would change it: a date would come back as text, a tuple as a list."""
    items = [{field.name: getattr(item, field.name) for field in fields(Item)} for item in unit.items]
    value = {"items": items, "shared": sorted(unit.shared), "seen": _seen(unit, plugin)}
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return None
    return text if repr(_unit(unit.digest, json.loads(text)).items) == repr(unit.items) else None


def _unit(digest: str, value: dict[str, Any]) -> Unit:
    items = tuple(Item(**item | {"parts": tuple(item["parts"])}) for item in value["items"])
    return Unit(digest, items, frozenset(value["shared"]))


def _seen(unit: Unit, plugin: Modality[Any]) -> str:
    """A digest of the state of all files that a unit is read from."""
    paths = {path for item in unit.items for path in (item.path, *item.parts)}
    if plugin.task.kind is TaskKind.SEGMENTATION:
        paths |= {item.target for item in unit.items if item.target}
    return digest_of([[*facts(path), os.access(path, os.R_OK)] for path in sorted(paths)])


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, this process holds the plan in ``folder``."""
    with (folder / LOCK).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def abandoned(folder: Path) -> bool:
    """Whether nobody holds the plan in ``folder`` any more."""
    try:
        with (folder / LOCK).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
