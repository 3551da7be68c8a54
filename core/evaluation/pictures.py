"""Reconstructions a person can judge: original, masked and reconstructed side by side, moving or to be heard."""

import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageSequence
from torch import Tensor

from core.evaluation.report_words import COLUMNS
from core.modality import Batch, Media, Modality
from core.model.objective import MaskedObjective
from core.model.patches import gather_tokens

GAP = 4
"""Pixels between two pictures."""
MOVING = 4
"""Samples in an animation."""
HEARD = 2
"""Samples that are heard."""
Rendered = Sequence[Sequence[Sequence[Media]]]
"""What a plugin renders of each sample of each column."""


@torch.no_grad()
def reconstruct(objective: MaskedObjective, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Original, masked and reconstructed inputs (B, C, *input_shape) in the units of the plugin's features.

    Predictions are de-normalised with the statistics of the patch they stand for, as the target was normalised;
    visible patches are the original's. Hidden patches of the masked input are the mean of the data; padding is NaN.
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
    if batch.valid is not None:
        original, masked, filled = (
            x.masked_fill(~batch.valid.unsqueeze(-1), math.nan) for x in (original, masked, filled)
        )
    return spec.unpatchify(original), spec.unpatchify(masked), spec.unpatchify(filled)


def most_to_show(batch: Batch, count: int) -> Batch:
    """The ``count`` samples with the least padding, the first of equal ones: little of a short sample is hidden."""
    padding = torch.zeros(len(batch.x)) if batch.valid is None else (~batch.valid).sum(1)
    rows = padding.argsort(stable=True)[:count]
    return Batch(batch.x[rows], valid=None if batch.valid is None else batch.valid[rows])


def rendered(plugin: Modality[Any], columns: Sequence[Tensor]) -> Rendered:
    """The plugin's media of every sample of ``columns``, tensors (B, C, *input_shape)."""
    return [[plugin.render(x.float().cpu().numpy()) for x in column] for column in columns]


def sheet(columns: Rendered) -> bytes:
    """A PNG of the still pictures: one row per sample, one column per column."""
    out = io.BytesIO()
    _page([[_still(media) for media in column] for column in columns]).save(out, "PNG", optimize=True)
    return out.getvalue()


def moving_sheet(columns: Rendered, rows: int = MOVING) -> bytes | None:
    """An animated GIF of the first ``rows`` samples, arranged like `sheet`; None where there are no animations."""
    clips = [[_moving(media) for media in column[:rows]] for column in columns]
    times = [milliseconds for column in clips for clip in column for _, milliseconds in clip]
    if not times or not all(clip for column in clips for clip in column):
        return None
    # Files leave out a frame that equals the one before it, which then stands longer: all run by one clock here.
    tick = min(times)
    cells = [[[frame for frame, t in clip for _ in range(max(1, round(t / tick)))] for clip in c] for c in clips]
    count = max(len(frames) for column in cells for frames in column)
    pages = [_page([[frames[min(i, len(frames) - 1)] for frames in c] for c in cells]) for i in range(count)]
    # One palette for all frames, or colours would flicker.
    width, height = pages[0].size
    every = Image.new("RGB", (width, height * count))
    for number, page in enumerate(pages):
        every.paste(page, (0, height * number))
    palette = every.quantize(256)
    shown = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    out = io.BytesIO()
    shown[0].save(out, "GIF", save_all=True, append_images=shown[1:], duration=tick, loop=0)
    return out.getvalue()


def sounds(columns: Rendered, rows: int = HEARD) -> list[tuple[str, Media]]:
    """Name (``1-original``) and sound of each column of the first ``rows`` samples; none where nothing sounds."""
    found = []
    for row in range(min(rows, len(columns[0]))):
        for name, column in zip(COLUMNS, columns, strict=True):
            found += [(f"{row + 1}-{name}", media) for media in column[row] if media.kind == "sound"][:1]
    return found


def _page(cells: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Columns of pictures of one size on white."""
    width, height = cells[0][0].size
    page = Image.new("RGB", ((width + GAP) * len(cells) - GAP, (height + GAP) * len(cells[0]) - GAP), "white")
    for column, stills in enumerate(cells):
        for row, still in enumerate(stills):
            page.paste(still, (column * (width + GAP), row * (height + GAP)))
    return page


def _still(media: Sequence[Media]) -> Image.Image:
    return Image.open(io.BytesIO(media[0].data)).convert("RGB")


def _moving(media: Sequence[Media]) -> list[tuple[Image.Image, int]]:
    """Frames of the first animation with their milliseconds; none where there is no animation."""
    animation = next((m for m in media if m.kind == "animation"), None)
    if animation is None:
        return []
    with Image.open(io.BytesIO(animation.data)) as clip:
        return [
            (frame.convert("RGB"), int(frame.info.get("duration") or 100)) for frame in ImageSequence.Iterator(clip)
        ]
