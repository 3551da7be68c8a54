"""Weights of a finished encoder for inputs of another size than it was trained on."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.model.patches import PatchSpec
from core.model.positions import cut_or_extend, resample
from core.records import Geometry, PretrainedEncoder


def geometry_of(spec: PatchSpec) -> Geometry:
    """The record's form of a `PatchSpec`."""
    return Geometry(channels=spec.channels, input_shape=spec.input_shape, patch_shape=spec.patch_shape)


def spec_of(geometry: Geometry) -> PatchSpec:
    """The inverse of `geometry_of`."""
    return PatchSpec(geometry.channels, geometry.input_shape, geometry.patch_shape)


def weights_at(folder: Path, record: PretrainedEncoder, spec: PatchSpec) -> dict[str, Tensor]:
    """The weights of an encoder in ``folder``, its positions brought to the grid of ``spec`` where that differs."""
    weights: dict[str, Tensor] = load_file(folder / record.weights)
    weights["pos_embed"] = on_grid(weights["pos_embed"], record, spec, record.model.width)
    return weights


def on_grid(table: Tensor, record: PretrainedEncoder, spec: PatchSpec, width: int) -> Tensor:
    """The positions (1, prefix + N, ``width``) of a record's encoder or decoder, brought to the grid of ``spec``."""
    old, model = spec_of(record.geometry), record.model
    if old.grid == spec.grid:
        return table
    prefix = table.shape[1] - old.count
    if model.other_size == "stretch":
        places = resample(table[:, prefix:], old.grid, spec.grid)
    elif model.positions == "learned":
        places = cut_or_extend(table[:, prefix:], old.grid, spec.grid)
    else:
        from core.model.mae import fixed_positions  # With it comes timm, which preparing data must not wait for.

        places = fixed_positions(spec, model, width)[:, int(model.cls_token) :]
    return torch.cat([table[:, :prefix], places], dim=1)
