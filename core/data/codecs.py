"""Codecs of stored payloads, by name: a contiguous array, or a file format that decodes to one."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import UserError
from core.modality import Record

Array = NDArray[Any]
Encode = Callable[..., bytes]
Decode = Callable[[Record], Array]


def encode(array: Array, codec: str, **options: Any) -> bytes:
    """The payload of ``array``; jpeg, webp and png take (H, W) or (H, W, 3) uint8."""
    return _codec(codec)[0](array, **options)


def decode(record: Record) -> Array:
    """The array behind ``record``; read-only where it is stored raw."""
    return _codec(record.codec)[1](record)


def register(name: str, encoder: Encode, decoder: Decode) -> None:
    """Add a codec; an existing one is not replaced.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _CODECS:
        raise ValueError(f"codec {name!r} is already registered")
    _CODECS[name] = (encoder, decoder)


def _codec(name: str) -> tuple[Encode, Decode]:
    if name not in _CODECS:
        raise UserError(f"codec {name!r} is unknown; known: {', '.join(sorted(_CODECS))}")
    return _CODECS[name]


def _encode_raw(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _decode_raw(record: Record) -> Array:
    return np.frombuffer(record.payload, dtype=record.dtype).reshape(record.shape)


def _file_encoder(file_format: str, **defaults: Any) -> Encode:
    def encoder(array: Array, **options: Any) -> bytes:
        from PIL import Image

        out = io.BytesIO()
        Image.fromarray(array).save(out, file_format, **(defaults | options))
        return out.getvalue()

    return encoder


def _decode_file(record: Record) -> Array:
    from PIL import Image

    with Image.open(io.BytesIO(record.payload)) as picture:
        grey = len(record.shape) == 2 or record.shape[2] == 1
        # WebP knows no grey pictures and gives three channels alike.
        return np.asarray(picture.convert("L") if grey and picture.mode == "RGB" else picture)


_CODECS: dict[str, tuple[Encode, Decode]] = {
    "raw": (_encode_raw, _decode_raw),
    "jpeg": (_file_encoder("JPEG", quality=90), _decode_file),
    "webp": (_file_encoder("WEBP", quality=90), _decode_file),
    "png": (_file_encoder("PNG"), _decode_file),
}
