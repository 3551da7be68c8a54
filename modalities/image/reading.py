"""Image files of any kind into compact records; everything that can be wrong with a file becomes a plain reason."""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from core.data.codecs import encode
from core.data.files import content
from core.data.sources import load_row
from core.modality import Item, Record, Unreadable
from modalities.image.config import ImageSettings

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".npy"}
)
"""Names that promise an image; whatever else they hold is reported as unreadable."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\x93NUMPY")
RAW_UP_TO = 64 * 64
"""Pixels up to which a raw array is no larger than what a file format makes of it, and far quicker to read."""
Array = NDArray[Any]


def sniff(path: str) -> bool:
    """Whether a file that is not called an image begins like one."""
    try:
        with Path(path).open("rb") as source:
            head = source.read(16)
    except OSError:
        return False
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read(item: Item, settings: ImageSettings) -> Record:
    """The record of one image.

    Raises:
        Unreadable: with the reason.
    """
    data = _row_bytes(item) if item.row is not None else content(Path(item.path))
    if data.startswith(b"\x93NUMPY"):
        pixels = _shrink(_from_npy(data, settings), settings)
    else:
        pixels = _from_file(data, settings)
    return _store(item, pixels, settings)


def _row_bytes(item: Item) -> bytes:
    """The image column of a Hugging Face dataset's row, as file bytes or as an array."""
    row = load_row(item)
    value = next((row[name] for name in ("image", "img", "pixels", "array") if row.get(name) is not None), None)
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return content(Path(value["path"]))
    if value is None:
        raise Unreadable(f"the row has no image column (it has {', '.join(row)})")
    out = io.BytesIO()
    np.save(out, np.asarray(value))
    return out.getvalue()


# --- files that Pillow or tifffile open -------------------------------------------------------------------------------


def _from_file(data: bytes, settings: ImageSettings) -> Array:
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities that it then reads; what it cannot read raises.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                _refuse_bomb(picture.size, settings)
                return _from_picture(picture, data, settings)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"decompression bomb: {_first_line(error)}") from None
    except UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _shrink(_from_tiff(data, settings), settings)
        raise Unreadable(f"not an image ({_looks_like(data)})") from None
    except (OSError, SyntaxError, ValueError, IndexError, EOFError, TypeError, KeyError, AttributeError) as error:
        raise Unreadable(f"damaged image: {_first_line(error)}") from None


def _from_picture(picture: Image.Image, data: bytes, settings: ImageSettings) -> Array:
    if picture.format == "TIFF" and settings.channels not in (1, 3):
        return _shrink(_from_tiff(data, settings), settings)
    if settings.channels not in (1, 3):
        raise Unreadable(f"has {len(picture.getbands())} channels, the recipe wants {settings.channels}")
    target = settings.store.short_side
    if target and picture.format == "JPEG" and picture.mode == "RGB":
        # libjpeg decodes straight to a half, quarter or eighth, never below the size that is stored.
        picture.draft("RGB", (target, target))
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    return np.asarray(_resized(_to_mode(upright, settings), target))


def _to_mode(picture: Image.Image, settings: ImageSettings) -> Image.Image:
    """Grey or RGB, 8 bits a channel, transparency over the background colour."""
    mode = "L" if settings.channels == 1 else "RGB"
    if picture.mode.startswith(("I", "F")):
        picture = _to_eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        behind = Image.new("RGBA", picture.size, (*settings.background, 255))
        picture = Image.alpha_composite(behind, picture)
    return picture if picture.mode == mode else picture.convert(mode)


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey as 8 bits: 16-bit values by 257, others by their own range."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("holds values that are not finite")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and values.min() >= 0 and 255 < values.max() < 65536):
        values = values / 257.0
    elif values.max() > 255 or values.min() < 0:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-12) * 255
    return Image.fromarray(np.round(values).astype(np.uint8))


def _from_tiff(data: bytes, settings: ImageSettings) -> Array:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # What is wrong with a file is listed with its reason.
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as source:
            shape = source.series[0].shape
            if int(np.prod(shape, dtype=np.int64)) > settings.max_pixels * settings.channels:
                raise Unreadable(f"decompression bomb: shape {shape}")  # noqa: TRY301
            pixels = source.asarray()
    except Unreadable:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises many kinds for damaged files
        raise Unreadable(f"damaged TIFF: {_first_line(error)}") from None
    return _channels_last(pixels, settings)


# --- arrays -----------------------------------------------------------------------------------------------------------


def _from_npy(data: bytes, settings: ImageSettings) -> Array:
    try:
        pixels = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        reason = (
            "holds pickled objects, which are never loaded" if "pickle" in str(error) else f"damaged array: {error}"
        )
        raise Unreadable(reason) from None
    except (EOFError, OSError, SyntaxError, TypeError) as error:
        raise Unreadable(f"damaged array: {_first_line(error)}") from None
    return _channels_last(pixels, settings)


def _channels_last(pixels: Array, settings: ImageSettings) -> Array:
    """(H, W, C) of a numeric array that has its channels first, last, or, for one channel, not at all."""
    if pixels.dtype.kind not in "uif" or 0 in pixels.shape:
        raise Unreadable(f"array of type {pixels.dtype} and shape {pixels.shape} is no image")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise Unreadable("holds values that are not finite")
    if pixels.ndim == 2 and settings.channels == 1:
        return pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] == settings.channels:
        return pixels
    if pixels.ndim == 3 and pixels.shape[0] == settings.channels:
        return np.moveaxis(pixels, 0, 2)
    raise Unreadable(f"array of shape {pixels.shape} has no axis of {settings.channels} channels")


def _shrink(pixels: Array, settings: ImageSettings) -> Array:
    """Shrink an array to the stored size, channel by channel, in its own type."""
    target = settings.store.short_side
    if target is None or min(pixels.shape[:2]) <= target:
        return pixels
    planes = [
        np.asarray(_resized(Image.fromarray(pixels[..., c].astype(np.float32)), target)) for c in range(pixels.shape[2])
    ]
    out = np.stack(planes, axis=-1)
    if pixels.dtype.kind == "f":
        return out.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)
    return np.clip(np.round(out), limits.min, limits.max).astype(pixels.dtype)


# --- storing ----------------------------------------------------------------------------------------------------------


def _resized(picture: Image.Image, short_side: int | None) -> Image.Image:
    if short_side is None or min(picture.size) <= short_side:
        return picture
    factor = short_side / min(picture.size)
    size = (max(short_side, round(picture.width * factor)), max(short_side, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _store(item: Item, pixels: Array, settings: ImageSettings) -> Record:
    store = settings.store
    shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    codec = store.codec
    if codec == "auto":
        codec = "raw" if shape[0] * shape[1] <= RAW_UP_TO else "jpeg"
    if pixels.dtype != np.uint8 or shape[2] not in (1, 3):
        codec = "raw"
    options = {} if codec == "raw" else {"quality": store.quality}
    payload = encode(pixels.squeeze(2) if pixels.ndim == 3 and shape[2] == 1 else pixels, codec, **options)
    return Record(item.key, payload, codec, shape, str(pixels.dtype), item.target, item.group)


def _refuse_bomb(size: tuple[int, int], settings: ImageSettings) -> None:
    if size[0] * size[1] > settings.max_pixels:
        raise Unreadable(f"decompression bomb: {size[0]}x{size[1]} pixels, the limit is {settings.max_pixels}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _looks_like(data: bytes) -> str:
    for magic, name in ((b"%PDF", "a PDF"), (b"PK\x03\x04", "a zip archive"), (b"<", "HTML or XML"), (b"\0", "zeros")):
        if data.startswith(magic):
            return f"it is {name}" if name != "zeros" else "it begins with zeros"
    try:
        data[:512].decode("ascii")
    except UnicodeDecodeError:
        return "unknown content"
    return "it is text"
