"""The plugin under test with a small source: everything that rules look at, made once and when first asked for."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import PluginInfo, Recipe
from core.data.loading import collate
from core.data.seeds import numpy_rng
from core.errors import UserError
from core.modality import Item, Modality, Purpose, Record, SampleBatch, Stats
from core.recipes import load, resolve
from core.registry import Claim, claims, companion, entries, plugin_info, recipe_files
from core.tasks import encode_targets
from core.testing.bystander import Account, Runner, ask, discovered, live_plugin, start

MOST_ITEMS = 24
"""Items of the source that are read."""
MOST_VIEWED = 16
"""Records that views and batches are made of."""


class Subject:
    """A plugin, a source, and what comes of reading it."""

    def __init__(self, name: str, source: Callable[[], Path], scratch: Path, recipe: str | None = None) -> None:
        self.name = name
        self._source = source
        self.scratch = scratch
        """An empty folder of the kit's own."""
        self._recipe = recipe
        self.run: Runner = start
        """How the other process is run; who checks many plugins may share what all of them import."""

    @cached_property
    def source(self) -> Path:
        """The source, made when first asked for: what is wrong with the registration must show before."""
        return self._source()

    @property
    def claims(self) -> list[Claim]:
        """Who claims the name."""
        return [claim for claim in claims() if claim.name == self.name]

    @cached_property
    def claim(self) -> Claim:
        """The claim that counts."""
        return entries()[self.name]

    @cached_property
    def info(self) -> PluginInfo:
        """The plugin's description."""
        return plugin_info(self.name)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe given, else the plugin's demo, else its first, else one of defaults alone."""
        own = recipe_files(self.name)
        chosen = self._recipe or (f"{self.name}/demo" if f"{self.name}/demo" in own else next(iter(own), None))
        return load(chosen) if chosen else resolve({"modality": self.name, "data": {}}, "of defaults")

    def plugin(self, purpose: Purpose = "pretrain", input_shape: tuple[int, ...] | None = None) -> Modality[Any]:
        """A live plugin with the recipe's settings."""
        return live_plugin(self.recipe, purpose, input_shape)

    @cached_property
    def live(self) -> Modality[Any]:
        """The plugin as pretraining makes it."""
        return self.plugin(input_shape=self.recipe.pretrain.input_shape)

    @cached_property
    def items(self) -> list[Item]:
        """The items of the source, under the names that the engine gives them."""
        return discovered(self.live, self.source)

    @cached_property
    def read(self) -> list[tuple[Item, list[Record]]]:
        """Each of the first items with its records."""
        return [(item, list(self.live.read(item))) for item in self.items[:MOST_ITEMS]]

    @cached_property
    def records(self) -> list[Record]:
        """Records with encoded targets, as `view` gets them."""
        every = [record for _, records in self.read for record in records]
        _, targets = encode_targets([record.target for record in every], self.recipe.task)
        spread = np.linspace(0, len(every) - 1, min(MOST_VIEWED, len(every))).round().astype(int)
        return [replace(every[i], target=targets[i]) for i in spread]

    @cached_property
    def account(self) -> Account:
        """What another process makes of the same source, and of files that are broken."""
        return ask(self.recipe, self.source, self.items[:MOST_ITEMS], self.scratch, self.run)

    def samples(
        self, *, train: bool, seed: int = 0, live: Modality[Any] | None = None, records: list[Record] | None = None
    ) -> SampleBatch:
        """One view of each record, stacked."""
        live = live or self.live
        chosen = self.records if records is None else records
        return collate([live.view(r, numpy_rng(seed, "kit", r.key), train) for r in chosen], None)

    @cached_property
    def stats(self) -> Stats:
        """Statistics of the fixed views, per channel."""
        x = self.live.features(self.samples(train=False)).double()
        axes = [0, *range(2, x.ndim)]
        return Stats(x.mean(axes).float(), x.std(axes).clamp_min(1e-6).float())


def rng(seed: int = 0) -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are equal to the bit, not-a-numbers included."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))


@contextmanager
def subject(name: str, source: Callable[[Path], Path] | None = None, recipe: str | None = None) -> Iterator[Subject]:
    """A subject with folders of its own, removed in the end; ``source`` writes its data, else the plugin does."""
    with tempfile.TemporaryDirectory(prefix="maeflow-contract-") as folder:
        data, work = Path(folder) / "source", Path(folder) / "work"
        data.mkdir()
        work.mkdir()
        yield Subject(name, lambda: source(data) if source else sample_source(name, data), work, recipe)


def sample_source(name: str, folder: Path) -> Path:
    """The small source that the plugin itself brings: ``sample(folder)`` in its ``demo`` module.

    Raises:
        UserError: if it has none.
    """
    demo = companion(name, "demo")
    if demo is None or not hasattr(demo, "sample"):
        raise UserError(f"modality {name!r} has no function `sample` in a module demo.py beside its config.py")
    return Path(demo.sample(folder))


def small_json(value: Any) -> str:
    """JSON of plain values.

    Raises:
        TypeError: if there is anything else in it.
    """
    return json.dumps(value, sort_keys=True, allow_nan=False)
