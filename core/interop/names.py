"""Names of weights, theirs and ours, as tables that are read in both directions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import NotThis
from core.interop.foreign import State

BLOCK = {name: name for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
"""Modules of a transformer block beside queries, keys and values, by the names that timm and we give them."""
BIASES = ("query", "key", "value")


class Attention(ABC):
    """How a layout keeps the weights of queries, keys and values of a block."""

    @abstractmethod
    def read(self, state: State, block: str) -> tuple[Tensor, dict[str, Tensor], set[str]]:
        """Weight (3D, D), the biases (D,) there are, and all names looked at, of the block that names begin with."""

    @abstractmethod
    def write(self, weight: Tensor, bias: Tensor, block: str) -> dict[str, Tensor]:
        """The inverse. A bias of keys may be dropped: it adds one number to all scores of a query."""


@dataclass(frozen=True)
class Fused(Attention):
    """One matrix for all three, with a bias, without one, or with one of queries and values alone."""

    weight: str = "attn.qkv.weight"
    bias: str | None = "attn.qkv.bias"
    query_bias: str | None = None
    value_bias: str | None = None

    def read(self, state: State, block: str) -> tuple[Tensor, dict[str, Tensor], set[str]]:
        """The matrix as it is."""
        names = {block + name for name in (self.weight, self.bias, self.query_bias, self.value_bias) if name}
        weight = needed(state, block + self.weight)
        if self.bias and block + self.bias in state:
            return weight, dict(zip(BIASES, state[block + self.bias].chunk(3), strict=True)), names
        halves = (("query", self.query_bias), ("value", self.value_bias))
        return weight, {part: state[block + name] for part, name in halves if name and block + name in state}, names

    def write(self, weight: Tensor, bias: Tensor, block: str) -> dict[str, Tensor]:
        """All in one, and the biases there is a place for."""
        out = {block + self.weight: weight}
        query, _, value = bias.chunk(3)
        if self.bias:
            return out | {block + self.bias: bias}
        if self.query_bias and self.value_bias:
            return out | {block + self.query_bias: query.clone(), block + self.value_bias: value.clone()}
        return out


@dataclass(frozen=True)
class Split(Attention):
    """A module each for queries, keys and values; ``{}`` in the pattern stands for its name."""

    pattern: str
    parts: tuple[str, str, str]
    key_bias: bool = True
    other_biases: tuple[str, str] | None = None
    """Other names of the biases of queries and values, which some releases write."""

    def read(self, state: State, block: str) -> tuple[Tensor, dict[str, Tensor], set[str]]:
        """All three joined."""
        stems = [block + self.pattern.format(part) for part in self.parts]
        weights = torch.cat([needed(state, f"{stem}.weight") for stem in stems])
        names = {f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias")}
        places = dict(zip(BIASES, [f"{stem}.bias" for stem in stems], strict=True))
        for part, other in zip(("query", "value"), self.other_biases or (), strict=False):
            names.add(block + other)
            places[part] = block + other if block + other in state else places[part]
        return weights, {part: state[place] for part, place in places.items() if place in state}, names

    def write(self, weight: Tensor, bias: Tensor, block: str) -> dict[str, Tensor]:
        """All three apart."""
        out = {}
        for number, (part, w, b) in enumerate(zip(self.parts, weight.chunk(3), bias.chunk(3), strict=True)):
            stem = block + self.pattern.format(part)
            out[f"{stem}.weight"] = w.clone()
            if number != 1 or self.key_bias:
                out[f"{stem}.bias"] = b.clone()
        return out


@dataclass(frozen=True)
class Names:
    """What one layout calls the weights of a masked autoencoder or a classifier."""

    top: Mapping[str, str]
    """Outside of blocks: theirs to ours. A name that ends with a dot stands for its weight and its bias."""
    layers: Mapping[str, str]
    """What stands before a block's number: theirs to ours."""
    block: Mapping[str, str]
    """Modules of a block that have a weight and a bias: theirs to ours."""
    attention: Attention
    biases: tuple[frozenset[str], ...] = (frozenset(BIASES),)
    """The sets of biases that attention may have; the same one in all blocks."""

    @property
    def single(self) -> dict[str, str]:
        """`top` with the weights and biases written out."""
        pairs: dict[str, str] = {}
        for theirs, ours in self.top.items():
            ends = ("weight", "bias") if theirs.endswith(".") else ("",)
            pairs |= {theirs + end: ours + end for end in ends}
        return pairs

    def ours(self, state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Weights under our names, and the names for which there is no place.

        Raises:
            NotThis: if a block lacks something.
        """
        out = {mine: state[theirs] for theirs, mine in self.single.items() if theirs in state}
        used = set(self.single)
        found: set[frozenset[str]] = set()
        for theirs, mine in self.layers.items():
            for number in block_numbers(state, theirs):
                weights, names, biases = self._read_block(state, f"{theirs}{number}.", f"{mine}{number}.")
                out |= weights
                used |= names
                found.add(biases)
        if len(found) > 1:
            raise NotThis("its blocks have not all the same biases of attention: part of it is missing")
        return out, tuple(name for name in state if name not in used)

    def theirs(self, state: State) -> dict[str, Tensor]:
        """The inverse of `ours`: weights under their names.

        Raises:
            NotThis: if the layout has no place for one of them.
        """
        names = {mine: theirs for theirs, mine in self.single.items()}
        out, used = {names[key]: value for key, value in state.items() if key in names}, set(names)
        for theirs, mine in self.layers.items():
            for number in block_numbers(state, mine):
                out |= self._write_block(state, f"{theirs}{number}.", f"{mine}{number}.")
            used |= {key for key in state if key.startswith(mine)}
        if homeless := [key for key in state if key not in used]:
            raise NotThis(f"that layout has no place for {homeless[0]} ({len(homeless)} weights in all)")
        return out

    def _read_block(self, state: State, theirs: str, mine: str) -> tuple[dict[str, Tensor], set[str], frozenset[str]]:
        weight, biases, names = self.attention.read(state, theirs)
        present = frozenset(biases)
        if present not in self.biases:
            raise NotThis(f"{theirs}* lacks biases of attention: part of it is missing, or its keys were renamed")
        zero = weight.new_zeros(len(weight) // 3)
        bias = torch.cat([biases.get(part, zero) for part in BIASES])
        out = {f"{mine}attn.qkv.weight": weight, f"{mine}attn.qkv.bias": bias}
        for old, new in self.block.items():
            for kind in ("weight", "bias"):
                names.add(f"{theirs}{old}.{kind}")
                out[f"{mine}{new}.{kind}"] = needed(state, f"{theirs}{old}.{kind}")
        return out, names, present

    def _write_block(self, state: State, theirs: str, mine: str) -> dict[str, Tensor]:
        out = self.attention.write(state[f"{mine}attn.qkv.weight"], state[f"{mine}attn.qkv.bias"], theirs)
        pairs = [(f"{old}.{kind}", f"{new}.{kind}") for old, new in self.block.items() for kind in ("weight", "bias")]
        return out | {f"{theirs}{old}": state[f"{mine}{new}"] for old, new in pairs}


NO_BIAS: frozenset[str] = frozenset()
ALL_BIASES = frozenset(BIASES)
NO_KEY_BIAS = frozenset(("query", "value"))


def block_numbers(state: State, before: str) -> list[int]:
    """Numbers of the blocks whose names begin with ``before``."""
    after = (name.removeprefix(before).split(".")[0] for name in state if name.startswith(before))
    return sorted({int(number) for number in after if number.isdigit()})


def needed(state: State, name: str) -> Tensor:
    """The tensor called ``name``.

    Raises:
        NotThis: if there is none.
    """
    if name not in state:
        raise NotThis(f"it lacks {name}: part of it is missing, or its keys were renamed")
    return state[name]
