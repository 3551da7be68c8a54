"""Preparation: a source is read once into shards; splits, statistics and the card follow from what was read."""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from core.config import Recipe
from core.data import shards
from core.data.card import SHOWN, class_counts, write_card
from core.data.readers import Readers
from core.data.shards import Result, Row, Unit
from core.data.sources import kind_of
from core.data.splits import Member, assign
from core.data.statistics import measure
from core.data.store import INDEX_FILE, PreparedStore
from core.errors import StageError, UserError
from core.modality import Item, Modality, Split
from core.records import Geometry, PreparedData, Statistics, Target
from core.tasks import encode_targets
from core.tracking import Tracker
from core.workspace import Home, digest_of, write_bytes, write_text

SPLITS = ("train", "val", "test")
DISK_FACTOR = 2.0
"""Shards are taken to need at most this many times the bytes of the source."""


@dataclass(frozen=True)
class Facts:
    """What is known of a source once all of it is read."""

    rows: list[Row]
    target: Target | None
    targets: list[Any]
    """Encoded, one per row."""
    splits: list[Split]
    repeated: list[bool]
    """Whether a row's content stands in an earlier row."""
    unreadable: list[tuple[str, str]]
    bytes: int

    @property
    def counts(self) -> dict[str, int]:
        """Items by split."""
        return _count(self.splits)

    @property
    def labelled(self) -> dict[str, int]:
        """Labelled items by split."""
        return _count([s for s, t in zip(self.splits, self.targets, strict=True) if t is not None])

    @property
    def data_digest(self) -> str:
        """Hash over the contents."""
        return digest_of("data", sorted(row.content for row in self.rows))

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Items of each class by split."""
        known = self.target is not None and bool(self.target.classes)
        return class_counts(self.target.classes, self.targets, self.splits) if known and self.target else {}


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
    items = [_with_public_names(item) for item in plugin.discover(source)]
    folder = home.root / "prepared" / "shards"
    folder.mkdir(exist_ok=True)
    _clear(workdir, folder)
    units = shards.plan(items, plugin, recipe.prepare.shard_items)
    results = _read(units, plugin, folder, recipe, tracker, should_stop)
    _enough(units, results, recipe.prepare.max_unreadable, folder)
    facts = gather(results, recipe)
    _link(units, folder, workdir)
    _write_index(workdir, facts)
    _describe_for_datasets(workdir, [unit.digest for unit in units])
    store = PreparedStore.open(workdir)
    statistics = measure(store, store.ids("train"), plugin)
    write_card(workdir, _card(facts, statistics, items, source))
    _tell(facts, tracker)
    return _record(recipe, plugin, home, digest, facts, statistics)


def _with_public_names(item: Item) -> Item:
    """The item with a key and a label that any file can hold: names on disk need not be UTF-8."""

    def clean(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")

    return replace(item, key=clean(item.key), target=clean(item.target))


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
        Readers(plugin, folder, workers, progress, should_stop).run(units)
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


def _enough(units: Sequence[Unit], results: Sequence[Result], limit: float, folder: Path) -> None:
    """Refuse what is mostly unreadable; what was not read is then tried again by the next run.

    Raises:
        StageError: if nothing, or too little of the items, could be read.
    """
    found = sum(len(unit.items) for unit in units)
    unreadable = _unreadable(results)
    if len(unreadable) < found and len(unreadable) <= limit * found:
        return
    for unit, result in zip(units, results, strict=True):
        if result.unreadable:  # A permission that is granted now, or a decoder installed, changes no file.
            shards.forget(folder, unit.digest)
    shown = "\n".join(f"  {key}: {reason}" for key, reason in unreadable[:10])
    more = f"\n  ... and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
    what = "none of the" if len(unreadable) == found else f"{len(unreadable)} of the"
    verb = "could be read" if len(unreadable) == found else "could not be read"
    hint = "" if len(unreadable) == found else f"\nraise prepare.max_unreadable above {limit} to go on without them"
    raise StageError(f"{what} {found} items {verb}:\n{shown}{more}{hint}")


def _unreadable(results: Sequence[Result]) -> list[tuple[str, str]]:
    return sorted(pair for result in results for pair in result.unreadable)


def gather(results: Sequence[Result], recipe: Recipe) -> Facts:
    """Targets, splits and duplicates of everything that was read.

    Raises:
        StageError: if the plugin gave two records one key.
        UserError: if a label does not suit the task, or a given split divides a group.
    """
    rows = [row for result in results for row in result.rows]
    _one_key_each(rows)
    target, targets = encode_targets([row.target for row in rows], recipe.task)
    members = [
        Member(row.key, encoded, row.group, row.split, row.content)  # type: ignore[arg-type]  # a Split, from the item
        for row, encoded in zip(rows, targets, strict=True)
    ]
    splits = assign(members, recipe.prepare, recipe.seed)
    size = sum(result.bytes for result in results)
    return Facts(rows, target, targets, splits, _repeated(rows), _unreadable(results), size)


def _one_key_each(rows: Sequence[Row]) -> None:
    """Random views are drawn by key, and cards and splits name items by it."""
    key, times = Counter(row.key for row in rows).most_common(1)[0]
    if times > 1:
        raise StageError(f"the plugin gave {times} records the key {key!r}; its `read` must give each its own")


def _repeated(rows: Sequence[Row]) -> list[bool]:
    """By key, so that it does not depend on the order of shards; several records of one item do not count."""
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.key):
        first.setdefault(row.content, row.item)
    return [first[row.content] != row.item for row in rows]


def _link(units: Sequence[Unit], folder: Path, workdir: Path) -> None:
    """Shards appear in the prepared folder by hard link, so that it is whole by itself."""
    for old in workdir.glob("data-*.arrow"):
        old.unlink()
    for number, unit in enumerate(units):
        origin, target = shards.arrow_file(folder, unit.digest), workdir / f"data-{number:05d}.arrow"
        try:
            target.hardlink_to(origin)
        except OSError:
            shutil.copyfile(origin, target)


def _write_index(workdir: Path, facts: Facts) -> None:
    columns = {
        "key": pa.array([row.key for row in facts.rows], pa.string()),
        "group": pa.array([row.group for row in facts.rows], pa.string()),
        "split": pa.array(facts.splits, pa.string()),
        "target": pa.array([None if t is None else json.dumps(t) for t in facts.targets], pa.string()),
        "content": pa.array([row.content for row in facts.rows], pa.string()),
        "repeated": pa.array(facts.repeated, pa.bool_()),
    }
    out = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), out)
    write_bytes(workdir / INDEX_FILE, out.getvalue().to_pybytes())


def _describe_for_datasets(workdir: Path, digests: Sequence[str]) -> None:
    """The two files with which ``datasets.load_from_disk`` opens the folder."""

    def value(dtype: str) -> dict[str, str]:
        return {"dtype": dtype, "_type": "Value"}

    shape = {"feature": value("int32"), "_type": "List"}
    texts = {name: value("string") for name in ("key", "codec", "dtype", "meta")}
    types = texts | {"payload": value("large_binary"), "shape": shape}
    features = {name: types[name] for name in shards.SHARD_SCHEMA.names}
    files = [{"filename": f"data-{number:05d}.arrow"} for number in range(len(digests))]
    state: dict[str, Any] = {
        "_data_files": files,
        "_fingerprint": digest_of("rows", list(digests)),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_text(workdir / "dataset_info.json", json.dumps({"features": features}, indent=1) + "\n")
    write_text(workdir / "state.json", json.dumps(state, indent=1) + "\n")


def _source_kind(source: str) -> str:
    try:
        return kind_of(source)
    except UserError:
        return "of the plugin's own"


def _card(facts: Facts, statistics: Statistics, items: Sequence[Item], source: str) -> dict[str, Any]:
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
    }


def _tell(facts: Facts, tracker: Tracker) -> None:
    missing = [name for name, counts in facts.classes.items() if counts["train"] == 0]
    if missing:
        tracker.note(f"no training item of {len(missing)} classes: {', '.join(missing[:10])}")
    if facts.unreadable:
        tracker.note(f"{len(facts.unreadable)} files could not be read; the dataset card lists them with the reasons")
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
    )


def _count(splits: Sequence[str]) -> dict[str, int]:
    counts = Counter(splits)
    return {split: counts[split] for split in SPLITS}
