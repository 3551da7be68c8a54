"""Prepared data as the loader sees them: rows of memory-mapped Arrow shards, and an index beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

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
        index = parquet.read_table(folder / INDEX_FILE)
        self._index = {name: index[name].to_pylist() for name in ("key", "group", "split", "target", "content")}
        self._targets = [None if text is None else json.loads(text) for text in self._index["target"]]
        self._order = np.array(sorted(range(len(self._targets)), key=self._index["key"].__getitem__), dtype=np.int64)
        self._batches = [_map(file) for file in sorted(folder.glob("data-*.arrow"))]
        self._starts = np.cumsum([0] + [batch.num_rows for batch in self._batches])

    @classmethod
    def open(cls, folder: Path) -> "PreparedStore":
        """The store in ``folder``."""
        return cls(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedStore, (self.folder,)

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def keys(self) -> list[str]:
        """Public name of each row."""
        keys: list[str] = self._index["key"]
        return keys

    def rows(self, ids: Sequence[int] | Ids) -> list[Record]:
        """The records at ``ids``; payloads are views of the mapped files."""
        shards = np.searchsorted(self._starts, np.asarray(ids), side="right") - 1
        return [self._row(int(i), int(shard)) for i, shard in zip(ids, shards, strict=True)]

    def _row(self, number: int, shard: int) -> Record:
        batch, place = self._batches[shard], number - int(self._starts[shard])
        payload, codec, shape, dtype, meta = (batch.column(column)[place] for column in (1, 2, 3, 4, 5))
        return Record(
            key=self._index["key"][number],
            payload=memoryview(payload.as_buffer()),  # type: ignore[arg-type]  # bytes to every codec
            codec=codec.as_py(),
            shape=tuple(shape.as_py()),
            dtype=dtype.as_py(),
            target=self._targets[number],
            group=self._index["group"][number],
            meta=json.loads(meta.as_py()),
        )

    def ids(self, split: str, *, labelled: bool = False) -> Ids:
        """Rows of ``split``, by key; only labelled ones where asked."""
        splits, targets = self._index["split"], self._targets
        chosen = [i for i in self._order if splits[i] == split and not (labelled and targets[i] is None)]
        return np.array(chosen, dtype=np.int64)

    def targets(self, ids: Sequence[int] | Ids) -> list[Any]:
        """Encoded targets of ``ids``."""
        return [self._targets[i] for i in ids]

    def groups(self, ids: Sequence[int] | Ids) -> list[str | None]:
        """Groups of ``ids``."""
        return [self._index["group"][i] for i in ids]

    def hashes(self, ids: Sequence[int] | Ids) -> list[str]:
        """Content hashes of ``ids``."""
        return [self._index["content"][i] for i in ids]


def _map(file: Path) -> pa.RecordBatch:
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_next_batch()
