"""Weights of `transformers.ViTMAEForPreTraining` (5.x key layout) under our names."""

import torch
from torch import Tensor

from core.interop.layout import Layout, State

_BLOCK = {
    "layernorm_before": "norm1",
    "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TOP = {
    "vit.embeddings.cls_token": "encoder.cls_token",
    "vit.embeddings.position_embeddings": "encoder.pos_embed",
    "vit.embeddings.patch_embeddings.projection.weight": "encoder.patch_embed.proj.weight",
    "vit.embeddings.patch_embeddings.projection.bias": "encoder.patch_embed.proj.bias",
    "vit.layernorm.weight": "encoder.norm.weight",
    "vit.layernorm.bias": "encoder.norm.bias",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.decoder_pos_embed": "decoder.pos_embed",
    "decoder.decoder_embed.weight": "decoder.embed.weight",
    "decoder.decoder_embed.bias": "decoder.embed.bias",
    "decoder.decoder_norm.weight": "decoder.norm.weight",
    "decoder.decoder_norm.bias": "decoder.norm.bias",
    "decoder.decoder_pred.weight": "decoder.pred.weight",
    "decoder.decoder_pred.bias": "decoder.pred.bias",
}


_LAYERS = {"vit.layers.": "encoder.blocks.", "decoder.decoder_layers.": "decoder.blocks."}


def _attention(state: State, block: str) -> tuple[Tensor, Tensor]:
    weight, bias = (
        torch.cat([state[f"{block}attention.{part}_proj.{kind}"] for part in "qkv"]) for kind in ("weight", "bias")
    )
    return weight, bias


_LAYOUT = Layout("ViTMAEForPreTraining", _TOP, _LAYERS, _BLOCK, _attention)


def autoencoder_from_vit_mae(state: State) -> dict[str, Tensor]:
    """The state dict of a `MaskedAutoencoder` from that of a ``ViTMAEForPreTraining``.

    Raises:
        ValueError: if a key is of no known kind.
    """
    return _LAYOUT.autoencoder(state)
