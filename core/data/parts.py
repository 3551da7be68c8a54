"""A long table made part by part: killed at any moment and taken up again, it ends in the same bytes.

Parts stand in ``NAME.partial`` beside the table's place, each whole or not there, with a manifest that says what for.
What cannot be read stands in the part as well, and in the end in ``NAME.unreadable.csv``.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import parquet

from core.errors import UserError
from core.workspace import held, sync_folder, temporary_beside, write_text

ABOUT = "maeflow"
"""Key of what a table says of itself, JSON, among the metadata of its schema."""
UNREADABLE = "maeflow.unreadable"
"""Key of the pairs (key, reason) in a part."""
GROUP_BYTES = 16 * 2**20
"""About how much a group of rows holds, which is what a reader needs in memory."""
GROUP_ROWS = 65_536
MANIFEST, LOCK, INDEX = "manifest.json", "lock", "index.parquet"
KEPT = (LOCK, "events.jsonl")
"""Files that outlive a start over: somebody holds the one, and reads the other as it grows."""
Pair = tuple[str, str]


@dataclass(frozen=True)
class Output:
    """A table, or a folder with a table called `INDEX` and other files; and where it is made."""

    final: Path
    """Its place."""
    folder: bool = False
    """Whether it is a folder."""

    @property
    def partial(self) -> Path:
        """Where work is done until it is finished."""
        return self.final.with_name(f"{self.final.name}.partial")

    @property
    def unreadable(self) -> Path:
        """The list of what could not be read; there only where something could not."""
        return self.final.with_name(f"{self.final.name}.unreadable.csv")

    @property
    def reading(self) -> Path:
        """Where shards lie until they are used."""
        return self.partial / "reading"

    @property
    def result(self) -> Path:
        """What gets the final name."""
        return self.partial / "result"

    @property
    def table(self) -> Path:
        """The finished table."""
        return self.final / INDEX if self.folder else self.final

    @property
    def there(self) -> bool:
        """Whether something lies at its place; an empty folder is nothing."""
        return self.final.exists() and not (self.folder and self.final.is_dir() and not any(self.final.iterdir()))

    def part(self, number: int) -> Path:
        """A part; there once it is whole."""
        return self.partial / "parts" / f"{number:06d}.parquet"

    @contextmanager
    def exclusive(self, waiting: Callable[[str], None], should_stop: Callable[[], bool]) -> Iterator[None]:
        """Hold the place for this process alone; ``waiting`` is told, once, who holds it meanwhile.

        Raises:
            UserError: if nothing can be written there.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.final} cannot be written: {error.strerror}; give another place by --out") from None
        with held(self.partial / LOCK, waiting, should_stop):
            try:
                yield
            finally:
                if not (self.partial / MANIFEST).exists():  # The request was refused.
                    self.clear()

    def begin(self, request: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Make ready for the parts of ``request``, those that are there included; False where all of it is done.

        Raises:
            UserError: if there are results, or parts, of another request that are not to be overwritten.
        """
        self._look(request, overwrite=overwrite)
        if not overwrite and self.there:
            self.clear()
            return False
        manifest = self.partial / MANIFEST
        if manifest.exists() and (others := differences(json.loads(manifest.read_bytes()), request)):
            if not overwrite:
                raise UserError(
                    f"{self.partial} holds unfinished work of another request ({'; '.join(others)}); give that one to "
                    "go on with it, or --overwrite to start over"
                )
            self._empty()
        for folder in (self.reading, self.part(0).parent):
            folder.mkdir(exist_ok=True)
        for left in list(self.partial.rglob(".*.tmp")):  # Of killed processes: the place is held by this one alone.
            left.unlink()
        write_text(manifest, json.dumps(request, indent=1, sort_keys=True) + "\n")
        return True

    def _look(self, request: Mapping[str, Any], *, overwrite: bool) -> None:
        """Refuse a place where something else lies."""
        if not self.there:
            return
        about = about_of(self.table)
        if self.final.is_dir() != self.folder or (self.folder and about is None):
            kind = "a folder" if self.final.is_dir() else "a file"
            raise UserError(f"{self.final} is {kind} of something else, which is never overwritten; give another --out")
        others = ["not made by maeflow"] if about is None else differences(about.get("request", {}), request)
        if others and not overwrite:
            raise UserError(
                f"{self.final} holds something else ({'; '.join(others)}); give another place by --out, or --overwrite"
            )

    def _empty(self) -> None:
        for path in self.partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in KEPT:
                path.unlink()

    def clear(self) -> None:
        """Remove the place of work, whoever holds it being the one who calls."""
        shutil.rmtree(self.partial, ignore_errors=True)  # Somebody may wait in it already.

    def merge(self, count: int) -> list[Pair]:
        """Make `result` of ``count`` parts, a group of rows in memory at a time; gives what could not be read."""
        unreadable: list[Pair] = []
        file = self.result / INDEX if self.folder else self.result
        file.parent.mkdir(exist_ok=True)
        schema = parquet.read_schema(self.part(0))
        with Table(file, schema.with_metadata({ABOUT: schema.metadata[ABOUT.encode()]})) as table:
            for number in range(count):
                with parquet.ParquetFile(self.part(number)) as part:
                    found = part.metadata.metadata or {}
                    unreadable += [(key, reason) for key, reason in json.loads(found.get(UNREADABLE.encode(), b"[]"))]
                    for group in range(part.num_row_groups):
                        table.add(part.read_row_group(group))
        return unreadable

    def finish(self, unreadable: Sequence[Pair]) -> None:
        """Give `result` its name and remove the rest."""
        if unreadable:
            text = io.StringIO()
            csv.writer(text).writerows([("key", "reason"), *unreadable])
            write_text(self.unreadable, text.getvalue())
        else:
            self.unreadable.unlink(missing_ok=True)
        if self.folder and self.there:
            shutil.rmtree(self.partial / "replaced", ignore_errors=True)
            self.final.rename(self.partial / "replaced")
        self.result.rename(self.final)
        sync_folder(self.final.parent)
        self.clear()


class Table:
    """A Parquet file that appears under its name when it is whole; its groups do not depend on how rows come."""

    def __init__(self, file: Path, schema: pa.Schema, unreadable: Callable[[], Sequence[Pair]] | None = None) -> None:
        self._file, self._temporary = file, temporary_beside(file)
        self._schema, self._unreadable = schema, unreadable
        self._rows = max(1, min(GROUP_ROWS, GROUP_BYTES // _row_bytes(schema)))
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Self:
        plain = [field.name for field in self._schema if not pa.types.is_fixed_size_list(field.type)]
        self._out = parquet.ParquetWriter(self._temporary, self._schema, compression="zstd", use_dictionary=plain)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                self._out.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(rows)
        if sum(table.num_rows for table in self._waiting) >= self._rows:
            self._write(keep=True)

    def _write(self, *, keep: bool) -> None:
        rows = pa.concat_tables(self._waiting)
        end = rows.num_rows - rows.num_rows % self._rows if keep else rows.num_rows
        if end:
            self._out.write_table(rows.slice(0, end), row_group_size=self._rows)
        self._waiting = [rows.slice(end)] if end < rows.num_rows else []

    def _finish(self) -> None:
        if self._waiting:
            self._write(keep=False)
        if self._unreadable is not None:
            self._out.add_key_value_metadata({UNREADABLE: json.dumps(self._unreadable())})
        self._out.close()
        with self._temporary.open("rb") as written:
            os.fsync(written.fileno())
        self._temporary.replace(self._file)


def _row_bytes(schema: pa.Schema) -> int:
    lists = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
    return 64 + 4 * sum(int(kind.list_size) for kind in lists)


def about_of(file: Path) -> dict[str, Any] | None:
    """What a table says of itself; None where it is none of ours."""
    try:
        text = (parquet.read_schema(file).metadata or {}).get(ABOUT.encode())
        about = json.loads(text) if text else None
    except (OSError, ValueError, pa.ArrowException):
        return None
    return about if isinstance(about, dict) else None


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where one request is not the other, for people."""
    keys = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    plain = {
        "source": "other files in the source",
        "weights": "other weights",
        "reading": "other code that reads files",
    }
    return [plain.get(key) or f"{key}: {then.get(key)} there, {now.get(key)} asked for" for key in keys]
