"""facebookresearch/mae: ``mae_pretrain_vit_*.pth`` (the encoder alone), ``*_full.pth`` (with decoder), fine-tuned ones.

The encoder has timm's names. Names and shapes are those of the repository's ``models_mae.py`` and ``models_vit.py``.
"""

from torch import Tensor

from core.config import NormPix
from core.interop.foreign import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Checkpoint,
    Foreign,
    Hint,
    NotThis,
    Preprocessing,
    architecture,
    patch_geometry,
)
from core.interop.layout import Layout, fixed_or_learned, grid_of, hinted_heads
from core.interop.names import BLOCK, Fused, Names

ENCODER = {
    "cls_token": "encoder.cls_token",
    "pos_embed": "encoder.pos_embed",
    "patch_embed.proj.": "encoder.patch_embed.proj.",
    "norm.": "encoder.norm.",
}
DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos_embed",
    "decoder_embed.": "decoder.embed.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.pred.",
}
HEAD = {"fc_norm.": "fc_norm.", "head.": "head."}
NAMES = Names(
    ENCODER | DECODER | HEAD, {"blocks.": "encoder.blocks.", "decoder_blocks.": "decoder.blocks."}, BLOCK, Fused()
)


class FacebookMae(Layout):
    """He et al. 2021, the authors' code."""

    name = "facebookresearch/mae"
    target = "mae"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """Without a decoder the names are timm's too: files beside which no configuration lies count as MAE's."""
        names = checkpoint.state.keys()
        plain = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names
        return plain and checkpoint.state["patch_embed.proj.weight"].ndim == 4 and not checkpoint.config

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one."""
        state, leftover = NAMES.ours(checkpoint.state)
        table = state["encoder.pos_embed"]
        prefix = int("encoder.cls_token" in state)
        grid = grid_of(table.shape[1] - prefix, 2, table, hint)
        width = table.shape[2]
        inner = len(state["decoder.embed.weight"]) if "decoder.embed.weight" in state else None
        heads, decoder_heads = hinted_heads(hint, width, inner)
        model = architecture(
            state, heads=heads, decoder_heads=decoder_heads, positions=fixed_or_learned(table, grid, prefix)
        )
        geometry = patch_geometry(state, grid)
        return Foreign(
            self.name,
            state,
            model,
            geometry,
            imagenet(geometry.channels, "as MAE's recipes have it; the file itself says nothing"),
            NormPix.PATCH if inner else None,
            leftover=leftover,
        )

    def write(self, model: Foreign) -> dict[str, Tensor]:
        """As ``models_mae.py`` and ``models_vit.py`` name it.

        Raises:
            NotThis: if it is no picture's, lacks what that code has, or has what it lacks.
        """
        if len(model.geometry.grid) != 2:
            raise NotThis(f"{self.name} has two axes; this model has {len(model.geometry.grid)}")
        return NAMES.theirs(model.state)


def imagenet(channels: int, source: str) -> Preprocessing | None:
    """ImageNet's statistics of colours between 0 and 1; None where there are not three channels."""
    return Preprocessing("unit", IMAGENET_MEAN, IMAGENET_STD, source) if channels == 3 else None
