"""Weights of `transformers.VideoMAEForPreTraining` (5.23 and later) under our names.

Positions are not stored there: they are the joint sine-cosine table of the grid. Keys have no bias, and nor has the
projection into the decoder; ours are zero.
"""

import torch
from torch import Tensor

from core.interop.layout import Layout, State

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


def _attention(state: State, block: str) -> tuple[Tensor, Tensor]:
    inside = f"{block}attention.attention."
    query, value = state[f"{inside}query.bias"], state[f"{inside}value.bias"]
    weights = [state[f"{inside}{part}.weight"] for part in ("query", "key", "value")]
    return torch.cat(weights), torch.cat([query, torch.zeros_like(query), value])


_LAYOUT = Layout("VideoMAEForPreTraining", _TOP, _LAYERS, _BLOCK, _attention)


def autoencoder_from_videomae(state: State) -> dict[str, Tensor]:
    """The state of a `MaskedAutoencoder` with joint positions and no class token, its position tables left out.

    Raises:
        ValueError: if a key is of no known kind.
    """
    ours = _LAYOUT.autoencoder(state)
    ours["decoder.embed.bias"] = ours["decoder.embed.weight"].new_zeros(len(ours["decoder.embed.weight"]))
    return ours
