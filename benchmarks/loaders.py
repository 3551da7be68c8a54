"""What the benchmarks of loading share: prepared data as a loader worker reads them, and intervals of medians."""

from pathlib import Path

import numpy as np

from core.config import Recipe
from core.data.prepare import prepare
from core.data.store import PreparedStore
from core.registry import plugin
from core.tracking import NullTracker
from core.workspace import Home


def prepared(recipe: Recipe, source: Path, root: Path) -> tuple[PreparedStore, int]:
    """The rows of ``source``, prepared in a home at ``root``, and their bytes."""
    home = Home.create(root)
    work = root / "prepared" / "bench"
    work.mkdir()
    record = prepare(
        recipe,
        str(source),
        plugin=plugin(recipe.modality, recipe.data, "evaluate"),
        home=home,
        workdir=work,
        digest="bench",
        tracker=NullTracker(),
        should_stop=lambda: False,
    )
    return PreparedStore.open(work), record.bytes


def interval(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (4000, len(values))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))
