"""Which layouts are known, and which of them a checkpoint has."""

from core.interop.facebook_mae import FacebookMae
from core.interop.foreign import Checkpoint, NotThis
from core.interop.layout import Layout

LAYOUTS: tuple[Layout, ...] = (FacebookMae(),)
"""In the order in which they are asked; those whose names are less their own come later."""


def recognise(checkpoint: Checkpoint) -> Layout:
    """The layout that ``checkpoint`` has.

    Raises:
        NotThis: if it has none that is known.
    """
    for layout in LAYOUTS:
        if layout.claims(checkpoint):
            return layout
    some = ", ".join(sorted(checkpoint.state)[:3])
    known = "; ".join(layout.name for layout in LAYOUTS)
    raise NotThis(f"its names ({some} ...) are of no known layout: {known}")


def layout_called(target: str) -> Layout:
    """The layout that ``maeflow export --to`` calls ``target``.

    Raises:
        KeyError: if there is none.
    """
    return {layout.target: layout for layout in LAYOUTS if layout.target}[target]
