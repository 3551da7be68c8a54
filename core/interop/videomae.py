"""Weights of `transformers.VideoMAEForPreTraining` (5.23 and later) under our names.

Positions are not stored there: they are the joint sine-cosine table of the grid. Keys have no bias, and nor has the
projection into the decoder; ours are zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_TOP = {
    "mask_token": "decoder.mask_token",
    "videomae.embeddings.patch_embeddings.projection.weight": "encoder.patch_embed.proj.weight",
    "videomae.embeddings.patch_embeddings.projection.bias": "encoder.patch_embed.proj.bias",
    "videomae.layernorm.weight": "encoder.norm.weight",
    "videomae.layernorm.bias": "encoder.norm.bias",
    "encoder_to_decoder.weight": "decoder.embed.weight",
    "decoder.norm.weight": "decoder.norm.weight",
    "decoder.norm.bias": "decoder.norm.bias",
    "decoder.head.weight": "decoder.pred.weight",
    "decoder.head.bias": "decoder.pred.bias",
}
_LAYERS = {"videomae.encoder.layer.": "encoder.blocks.", "decoder.decoder_layers.": "decoder.blocks."}


def autoencoder_from_videomae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `MaskedAutoencoder` with joint positions and no class token, its position tables left out.

    Raises:
        ValueError: if a key is of no known kind.
    """
    known = (*_TOP, *_LAYERS)
    unknown = [name for name in state if not name.startswith(known)]
    if unknown:
        raise ValueError(f"not a VideoMAEForPreTraining state dict: unknown key {unknown[0]!r} ({len(unknown)} in all)")
    ours = {_TOP[name]: value for name, value in state.items() if name in _TOP}
    ours["decoder.embed.bias"] = ours["decoder.embed.weight"].new_zeros(len(ours["decoder.embed.weight"]))
    for theirs, mine in _LAYERS.items():
        numbers = {int(name.removeprefix(theirs).split(".")[0]) for name in state if name.startswith(theirs)}
        for number in sorted(numbers):
            ours |= _block(state, f"{theirs}{number}.", f"{mine}{number}.")
    return ours


def _block(state: Mapping[str, Tensor], theirs: str, mine: str) -> dict[str, Tensor]:
    """One transformer block; query, key and value become one matrix, as in timm."""
    block = {}
    for kind in ("weight", "bias"):
        for old, new in _BLOCK.items():
            block[f"{mine}{new}.{kind}"] = state[f"{theirs}{old}.{kind}"]
    attention = f"{theirs}attention.attention."
    query, value = state[f"{attention}query.bias"], state[f"{attention}value.bias"]
    block[f"{mine}attn.qkv.weight"] = torch.cat(
        [state[f"{attention}{part}.weight"] for part in ("query", "key", "value")]
    )
    block[f"{mine}attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return block
