"""Masks of images: read, kept without loss behind the image's own bytes, and cut like it."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from core.data.codecs import decode, encode, register
from core.data.crops import Box
from core.data.files import content
from core.modality import Record, Unreadable
from core.segmentation import IGNORE

CODEC = "masked"
"""An image in the codec that ``meta`` names, and behind it its mask as a PNG."""
ROUNDING = 1
"""Pixels by which sizes may differ where decoders shrink an image while they read it."""
Array = NDArray[Any]


def read_mask(file: Path) -> Array:
    """The mask (H, W) uint8 in a PNG or .npy file; values of a palette are its indices.

    Raises:
        Unreadable: with the reason.
    """
    data = content(file)
    try:
        if data.startswith(b"\x93NUMPY"):
            mask = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(data)) as picture:
                mask = np.asarray(picture)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError):
        raise Unreadable("its mask is damaged, or no image") from None
    mask = mask[..., 0] if mask.ndim == 3 and mask.shape[2] == 1 else mask
    if mask.ndim != 2 or mask.dtype.kind not in "uib":
        raise Unreadable(
            f"its mask is of shape {mask.shape} and type {mask.dtype}, not (rows, columns) of whole numbers"
        )
    if mask.size and (mask.min() < 0 or mask.max() > IGNORE):
        raise Unreadable(f"its mask holds values of {mask.min()} to {mask.max()}, not of 0 to {IGNORE}")
    found: Array = mask.astype(np.uint8)
    return found


def with_mask(record: Record, mask: Array, short_side: int | None) -> Record:
    """``record`` with its mask, shrunk like the image, and labelled with the values in it.

    Raises:
        Unreadable: if the mask is not of the image's size.
    """
    size, source = record.shape[:2], mask.shape
    short = min(source)
    factor = short_side / short if short_side and short > short_side else 1.0
    if any(abs(max(1, round(n * factor)) - stored) > ROUNDING for n, stored in zip(source, size, strict=True)):
        raise Unreadable(f"its mask has {source[1]}x{source[0]} pixels, which is not the image's size")
    kept = resize_mask(mask, (0, 0, source[1], source[0]), (size[0], size[1]))
    inside = np.unique(kept[kept != IGNORE]).tolist()
    facts = {"codec": record.codec, "mask_at": len(record.payload)}
    facts["spacing"] = [n / stored for n, stored in zip(source, size, strict=True)]
    payload = record.payload + encode(kept, "png")
    return replace(record, payload=payload, codec=CODEC, target=inside or None, meta=record.meta | facts)


def image_of(record: Record) -> Record:
    """The image of ``record`` alone."""
    if record.codec != CODEC:
        return record
    return replace(record, payload=record.payload[: record.meta["mask_at"]], codec=record.meta["codec"])


def mask_of(record: Record) -> Array | None:
    """The mask (H, W) uint8 of ``record``; None where it has none."""
    if record.codec != CODEC:
        return None
    mask: Array = decode(replace(record, payload=record.payload[record.meta["mask_at"] :], codec="png"))
    return mask


def resize_mask(mask: Array, box: Box, size: tuple[int, int]) -> Array:
    """``box`` of a mask (H, W) at ``size`` (height, width): each pixel has the value that lies at its centre."""
    left, upper, right, lower = box
    rows = upper + ((np.arange(size[0]) + 0.5) * (lower - upper) / size[0]).astype(np.int64)
    columns = left + ((np.arange(size[1]) + 0.5) * (right - left) / size[1]).astype(np.int64)
    found: Array = mask[rows][:, columns]
    return found


def _never(*_: Any, **__: Any) -> bytes:
    raise TypeError("images get their masks from `with_mask`")


register(CODEC, _never, lambda record: decode(image_of(record)))
