"""Readers: the units of preparation are run in this process or side by side, whatever a file does to its reader."""

import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.data.shards import DIED, SLOW, Unit, being_read, is_done, marker_file, read_item, run_unit
from core.errors import StageError, Stopped
from core.modality import Item, Modality, Unreadable
from core.processes import PATIENCE, die_with, ends_after, side_by_side

SMALL_ITEMS = 8192
"""Items, and ..."""
SMALL_BYTES = 16 * 2**20
"""... bytes up to which starting processes takes longer than reading in this one."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries look up, when they are loaded, for how many threads to start."""
Progress = Callable[[int], None]
"""Told how many more items are done."""


@dataclass
class Readers:
    """What it takes to run units.

    A file that ends the process that reads it, or takes too long, costs that file only. Where this process reads for
    itself, it is that process which ends; the marker it leaves has the next one read the same unit in a child.
    """

    plugin: Modality[Any]
    folder: Path
    """Where shards are kept."""
    workers: int
    progress: Progress
    should_stop: Callable[[], bool]
    seconds: float = 600.0
    """How long an item may take where it is read in a child process."""
    killers: dict[str, str] = field(default_factory=dict)
    """Keys of the items that ended their reader, and what is said of them."""

    def run(self, units: Sequence[Unit]) -> None:
        """Run the units that have no result yet.

        Raises:
            Stopped: if asked to; finished units keep their results.
            StageError: if processes die without reading anything.
        """
        missing = []
        for unit in units:
            if self._done(unit):
                self.progress(len(unit.items))
            else:
                missing.append(unit)
        if reads_apart(self.plugin, missing):
            self._in_processes(missing)
            return
        fatal = [unit for unit in missing if self._marker(unit).exists()]
        self._in_processes(fatal)
        for unit in missing:
            if unit not in fatal:
                self._maybe_stop()
                run_unit(unit, self.plugin, self.folder)
                self.progress(len(unit.items))

    def each(self, units: Sequence[Unit], ahead: int) -> Iterator[Unit]:
        """``units`` in their order, each once it is read; no more than ``ahead`` of them wait to be taken.

        Raises:
            Stopped: if asked to; finished units keep their results.
            StageError: if processes die without reading anything.
        """
        if reads_apart(self.plugin, units):
            yield from self._ahead(units, ahead)
            return
        for unit in units:
            if self._marker(unit).exists():  # It ended the process that read it here.
                self._in_processes([unit])
            elif not self._done(unit):
                self._maybe_stop()
                run_unit(unit, self.plugin, self.folder)
            yield unit

    def _ahead(self, units: Sequence[Unit], ahead: int) -> Iterator[Unit]:
        """`each` in processes, which read on while a unit is being used."""
        taken, workers = 0, max(1, min(self.workers, len(units)))
        for unit in units:
            self._marker(unit).unlink(missing_ok=True)
        while taken < len(units):
            with side_by_side(workers, _start) as pool, suppress(BrokenProcessPool):
                work = self._work()
                waiting: deque[Future[None] | None] = deque()
                while taken < len(units):
                    for unit in units[taken + len(waiting) : taken + ahead]:
                        waiting.append(None if self._done(unit) else pool.submit(work, unit))
                    self._await(waiting.popleft())
                    yield units[taken]
                    taken += 1
            if left := [unit for unit in units[taken : taken + ahead] if not self._done(unit)]:
                self._maybe_stop()
                workers = self._after_a_death(left, workers)

    def _await(self, reading: "Future[None] | None") -> None:
        """Wait until a unit is read."""
        self._maybe_stop()
        while reading is not None and not wait([reading], PATIENCE).done:
            self._maybe_stop()
        if reading is not None:
            reading.result()

    def _work(self) -> Callable[[Unit], None]:
        return partial(run_unit, plugin=self.plugin, folder=self.folder, killers=self.killers, seconds=self.seconds)

    def _done(self, unit: Unit) -> bool:
        return is_done(self.folder, unit.digest)

    def _marker(self, unit: Unit) -> Path:
        return marker_file(self.folder, unit.digest)

    def _maybe_stop(self) -> None:
        if self.should_stop():
            raise Stopped("preparation saved; finished shards are kept")

    def _in_processes(self, units: Sequence[Unit]) -> None:
        """Run units side by side until all are done, setting aside what ends a process."""
        waiting, workers = list(units), max(1, self.workers)
        for unit in waiting:
            self._marker(unit).unlink(missing_ok=True)
        while waiting:
            broken = self._round(waiting, min(workers, len(waiting)))
            waiting = [unit for unit in waiting if not self._done(unit)]
            if broken and waiting:
                self._maybe_stop()
                workers = self._after_a_death(waiting, workers)

    def _round(self, waiting: Sequence[Unit], workers: int) -> bool:
        """Run units until they are done or a process dies, which ends its siblings too; says whether one did."""
        told, broken = set[str](), True
        with side_by_side(workers, _start) as pool, suppress(BrokenProcessPool):
            work = self._work()
            futures = {pool.submit(work, unit): unit for unit in waiting}
            left = set(futures)
            while left:
                finished, left = wait(left, PATIENCE, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    told.add(futures[future].digest)
                    self.progress(len(futures[future].items))
                self._maybe_stop()
            broken = False
        self.progress(sum(len(u.items) for u in waiting if u.digest not in told and self._done(u)))
        return broken

    def _after_a_death(self, waiting: Sequence[Unit], workers: int) -> int:
        """Find the item that did it: whose time ran out, or else by reading the suspects again, one at a time.

        Where none does it alone, memory may have been short: fewer processes go on, and a sole one is believed.
        """
        suspects = [at for unit in waiting if (at := being_read(self.folder, unit)) is not None]
        if workers == 1 and not suspects:
            raise StageError(
                "the processes that read the data die before they read anything; there may be too little memory, or "
                "the calling script lacks `if __name__ == '__main__':`"
            )
        found = {item.key: SLOW.format(seconds=self.seconds) for item, slow in suspects if slow}
        if not found:
            items = [item for item, _ in suspects]
            found = {item.key: DIED for item in items} if workers == 1 else self._killers_among(items)
        self.killers |= found
        for unit in waiting:
            self._marker(unit).unlink(missing_ok=True)
        return workers if found else max(1, workers // 2)

    def _killers_among(self, suspects: Sequence[Item]) -> dict[str, str]:
        """Read one after the other in a single process, a new one after each death; says what became of the killers."""
        found, waiting = dict[str, str](), list(suspects)
        while waiting:
            with tempfile.NamedTemporaryFile() as told, side_by_side(1, _start) as pool:
                try:
                    while waiting:
                        pool.submit(_try, waiting[0], self.plugin, self.seconds, told.name).result()
                        waiting.pop(0)
                except BrokenProcessPool:
                    slow = Path(told.name).stat().st_size > 0
                    found[waiting.pop(0).key] = SLOW.format(seconds=self.seconds) if slow else DIED
        return found


def reads_apart(plugin: Modality[Any], units: Sequence[Unit]) -> bool:
    """Whether ``units`` are read in processes other than the stage's own, where an item has its time."""
    return plugin.read_apart or not _small(units)


def _small(units: Sequence[Unit]) -> bool:
    items = [item for unit in units for item in unit.items]
    return len(items) <= SMALL_ITEMS and sum(max(item.size, 0) for item in items) <= SMALL_BYTES


def _start(parent: int) -> None:
    # The interrupt of a terminal is for the stage process, which decides what is still finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    one_thread()


def one_thread() -> None:
    """Keep libraries to one thread: there is a reader for each processor, and more would be in each other's way."""
    os.environ |= dict.fromkeys(THREADS, "1")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _try(item: Item, plugin: Modality[Any], seconds: float, told: str) -> None:
    with Path(told).open("ab") as file, suppress(Unreadable), ends_after(seconds, file.fileno()):
        read_item(item, plugin)
