"""facebookresearch/mae_st, and the masked autoencoders of SlowFast: Vision Transformers over clips.

Queries, keys and values are layers of their own, positions are a table for places plus one for times (or one for both),
and the decoder has a class token of its own. SlowFast calls the decoder otherwise and gives it the encoder's token.
Names and shapes are those of ``models_mae.py``, ``models_vit.py`` and ``slowfast/models/masked.py``.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from core.config import NormPix
from core.errors import NotThis
from core.interop.facebook_mae import DECODER, ENCODER, HEAD, LAYERS, TARGETS
from core.interop.foreign import Checkpoint, Foreign, Hint, Preprocessing, State, architecture, patch_geometry
from core.interop.layout import Target, fixed_or_learned, grid_of, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import ALL_BIASES, BLOCK, NO_BIAS, Names, Split, block_numbers

SPLIT = Split("attn.{}", ("q", "k", "v"))
NAMES = Names(
    ENCODER | DECODER | HEAD | {"decoder_cls_token": "decoder.cls_token"}, LAYERS, BLOCK, SPLIT, (ALL_BIASES, NO_BIAS)
)
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
LAST_FRAME = (
    "its decoder predicts half of the frames of each patch: the first one of two, and of the last patch in time the "
    "second"
)


class MaeSt(Target):
    """Feichtenhofer et al. 2022, the authors' code and SlowFast's."""

    name = "facebookresearch/mae_st"
    target = "mae_st"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By patches of three axes with queries in a layer of their own, or with a table for places alone."""
        state = checkpoint.state
        own = "blocks.0.attn.q.weight" in state or {"blocks.0.attn.qkv.weight", "pos_embed_spatial"} <= state.keys()
        patches = state.get("patch_embed.proj.weight")
        return own and patches is not None and patches.ndim == 5 and not checkpoint.config

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one; the ``norm`` of a head is our ``fc_norm``."""
        slowfast = any(name.startswith("pred_head.") for name in checkpoint.state)
        given = slowfast_names(checkpoint.state)
        grid = grid_in(given, hint)
        state, leftover = sorted_out(NAMES, joined(given, grid))
        cls = "encoder.cls_token" in state
        if "head.weight" in state:
            if not cls:
                raise NotThis(
                    "its head leaves out the first patch as if it were a class token, which no head here does"
                )
            renamed = {f"encoder.norm.{kind}": f"fc_norm.{kind}" for kind in ("weight", "bias")}
            state = {renamed.get(name, name): value for name, value in state.items()}
        model = architecture(
            state,
            **hinted_heads(hint, state),
            decoder_head_width=64 if slowfast else 32,
            positions=fixed_or_learned(state["encoder.pos_embed"], grid, int(cls)),
            own_cls=not slowfast and "decoder.cls_token" in state,
        )
        geometry = patch_geometry(state, grid)
        decodes = "decoder.pred.weight" in state
        part = decodes and len(state["decoder.pred.weight"]) < geometry.values
        return Foreign(
            self.name,
            state,
            model,
            geometry,
            Preprocessing("unit", MEAN, STD, "as its recipes have it; the file itself says nothing")
            if geometry.channels == 3
            else None,
            NormPix.PATCH if decodes else None,
            leftover=leftover,
            notes=(LAST_FRAME,) if part and not slowfast else (),
        )

    def limits(self, model: Foreign) -> Limits:
        """Square pictures, and heads on the mean beside a class token."""
        return Limits(
            (3,),
            cls_token=True if model.head else None,
            own_cls=True,
            square_patch=True,
            square_input=True,
            pools=("mean",),
            one_ratio=True,
            strides=True,
            targets=TARGETS,
            norm_eps=1e-6,
        )

    def config(self, model: Foreign) -> dict[str, Any]:
        """Arguments of ``MaskedAutoencoderViT`` or ``VisionTransformer``, whose defaults are not the recipes'."""
        own, geometry = model.model, model.geometry
        frames, size, _ = geometry.input_shape
        arguments = {
            "num_frames": frames,
            "t_patch_size": geometry.patch_shape[0],
            "img_size": size,
            "patch_size": geometry.patch_shape[1],
            "in_chans": geometry.channels,
            "embed_dim": own.width,
            "depth": own.depth,
            "num_heads": own.heads,
            "mlp_ratio": own.mlp_ratio,
            "cls_embed": own.cls_token,
            "sep_pos_embed": "pos_embed_spatial" in self.write(model),
        }
        if model.has_decoder:
            share = len(model.state["decoder.pred.weight"]) / geometry.values
            arguments |= {
                "decoder_embed_dim": own.decoder.width,
                "decoder_depth": own.decoder.depth,
                "decoder_num_heads": own.decoder.heads,
                "pred_t_dim": round(share * frames),
                "norm_pix_loss": model.norm_pix is NormPix.PATCH,
            }
        return arguments | ({"num_classes": model.outputs} if model.head else {})

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        state = whole_state(model)
        if model.head:
            renamed = {f"fc_norm.{kind}": f"encoder.norm.{kind}" for kind in ("weight", "bias")}
            state = {renamed.get(name, name): value for name, value in state.items()}
        return parted(NAMES.theirs(state), model.geometry.grid)


def slowfast_names(state: State) -> dict[str, Tensor]:
    """Weights with SlowFast's names as mae_st's, and attention's one matrix as the three it is made of."""
    numbers = block_numbers(state, "pred_head.transforms.0.")
    renamed = {
        "head.projection.": "head.",
        "dec_pos_embed": "decoder_pos_embed",
        "pred_head.projections.0.": "decoder_pred.",
    }
    if numbers:  # What is last there is the norm.
        renamed |= {f"pred_head.transforms.0.{number}.": f"decoder_blocks.{number}." for number in numbers[:-1]}
        renamed[f"pred_head.transforms.0.{numbers[-1]}."] = "decoder_norm."
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        stem = next((old for old in renamed if name.startswith(old)), "")
        new = renamed.get(stem, "") + name.removeprefix(stem)
        if ".attn.qkv." in new:
            out |= {new.replace(".qkv.", f".{part}."): w for part, w in zip("qkv", value.chunk(3), strict=True)}
        else:
            out[new] = value
    return out


def grid_in(state: State, hint: Hint | None) -> tuple[int, ...]:
    """The grid of positions: places are square, times are what is left."""
    spatial, temporal = state.get("pos_embed_spatial"), state.get("pos_embed_temporal")
    if spatial is not None and temporal is not None:
        side = isqrt(spatial.shape[1])
        if side * side != spatial.shape[1]:
            raise NotThis(f"its {spatial.shape[1]} places are no square")
        return temporal.shape[1], side, side
    if "pos_embed" not in state:
        raise NotThis("it lacks its table of positions")
    table = state["pos_embed"][:, int("cls_token" in state) :]
    published = 224 // state["patch_embed.proj.weight"].shape[-1]
    times, rest = divmod(table.shape[1], published**2)
    try:
        return grid_of(table.shape[1], 3, table, hint)
    except NotThis:
        if rest or not times:
            raise
        return times, published, published


def joined(state: State, grid: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights with one table of positions for each of the parts that have two or three."""
    out = dict(state)
    times, places = grid[0], grid[1] * grid[2]
    for part in ("", "decoder_"):
        tables = [out.pop(f"{part}pos_embed_{kind}", None) for kind in ("class", "spatial", "temporal")]
        first, spatial, temporal = tables
        if spatial is None or temporal is None:
            continue
        if (spatial.shape[1], temporal.shape[1]) != (places, times):
            raise NotThis(f"its {part}pos_embed_* are not of a grid of {grid}")
        table = spatial.repeat(1, times, 1) + temporal.repeat_interleave(places, dim=1)
        out[f"{part}pos_embed"] = table if first is None else torch.cat([first, table], dim=1)
    return out


def parted(state: dict[str, Tensor], grid: tuple[int, ...]) -> dict[str, Tensor]:
    """The inverse of `joined`, where all tables of positions are such sums; else the weights as they are."""
    out, prefix = dict(state), int("cls_token" in state)
    for name in ("pos_embed", "decoder_pos_embed"):
        if name not in state:
            continue
        table = out.pop(name)
        if prefix:
            out[f"{name}_class"] = table[:, :1].clone()
        by_time = table[0, prefix:].reshape(grid[0], grid[1] * grid[2], -1)
        spatial, temporal = by_time[:1], by_time[:, :1] - by_time[:1, :1]
        close = 8 * torch.finfo(table.dtype).eps * float(by_time.abs().max())
        if not torch.allclose(spatial + temporal, by_time, rtol=0, atol=close):
            return state
        out[f"{name}_spatial"], out[f"{name}_temporal"] = spatial.clone(), temporal.movedim(1, 0).clone()
    return out
