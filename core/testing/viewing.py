"""Rules about `view` and `views`: what loader workers make of a record."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.data.loading import Ids, MicroBatches, Part, Stream, TrainViews, train_loader
from core.modality import Modality, Record, Sample
from core.testing.rules import Broken, RuleBook
from core.testing.subject import Subject, same

BOOK: RuleBook[Subject] = RuleBook()
rule = BOOK.rule


@rule(
    "view",
    "Every view of every record is a Sample of one shape and one compact type, finite; all have a length or none has.",
    "Crop or pad to the settings' size in `view`; return NumPy arrays of the stored type, never float64.",
    "records-compact",
    "labels-fit",
)
def view(s: Subject) -> None:
    """Views of a batch are stacked."""
    first: tuple[Any, ...] | None = None
    for record in s.records:
        for train in (True, False):
            sample = s.live.view(record, np.random.default_rng(0), train)
            facts = _facts(record, sample)
            first = first or facts
            if facts != first:
                raise Broken(f"{record.key}, train={train}: {facts} where others are {first}")


def _facts(record: Record, sample: Sample) -> tuple[Any, ...]:
    if not isinstance(sample, Sample) or not isinstance(sample.data, np.ndarray):
        raise Broken(f"{record.key}: a view is no Sample of a NumPy array")
    if sample.data.dtype == np.float64:
        raise Broken(f"{record.key}: a view is of type float64, twice the bytes a worker has to send")
    if sample.data.dtype.kind == "f" and not np.isfinite(sample.data).all():
        raise Broken(f"{record.key}: a view holds values that are not finite")
    told = "without a length" if sample.length is None else "with a length"
    return sample.data.shape, str(sample.data.dtype), told


def _equal(one: Sample, other: Sample) -> bool:
    facts = [(sample.length, sample.place, sample.whole) for sample in (one, other)]
    return np.array_equal(one.data, other.data) and np.array_equal(one.target, other.target) and facts[0] == facts[1]


@rule(
    "view",
    "Equal generators give equal views.",
    "Draw every random number from `rng`; the modules random and numpy.random have states of their own.",
    "view",
)
def view_seeded(s: Subject) -> None:
    """A run that was interrupted must go on with the same samples."""
    for record in s.records:
        for seed in range(3):
            one, other = (s.live.view(record, np.random.default_rng(seed), train=True) for _ in range(2))
            if not _equal(one, other):
                raise Broken(f"{record.key}: two views from generators of seed {seed} differ")


@rule(
    "view",
    "Outside of training the view does not depend on the generator.",
    "Where train is False, take the centre or the start, and draw nothing.",
    "view-seeded",
)
def fixed_view(s: Subject) -> None:
    """Evaluation that draws at random is another figure each time."""
    for record in s.records:
        one, other = (s.live.view(record, np.random.default_rng(seed), train=False) for seed in (0, 1))
        if not _equal(one, other):
            raise Broken(f"{record.key}: with train=False two generators gave two views")


class _Rows:
    """Records as the loader asks for them."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = list(records)

    def rows(self, ids: Sequence[int] | Ids) -> list[Record]:
        return [self._records[int(i)] for i in ids]


def _batches(live: Modality[Any], records: Sequence[Record], workers: int) -> list[Any]:
    stream = Stream([Part(np.arange(len(records)))], seed=0)
    views = TrainViews([_Rows(records)], stream, live, 0, None)
    size = min(4, len(records))
    return list(train_loader(views, MicroBatches(0, 4, size, size), workers, pin=False))


@rule(
    "view",
    "Views are the same however many loader processes make them.",
    "Keep no state between calls, and ask neither for the process nor for the worker.",
    "view-seeded",
)
def view_any_worker(s: Subject) -> None:
    """A run moved to another machine must give the same weights."""
    alone, shared = (_batches(s.live, s.records, workers) for workers in (0, 2))
    for (wanted, one), (_, other) in zip(alone, shared, strict=True):
        if not same(one.data, other.data):
            raise Broken(f"batch {wanted.step}: no worker and two workers gave different samples")


@rule(
    "repeated",
    "Several views taken at once are those that `view` gives for the same generators.",
    "Decode once, then draw for each generator just as `view` does; or leave `repeated` out.",
    "view-seeded",
)
def repeated_views(s: Subject) -> None:
    """How many views share a reading must not change them."""
    for record in s.records:
        at_once = list(s.live.repeated(record, [np.random.default_rng(seed) for seed in range(3)]))
        one_by_one = [s.live.view(record, np.random.default_rng(seed), train=True) for seed in range(3)]
        if len(at_once) != 3 or not all(map(_equal, at_once, one_by_one)):
            raise Broken(f"{record.key}: three views at once differ from the same three one by one")


@rule(
    "views",
    "Each record has at least one evaluation view, shaped like the others and always the same.",
    "Return a list of Samples made without randomness; leave `views` out to evaluate the one fixed view.",
    "fixed-view",
)
def views(s: Subject) -> None:
    """Predictions of a record's views are averaged."""
    shape = s.live.view(s.records[0], np.random.default_rng(0), train=False).data.shape
    live = s.plugin("evaluate", s.recipe.pretrain.input_shape)
    for record in s.records:
        one, other = list(live.views(record)), list(live.views(record))
        if not one:
            raise Broken(f"{record.key} has no view")
        if any(sample.data.shape != shape for sample in one):
            raise Broken(f"{record.key}: views of {[v.data.shape for v in one]}, others are {shape}")
        if len(one) != len(other) or not all(map(_equal, one, other)):
            raise Broken(f"{record.key}: asked twice, its views differ")
