"""Reconstructions a person can judge: original, masked and reconstructed side by side."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from core.modality import Batch, Modality
from core.model.objective import MaskedObjective
from core.model.patches import gather_tokens

if TYPE_CHECKING:
    import numpy as np

GAP = 4
"""Pixels between two pictures."""


@torch.no_grad()
def reconstruct(objective: MaskedObjective, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Original, masked and reconstructed inputs (B, C, *input_shape) in the units of the plugin's features.

    Predictions are de-normalised with the statistics of the patch they stand for, as the target was normalised;
    visible patches are the original's. Hidden patches of the masked input are the mean of the data.
    """
    model, spec = objective.model, objective.model.encoder.spec
    patches = spec.patchify(batch.x)
    mask = objective.draw(patches.shape[0], rng, batch.valid)
    predicted = model(patches, mask, mask.masked_BM, batch.valid)
    _, scale = objective.target(gather_tokens(patches, mask.masked_BM))
    places = mask.masked_BM.unsqueeze(-1).expand(-1, -1, spec.values)
    original = objective.target.denormalise(patches)
    hidden = objective.target.denormalise(torch.zeros_like(patches))
    masked = original.scatter(1, places, hidden.gather(1, places))
    filled = original.scatter(1, places, objective.target.restore(predicted, scale))
    return spec.unpatchify(original), spec.unpatchify(masked), spec.unpatchify(filled)


def sheet(plugin: Modality[Any], columns: Sequence[Tensor]) -> bytes:
    """A PNG with one row per sample and one column per tensor (B, C, *input_shape) of ``columns``."""
    cells = [[_still(plugin, x.float().cpu().numpy()) for x in column] for column in columns]
    width, height = cells[0][0].size
    page = Image.new("RGB", ((width + GAP) * len(cells) - GAP, (height + GAP) * len(cells[0]) - GAP), "white")
    for column, stills in enumerate(cells):
        for row, still in enumerate(stills):
            page.paste(still, (column * (width + GAP), row * (height + GAP)))
    out = io.BytesIO()
    page.save(out, "PNG", optimize=True)
    return out.getvalue()


def _still(plugin: Modality[Any], x: "np.ndarray[Any, Any]") -> Image.Image:
    picture = plugin.render(x)[0]
    return Image.open(io.BytesIO(picture.data)).convert("RGB")
