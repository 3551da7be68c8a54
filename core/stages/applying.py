"""A finished model on files that no stage has seen: features, predictions or masks, a part after the other.

Items are divided into units in the order of the source, units into batches that never reach over their ends. So what
goes through the model together does not depend on where a run was killed, and neither do the bytes that come out.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from core.config import Recipe, TaskKind
from core.data import shards
from core.data.parts import Output, Pair, Table
from core.data.prepare import named_items
from core.data.private import closed, remember_items, resolve_source, secret_of
from core.data.readers import Readers
from core.data.shards import Unit
from core.data.store import rows_of
from core.errors import StageError, Stopped, UserError
from core.modality import Item
from core.model.weights import recipe_of
from core.recipes import overridden
from core.records import PretrainedEncoder, TunedModel, read_model
from core.request import ApplyRequest
from core.stages.ready import Ready, ready
from core.stages.rows import Features, Masks, Named, Predictions, Rows
from core.tracking import JsonlTracker
from core.training.devices import configure
from core.workspace import Home, digest_of

REVISION = 1
"""Raised when rows are made otherwise than before."""
UNIT_ITEMS, UNIT_BYTES = 256, 256 * 2**20
"""Most items, and bytes of files, that are read before they go through the model; a batch may ask for more items."""
SETTABLE = ("compute.", "prepare.seconds_per_item=", "evaluate.overlap=", "evaluate.blend=")
"""What may be changed; all else was settled when the model was made."""
SHOWN = 10
Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Job:
    """Everything that stays the same from one unit to the next."""

    output: Output
    units: Sequence[Unit]
    rows: Rows
    schema: pa.Schema
    batch: int
    recipe: Recipe
    tracker: JsonlTracker
    should_stop: Callable[[], bool]

    @property
    def total(self) -> int:
        """Number of items."""
        return sum(len(unit.items) for unit in self.units)


def apply(request: ApplyRequest, home: Home, tell: Tell, should_stop: Callable[[], bool]) -> None:
    """Make what ``request`` asks for; ``tell`` gets a line now and then for people.

    Raises:
        UserError: if model and request do not go together, the source is no good, or something else lies at the place.
        StageError: if nothing could be read.
        Stopped: if asked to; the same request goes on from there.
    """
    record = read_model(Path(request.model))
    request.check(record)
    masks = isinstance(record, TunedModel) and record.target.task.kind is TaskKind.SEGMENTATION
    output = Output(Path(request.out), folder=masks)
    source = resolve_source(home, request.source)
    _apart(output, source, private=request.private)

    def waiting(holder: str) -> None:
        tell(f"waiting: {request.out} is being written by {holder}")

    with closed(request.private), output.exclusive(waiting, should_stop):
        recipe = _recipe(Path(request.model) / record.weights, request.sets)
        model = ready(Path(request.model), configure(recipe.compute))
        model.plugin.overlap = recipe.evaluate.overlap
        if request.private:
            model.plugin.secret = secret_of(home)
        items = _items(model, source)
        batch = request.batch or (min(recipe.evaluate.batch, recipe.finetune.micro) if masks else recipe.evaluate.batch)
        units = shards.units_of(list(_divided(items, batch)), model.plugin)
        about = _about(request, record, recipe, batch, units, masks=masks)
        if not output.begin(about, overwrite=request.overwrite):
            tell("reused: already done")
            return
        rows = _rows(request, model, output, items, batch, recipe)
        for what, count in sorted(model.plugin.noticed.items()):
            tell(f"note: in the source: {count} {what}")
        hint = ""
        if request.private:
            known = home.uri(remember_items(home, digest_of(about), items))
            hint = f"; which they are, {known} of the home tells its owner"
        with JsonlTracker(output.partial) as tracker:
            _work(
                _Job(output, units, rows, rows.schema(about), batch, recipe, tracker, should_stop), request.kind, model
            )
        unreadable = output.merge(len(units))
        _something(unreadable, len(items), output, hint)
        output.finish(unreadable)
        if unreadable and hint:
            tell(f"note: {len(unreadable)} could not be read{hint}")


# --- before anything is read ------------------------------------------------------------------------------------------


def _apart(output: Output, source: str, *, private: bool) -> None:
    """Refuse an output below its source: it would be taken for part of it the next time."""
    if Path(source).is_dir() and output.final.resolve().is_relative_to(Path(source).resolve()):
        what = "the output" if private else str(output.final)
        raise UserError(f"{what} lies inside of the source; give --out another place")


def _recipe(weights: Path, sets: Sequence[str]) -> Recipe:
    """The recipe that a model was made by, with what may be changed of it."""
    for override in sets:
        if not override.replace(" ", "").startswith(SETTABLE):
            raise UserError(
                f"--set {override}: a finished model keeps the settings that it was made with; compute.*, "
                "prepare.seconds_per_item, evaluate.overlap and evaluate.blend can be set"
            )
    return overridden(recipe_of(weights).model_dump(mode="json"), sets, "of the model")


def _items(model: Ready, source: str) -> list[Item]:
    """The items of ``source``; masks that stand beside them are nothing to learn from here, and are not read."""
    items = named_items(model.plugin, source)
    if not items:
        what = "the source" if model.plugin.info.private else source
        raise UserError(f"{what} holds nothing that {model.recipe.modality!r} reads")
    masked = model.plugin.task.kind is TaskKind.SEGMENTATION
    return [replace(item, target=None) for item in items] if masked else items


def _divided(items: Sequence[Item], batch: int) -> Iterator[list[Item]]:
    """Items in units: whole batches, as long as each item is one record, and not too many bytes."""
    most = -(-UNIT_ITEMS // batch) * batch
    unit: list[Item] = []
    size = 0
    for item in items:
        if unit and (len(unit) == most or size + item.size > UNIT_BYTES):
            yield unit
            unit, size = [], 0
        unit.append(item)
        size += max(item.size, 0)
    yield unit


def _about(
    request: ApplyRequest,
    record: PretrainedEncoder | TunedModel,
    recipe: Recipe,
    batch: int,
    units: Sequence[Unit],
    *,
    masks: bool,
) -> dict[str, Any]:
    """All that decides what comes out: a place where one of these was begun takes no other."""
    with (Path(request.model) / record.weights).open("rb") as weights:
        hashed = hashlib.file_digest(weights, "sha256").hexdigest()[:16]
    about: dict[str, Any] = {
        "kind": request.kind,
        "revision": REVISION,
        "model": record.digest,
        "weights": hashed,
        "batch": batch,
        "source": digest_of([unit.digest for unit in units]),
    }
    if request.kind == "embed":
        about["patches"] = request.patches
    return about | ({"overlap": recipe.evaluate.overlap, "blend": recipe.evaluate.blend} if masks else {})


def _rows(
    request: ApplyRequest, model: Ready, output: Output, items: Sequence[Item], batch: int, recipe: Recipe
) -> Rows:
    if request.kind == "embed":
        return Features(model, patches=request.patches)
    if output.folder:
        return Masks(model, output.result, [item.key for item in items], batch, recipe.evaluate.blend)
    return Predictions(model)


# --- unit by unit -----------------------------------------------------------------------------------------------------


def _work(job: _Job, what: str, model: Ready) -> None:
    """Make all parts that are not there."""
    output, numbers = job.output, range(len(job.units))
    missing = [number for number in numbers if not output.part(number).exists()]
    done = job.total - sum(len(job.units[number].items) for number in missing)
    workers = job.recipe.compute.workers or os.cpu_count() or 1
    readers = Readers(
        model.plugin, output.reading, workers, lambda _: None, job.should_stop, job.recipe.prepare.seconds_per_item
    )
    job.tracker.progress(what, done, job.total, "items")
    for number, unit in zip(missing, readers.each([job.units[n] for n in missing], workers + 1), strict=True):
        for share in _part(job, number, unit):
            job.tracker.progress(what, done + int(share * len(unit.items)), job.total, "items")
        done += len(unit.items)
        job.tracker.progress(what, done, job.total, "items")


def _part(job: _Job, number: int, unit: Unit) -> Iterator[float]:
    """Make the part of a unit that was read; gives how much of it is done, batch by batch."""
    reading = job.output.reading
    result = shards.read_result(reading, unit.digest)
    assert result is not None, "it was read just now"
    with Table(job.output.part(number), job.schema, lambda: result.unreadable) as table:
        given = _named(shards.arrow_file(reading, unit.digest), result)
        count = 0
        while batch := list(islice(given, job.batch)):
            if job.should_stop():
                raise Stopped("what is done is kept; the same command goes on from there")
            try:
                table.add(job.rows.table(batch, job.schema))
            except torch.OutOfMemoryError:
                raise StageError(f"{len(batch)} records at once do not fit; give a smaller --batch") from None
            count += len(batch)
            yield count / len(result.rows)
    shards.drop(reading, unit.digest)


def _named(file: Path, result: shards.Result) -> Iterator[Named]:
    """The records of a unit with their names, one at a time."""
    times = Counter(row.item for row in result.rows)
    seen: Counter[str] = Counter()
    for record, row in zip(rows_of(file), result.rows, strict=True):
        yield Named(record, row.item, seen[row.item], times[row.item] > 1, row.target)
        seen[row.item] += 1


def _something(unreadable: Sequence[Pair], count: int, output: Output, hint: str) -> None:
    """Refuse what holds nothing; it is read again the next time.

    Raises:
        StageError: with the first reasons.
    """
    if len(unreadable) < count:
        return
    output.clear()
    shown = "\n".join(f"  {key}: {reason}" for key, reason in unreadable[:SHOWN])
    more = f"\n  ... and {count - SHOWN} more" if count > SHOWN else ""
    raise StageError(f"none of the {count} items could be read{hint}:\n{shown}{more}")
