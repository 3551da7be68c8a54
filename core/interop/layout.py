"""The contract of a checkpoint layout: to know its files, to read them and to write them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import product
from math import isqrt, prod
from typing import ClassVar

import torch
from torch import Tensor

from core.interop.foreign import Checkpoint, Foreign, Hint, NotThis
from core.model.positions import sincos


class Layout(ABC):
    """One way to name the weights of a masked autoencoder, or of what came of its encoder."""

    name: ClassVar[str]
    """Whose it is, for people."""
    target: ClassVar[str] = ""
    """What `maeflow export --to` calls it; empty where it is only read."""

    @abstractmethod
    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint has this layout, by names that no other layout has."""

    @abstractmethod
    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """The checkpoint under our names. What weights do not tell, ``hint`` may.

        Raises:
            NotThis: if it cannot be used, with the reason.
        """

    def write(self, model: Foreign) -> dict[str, Tensor]:
        """The inverse: a state dict that the library loads strictly.

        Raises:
            NotThis: if the layout has no place for such a model.
        """
        raise NotThis(f"nothing is written in the layout of {self.name}")


def hinted_heads(hint: Hint | None, width: int, decoder_width: int | None) -> tuple[int | None, int | None]:
    """Heads of encoder and decoder by ``hint``, as far as its widths are these."""
    if hint is None or hint.model.width != width:
        return None, None
    decoder = hint.model.decoder
    return hint.model.heads, decoder.heads if decoder.width == decoder_width else None


def fixed_or_learned(table_1ND: Tensor, grid: tuple[int, ...], prefix: int) -> str:
    """Whether a position table is MAE's fixed one for ``grid``."""
    places = table_1ND[0, prefix:].double()
    if len(places) != prod(grid):
        raise NotThis(f"it has {len(places)} positions, not those of a grid of {grid}")
    try:
        expected = sincos(grid, places.shape[1]).double()
    except ValueError:
        return "learned"
    return "sincos" if bool(torch.isclose(places, expected, atol=1e-5).all()) else "learned"


def grid_of(count: int, axes: int, table_1ND: Tensor | None, hint: Hint | None) -> tuple[int, ...]:
    """The grid of ``count`` patches: the one whose fixed table this is, else a square, else the hint's.

    Raises:
        NotThis: if it cannot be told.
    """
    table = None if table_1ND is None else table_1ND[:, table_1ND.shape[1] - count :]
    side = isqrt(count)
    candidates: list[tuple[int, ...]] = [(side, side)] if axes == 2 and side * side == count else []
    if hint is not None and len(hint.geometry.grid) == axes and hint.geometry.count == count:
        candidates.append(hint.geometry.grid)
    if table is not None:
        for grid in [*candidates, *_grids(count, axes)]:
            if fixed_or_learned(table, grid, 0) == "sincos":
                return grid
    if candidates:
        return candidates[0]
    raise NotThis(f"nobody can tell how its {count} positions lie on {axes} axes")


def _grids(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """All grids of ``count`` patches on two or three axes."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for first in product(divisors, repeat=axes - 1):
        if count % prod(first) == 0:
            yield (*first, count // prod(first))
