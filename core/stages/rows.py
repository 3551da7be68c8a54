"""What a finished model says of records, as rows of a table: features, predictions, or masks in files of their own."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from core.config import TaskKind
from core.data.parts import ABOUT
from core.evaluation.sliding import Blend
from core.modality import Record
from core.stages.maskfiles import write_mask
from core.stages.ready import Ready
from core.workspace import digest_of

FLOAT = pa.float32()


@dataclass(frozen=True)
class Named:
    """A record, and what stands beside everything that is said of it."""

    record: Record
    item: str
    """Public name of what it was read from."""
    part: int
    """Its place among the records of that item, from 0."""
    several: bool
    """Whether the item gave more than one."""
    label: Any
    """Label as the source spells it, or None."""


class Rows(ABC):
    """Turns records into rows."""

    def __init__(self, model: Ready) -> None:
        self.model = model

    @property
    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """Columns beside those that every table has."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a reader of these columns has to know."""

    @abstractmethod
    def columns(self, given: Sequence[Named]) -> list[pa.Array]:
        """The values of `fields` for a batch of records."""

    def schema(self, request: Mapping[str, Any]) -> pa.Schema:
        """Columns and what the table says of itself; ``request`` tells it from others."""
        record = self.model.record
        about = {
            "model": record.digest,
            "recipe": record.recipe,
            "modality": record.modality,
            "version": version("maeflow"),
            "request": dict(request),
        } | self.about
        common = [("key", pa.string()), ("part", pa.int32()), ("label", pa.string())]
        return pa.schema([*common, *self.fields], {ABOUT: _json(about)})

    def table(self, given: Sequence[Named], schema: pa.Schema) -> pa.Table:
        """The rows of a batch of records."""
        common = [
            pa.array([one.item for one in given], pa.string()),
            pa.array([one.part for one in given], pa.int32()),
            pa.array([spelled(one.label) for one in given], pa.string()),
        ]
        return pa.Table.from_arrays([*common, *self.columns(given)], schema=schema)


class Features(Rows):
    """Features of a frozen encoder, of the whole or of each patch."""

    def __init__(self, model: Ready, *, patches: bool) -> None:
        super().__init__(model)
        self._patches = patches

    @property
    def fields(self) -> list[pa.Field]:
        """``features``: D numbers, or N times D."""
        width = self.model.model.config.width
        return [pa.field("features", pa.list_(FLOAT, width * (self.model.spec.count if self._patches else 1)))]

    @property
    def about(self) -> dict[str, Any]:
        """Their extent, and what they are."""
        spec, width = self.model.spec, self.model.model.config.width
        if not self._patches:
            return {"shape": [width], "units": "mean of the normalised tokens of all patches but padding"}
        units = "normalised token of each patch, the last axis of the grid fastest; NaN where there is padding"
        return {"shape": [*spec.grid, width], "grid": list(spec.grid), "units": units}

    def columns(self, given: Sequence[Named]) -> list[pa.Array]:
        """Features."""
        found = self.model.features([one.record for one in given], patches=self._patches)
        return [_lists(found.flatten(1))]


class Predictions(Rows):
    """Classes with their probabilities, or numbers."""

    @property
    def fields(self) -> list[pa.Field]:
        """``prediction`` (a class, a list of them, or numbers) and, where there are classes, ``probabilities``."""
        lists = pa.list_(FLOAT, self._target.outputs)
        if not self._target.classes:
            return [pa.field("prediction", lists)]
        several = self._target.task.kind is TaskKind.MULTI
        return [
            pa.field("prediction", pa.list_(pa.string()) if several else pa.string()),
            pa.field("probabilities", lists),
        ]

    @property
    def about(self) -> dict[str, Any]:
        """The task and its classes, in the order of the probabilities."""
        units = "probability of each class" if self._target.classes else "numbers as in the labels"
        return {"task": str(self._target.task.kind), "classes": list(self._target.classes), "units": units}

    @property
    def _target(self) -> Any:
        task = self.model.task
        assert task is not None, "an encoder was refused before"
        return task.target

    def columns(self, given: Sequence[Named]) -> list[pa.Array]:
        """Predictions and probabilities."""
        task = self.model.task
        assert task is not None, "an encoder was refused before"
        scores = self.model.logits([one.record for one in given])
        said, numbers = task.predictions(scores), _lists(task.probabilities(scores))
        if not task.classes:
            return [_lists(said)]
        names = self.fields[0].type
        if task.kind is TaskKind.MULTI:
            return [pa.array([_chosen(task.classes, row) for row in said.tolist()], names), numbers]
        return [pa.array([task.classes[row] for row in said.tolist()], names), numbers]


class Masks(Rows):
    """A file for each record, with the class of every pixel or voxel; rows say which, and what is in it."""

    def __init__(self, model: Ready, folder: Path, keys: Sequence[str], batch: int, blend: Blend) -> None:
        super().__init__(model)
        self._folder, self._batch, self._blend = folder, batch, blend
        self._stems = stems(keys)

    @property
    def fields(self) -> list[pa.Field]:
        """``file``, relative to the folder, and ``found``, the classes in it but the background."""
        return [pa.field("file", pa.string()), pa.field("found", pa.list_(pa.string()))]

    @property
    def about(self) -> dict[str, Any]:
        """The task and its classes, in the order of the values in the files."""
        classes = self.model.task.classes if self.model.task else []
        return {"task": "segmentation", "classes": classes, "units": "number of the class of each pixel or voxel"}

    def columns(self, given: Sequence[Named]) -> list[pa.Array]:
        """Write the files."""
        classes = self.model.task.classes if self.model.task else []
        files, found = [], []
        for one in given:
            mask = self.model.mask(one.record, self._batch, self._blend).numpy().astype(np.uint8)
            stem = f"masks/{self._stems[one.item]}{f'#{one.part:03d}' if one.several else ''}"
            files.append(write_mask(self._folder, stem, mask, one.record.meta))
            found.append([classes[value] for value in np.unique(mask) if value])
        return [pa.array(files, self.fields[0].type), pa.array(found, self.fields[1].type)]


def stems(keys: Sequence[str]) -> dict[str, str]:
    """A relative path without suffix for each of ``keys``, none of which leads elsewhere or is another's."""
    short = {key: key.removesuffix(".gz").rpartition(".")[0] or key for key in keys}
    times: dict[str, int] = {}
    for stem in short.values():
        times[stem.casefold()] = times.get(stem.casefold(), 0) + 1
    return {
        key: stem if times[stem.casefold()] == 1 and _plain(stem) else f"{digest_of('mask', key)}"
        for key, stem in short.items()
    }


def _plain(stem: str) -> bool:
    parts = stem.split("/")
    return "#" not in stem and "\0" not in stem and not any(part in ("", ".", "..") for part in parts)


def spelled(label: Any) -> str | None:
    """A label as text; several of them as manifests have them."""
    if label is None:
        return None
    return "|".join(str(one) for one in label) if isinstance(label, (list, tuple)) else str(label)


def _chosen(classes: Sequence[str], row: Sequence[int]) -> list[str]:
    return [name for name, there in zip(classes, row, strict=True) if there]


def _lists(values: Tensor) -> pa.Array:
    """(B, W) float32 as lists of one length."""
    flat = pa.array(np.ascontiguousarray(values.numpy(), dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
