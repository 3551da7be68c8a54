"""The contract of a checkpoint layout: to know its files, to read them and, of most, to write them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import product
from math import isqrt, prod
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from core.errors import NotThis
from core.interop.building import with_fixed_positions
from core.interop.foreign import Checkpoint, Foreign, Hint, State
from core.interop.limits import Limits
from core.interop.names import Names
from core.interop.strangers import refuse_inside, refuse_parts
from core.model.positions import sincos, sincos_joint


class Layout(ABC):
    """One way to name the weights of a masked autoencoder, or of what came of its encoder."""

    name: ClassVar[str]
    """Whose it is, for people."""

    @abstractmethod
    def claims(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint has this layout, by names that no other layout has."""

    @abstractmethod
    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """The checkpoint under our names. What weights do not tell, ``hint`` may.

        Raises:
            NotThis: if it cannot be used, with the reason.
        """


class Target(Layout):
    """A layout that a model can be written in as well."""

    target: ClassVar[str]
    """What `maeflow export --to` calls it."""

    @abstractmethod
    def limits(self, model: Foreign) -> Limits:
        """What a model such as ``model`` may be like in this layout."""

    def write(self, model: Foreign) -> dict[str, Tensor]:
        """The inverse: a state dict that the library loads strictly.

        Raises:
            NotThis: if the layout has no place for such a model.
        """
        self.limits(model).check(model)
        return self._written(model)

    def config(self, model: Foreign) -> dict[str, Any]:
        """What the library builds the model from: its ``config.json``, or the arguments of its class; may be empty."""
        return {}

    def remarks(self, model: Foreign) -> tuple[str, ...]:
        """What the library will compute a little otherwise, a sentence each."""
        return self.limits(model).remarks(model)

    @abstractmethod
    def _written(self, model: Foreign) -> dict[str, Tensor]:
        """`write`, of a model that is within the limits."""


def whole_state(model: Foreign) -> dict[str, Tensor]:
    """All weights to be written: with tables of positions, and with no norm that a head on the mean leaves unused."""
    state = with_fixed_positions(model)
    unused = "encoder.norm." if "fc_norm.weight" in model.head else ()
    return {name: value for name, value in state.items() if not name.startswith(unused)}


def sorted_out(names: Names, given: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights under our names and names of theirs without a place, once those that matter were refused.

    Of a decoder of which there is only a part nothing is kept.

    Raises:
        NotThis: if a block lacks something, or something without a place changes what the model computes.
    """
    state, leftover = names.ours(given)
    refuse_parts(leftover)
    refuse_inside(leftover, names.layers)
    token = state.get("encoder.cls_token")
    if token is not None and token.shape[1] != 1:
        raise NotThis(f"it has {token.shape[1]} class tokens, as Pixio has; models here have one at most")
    if "decoder.pred.weight" in state and "decoder.embed.weight" in state:
        return state, leftover
    kept = {name: value for name, value in state.items() if not name.startswith("decoder.")}
    tops = {theirs for theirs, ours in names.single.items() if ours.startswith("decoder.")}
    layers = tuple(theirs for theirs, ours in names.layers.items() if ours.startswith("decoder."))
    return kept, (*leftover, *(name for name in given if name in tops or name.startswith(layers)))


class Heads(TypedDict, total=False):
    """Arguments of `architecture`."""

    heads: int
    """Of the encoder."""
    decoder_heads: int
    """Of the decoder."""


def hinted_heads(hint: Hint | None, state: State) -> Heads:
    """Heads of encoder and decoder, as far as the widths of ``hint`` are those of the weights."""
    if hint is None:
        return {}
    own, decoder = hint.model, hint.model.decoder
    found: Heads = {}
    if own.width == state["encoder.patch_embed.proj.weight"].shape[0]:
        found["heads"] = own.heads
    if "decoder.embed.weight" in state and decoder.width == len(state["decoder.embed.weight"]):
        found["decoder_heads"] = decoder.heads
    return found


def fixed_or_learned(table_1ND: Tensor, grid: tuple[int, ...], prefix: int) -> str:
    """Whether a position table is MAE's fixed one for ``grid``."""
    places = table_1ND[0, prefix:].double()
    if len(places) != prod(grid):
        raise NotThis(f"it has {len(places)} positions, not those of a grid of {grid}")
    try:
        expected = sincos(grid, places.shape[1]).double()
    except ValueError:
        return "learned"
    return "sincos" if _same(places, expected, table_1ND.dtype) else "learned"


def is_joint(table_1ND: Tensor) -> bool:
    """Whether a table of positions, with none for a class token, is VideoMAE's fixed one."""
    places = table_1ND[0].double()
    return _same(places, sincos_joint((len(places),), places.shape[1]).double(), table_1ND.dtype)


def _same(places: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether both are one table of sines and cosines, as far as ``dtype`` tells."""
    return bool(torch.isclose(places, expected, atol=max(1e-5, torch.finfo(dtype).eps)).all())


def grid_of(count: int, axes: int, table_1ND: Tensor | None, hint: Hint | None) -> tuple[int, ...]:
    """The grid of ``count`` patches: the one whose fixed table this is, else a square, the hint's, or a cube.

    Raises:
        NotThis: if it cannot be told.
    """
    table = None if table_1ND is None else table_1ND[:, table_1ND.shape[1] - count :]
    side = isqrt(count)
    candidates: list[tuple[int, ...]] = [(side, side)] if axes == 2 and side * side == count else []
    if hint is not None and len(hint.geometry.grid) == axes and hint.geometry.count == count:
        candidates.append(hint.geometry.grid)
    edge = round(count ** (1 / 3))
    if axes == 3 and edge**3 == count:
        candidates.append((edge, edge, edge))
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
