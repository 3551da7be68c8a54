"""The reconstruction target and loss (He et al. 2021, section 3), and the target's inverse for pictures."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.config import NormPix, PretrainConfig
from core.modality import Batch, Stats
from core.model.mae import MaskedAutoencoder
from core.model.masking import Mask, MaskSampler, running_cells
from core.model.patches import PatchSpec, gather_tokens

EPS = 1e-6


@dataclass(slots=True)
class PatchScale:
    """Shift and scale that a target was normalised with."""

    shift: Tensor
    """(B, M, 1 or P)."""
    scale: Tensor
    """(B, M, 1 or P)."""


class PixelTarget:
    """Turns patches of normalised input into targets by one of the four conventions, and back into features.

    With a stride, only every so many-th index along the first axis of a patch is a target: (B, M, P / stride).

    Raises:
        ValueError: if the stride does not divide that axis.
    """

    def __init__(self, config: PretrainConfig, spec: PatchSpec, stats: Stats) -> None:
        self._norm = config.norm_pix
        self._channels = spec.channels
        self.stats = stats
        self._first, self._stride = spec.patch_shape[0], config.predict_stride
        if self._first % self._stride:
            raise ValueError(f"predict_stride {self._stride} does not divide the patch's first axis of {self._first}")

    def __call__(self, patches_BMP: Tensor) -> tuple[Tensor, PatchScale]:
        """Targets (B, M, P / stride) in float32, and what would undo them."""
        values = upcast(patches_BMP)
        if self._stride > 1:
            values = values.reshape(*values.shape[:-1], self._first, -1)[..., :: self._stride, :].flatten(-2)
        if self._norm is NormPix.CHANNEL_STD:
            values = self._per_pixel(values) * self.stats.std + self.stats.mean
            values = values.flatten(-2)
        scale = self._scale(values)
        return (values - scale.shift) / scale.scale, scale

    def restore(self, predicted_BMP: Tensor, scale: PatchScale) -> Tensor:
        """Predictions (B, M, P / stride) as whole patches (B, M, P) in the units of the plugin's features."""
        values = upcast(predicted_BMP) * scale.scale + scale.shift
        values = values if self._norm is NormPix.CHANNEL_STD else self.denormalise(values)
        if self._stride > 1:  # What is not predicted is shown as what is before it.
            parts = values.reshape(*values.shape[:-1], self._first // self._stride, -1)
            values = parts.repeat_interleave(self._stride, dim=-2).flatten(-2)
        return values

    def denormalise(self, patches_BMP: Tensor) -> Tensor:
        """Patches of normalised input (B, M, P) in the units of the plugin's features."""
        return (self._per_pixel(upcast(patches_BMP)) * self.stats.std + self.stats.mean).flatten(-2)

    def _per_pixel(self, values: Tensor) -> Tensor:
        """(B, M, P) to (B, M, P / C, C): channels are last inside a patch."""
        return values.reshape(*values.shape[:-1], -1, self._channels)

    def _scale(self, values: Tensor) -> PatchScale:
        if self._norm is NormPix.NONE:
            return PatchScale(torch.zeros_like(values[..., :1]), torch.ones_like(values[..., :1]))
        if self._norm is NormPix.PATCH:
            return PatchScale(values.mean(-1, keepdim=True), (values.var(-1, keepdim=True) + EPS).sqrt())
        if self._norm is NormPix.LAYER_NORM:
            variance = values.var(-1, keepdim=True, correction=0)
            return PatchScale(values.mean(-1, keepdim=True), (variance + EPS).sqrt())
        pixels = self._per_pixel(values)
        variance = pixels.var(-2, keepdim=True)
        scale = (variance + EPS).sqrt() if self._norm is NormPix.CHANNEL_VAR else variance.sqrt() + EPS
        shift = pixels.mean(-2, keepdim=True)
        return PatchScale(shift.expand_as(pixels).flatten(-2), scale.expand_as(pixels).flatten(-2))


def upcast(x: Tensor) -> Tensor:
    """Half precisions in float32, anything wider as it is: losses are never computed in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def reconstruction_loss(predicted_BMP: Tensor, target_BMP: Tensor, valid_BM: Tensor | None = None) -> Tensor:
    """Mean squared error over the decoded hidden patches; padding does not count."""
    per_patch = (upcast(predicted_BMP) - target_BMP).square().mean(dim=-1)
    if valid_BM is None:
        return per_patch.mean()
    weights = valid_BM.to(per_patch.dtype)
    return (per_patch * weights).sum() / weights.sum().clamp_min(1.0)


Facts = dict[str, float | Tensor]
"""Values that stand beside the loss in the training curves, scalars on the device among them, which are read seldom."""


class Objective(nn.Module, ABC):
    """A forward pass that ends in a loss: what the training loop trains."""

    model: nn.Module
    """The part whose weights are kept."""

    @abstractmethod
    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Facts]:
        """Loss of a micro-batch, a scalar on the device, and what else is known of it; never waits for the device."""


class MaskedObjective(Objective):
    """One pretraining forward pass: masks, reconstruction, loss. Never waits for the device."""

    model: MaskedAutoencoder

    def __init__(self, model: MaskedAutoencoder, config: PretrainConfig, masks: MaskSampler, stats: Stats) -> None:
        super().__init__()
        self.model = model
        self.draw = masks
        self._repeats = config.masks_per_sample
        self._fraction = config.decode_fraction
        self.target = PixelTarget(config, model.encoder.spec, stats)
        cells = config.decode_kind == "running_cell"
        self._first = running_cells(model.encoder.spec.grid, self._fraction) if cells else None

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Facts]:
        """The reconstruction loss, and the realised mask ratio: of real patches, where some are padding."""
        patches, valid = self.model.encoder.spec.patchify(batch.x), batch.valid
        if self._repeats > 1:
            patches = patches.repeat_interleave(self._repeats, dim=0)
            valid = None if valid is None else valid.repeat_interleave(self._repeats, dim=0)
        mask = self.draw(patches.shape[0], rng, valid)
        decode = self.decoded(mask, rng)
        predicted = self.model(patches, mask, decode, valid)
        target, _ = self.target(gather_tokens(patches, decode))
        counted = None if valid is None else valid.gather(1, decode)
        return reconstruction_loss(predicted, target, counted), {"mask_ratio": mask.realised(valid)}

    def decoded(self, mask: Mask, rng: torch.Generator) -> Tensor:
        """The hidden patches (B, M') that are decoded: all, the first of their random order, or those in the cells."""
        hidden = mask.masked_BM
        count = max(1, round(hidden.shape[1] * self._fraction))
        if self._first is not None:
            # As many for each sample: where a pattern has too few hidden patches, others make up for them.
            outside = ~self._first(hidden.shape[0], rng).gather(1, hidden)
            hidden = hidden.gather(1, outside.int().argsort(dim=1, stable=True))
        return hidden[:, :count]
