"""Prepared data as the loader sees them: rows of memory-mapped Arrow shards, and an index beside them."""

import itertools
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import parquet

from core.data.columns import Lists, Maybe, Values
from core.errors import StageError
from core.modality import Record

INDEX_FILE = "index.parquet"
"""One line per row: key, group, split, target (JSON), content hash, whether its content stands earlier as well."""
Ids = NDArray[np.int64]


class Store(Protocol):
    """What training asks of prepared data, however they are kept."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def keys(self) -> Sequence[str]:
        """Public name of each row."""

    def rows(self, ids: Sequence[int] | Ids) -> list[Record]:
        """The records at ``ids``, with encoded targets."""


class PreparedStore:
    """The store behind a finished `prepare` folder. Picklable: it is opened again in another process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = _index(folder, ["key", "group", "split", "target"])
        self._keys = Values(self._index["key"])
        self._groups, self._targets = Maybe(self._index["group"]), Maybe(self._index["target"])
        self._parts = [_Part(b) for file in sorted(folder.glob("data-*.arrow")) for b in _batches(file) if b.num_rows]
        self._starts = [0, *itertools.accumulate(part.rows for part in self._parts)]
        if self._starts[-1] != len(self):
            raise StageError(
                f"prepared data in {folder} are damaged: {self._starts[-1]} rows, {len(self)} in {INDEX_FILE}; "
                f"remove the folder and prepare again"
            )

    @classmethod
    def open(cls, folder: Path) -> "PreparedStore":
        """The store in ``folder``.

        Raises:
            StageError: if its files do not belong together.
        """
        return cls(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedStore, (self.folder,)

    def __len__(self) -> int:
        return len(self._index["key"])

    @cached_property
    def keys(self) -> list[str]:
        """Public name of each row."""
        keys: list[str] = self._index["key"].to_pylist()
        return keys

    def rows(self, ids: Sequence[int] | Ids) -> list[Record]:
        """The records at ``ids``; payloads are views of the mapped files.

        Raises:
            IndexError: if there is no such row.
        """
        return [self._row(int(number)) for number in ids]

    def _row(self, number: int) -> Record:
        if not 0 <= number < self._starts[-1]:
            raise IndexError(f"row {number} of {self._starts[-1]}")
        shard = bisect_right(self._starts, number) - 1
        part, place = self._parts[shard], number - self._starts[shard]
        meta = part.meta.text(place)
        return Record(
            key=self._keys.text(number),
            payload=part.payload[place],  # type: ignore[arg-type]  # bytes to every codec
            codec=part.codec.text(place),
            shape=part.shape[place],
            dtype=part.dtype.text(place),
            target=self._target(number),
            group=self._groups.text(number),
            meta={} if meta == "{}" else json.loads(meta),
        )

    def _target(self, number: int) -> Any:
        text = self._targets.text(number)
        return None if text is None else json.loads(text)

    @cached_property
    def _by_key(self) -> Ids:
        """All rows in the order of their keys, which is the same however they are divided into shards."""
        order: Ids = pc.sort_indices(self._index["key"]).to_numpy().astype(np.int64)
        return order

    def ids(self, split: str, *, labelled: bool = False) -> Ids:
        """Rows of ``split``, by key; only labelled ones where asked."""
        wanted = pc.equal(self._index["split"], split)
        if labelled:
            wanted = pc.and_(wanted, self._index["target"].is_valid())
        chosen: Ids = self._by_key[wanted.to_numpy(zero_copy_only=False)[self._by_key]]
        return chosen

    def targets(self, ids: Sequence[int] | Ids) -> list[Any]:
        """Encoded targets of ``ids``."""
        return [self._target(int(i)) for i in ids]

    def groups(self, ids: Sequence[int] | Ids) -> list[str | None]:
        """Groups of ``ids``."""
        return [self._groups.text(int(i)) for i in ids]

    def hashes(self, ids: Sequence[int] | Ids) -> list[str]:
        """SHA-256 of the contents of ``ids``."""
        return [self._contents.text(int(i)) for i in ids]

    @cached_property
    def _contents(self) -> Values:
        """Read only when asked for: most of the index, and no loader needs them."""
        return Values(_index(self.folder, ["content"])["content"])


def rows_of(file: Path) -> Iterator[Record]:
    """The records of one shard in their order, without targets; payloads are views of the mapped file."""
    for batch in pa.ipc.open_stream(pa.memory_map(str(file))):
        part, keys = _Part(batch), Values(batch["key"])
        for place in range(part.rows):
            meta = json.loads(part.meta.text(place))
            what = (part.codec.text(place), part.shape[place], part.dtype.text(place))
            yield Record(keys.text(place), part.payload[place], *what, meta=meta)  # type: ignore[arg-type]


class _Part:
    """One record batch of a shard."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.rows: int = batch.num_rows
        self.payload, self.codec = Values(batch["payload"]), Values(batch["codec"])
        self.shape, self.dtype = Lists(batch["shape"]), Values(batch["dtype"])
        self.meta = Values(batch["meta"])


def _batches(file: Path) -> list[pa.RecordBatch]:
    return list(pa.ipc.open_stream(pa.memory_map(str(file))))


def _index(folder: Path, columns: list[str]) -> dict[str, pa.Array]:
    """Columns of the index, each in one piece."""
    table = parquet.read_table(folder / INDEX_FILE, columns=columns)
    empty = pa.array([], pa.string())
    return {
        name: pa.concat_arrays(table[name].chunks) if table[name].num_chunks else empty for name in table.column_names
    }
