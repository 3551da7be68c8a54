"""Encoders as timm checkpoints: our names are timm's, so this is a matter of leaving things out."""

from torch import Tensor


def encoder_to_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Encoder weights that ``timm.create_model(..., num_classes=0, checkpoint_path=...)`` loads strictly.

    timm takes any state dict that holds ``mask_token`` for DINOv2, so nothing of a decoder may stay.
    """
    return {name: value for name, value in weights.items() if not name.startswith(("mask_token", "decoder"))}
