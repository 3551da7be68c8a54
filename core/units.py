"""The process that writes shards before the stage asks for them: ``python -P -m core.units PLAN [DIGEST ...]``.

PLAN is a folder with a request (`core.data.plans`). Without digests the process makes the plan; with digests it writes
the shards of these units into the home, on whatever machine it runs. It ends with the process that started it, and when
its standard input closes; shards are whole or not there, so it may end at any moment. What it does not write, or what
ends it, is the stage's to do.
"""

import os
import pickle
import platform
import re
import sys
import threading
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from core.config import Recipe
from core.data import plans
from core.data.prepare import missing_units
from core.data.private import closed, resolve_source, secret_of
from core.data.readers import one_thread, reads_apart
from core.data.shards import is_done, marker_file, reading, run_unit
from core.errors import StageError, UserError
from core.launch import STOPPED, Say, serve
from core.modality import Modality
from core.processes import die_with
from core.recipes import resolve
from core.registry import entries
from core.request import StageRequest
from core.workspace import Home, digest_of, own_temporaries

TOOLS = re.compile(r"""extra\s*==\s*["']dev["']""")
"""Marks packages that read no data."""


def main(arguments: list[str]) -> int:
    """Make a plan, or write units of one; gives the exit code."""
    die_with(os.getppid())
    folder, digests = Path(arguments[0]), arguments[1:]
    work = partial(_write, folder, digests) if digests else partial(_plan, folder)
    return serve(folder / plans.REQUEST, StageRequest, work)


def environment(modality: str) -> dict[str, str]:
    """Versions of Python, of maeflow, of the plugin's package, and of what these two need; "none" of what is absent."""
    packages = ["maeflow", entries()[modality].package]
    needed = [text for package in packages for text in _requirements(package) if not TOOLS.search(text)]
    names = {*packages, *(re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in needed)}
    return {name: _version(name) for name in sorted(names)} | {"python": platform.python_version()}


def _requirements(package: str) -> list[str]:
    try:
        return requires(package) or []
    except PackageNotFoundError:
        return []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _plan(folder: Path, request: StageRequest, stop: threading.Event, say: Say) -> None:
    """Write the plan of what is missing; of a plugin that keeps what it found in itself, nothing is planned."""
    _leave_when(stop)
    home, recipe = Home.create(Path(request.home)), resolve(request.recipe, "of the request")
    plugin = _plugin(recipe, home)
    before = _state(plugin)
    units = missing_units(recipe, resolve_source(home, request.source or ""), plugin, _shards(home))
    if _state(plugin) != before:
        units = []
    seconds = recipe.prepare.seconds_per_item if reads_apart(plugin, units) else None
    plan = plans.Plan(digest_of(reading(plugin)), environment(recipe.modality), seconds)
    with closed(request.private):
        plans.write_plan(folder, plan, units, plugin)


def _state(plugin: Modality[Any]) -> bytes:
    """What an instance of a plugin holds, beside what only the stage asks it for."""
    return pickle.dumps({name: value for name, value in vars(plugin).items() if name != "noticed"})


def _write(folder: Path, digests: list[str], request: StageRequest, stop: threading.Event, say: Say) -> None:
    """Write the shards of the units ``digests``."""
    one_thread()
    home, recipe = Home(Path(request.home)), resolve(request.recipe, "of the request")
    if request.private:
        os.umask(os.umask(0o077) | 0o007)  # A Dask worker starts this process, under whatever mask it has.
    marker: list[Path] = []
    _leave_when(stop, _shards(home), marker)
    plugin, plan = _plugin(recipe, home), plans.read_plan(folder)
    _check(plan, plugin, environment(recipe.modality))
    left, reason = 0, ""
    for digest in digests:
        if is_done(_shards(home), digest):
            continue
        try:
            unit = plans.read_unit(folder, digest, plugin)
        except UserError as error:
            left, reason = left + 1, str(error)
            continue
        marker[:] = [marker_file(_shards(home), digest)]
        run_unit(unit, plugin, _shards(home), seconds=plan.seconds)
        marker.clear()
    if left:
        raise StageError(f"{left} of {len(digests)} shards: {reason}")


def _check(plan: plans.Plan, plugin: Modality[Any], here: dict[str, str]) -> None:
    """Refuse a plan of somebody who would read items otherwise.

    Raises:
        UserError: that says what differs.
    """
    there = plan.environment
    for name in sorted(here.keys() | there.keys()):
        if here.get(name, "none") != there.get(name, "none"):
            raise UserError(
                f"{platform.node()} has {name} {here.get(name, 'none')}, the machine that planned has "
                f"{there.get(name, 'none')}; install the same versions on all machines"
            )
    if plan.reading != digest_of(reading(plugin)):
        raise UserError(f"{platform.node()} has other code of maeflow or of the plugin; install the same on all")


def _plugin(recipe: Recipe, home: Home) -> Modality[Any]:
    """The plugin as the stage has it."""
    from core.stages.work import live_plugin

    plugin = live_plugin(recipe, "evaluate")
    if plugin.info.private:
        plugin.secret = secret_of(home)
    return plugin


def _shards(home: Home) -> Path:
    folder = home.root / "prepared" / "shards"
    folder.mkdir(exist_ok=True)
    return folder


def _leave_when(stop: threading.Event, folder: Path | None = None, marker: list[Path] | None = None) -> None:
    """Have this process end at once when told to, in whatever code it is, without leaving anything half-written.

    ``marker`` holds what says that a unit is being read: left behind, it would blame an item for this end.
    """

    def leave() -> None:
        stop.wait()
        for left in [*(marker or ()), *(own_temporaries(folder) if folder else ())]:
            left.unlink(missing_ok=True)
        os._exit(STOPPED)

    threading.Thread(target=leave, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
