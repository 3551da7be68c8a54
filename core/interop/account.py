"""What became of a checkpoint when it was taken over: nothing that did not match goes unsaid."""

from collections.abc import Sequence

from core.config import Config

ACCOUNT_FILE = "account.json"
SHOWN = 4
"""Names shown of a longer list."""


class Account(Config):
    """An account of one checkpoint."""

    checkpoint: str
    """What people call it."""
    layout: str
    """Whose layout it has."""
    parameters: int
    """Numbers in the encoder."""
    matched: int
    """Weights of the encoder that were found."""
    weights: int
    """Weights that it has."""
    decoder: str
    """What became of a decoder."""
    head: str
    """What became of a head."""
    outputs: int
    """Width of the file's own head; 0 where it has none."""
    leftover: tuple[str, ...]
    """Names in the file for which there was no place."""
    changed: tuple[str, ...]
    """What was resampled, summed or repeated, and how."""
    inputs: str
    """What the model's inputs have to go through, and who says so."""
    notes: tuple[str, ...]
    """What else there is to know."""

    @property
    def lines(self) -> list[str]:
        """The account for people."""
        several = [("changed", text) for text in self.changed] + [("note", text) for text in self.notes]
        rows = [
            ("encoder", f"{self.matched} of {self.weights} weights found, {self.parameters / 1e6:.1f} M parameters"),
            ("decoder", self.decoder),
            *([("head", self.head)] if self.head else []),
            ("left over", listed(self.leftover) or "nothing"),
            *several,
            ("inputs", self.inputs),
        ]
        return [f"checkpoint {self.checkpoint}: {self.layout}", *(f"  {name:10s} {text}" for name, text in rows)]


def listed(names: Sequence[str]) -> str:
    """Some of the names, and how many there are."""
    more = f" ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
