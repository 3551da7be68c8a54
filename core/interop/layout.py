"""State dicts of other libraries: what their keys are called here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How a library names the weights of a masked autoencoder."""

    model: str
    """Its class, for messages."""
    top: Mapping[str, str]
    """Keys outside the transformer blocks: theirs to ours."""
    layers: Mapping[str, str]
    """What stands before a block's number: theirs to ours."""
    block: Mapping[str, str]
    """Modules of a block that have a weight and a bias: theirs to ours."""
    attention: Callable[[State, str], tuple[Tensor, Tensor]]
    """Weight (3D, D) and bias (3D,) of query, key and value together, as timm has them, of the block so named."""

    def autoencoder(self, state: State) -> dict[str, Tensor]:
        """The state dict of a `MaskedAutoencoder`.

        Raises:
            ValueError: if a key is of no known kind.
        """
        unknown = [name for name in state if name not in self.top and not name.startswith(tuple(self.layers))]
        if unknown:
            raise ValueError(f"not a {self.model} state dict: unknown key {unknown[0]!r} ({len(unknown)} in all)")
        ours = {self.top[name]: value for name, value in state.items() if name in self.top}
        for theirs, mine in self.layers.items():
            numbers = {int(name.removeprefix(theirs).split(".")[0]) for name in state if name.startswith(theirs)}
            for number in sorted(numbers):
                ours |= self._block(state, f"{theirs}{number}.", f"{mine}{number}.")
        return ours

    def _block(self, state: State, theirs: str, mine: str) -> dict[str, Tensor]:
        weight, bias = self.attention(state, theirs)
        block = {f"{mine}attn.qkv.weight": weight, f"{mine}attn.qkv.bias": bias}
        for old, new in self.block.items():
            for kind in ("weight", "bias"):
                block[f"{mine}{new}.{kind}"] = state[f"{theirs}{old}.{kind}"]
        return block
