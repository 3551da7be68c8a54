"""A finished model's answers to files that are sent to it: the rows that `applying` would write of them.

A file lies in a folder of its own, its owner's alone, as long as it is being read. Of its name the suffix is used, and
nothing is kept.
"""

import atexit
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from core.config import TaskKind
from core.data.prepare import named_items
from core.data.readers import one_thread
from core.data.shards import DIED, SLOW, read_item
from core.errors import UserError
from core.modality import Item, Modality, Record, Unreadable
from core.model.weights import recipe_of
from core.processes import die_with, ends_after
from core.records import read_model
from core.stages.ready import ready
from core.stages.rows import Features, Masks, Named, Predictions, Rows
from core.training.devices import configure

SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}(\.gz)?$")
COMMON = ("row", "part", "error")
"""Columns of every answer: which of the files, which of its records, and why there is no more."""


@dataclass(frozen=True)
class Sent:
    """A file as it came."""

    data: bytes
    name: str = ""
    """What it was called, for its suffix; "" where nobody says: its first bytes may tell what it is."""


class Answers:
    """Holds a model in memory; safe to be called from several threads, which take turns."""

    def __init__(self, folder: Path, device: str = "auto", *, here: bool = False) -> None:
        """Load what is in the ``folder`` of a finished stage: its record and its weights.

        With ``here`` this process reads files whatever the plugin says, and may be ended by one.

        Raises:
            UserError: if there is none, its plugin is not installed, or this machine has no such device.
        """
        recipe = recipe_of(folder / read_model(folder).weights)
        self._model = ready(folder, configure(recipe.compute.model_copy(update={"device": device})))
        self._evaluate, self._micro = recipe.evaluate, recipe.finetune.micro
        if self._model.plugin.info.private:
            self._model.plugin.secret = secrets.token_bytes(32)  # Names made by it are told to nobody.
        apart = self._model.plugin.read_apart and not here
        self._apart = _Apart(self._model.plugin, recipe.prepare.seconds_per_item) if apart else None
        self._turn = threading.Lock()

    @property
    def masks(self) -> bool:
        """Whether it answers with masks."""
        return self._model.task is not None and self._model.task.kind is TaskKind.SEGMENTATION

    def __call__(self, files: Sequence[Sent | None]) -> list[dict[str, Any]]:
        """A row for each record of each file, in their order; one with an ``error`` for a file that gives none."""
        found: list[list[dict[str, Any]]] = [[] for _ in files]
        with self._turn, tempfile.TemporaryDirectory(prefix="maeflow-") as made:
            place = Path(made)
            rows = self._rows(place, len(files))
            records = self._records(files, place, found)
            batch = min(self._evaluate.batch, self._micro) if self.masks else self._evaluate.batch
            while given := list(islice(records, batch)):
                for one, said in zip(given, self._said(rows, given, place), strict=True):
                    found[int(one.item)].append({"row": int(one.item), "part": one.part, **said, "error": None})
        return [row for of_one in found for row in of_one]

    # --- reading ------------------------------------------------------------------------------------------------------

    def _records(self, files: Sequence[Sent | None], place: Path, found: list[list[dict[str, Any]]]) -> Iterator[Named]:
        """The records of all files, which are read as they are needed; what cannot be read goes to ``found``."""
        for number, sent in enumerate(files):
            try:
                if sent is None:
                    raise Unreadable("no file")  # noqa: TRY301 - listed like every other reason
                records = self._read(sent, place)
            except Unreadable as reason:
                nothing = dict.fromkeys(self._columns)
                found[number].append({"row": number, "part": 0, **nothing, "error": str(reason)})
                continue
            for part, record in enumerate(records):
                yield Named(record, str(number), part, len(records) > 1, None)

    def _read(self, sent: Sent, place: Path) -> list[Record]:
        """The records of a file, which lies below ``place`` until they are there.

        Raises:
            Unreadable: with the reason, in which no path is.
        """
        with tempfile.TemporaryDirectory(dir=place) as made:
            suffix = SUFFIX.search(sent.name)
            file = Path(made) / f"file{suffix[0].lower() if suffix else ''}"
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(sent.data)
            records: list[Record] = []
            try:
                for item in self._items(file):
                    records += self._apart.read(item) if self._apart else read_item(item, self._model.plugin)[0]
            except Unreadable as reason:
                text = str(reason).replace(str(file), "the file").replace(made, "it").replace(file.name, "the file")
                raise Unreadable(text) from None
        return records

    def _items(self, file: Path) -> list[Item]:
        plugin = self._model.plugin
        source = file.parent if "folder" in plugin.info.sources else file
        try:
            items = named_items(plugin, str(source)) if file.stat().st_size else []
        except UserError:
            items = []
        if not items:
            hint = "" if file.suffix else "; send its name along, whose suffix may tell"
            raise Unreadable(f"nothing that {plugin.info.name!r} reads{hint}" if file.stat().st_size else "empty file")
        return [replace(item, target=None) for item in items]

    # --- answers ------------------------------------------------------------------------------------------------------

    def _rows(self, place: Path, count: int) -> Rows:
        if self._model.task is None:
            return Features(self._model, patches=False)
        if self.masks:
            keys = [str(number) for number in range(count)]
            return Masks(self._model, place, keys, min(self._evaluate.batch, self._micro), self._evaluate.blend)
        return Predictions(self._model)

    @property
    def _columns(self) -> list[str]:
        """Names of what is said beside `COMMON`."""
        if self.masks:
            return ["mask", "suffix", "found"]
        return [field.name for field in self._rows(Path(), 0).fields]

    def _said(self, rows: Rows, given: Sequence[Named], place: Path) -> list[dict[str, Any]]:
        """What the model says of records, as plain values."""
        values = [column.to_pylist() for column in rows.columns(given)]
        names = [field.name for field in rows.fields]
        said = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        task = self._model.task
        for row in said:
            if self.masks:
                file = place / row.pop("file")
                row |= {"mask": file.read_bytes(), "suffix": "".join(file.suffixes)}
                file.unlink()
            elif task is not None and task.classes:
                row["probabilities"] = dict(zip(task.classes, row["probabilities"], strict=True))
        return said


class _Apart:
    """Reads in a process of its own, for plugins whose files may end or hold up the one that reads them."""

    def __init__(self, plugin: Modality[Any], seconds: float) -> None:
        self._plugin, self._seconds = plugin, seconds
        self._pool: ProcessPoolExecutor | None = None
        self._ready().submit(os.getpid)  # The process is there when the first file comes.
        atexit.register(self.close)

    def close(self) -> None:
        """End the process; it is started again for whoever comes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _ready(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), _start, (os.getpid(),))
        return self._pool

    def read(self, item: Item) -> list[Record]:
        """The records of ``item``.

        Raises:
            Unreadable: with the reason, a process that died twice over it included.
        """
        for _ in range(2):  # The process may have died between two files, as with the thread that had started it.
            with tempfile.NamedTemporaryFile() as told:
                try:
                    return self._ready().submit(_read_there, item, self._plugin, self._seconds, told.name).result()
                except BrokenProcessPool:
                    self.close()
                    if Path(told.name).stat().st_size:
                        raise Unreadable(SLOW.format(seconds=self._seconds)) from None
        raise Unreadable(DIED)


def _start(parent: int) -> None:
    die_with(parent)
    one_thread()


def _read_there(item: Item, plugin: Modality[Any], seconds: float, told: str) -> list[Record]:
    with Path(told).open("ab") as file, ends_after(seconds, file.fileno()):
        return read_item(item, plugin)[0]
