"""Shards: the units of preparation. Each is one Arrow file and one result file, named by all that went into it."""

import hashlib
import io
import json
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.config import results_only
from core.errors import Stopped
from core.modality import Item, Modality, Record, Unreadable
from core.processes import die_with
from core.workspace import SCHEMA, digest_of, write_bytes, write_text

REVISION = 1
"""Raised when shards are written otherwise than before."""
IN_PROCESS = 512
"""Items up to which starting processes takes longer than reading."""
SHARD_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("payload", pa.large_binary()),
        ("codec", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("dtype", pa.string()),
        ("meta", pa.string()),
    ]
)


@dataclass(frozen=True)
class Unit:
    """Some items that are read together."""

    digest: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Row:
    """What the index is made of: facts of one record that stand outside its shard."""

    key: str
    target: Any
    group: str | None
    split: str | None
    content: str


@dataclass
class Result:
    """What became of a unit."""

    rows: list[Row] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason)."""
    bytes: int = 0


def plan(items: Sequence[Item], plugin: Modality[Any], shard_items: int) -> list[Unit]:
    """Divide items by a hash of their keys, so that a new file touches one unit only."""
    buckets = 1
    while buckets * shard_items < len(items):
        buckets *= 2
    divided: list[list[Item]] = [[] for _ in range(buckets)]
    for item in items:
        number = int.from_bytes(hashlib.blake2b(item.key.encode(), digest_size=4).digest(), "big")
        divided[number % buckets].append(item)
    settings = results_only(plugin.settings, "affects_prepared")
    about = [SCHEMA, REVISION, plugin.info.name, plugin.info.revision, settings]
    return [Unit(digest_of(about, [_identity(i) for i in part]), tuple(part)) for part in divided if part]


def _identity(item: Item) -> list[Any]:
    return [item.key, item.row, item.target, item.group, item.split, item.size, item.mtime_ns]


def arrow_file(folder: Path, digest: str) -> Path:
    """The rows of a unit."""
    return folder / f"{digest}.arrow"


def result_file(folder: Path, digest: str) -> Path:
    """The result of a unit; written last, it says that the unit is done."""
    return folder / f"{digest}.json"


def read_result(folder: Path, digest: str) -> Result | None:
    """The result of a finished unit, or None."""
    file = result_file(folder, digest)
    if not file.exists() or not arrow_file(folder, digest).exists():
        return None
    value = json.loads(file.read_text())
    return Result([Row(**row) for row in value["rows"]], [tuple(pair) for pair in value["unreadable"]], value["bytes"])


def run_unit(
    unit: Unit, plugin: Modality[Any], folder: Path, marker: Path | None = None, killers: frozenset[str] = frozenset()
) -> None:
    """Read the items of ``unit`` and write its files; what cannot be read is listed with the reason.

    ``marker`` always holds the key being read. Keys in ``killers`` are not read: reading them ended a process before.
    """
    result, records = Result(), []
    for item in unit.items:
        if marker:
            marker.write_text(item.key)
        if item.key in killers:
            result.unreadable.append(
                (item.key, "the process that read it died; the file may be made to crash a decoder")
            )
            continue
        try:
            found, content = _read(item, plugin)
        except Unreadable as reason:
            result.unreadable.append((item.key, str(reason)))
            continue
        records += found
        result.rows += [Row(r.key, r.target, r.group, item.split, content) for r in found]
    data = _arrow(records)
    result.bytes = len(data)
    write_bytes(arrow_file(folder, unit.digest), data)
    body = {"rows": [vars(row) for row in result.rows], "unreadable": result.unreadable, "bytes": result.bytes}
    write_text(result_file(folder, unit.digest), json.dumps(body) + "\n")


def _read(item: Item, plugin: Modality[Any]) -> tuple[list[Record], str]:
    """The records of an item and the hash of its content.

    Raises:
        Unreadable: with the reason, also for errors that the plugin did not foresee.
    """
    try:
        records = list(plugin.read(item))
    except Unreadable:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).replace(item.path, item.key)
        raise Unreadable(f"unforeseen {type(error).__name__} in {where.name}: {text}") from error
    if not records:
        raise Unreadable("nothing in it")
    hasher = hashlib.sha256()
    if item.row is None and Path(item.path).is_file():
        with Path(item.path).open("rb") as source:
            while chunk := source.read(1 << 20):
                hasher.update(chunk)
    else:
        for record in records:
            hasher.update(bytes(record.payload))
    return records, hasher.hexdigest()


def _arrow(records: Sequence[Record]) -> bytes:
    columns = {
        "key": [r.key for r in records],
        "payload": [bytes(r.payload) for r in records],
        "codec": [r.codec for r in records],
        "shape": [list(r.shape) for r in records],
        "dtype": [r.dtype for r in records],
        "meta": [json.dumps(r.meta, sort_keys=True) for r in records],
    }
    out = io.BytesIO()
    batch = pa.record_batch(columns, schema=SHARD_SCHEMA)
    with pa.ipc.new_stream(out, SHARD_SCHEMA) as writer:
        writer.write_batch(batch)
    return out.getvalue()


Progress = Callable[[int], None]
"""Told how many more items are done."""


def run_units(
    units: Sequence[Unit],
    plugin: Modality[Any],
    folder: Path,
    workers: int,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> None:
    """Run the units that have no result yet, in processes where there is enough to read.

    Raises:
        Stopped: if asked to; finished units keep their results.
    """
    missing = []
    for unit in units:
        if read_result(folder, unit.digest) is None:
            missing.append(unit)
        else:
            progress(len(unit.items))
    if sum(len(unit.items) for unit in missing) > IN_PROCESS:
        _in_processes(missing, plugin, folder, workers, progress, should_stop)
        return
    for unit in missing:
        _maybe_stop(should_stop)
        run_unit(unit, plugin, folder)
        progress(len(unit.items))


def _maybe_stop(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Stopped("preparation saved; finished shards are kept")


def _in_processes(
    units: Sequence[Unit],
    plugin: Modality[Any],
    folder: Path,
    workers: int,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> None:
    """Run units side by side.

    When a process dies, its siblings go with it, so the rest is done one unit at a time; then the marker names
    the very item that ended the process, which is left out, and its unit is done again.
    """
    waiting, killers, alone = list(units), set[str](), False
    marker = folder / f"{os.getpid()}.reading"
    while waiting:
        count = 1 if alone else min(workers, len(waiting))
        with ProcessPoolExecutor(count, get_context("spawn"), die_with, (os.getpid(),)) as pool:
            told = marker if alone else None
            futures = {pool.submit(run_unit, u, plugin, folder, told, frozenset(killers)): u for u in waiting}
            try:
                for future in as_completed(futures):
                    future.result()
                    progress(len(futures[future].items))
                    _maybe_stop(should_stop)
            except BrokenProcessPool:
                if alone:
                    killers.add(marker.read_text())
                alone = True
            except Stopped:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        waiting = [u for u in waiting if read_result(folder, u.digest) is None]
    marker.unlink(missing_ok=True)
