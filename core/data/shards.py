"""Shards: the units of preparation. Each is one Arrow file and one result file, named by all that went into it."""

import hashlib
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from core.config import TaskKind, results_only
from core.data.files import facts
from core.data.private import hidden_records, without_names
from core.data.sources import listing
from core.modality import Item, Modality, Record, Unreadable
from core.processes import ends_after
from core.workspace import SCHEMA, digest_of, temporary_beside, write_text

REVISION = 3
"""Raised when shards are written otherwise than before."""
BATCH_BYTES = 64 * 2**20
"""Payload bytes after which rows are written out, so that a shard of large items need not fit into memory."""
DIED = "the process that read it died; the file may be made to crash a decoder, or need too much memory"
SLOW = (
    "reading it took longer than {seconds:g} s; the file may be damaged, or prepare.seconds_per_item too short for it"
)
NUMBER = 12
"""Characters of an item's number in a mark."""
NO_KILLERS: Mapping[str, str] = MappingProxyType({})
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
    shared: frozenset[str] = frozenset()
    """Files that several items are read from: what such an item holds is in its records, not in the file."""


@dataclass(frozen=True)
class Row:
    """What the index is made of: facts of one record that stand outside its shard."""

    key: str
    item: str
    """Key of the item it was read from, which may hold several records."""
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
    """Size of the Arrow file."""


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(items: Sequence[Item], plugin: Modality[Any], shard_items: int) -> list[Unit]:
    """Divide items by a hash of their keys, so that a new file touches one unit only."""
    buckets = 1
    while buckets * shard_items < len(items):
        buckets *= 2
    divided: list[list[Item]] = [[] for _ in range(buckets)]
    for item in items:
        number = int.from_bytes(hashlib.blake2b(item.key.encode(), digest_size=4).digest(), "big")
        divided[number % buckets].append(item)
    return units_of(divided, plugin)


def units_of(divided: Sequence[Sequence[Item]], plugin: Modality[Any]) -> list[Unit]:
    """A unit for each part of ``divided`` that is not empty, named by its items and by how they are read."""
    items = [item for part in divided for item in part]
    masked, about = plugin.task.kind is TaskKind.SEGMENTATION, reading(plugin)
    containers = {path: _container(path) for path in {item.path for item in items if item.row is not None}}
    times = Counter(item.path for item in items if item.row is None)
    shared = [frozenset(item.path for item in part if times[item.path] > 1) for part in divided]
    identities = [
        [_identity(item, item.path in many, masked) for item in part]
        for part, many in zip(divided, shared, strict=True)
    ]
    inside = [sorted({containers[i.path] for i in part if i.row is not None}) for part in divided]
    return [
        Unit(digest_of(about, *([identity, within] if within else [identity])), tuple(part), many)
        for part, identity, within, many in zip(divided, identities, inside, shared, strict=True)
        if part
    ]


def reading(plugin: Modality[Any]) -> list[Any]:
    """What beside the items themselves decides how they are read."""
    settings = results_only(plugin.settings, "affects_prepared")
    masked = plugin.task.kind is TaskKind.SEGMENTATION
    about = [SCHEMA, REVISION, plugin.info.name, plugin.info.revision, settings, *(["masked"] if masked else [])]
    return about + ([plugin.secret.hex()] if plugin.secret else [])  # Keyed: nobody can test guessed names against it.


def _identity(item: Item, shared: bool, masked: bool) -> list[Any]:
    target = item.target
    if masked and target is not None:  # The mask's state, not its place: a source may be moved.
        target = facts(target)
    own = [item.key, item.row, target, item.group, item.split, item.size, item.mtime_ns, shared]
    return [*own, [facts(part) for part in item.parts]] if item.parts else own


def _container(path: str) -> str:
    """Identity of what holds rows: a row has no size and time of its own, and the same key in every dataset."""
    if Path(path).is_dir():
        return digest_of(listing(path))
    facts = Path(path).stat()
    return digest_of(facts.st_size, facts.st_mtime_ns)


# --- files of a unit --------------------------------------------------------------------------------------------------


def arrow_file(folder: Path, digest: str) -> Path:
    """The rows of a unit."""
    return folder / f"{digest}.arrow"


def result_file(folder: Path, digest: str) -> Path:
    """The result of a unit; written last, it says that the unit is done."""
    return folder / f"{digest}.json"


def marker_file(folder: Path, digest: str) -> Path:
    """Holds the number of the item that is being read; left behind by a process that died over it."""
    return folder / f"{digest}.reading"


def is_done(folder: Path, digest: str) -> bool:
    """Whether a unit has its result."""
    return result_file(folder, digest).exists() and arrow_file(folder, digest).exists()


def read_result(folder: Path, digest: str) -> Result | None:
    """The result of a finished unit, or None."""
    if not is_done(folder, digest):
        return None
    value = json.loads(result_file(folder, digest).read_text())
    return Result([Row(**row) for row in value["rows"]], [tuple(pair) for pair in value["unreadable"]], value["bytes"])


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written: a day old, so that nobody is writing it now."""
    for left in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                left.unlink()


def drop(folder: Path, digest: str) -> None:
    """Remove all files of a unit."""
    for file in (result_file, arrow_file, marker_file):
        file(folder, digest).unlink(missing_ok=True)


def forget(folder: Path, digest: str) -> None:
    """Take a unit for not done, so that it is read again."""
    result_file(folder, digest).unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def run_unit(
    unit: Unit,
    plugin: Modality[Any],
    folder: Path,
    killers: Mapping[str, str] = NO_KILLERS,
    seconds: float | None = None,
) -> None:
    """Read the items of ``unit`` and write its files; what cannot be read is listed with the reason.

    Keys in ``killers`` are not read, for the reason given: reading them ended a process before. An item that takes
    longer than ``seconds`` ends this one.
    """
    result = Result()
    with _marked(marker_file(folder, unit.digest)) as mark, _Writer(arrow_file(folder, unit.digest)) as out:
        for number, item in enumerate(unit.items):
            mark(number)
            try:
                if item.key in killers:
                    raise Unreadable(killers[item.key])  # noqa: TRY301 - listed like every other reason
                with ends_after(seconds, mark.file):
                    records, contents = read_item(item, plugin, shared=item.path in unit.shared)
            except Unreadable as reason:
                result.unreadable.append((item.key, _without_path(str(reason), item, plugin)))
                continue
            out.add(records)
            result.rows += [
                Row(record.key, item.key, record.target, record.group, item.split, content)
                for record, content in zip(records, contents, strict=True)
            ]
        result.bytes = out.finish()
        write_text(result_file(folder, unit.digest), json.dumps(asdict(result), default=_plain) + "\n")


def read_item(item: Item, plugin: Modality[Any], *, shared: bool = False) -> tuple[list[Record], list[str]]:
    """The records of an item and a hash of the content of each.

    Several records without a group are one, called like their item: windows of a recording are never divided between
    splits because a plugin forgot about it. Those that name groups of their own may go different ways. ``shared`` says
    that other items are read from the same file.

    Raises:
        Unreadable: with the reason, also for errors that the plugin did not foresee.
    """
    try:
        records = list(plugin.read(item))
        if not records:
            raise Unreadable("nothing in it")  # noqa: TRY301 - goes through the same door as the plugin's own
        if len(records) > 1:
            records = [record if record.group is not None else replace(record, group=item.key) for record in records]
        if plugin.secret:
            records = hidden_records(item, records, plugin.secret)
        return records, _contents(item, records, shared, plugin)
    except Unreadable:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"unforeseen {type(error).__name__} in {where.name}"
        # Libraries quote paths and contents.
        raise Unreadable(text if plugin.info.private else f"{text}: {error}") from error


def _contents(item: Item, records: Sequence[Record], shared: bool, plugin: Modality[Any]) -> list[str]:
    """SHA-256 of the file, or of the payloads where the item is a part of it; several records are numbered.

    Not their own payloads: the silence in one recording is not a copy of the silence in another. The ``secret`` of
    private sources goes before: a name that stands in a file could else be guessed by its hash.
    """
    whole = _content(item, records, shared, plugin)
    if len(records) == 1:
        return [whole]
    return [hashlib.sha256(f"{whole}#{number}".encode()).hexdigest() for number in range(len(records))]


def _content(item: Item, records: Sequence[Record], shared: bool, plugin: Modality[Any]) -> str:
    secret = plugin.secret
    if not shared and item.row is None and not item.parts and Path(item.path).is_file():
        with Path(item.path).open("rb") as source:
            return hashlib.file_digest(source, lambda: hashlib.sha256(secret)).hexdigest()
    hasher = hashlib.sha256(secret)
    if item.parts and plugin.task.kind is TaskKind.SEGMENTATION:
        # The same data without their mask have to be known again, or pretraining sees what is tested on.
        for part in item.parts:
            hasher.update(Path(part).read_bytes())
        return hasher.hexdigest()
    for record in records:
        hasher.update(record.payload)
    return hasher.hexdigest()


def _without_path(text: str, item: Item, plugin: Modality[Any]) -> str:
    """Reasons are public; where the file lies, and the names of a private source or of many parts, are not."""
    mask = str(item.target) if plugin.task.kind is TaskKind.SEGMENTATION and item.target else ""
    if plugin.info.private or item.parts:
        return without_names(text, (item.path, *item.parts, mask), item.key)
    for secret in (item.path, os.path.realpath(item.path), Path(item.path).name, mask, Path(mask).name):
        if secret and secret not in item.key:
            text = text.replace(secret, item.key)
    return text


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy scalars as numbers, all else (a date, a decimal) as its text."""
    return value.item() if isinstance(value, np.generic) else str(value)


@dataclass(frozen=True)
class _Mark:
    """Notes in a file which item is being read."""

    file: int
    """Its descriptor, positioned behind the number: what is written there says that time ran out."""

    def __call__(self, number: int) -> None:
        os.pwrite(self.file, f"{number:{NUMBER}d}".encode(), 0)


@contextmanager
def _marked(marker: Path) -> Iterator[_Mark]:
    """The mark of a unit; it survives this process and is removed by success."""
    handle = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.lseek(handle, NUMBER, os.SEEK_SET)
    try:
        yield _Mark(handle)
    finally:
        os.close(handle)
        marker.unlink(missing_ok=True)


def being_read(folder: Path, unit: Unit) -> tuple[Item, bool] | None:
    """The item at which the reader of ``unit`` ended, and whether its time had run out."""
    try:
        text = marker_file(folder, unit.digest).read_text(errors="replace")
        return unit.items[int(text[:NUMBER])], len(text) > NUMBER
    except (OSError, ValueError):  # Nothing of this unit was being read.
        return None


class _Writer:
    """An Arrow stream that appears under its name only when it is whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._temporary = temporary_beside(file)
        self._records: list[Record] = []
        self._bytes, self._batches = 0, 0

    def __enter__(self) -> Self:
        self._out = self._temporary.open("wb")
        self._stream = pa.ipc.new_stream(self._out, SHARD_SCHEMA)
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, records: Sequence[Record]) -> None:
        """Append rows."""
        self._records += records
        self._bytes += sum(len(record.payload) for record in records)
        if self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._stream.write_batch(_batch(self._records))
        self._records, self._bytes = [], 0
        self._batches += 1

    def finish(self) -> int:
        """Bytes of the file, which now has its name."""
        if self._records or not self._batches:
            self._flush()
        self._stream.close()
        self._out.flush()
        os.fsync(self._out.fileno())
        size = self._out.tell()
        self._temporary.replace(self._file)
        return size


def _batch(records: Sequence[Record]) -> pa.RecordBatch:
    columns = {
        "key": [r.key for r in records],
        "payload": [bytes(r.payload) for r in records],
        "codec": [r.codec for r in records],
        "shape": [list(r.shape) for r in records],
        "dtype": [r.dtype for r in records],
        "meta": [json.dumps(r.meta, sort_keys=True, default=_plain) for r in records],
    }
    return pa.record_batch(columns, schema=SHARD_SCHEMA)
