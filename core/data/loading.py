"""From prepared rows to device batches: the endless shuffled stream, its micro-batches, and the loader.

Step ``s`` of a run takes samples ``s * batch`` to ``(s + 1) * batch`` of a stream of shuffled epochs laid end to end.
So no sample is dropped at the end of an epoch, a batch may be larger than the data, and any step can be
reached without drawing those before it.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from core.data.seeds import numpy_rng
from core.modality import Modality, Record, Sample, SampleBatch
from core.processes import die_with

Ids = NDArray[np.int64]
Encode = Callable[[Sequence[Any]], Tensor]
"""Targets of a micro-batch as one tensor; from the task."""


class Rows(Protocol):
    """What the loader asks of prepared data."""

    def rows(self, ids: Sequence[int] | Ids) -> list[Record]:
        """The records at ``ids``."""


@dataclass(frozen=True)
class Part:
    """Some rows of one store and how often each appears per epoch."""

    ids: Ids
    """Rows of the store."""
    weight: float = 1.0
    """Times each row appears per epoch, in the mean."""
    frequencies: NDArray[np.float64] | None = None
    """(rows,) probabilities with which rows are drawn at random; without them all appear equally often."""
    samples: int | None = None
    """Samples in one epoch, where these are not to follow from the rows and their weight."""

    @property
    def per_epoch(self) -> int:
        """Samples of this part in one epoch."""
        return self.samples or max(1, round(len(self.ids) * self.weight))


@dataclass(frozen=True)
class Draw:
    """One sample of the stream."""

    store: int
    """Which store it comes from."""
    row: int
    """Row of that store."""
    epoch: int
    """Epoch it belongs to; its random view depends on this."""
    copy: int
    """Which appearance of the row in that epoch."""


class Stream:
    """The endless sequence of samples of a run: shuffled epochs, laid end to end."""

    def __init__(self, parts: Sequence[Part], seed: int, repeats: int = 1) -> None:
        """Take ``repeats`` samples of each row in a row, so that reading it once serves them all."""
        self._parts = list(parts)
        self._seed, self._repeats = seed, repeats
        self.per_epoch = repeats * sum(part.per_epoch for part in parts)
        """Samples in one epoch."""
        self._cached: tuple[int, Ids] | None = None

    def __getitem__(self, position: int) -> Draw:
        epoch, index = divmod(position, self.per_epoch)
        index, repeat = divmod(index, self._repeats)
        store, row, copy = self._epoch(epoch)[index]
        return Draw(int(store), int(row), epoch, int(copy) * self._repeats + repeat)

    def _epoch(self, epoch: int) -> Ids:
        """(per_epoch / repeats, 3): store, row and copy of what is read in ``epoch``, shuffled."""
        if self._cached is None or self._cached[0] != epoch:
            rng = numpy_rng(self._seed, "epoch", epoch)
            table = np.concatenate([self._part(number, part, rng) for number, part in enumerate(self._parts)])
            self._cached = epoch, table[rng.permutation(len(table))]
        return self._cached[1]

    @staticmethod
    def _part(number: int, part: Part, rng: np.random.Generator) -> Ids:
        position = np.arange(part.per_epoch)
        if part.frequencies is None:
            order = rng.permutation(part.ids)
            rows, copies = order[position % len(order)], position // len(order)
        else:
            rows = rng.choice(part.ids, len(position), p=part.frequencies)
            copies = _appearances(rows)
        return np.stack([np.full_like(position, number), rows, copies], axis=1)


def _appearances(rows: Ids) -> Ids:
    """For each of ``rows``, how often the same row stands before it."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty_like(rows)
    counts[order] = np.arange(len(rows)) - first
    return counts


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass of a step consumes."""

    step: int
    index: int
    """Place in its step, over all processes."""
    start: int
    """Position of its first sample in the stream."""
    size: int


class MicroBatches(Sampler[MicroBatch]):
    """The micro-batches from ``first`` step to ``last``; this process takes every ``world``-th of each step."""

    def __init__(self, first: int, last: int, batch: int, micro: int, rank: int = 0, world: int = 1) -> None:
        self._steps = range(first, last)
        self._batch, self._micro = batch, micro
        self._rank, self._world = rank, world

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in self._steps:
            for index in range(self._rank, self._batch // self._micro, self._world):
                yield MicroBatch(step, index, step * self._batch + index * self._micro, self._micro)


class TrainViews(Dataset[tuple[MicroBatch, SampleBatch]]):
    """Random views of a stream, a whole micro-batch at a time."""

    def __init__(
        self, stores: Sequence[Rows], stream: Stream, plugin: Modality[Any], seed: int, encode: Encode | None
    ) -> None:
        self._stores, self._stream = list(stores), stream
        self._plugin, self._seed, self._encode = plugin, seed, encode

    def __getitem__(self, wanted: MicroBatch) -> tuple[MicroBatch, SampleBatch]:
        draws = [self._stream[position] for position in range(wanted.start, wanted.start + wanted.size)]
        # Neighbours of one row share one reading of it.
        groups = [list(g) for _, g in itertools.groupby(draws, key=lambda draw: (draw.store, draw.row, draw.epoch))]
        records: list[Record | None] = [None] * len(groups)
        for number, store in enumerate(self._stores):
            places = [i for i, group in enumerate(groups) if group[0].store == number]
            for place, record in zip(places, store.rows([groups[i][0].row for i in places]), strict=True):
                records[place] = record
        samples = [s for r, group in zip(records, groups, strict=True) if r for s in self._views(r, group)]
        return wanted, collate(samples, self._encode)

    def _views(self, record: Record, draws: Sequence[Draw]) -> Sequence[Sample]:
        rngs = [numpy_rng(self._seed, "view", draw.epoch, draw.copy, record.key) for draw in draws]
        return self._plugin.repeated(record, rngs)


class FixedViews(Dataset[SampleBatch]):
    """The fixed view of given rows, ``batch`` at a time, in order; for validation, probes and statistics."""

    def __init__(self, store: Rows, ids: Ids, plugin: Modality[Any], batch: int, encode: Encode | None = None) -> None:
        self._store, self._ids = store, ids
        self._plugin, self._batch, self._encode = plugin, batch, encode

    def __len__(self) -> int:
        return (len(self._ids) + self._batch - 1) // self._batch

    def __getitem__(self, index: int) -> SampleBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids = self._ids[index * self._batch : (index + 1) * self._batch]
        still = np.random.default_rng(0)
        samples = [self._plugin.view(record, still, train=False) for record in self._store.rows(ids)]
        return collate(samples, self._encode)


def collate(samples: Sequence[Sample], encode: Encode | None) -> SampleBatch:
    """Stack samples; targets are encoded where every sample has one and an encoder is given."""
    data = torch.from_numpy(np.stack([sample.data for sample in samples]))
    targets = [sample.target for sample in samples]
    target = encode(targets) if encode and all(t is not None for t in targets) else None
    lengths = [sample.length for sample in samples if sample.length is not None]
    return SampleBatch(data, target, torch.tensor(lengths) if len(lengths) == len(samples) else None)


def to_device(samples: SampleBatch, device: torch.device) -> SampleBatch:
    """Move a batch without waiting for the copy."""

    def move(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, non_blocking=True)

    return SampleBatch(samples.data.to(device, non_blocking=True), move(samples.target), move(samples.length))


def train_loader(views: TrainViews, wanted: MicroBatches, workers: int, *, pin: bool) -> DataLoader[Any]:
    """Micro-batches in the order of ``wanted``, made by ``workers`` processes (0: in this one)."""
    return DataLoader(
        views,
        batch_size=None,
        sampler=wanted,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=partial(_start_worker, os.getpid()),
    )


@contextmanager
def signals_held() -> Iterator[None]:
    """Inside, requests to stop wait; processes started there never hear any, not even in their first moments."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_count(asked: int | None, device: torch.device, share: int = 1) -> int:
    """Loader processes: as asked, else all processors but one beside an accelerator, and none beside CPU training.

    Where ``share`` processes train together on one machine, each has its part of the processors.
    """
    if asked is not None:
        return asked
    return 0 if device.type == "cpu" else min(16, max(1, (os.cpu_count() or 2) // share - 1))


def _start_worker(parent: int, _: int) -> None:
    die_with(parent)
    # A stop signal is for the training process, which saves first; its loaders must outlive that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
