"""Preparation: a source is read once into shards; splits, statistics and the card follow from what was read."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.config import Recipe, TaskKind, results_only
from core.data import shards
from core.data.card import SHOWN, write_card
from core.data.facts import Facts, gather, unreadable_of
from core.data.folder import describe_for_datasets, link_shards, write_index
from core.data.private import hidden_items, remember_items, without_names
from core.data.readers import Readers
from core.data.shards import Result, Unit
from core.data.sources import kind_of, unnamed
from core.data.statistics import measure
from core.data.store import PreparedStore
from core.errors import StageError, UserError
from core.modality import Item, Modality
from core.records import Geometry, PreparedData, Statistics
from core.tracking import Tracker
from core.workspace import Home

DISK_FACTOR = 2.0
"""Shards are taken to need at most this many times the bytes of the source."""


def prepare(
    recipe: Recipe,
    source: str,
    *,
    plugin: Modality[Any],
    home: Home,
    workdir: Path,
    digest: str,
    tracker: Tracker,
    should_stop: Callable[[], bool],
) -> PreparedData:
    """Prepare ``source`` in ``workdir``; killed at any moment and called again, it ends in the same bytes.

    Raises:
        UserError: if the source is no good, the disk too full, or the given splits divide a group.
        StageError: if too few files can be read.
        Stopped: if asked to stop.
    """
    items = named_items(plugin, source)
    hint = ""
    if plugin.info.private:
        hint = f"; which they are, {home.uri(remember_items(home, digest, items))} of the home tells its owner"
    folder = home.root / "prepared" / "shards"
    folder.mkdir(exist_ok=True)
    _clear(workdir, folder)
    units = shards.plan(items, plugin, recipe.prepare.shard_items)
    results = _read(units, plugin, folder, recipe, tracker, should_stop)
    _enough(units, results, recipe.prepare.max_unreadable, folder, hint)
    facts = gather(results, recipe)
    link_shards(units, folder, workdir)
    write_index(workdir, facts)
    describe_for_datasets(workdir, [unit.digest for unit in units])
    store = PreparedStore.open(workdir)
    statistics = measure(store, store.ids("train"), plugin)
    write_card(workdir, _card(facts, statistics, items, source, plugin.noticed))
    for what, count in sorted(plugin.noticed.items()):
        tracker.note(f"in the source: {count} {what}")
    _tell(facts, tracker, hint)
    return _record(recipe, plugin, home, digest, facts, statistics)


def missing_units(recipe: Recipe, source: str, plugin: Modality[Any], folder: Path) -> list[Unit]:
    """The units of ``source`` that have no result in ``folder`` yet, for whoever writes them beforehand.

    Raises:
        UserError: if the source is no good or the disk too full.
    """
    units = shards.plan(named_items(plugin, source), plugin, recipe.prepare.shard_items)
    missing = [unit for unit in units if not shards.is_done(folder, unit.digest)]
    _need_disk(missing, folder)
    return missing


def named_items(plugin: Modality[Any], source: str) -> list[Item]:
    """The items of ``source`` under names that may stand anywhere.

    Raises:
        UserError: if the source is no good.
    """
    private = plugin.info.private
    try:
        with unnamed(private):
            found = list(plugin.discover(source))
    except UserError as error:
        if not private:
            raise
        raise UserError(without_names(str(error), [source], "(hidden)")) from None
    masked = plugin.task.kind is TaskKind.SEGMENTATION
    return [_with_public_names(item, masked) for item in (hidden_items(found, plugin.secret) if private else found)]


def _with_public_names(item: Item, masked: bool) -> Item:
    """The item with a key and a label that any file can hold: names on disk need not be UTF-8.

    A label that is the path of a mask has to lead there, and is written nowhere.
    """

    def clean(name: Any) -> Any:
        if not isinstance(name, str) or name.isascii():
            return name
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")

    return replace(item, key=clean(item.key), target=item.target if masked else clean(item.target))


def _clear(workdir: Path, folder: Path) -> None:
    """Remove what an earlier process left half-written."""
    for left in workdir.glob(".*.tmp"):
        left.unlink()
    shards.sweep(folder)


def _read(
    units: Sequence[Unit],
    plugin: Modality[Any],
    folder: Path,
    recipe: Recipe,
    tracker: Tracker,
    should_stop: Callable[[], bool],
) -> list[Result]:
    """Results of all units, those of earlier runs included."""
    _need_disk([unit for unit in units if not shards.is_done(folder, unit.digest)], folder)
    done, total = 0, sum(len(unit.items) for unit in units)

    def progress(more: int) -> None:
        nonlocal done
        done += more
        tracker.progress("prepare", done, total, "items")

    workers = recipe.compute.workers or os.cpu_count() or 1
    try:
        Readers(plugin, folder, workers, progress, should_stop, recipe.prepare.seconds_per_item).run(units)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageError(f"the disk of {folder} is full; make room and run the same command again") from error
    results = [shards.read_result(folder, unit.digest) for unit in units]
    return [result for result in results if result is not None]


def _need_disk(units: Sequence[Unit], folder: Path) -> None:
    """Refuse what cannot fit; shards that are there already need no more room."""
    needed = DISK_FACTOR * sum(max(item.size, 0) for unit in units for item in unit.items)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"preparing may need {needed / 2**30:.1f} GiB in {folder}, which has {free / 2**30:.1f} GiB free; "
            f"make room, or set MAEFLOW_HOME to a larger disk"
        )


def _enough(units: Sequence[Unit], results: Sequence[Result], limit: float, folder: Path, hint: str) -> None:
    """Refuse what is mostly unreadable; what was not read is then tried again by the next run.

    Raises:
        StageError: if nothing, or too little of the items, could be read.
    """
    found = sum(len(unit.items) for unit in units)
    unreadable = unreadable_of(results)
    if len(unreadable) < found and len(unreadable) <= limit * found:
        return
    for unit, result in zip(units, results, strict=True):
        if result.unreadable:  # A permission that is granted now, or a decoder installed, changes no file.
            shards.forget(folder, unit.digest)
    shown = "\n".join(f"  {key}: {reason}" for key, reason in unreadable[:10])
    more = f"\n  ... and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
    what = "none of the" if len(unreadable) == found else f"{len(unreadable)} of the"
    verb = "could be read" if len(unreadable) == found else "could not be read"
    go_on = "" if len(unreadable) == found else f"\nraise prepare.max_unreadable above {limit} to go on without them"
    raise StageError(f"{what} {found} items {verb}{hint}:\n{shown}{more}{go_on}")


def _source_kind(source: str) -> str:
    try:
        return kind_of(source)
    except UserError:
        return "of the plugin's own"


def _card(
    facts: Facts, statistics: Statistics, items: Sequence[Item], source: str, noticed: Mapping[str, int]
) -> dict[str, Any]:
    repeated = sorted(row.key for row, again in zip(facts.rows, facts.repeated, strict=True) if again)
    return {
        "source": _source_kind(source),
        "counts": facts.counts,
        "labelled": facts.labelled,
        "classes": facts.classes,
        "groups": len({row.group for row in facts.rows if row.group is not None}),
        "statistics": statistics.model_dump(mode="json"),
        "duplicates": {"count": len(repeated), "files": repeated[:SHOWN]},
        "data_digest": facts.data_digest,
        "bytes": facts.bytes,
        "source_bytes": sum(max(item.size, 0) for item in items),
        "unreadable": [{"file": key, "reason": reason} for key, reason in facts.unreadable],
        "noticed": dict(sorted(noticed.items())),
    }


def _tell(facts: Facts, tracker: Tracker, hint: str) -> None:
    missing = [name for name, counts in facts.classes.items() if counts["train"] == 0]
    if missing:
        tracker.note(f"no training item of {len(missing)} classes: {', '.join(missing[:10])}")
    if facts.target is not None and facts.labelled["test"] == 0:
        groups = len({row.group for row in facts.rows if row.group is not None})
        tracker.note(
            f"no labelled item is held out for testing, so nothing can be evaluated; groups stay whole, and there are "
            f"{groups}"
        )
    if facts.unreadable:
        count = len(facts.unreadable)
        tracker.note(f"{count} items could not be read; the dataset card lists them with the reasons{hint}")
    numbers = {f"prepare/{split}": float(n) for split, n in facts.counts.items()}
    numbers["prepare/unreadable"] = float(len(facts.unreadable))
    numbers["prepare/duplicates"] = float(sum(facts.repeated))
    tracker.metrics(0, numbers)


def _record(
    recipe: Recipe, plugin: Modality[Any], home: Home, digest: str, facts: Facts, statistics: Statistics
) -> PreparedData:
    spec = plugin.patches()
    return PreparedData(
        digest=digest,
        folder=home.uri(home.stage("prepare", digest).final),
        modality=recipe.modality,
        recipe=recipe.name,
        versions={"maeflow": version("maeflow"), "pyarrow": pa.__version__},
        data_digest=facts.data_digest,
        counts=facts.counts,
        labelled=facts.labelled,
        target=facts.target,
        statistics=statistics,
        geometry=Geometry(channels=spec.channels, input_shape=spec.input_shape, patch_shape=spec.patch_shape),
        unreadable=len(facts.unreadable),
        duplicates=sum(facts.repeated),
        bytes=facts.bytes,
        settings=results_only(recipe.data, "affects_prepared"),
    )
