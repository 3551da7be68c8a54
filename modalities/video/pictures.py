"""Clips as people see them: a strip of frames, and a moving picture."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.modality import Media

SMALLEST, LARGEST = 96, 160
"""Pixels of the short side below which frames are enlarged, and above which those of a strip are shrunk."""
STRIP = 4
"""Frames of a strip."""
MILLISECONDS = 120
"""How long a frame is seen."""


def film(x: NDArray[Any]) -> list[Media]:
    """A clip (C, T, H, W) of values 0 to 1 as a PNG strip of evenly spaced frames and as an animated GIF."""
    pixels = np.clip(np.round(x.transpose(1, 2, 3, 0) * 255), 0, 255).astype(np.uint8)
    frames = [_enlarged(Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame)) for frame in pixels]
    return [Media("image", ".png", _strip(frames)), Media("animation", ".gif", _moving(frames))]


def _enlarged(frame: Image.Image) -> Image.Image:
    factor = max(1, -(-SMALLEST // min(frame.size)))
    return frame.resize((frame.width * factor, frame.height * factor), Image.Resampling.NEAREST)


def _strip(frames: Sequence[Image.Image]) -> bytes:
    chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(STRIP, len(frames)))]
    shrunk = min(1.0, LARGEST / min(chosen[0].size))
    width, height = (round(side * shrunk) for side in chosen[0].size)
    strip = Image.new("RGB", (width * len(chosen), height))
    for number, frame in enumerate(chosen):
        strip.paste(frame.resize((width, height), Image.Resampling.BILINEAR), (number * width, 0))
    out = io.BytesIO()
    strip.save(out, "PNG")
    return out.getvalue()


def _moving(frames: Sequence[Image.Image]) -> bytes:
    out = io.BytesIO()
    colours = [frame.convert("RGB").quantize(256) for frame in frames]
    colours[0].save(out, "GIF", save_all=True, append_images=colours[1:], duration=MILLISECONDS, loop=0)
    return out.getvalue()
