"""Scans as people look at them: from the front, from the side, from below; the window is written beside them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from core.modality import Media
from modalities.medical.config import MedicalSettings

Array = NDArray[Any]
SMALLEST = 96
"""Pixels below which a slice is enlarged, so that people see its patches."""
GAP = 2
LINE = 14
"""Pixels of the line of text."""
RANGES = {"percentile": (0.0, 1.0), "zscore": (-2.5, 2.5), "windows": (0.0, 1.0)}
"""What is shown from black to white."""


def shown(x: Array, settings: MedicalSettings) -> list[Media]:
    """A PNG of features (C, *axes): the first channel, or colours; what is NaN is black."""
    low, high = RANGES[settings.intensity.kind]
    grey = np.nan_to_num((x - low) / (high - low), nan=0.0)
    pixels = np.clip(np.round(grey * 255), 0, 255).astype(np.uint8)
    if x.ndim == 3:
        parts = [_enlarged(pixels[0] if len(pixels) != 3 or settings.channels == 1 else pixels.transpose(1, 2, 0))]
    else:
        parts = [_enlarged(part) for part in orthogonal(pixels[0])]
    return [Media("image", ".png", _page(parts, _words(settings)))]


def orthogonal(volume: Array) -> list[Array]:
    """Axial, coronal and sagittal slices through the middle of a volume (R, A, S), as radiologists hang them.

    The patient's right is on the left of the first two, the front on top of the first and on the left of the last.
    """
    right, front, up = (n // 2 for n in volume.shape)
    axial = volume[::-1, ::-1, up].T
    coronal = volume[::-1, front, ::-1].T
    sagittal = volume[right, ::-1, ::-1].T
    return [axial, coronal, sagittal]


def _words(settings: MedicalSettings) -> str:
    intensity = settings.intensity
    if intensity.kind == "windows":
        low, high = intensity.windows[0]
        more = f" (first of {len(intensity.windows)})" if len(intensity.windows) > 1 else ""
        return f"window {low:g} to {high:g}{more}"
    return "0.5 to 99.5 %" if intensity.kind == "percentile" else "mean +- 2.5 deviations"


def _enlarged(part: Array) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(part))
    factor = max(1, -(-SMALLEST // max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _page(parts: list[Image.Image], words: str) -> bytes:
    width = sum(part.width + GAP for part in parts) - GAP
    page = Image.new("RGB", (width, max(part.height for part in parts) + LINE))
    left = 0
    for part in parts:
        page.paste(part, (left, 0))
        left += part.width + GAP
    ImageDraw.Draw(page).text((2, page.height - LINE + 1), words, fill=(200, 200, 200))
    out = io.BytesIO()
    page.save(out, "PNG")
    return out.getvalue()
