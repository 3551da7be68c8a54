"""MCG-NJU/VideoMAE and VideoMAEv2: the authors' code, pretrained (``encoder.``, ``decoder.``) and fine-tuned (plain).

Keys have no bias, nor has what leads into the decoder. Positions are fixed by the patch's number and not stored, so a
file does not say the size of its clips. Names and shapes are those of ``modeling_pretrain.py`` and
``modeling_finetune.py``.
"""

import torch
from torch import Tensor

from core.config import NormPix
from core.errors import NotThis
from core.interop.facebook_mae import imagenet
from core.interop.foreign import Checkpoint, Foreign, Hint, State, architecture, patch_geometry
from core.interop.layout import Heads, Target, hinted_heads, is_joint, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import BLOCK, NO_BIAS, NO_KEY_BIAS, Fused, Names
from core.model.patches import PatchSpec

ATTENTION = Fused(bias=None, query_bias="attn.q_bias", value_bias="attn.v_bias")
BIASES = (NO_KEY_BIAS, NO_BIAS)
PRETRAINED = Names(
    {
        "encoder.patch_embed.proj.": "encoder.patch_embed.proj.",
        "encoder.norm.": "encoder.norm.",
        "encoder_to_decoder.weight": "decoder.embed.weight",
        "mask_token": "decoder.mask_token",
        "decoder.norm.": "decoder.norm.",
        "decoder.head.": "decoder.pred.",
    },
    {"encoder.blocks.": "encoder.blocks.", "decoder.blocks.": "decoder.blocks."},
    BLOCK,
    ATTENTION,
    BIASES,
)
TUNED = Names(
    {
        "patch_embed.proj.": "encoder.patch_embed.proj.",
        "pos_embed": "encoder.pos_embed",
        "norm.": "encoder.norm.",
        "fc_norm.": "fc_norm.",
        "head.": "head.",
    },
    {"blocks.": "encoder.blocks."},
    BLOCK,
    ATTENTION,
    BIASES,
)
FRAMES, SIDE = 16, 224
"""Of the clips of all published models."""
DECODER_HEADS = {640: 8}
"""Heads of the decoder of ViT-H, the one published whose heads are not 64 wide."""
ASSUMED = "the file does not say the size of its clips: {} x {} x {} is assumed, as in all published ones"


class VideoMae(Target):
    """Tong et al. 2022, the authors' code."""

    name = "MCG-NJU/VideoMAE"
    target = "videomae"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By patches of three axes, and attention of one matrix without a bias of its own."""
        state = checkpoint.state
        before = "encoder." if "encoder.patch_embed.proj.weight" in state else ""
        patches = state.get(f"{before}patch_embed.proj.weight")
        attention = f"{before}blocks.0.attn.qkv."
        named = f"{attention}weight" in state and f"{attention}bias" not in state and "pos_embed_spatial" not in state
        return named and patches is not None and patches.ndim == 5 and not checkpoint.config

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one."""
        pretrained = "encoder.patch_embed.proj.weight" in checkpoint.state
        names = PRETRAINED if pretrained else TUNED
        state, leftover = sorted_out(names, checkpoint.state)
        if "head.weight" in state and "fc_norm.weight" not in state:
            raise NotThis("its head reads the first patch as if it were a class token, which no head here does")
        state = with_embed_bias(state)
        geometry, notes = clips(state, hint)
        return Foreign(
            self.name,
            state,
            architecture(
                state,
                **(published_heads(state) | hinted_heads(hint, state)),
                decoder_head_width=64,
                positions="learned" if "encoder.pos_embed" in state else "sincos_joint",
            ),
            geometry,
            imagenet(geometry.channels, "as VideoMAE's recipes have it; the file itself says nothing"),
            NormPix.CHANNEL_STD if "decoder.pred.weight" in state else None,
            leftover=leftover,
            notes=notes,
        )

    def limits(self, model: Foreign) -> Limits:
        """No class token, and decoders for three channels alone."""
        return Limits(
            (3,),
            cls_token=False,
            channels=3 if model.has_decoder else None,
            square_patch=True,
            pools=("mean",),
            one_ratio=True,
            embed_bias=False,
            targets=(NormPix.CHANNEL_STD,),
            norm_eps=1e-6,
        )

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        state = whole_state(model)
        fixed = drop_joint(state)
        if not model.head:
            if not fixed:
                raise NotThis("that layout has fixed positions by the patch's number; this model has others")
            return PRETRAINED.theirs(state)
        return TUNED.theirs(state)


PUBLISHED_PATCHES = ((2, 16, 16), (2, 14, 14))
"""Of models whose clips have `FRAMES` frames of `SIDE` pixels a side."""


def published_heads(state: State) -> Heads:
    """Heads of the one published decoder for which the rule does not hold."""
    heads = DECODER_HEADS.get(len(state["decoder.embed.weight"])) if "decoder.embed.weight" in state else None
    return {"decoder_heads": heads} if heads else {}


def with_embed_bias(state: State) -> dict[str, Tensor]:
    """Weights with the bias of zeros that leads into our decoder."""
    if "decoder.embed.weight" not in state:
        return dict(state)
    return {**state, "decoder.embed.bias": state["decoder.embed.weight"].new_zeros(len(state["decoder.embed.weight"]))}


def drop_joint(state: dict[str, Tensor]) -> bool:
    """Take out, in place, what is not stored in VideoMAE's layouts; whether positions are VideoMAE's fixed ones.

    Raises:
        NotThis: if those of the decoder are others.
    """
    state.pop("decoder.embed.bias", None)
    decoder = state.pop("decoder.pos_embed", None)
    if decoder is not None and not is_joint(decoder):
        raise NotThis("that layout has fixed positions by the patch's number; this decoder has others")
    fixed = is_joint(state["encoder.pos_embed"])
    if fixed:
        del state["encoder.pos_embed"]
    return fixed


def clips(state: State, hint: Hint | None) -> tuple[PatchSpec, tuple[str, ...]]:
    """The geometry of weights that do not say it, and what people should know of that.

    Patches of a published size are of clips of the published size: a hint that differs says what they are to become.

    Raises:
        NotThis: if neither ``hint`` nor the published size fits.
    """
    patch = tuple(state["encoder.patch_embed.proj.weight"].shape[2:])
    table = state.get("encoder.pos_embed")
    hinted = hint is not None and hint.geometry.patch_shape == patch
    believed = table.shape[1] == hint.geometry.count if table is not None and hint else patch not in PUBLISHED_PATCHES
    if hint is not None and hinted and believed:
        return patch_geometry(state, hint.geometry.grid), ()
    size = (FRAMES, SIDE, SIDE)
    grid = tuple(extent // p for extent, p in zip(size, patch, strict=True))
    if any(extent % p for extent, p in zip(size, patch, strict=True)):
        raise NotThis(f"nobody can tell the size of its clips: {size} is no multiple of its patches of {patch}")
    if table is not None and table.shape[1] != torch.Size(grid).numel():
        raise NotThis(f"nobody can tell how its {table.shape[1]} positions lie on three axes")
    return patch_geometry(state, grid), (ASSUMED.format(*size),)
