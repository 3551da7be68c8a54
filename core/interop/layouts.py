"""Which layouts are known, and which of them a checkpoint has."""

from core.errors import NotThis
from core.interop.audiomae import AudioMae
from core.interop.facebook_mae import FacebookMae
from core.interop.foreign import Checkpoint
from core.interop.layout import Layout, Target
from core.interop.mae_st import MaeSt
from core.interop.monai import Monai
from core.interop.own import Own
from core.interop.strangers import looks_like
from core.interop.timm import Timm
from core.interop.transformers_videomae import TransformersVideoMae
from core.interop.transformers_vit import TransformersVit
from core.interop.videomae import VideoMae

LAYOUTS: tuple[Layout, ...] = (
    Own(),
    TransformersVit(),
    TransformersVideoMae(),
    Monai(),
    MaeSt(),
    VideoMae(),
    Timm(),
    AudioMae(),
    FacebookMae(),
)
"""In the order in which they are asked. No checkpoint is claimed by two."""


def recognise(checkpoint: Checkpoint) -> Layout:
    """The layout that ``checkpoint`` has.

    Raises:
        NotThis: if it has none that is known, with what it looks like.
    """
    for layout in LAYOUTS:
        if layout.claims(checkpoint):
            return layout
    some = ", ".join(sorted(checkpoint.state)[:3])
    known = "; ".join(layout.name for layout in LAYOUTS)
    stranger = looks_like(checkpoint)
    like = f"it looks like {stranger}, and " if stranger else ""
    raise NotThis(f"{like}its names ({some} ...) are of no known layout: {known}")


def targets() -> dict[str, Target]:
    """Layouts to write in, by the name that ``maeflow export --to`` gives them."""
    return {layout.target: layout for layout in LAYOUTS if isinstance(layout, Target)}
