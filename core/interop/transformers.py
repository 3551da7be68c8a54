"""Weights of `transformers.ViTMAEForPreTraining` (5.x key layout) under our names."""

from collections.abc import Mapping

import torch
from torch import Tensor

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


def autoencoder_from_vit_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a `MaskedAutoencoder` from that of a ``ViTMAEForPreTraining``.

    Raises:
        ValueError: if a key is of no known kind.
    """
    ours = {_TOP[name]: value for name, value in state.items() if name in _TOP}
    for theirs, mine in (("vit.layers.", "encoder.blocks."), ("decoder.decoder_layers.", "decoder.blocks.")):
        numbers = {int(name.removeprefix(theirs).split(".")[0]) for name in state if name.startswith(theirs)}
        for number in sorted(numbers):
            ours |= _block(state, f"{theirs}{number}.", f"{mine}{number}.")
    known = set(_TOP)
    unknown = [n for n in state if n not in known and not n.startswith(("vit.layers.", "decoder.decoder_layers."))]
    if unknown:
        raise ValueError(f"not a ViTMAEForPreTraining state dict: unknown key {unknown[0]!r} ({len(unknown)} in all)")
    return ours


def _block(state: Mapping[str, Tensor], theirs: str, mine: str) -> dict[str, Tensor]:
    """One transformer block; query, key and value become one matrix, as in timm."""
    block = {}
    for kind in ("weight", "bias"):
        for old, new in _BLOCK.items():
            block[f"{mine}{new}.{kind}"] = state[f"{theirs}{old}.{kind}"]
        parts = [state[f"{theirs}attention.{part}_proj.{kind}"] for part in "qkv"]
        block[f"{mine}attn.qkv.{kind}"] = torch.cat(parts)
    return block
