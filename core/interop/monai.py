"""MONAI: ``MaskedAutoEncoderViT``, and ``ViT``, which is the encoder of UNETR, over two or three axes.

The class token has no position, the last norm is the last of the blocks (of ``ViT`` it is apart), layer norms add 1e-5
to the variance, and blocks hold a norm, in older files whole layers, for a cross-attention that is never computed.
"""

import re
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import NotThis
from core.interop.foreign import Checkpoint, Foreign, Hint, State, architecture, patch_geometry
from core.interop.layout import Target, fixed_or_learned, grid_of, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits, any_value
from core.interop.names import ALL_BIASES, NO_BIAS, Fused, Names, block_numbers

BLOCK = {
    "norm1": "norm1",
    "attn.out_proj": "attn.proj",
    "norm2": "norm2",
    "mlp.linear1": "mlp.fc1",
    "mlp.linear2": "mlp.fc2",
}
LAYERS = {"blocks.": "encoder.blocks.", "decoder_blocks.": "decoder.blocks."}
TOP = {
    "cls_token": "encoder.cls_token",
    "patch_embedding.position_embeddings": "encoder.pos_embed",
    "patch_embedding.patch_embeddings.": "encoder.patch_embed.proj.",
    "norm.": "encoder.norm.",
    "mask_tokens": "decoder.mask_token",
    "decoder_pos_embedding": "decoder.pos_embed",
    "decoder_embed.": "decoder.embed.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.pred.",
    "classification_head.": "head.",
}
NAMES = Names(TOP, LAYERS, BLOCK, Fused(), (ALL_BIASES, NO_BIAS))
EPS = 1e-5
UNUSED = re.compile(r"^(decoder_)?blocks\.\d+\.(norm_cross_attn|cross_attn)\.")
UNUSED_SAID = "{} weights of a cross-attention that MONAI's model never computes are left out"
NO_TOKEN_PLACE = "that layout gives the class token no position in its decoder, and this model does"  # noqa: S105


class Monai(Target):
    """Project MONAI's Vision Transformers."""

    name = "MONAI (MaskedAutoEncoderViT, ViT)"
    target = "monai"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By its names of positions and of attention's last layer."""
        names = {"patch_embedding.position_embeddings", "blocks.0.attn.out_proj.weight"}
        return names <= checkpoint.state.keys()

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one."""
        given, notes = computed(checkpoint.state)
        given, said = as_convolution(given, hint)
        state, leftover = sorted_out(NAMES, with_norms_apart(given))
        prefix = int("encoder.cls_token" in state)
        table = state["encoder.pos_embed"]
        axes = state["encoder.patch_embed.proj.weight"].ndim - 2
        grid = grid_of(table.shape[1], axes, in_our_order(table, axes), hint)
        for name in ("encoder.pos_embed", "decoder.pos_embed"):
            if name in state and prefix:
                state[name] = nn.functional.pad(state[name], (0, 0, 1, 0))
        if "classification_head.0.weight" in leftover:
            said = (*said, "its head ends in a hyperbolic tangent, which no head here has, and is left out")
        model = architecture(
            state,
            **hinted_heads(hint, state),
            positions=fixed_or_learned(state["encoder.pos_embed"], grid, prefix),
            norm_eps=EPS,
        )
        return Foreign(self.name, state, model, patch_geometry(state, grid), leftover=leftover, notes=(*notes, *said))

    def limits(self, model: Foreign) -> Limits:
        """``ViT`` has a class token only where a head reads it."""
        return Limits((2, 3), cls_token=model.has_decoder or bool(model.head), pools=("cls",), norm_eps=EPS)

    def config(self, model: Foreign) -> dict[str, Any]:
        """Arguments of ``MaskedAutoEncoderViT`` or ``ViT``."""
        own, geometry = model.model, model.geometry
        arguments = {
            "in_channels": geometry.channels,
            "img_size": list(geometry.input_shape),
            "patch_size": list(geometry.patch_shape),
            "hidden_size": own.width,
            "mlp_dim": int(own.width * own.mlp_ratio),
            "num_layers": own.depth,
            "num_heads": own.heads,
            "spatial_dims": len(geometry.grid),
            "qkv_bias": has_biases(model.state),
        }
        if model.has_decoder:
            inner = own.decoder
            arguments |= {
                "decoder_hidden_size": inner.width,
                "decoder_mlp_dim": int(inner.width * (inner.mlp_ratio or own.mlp_ratio)),
                "decoder_num_layers": inner.depth,
                "decoder_num_heads": inner.heads,
                # Tables of positions are in the weights; MONAI's own need widths that are multiples of 6.
                "pos_embed_type": "learnable",
                "decoder_pos_embed_type": "learnable",
            }
        if model.head:
            arguments |= {"classification": True, "num_classes": model.outputs, "post_activation": ""}
        return arguments

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        state = whole_state(model)
        if model.model.cls_token:
            places = state["encoder.pos_embed"]
            state["encoder.cls_token"] = state["encoder.cls_token"] + places[:, :1]
            state["encoder.pos_embed"] = places[:, 1:].clone()
        if model.has_decoder:
            if any_value(state["decoder.pos_embed"][:, :1]):
                raise NotThis(NO_TOKEN_PLACE)
            state["decoder.pos_embed"] = state["decoder.pos_embed"][:, 1:].clone()
        out = NAMES.theirs(state)
        if not has_biases(state):
            out = {name: value for name, value in out.items() if not name.endswith(".attn.qkv.bias")}
        for layers in LAYERS:
            for number in block_numbers(out, layers):
                some = out[f"{layers}{number}.norm1.weight"]
                out[f"{layers}{number}.norm_cross_attn.weight"] = torch.ones_like(some)
                out[f"{layers}{number}.norm_cross_attn.bias"] = torch.zeros_like(some)
        return with_norms_among_blocks(out) if model.has_decoder else out


def has_biases(state: State) -> bool:
    """Whether attention has biases that do something."""
    return any(any_value(value) for name, value in state.items() if name.endswith(".attn.qkv.bias"))


def computed(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights without those that MONAI's model never uses, and a note on layers among these."""
    kept = {name: value for name, value in state.items() if not UNUSED.match(name)}
    layers = sum(".cross_attn." in name for name in state)
    return kept, (UNUSED_SAID.format(layers),) if layers else ()


def with_norms_apart(state: State) -> dict[str, Tensor]:
    """Weights with the norms after the last block under names of their own."""
    pattern = re.compile(r"^(decoder_)?blocks\.\d+\.(weight|bias)$")
    return {pattern.sub(r"\1norm.\2", name): value for name, value in state.items()}


def with_norms_among_blocks(state: State) -> dict[str, Tensor]:
    """The inverse of `with_norms_apart`."""
    out = dict(state)
    for part in ("", "decoder_"):
        number = len(block_numbers(state, f"{part}blocks."))
        for kind in ("weight", "bias"):
            out[f"{part}blocks.{number}.{kind}"] = out.pop(f"{part}norm.{kind}")
    return out


def as_convolution(state: State, hint: Hint | None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights whose projection of patches is a convolution's; a linear one does not tell the shape of its patches.

    Raises:
        NotThis: if nobody can tell.
    """
    linear = state.get("patch_embedding.patch_embeddings.1.weight")
    if linear is None:
        return dict(state), ()
    values = linear.shape[1]
    notes: tuple[str, ...] = ()
    if hint is not None and hint.geometry.values == values:
        channels, patch = hint.geometry.channels, hint.geometry.patch_shape
    else:
        channels, patch = 1, (round(values ** (1 / 3)),) * 3
        notes = (f"its patches of {values} values are taken for cubes of one channel; the file does not say",)
        if prod(patch) != values:
            raise NotThis(f"nobody can tell the shape of its patches of {values} values")
    out = {name.replace("patch_embeddings.1.", "patch_embeddings."): value for name, value in state.items()}
    kernel = linear.reshape(len(linear), *patch, channels).movedim(-1, 1).contiguous()
    return out | {"patch_embedding.patch_embeddings.weight": kernel}, notes


def in_our_order(table_1ND: Tensor, axes: int) -> Tensor:
    """MONAI's fixed table with the axes' shares in our order: of three axes it has the second, the first, the third."""
    width = table_1ND.shape[2]
    return table_1ND.roll(width // 3, dims=2) if axes == 3 and width % 6 == 0 else table_1ND
