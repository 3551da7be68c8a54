"""Arrays of 1 to 4 axes in compressed bricks: a box of a large one is read without the rest, whatever its size.

A payload is a short head, a table of offsets, and the bricks in row-major order, each compressed by itself with its
bytes sorted by significance. A second array of the same shape, a mask, may stand beside the first, in its own bricks.
"""

import itertools
import json
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from core.data.codecs import register
from core.data.windows import overlap_of
from core.modality import Record

Array = NDArray[Any]
CODEC = "bricks"
"""Name under which the payloads are registered."""
LEVEL = 3
"""Effort of zstd: higher is smaller and slower to write."""
_HEAD = struct.Struct("<4sI")
_MAGIC = b"MFB1"


@dataclass(frozen=True)
class _Layout:
    """What the head of a payload says."""

    shape: tuple[int, ...]
    brick: tuple[int, ...]
    compression: str
    types: tuple[str, ...]
    """Type of the array, and of the mask where there is one."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Bricks along each axis."""
        return tuple(-(-size // side) for size, side in zip(self.shape, self.brick, strict=True))

    def extent(self, place: Sequence[int]) -> tuple[int, ...]:
        """Shape of the brick at ``place``; those at the far ends are cut."""
        sizes = zip(place, self.shape, self.brick, strict=True)
        return tuple(min(side, size - number * side) for number, size, side in sizes)


def encode(array: Array, brick: int = 32, compression: str = "lz4", mask: Array | None = None) -> bytes:
    """The payload of ``array``, in bricks of ``brick`` along each axis; ``mask`` has the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    if mask is not None and mask.shape != array.shape:
        raise ValueError(f"a mask of shape {mask.shape} beside an array of {array.shape}")
    planes = [array] if mask is None else [array, mask]
    side = tuple(min(brick, size) for size in array.shape)
    layout = _Layout(array.shape, side, compression, tuple(str(plane.dtype) for plane in planes))
    parts = [
        _compress(plane[_slices(layout, place)], compression) for plane in planes for place in np.ndindex(layout.grid)
    ]
    head = json.dumps([layout.shape, layout.brick, layout.compression, layout.types]).encode()
    ends = np.cumsum([0, *map(len, parts)], dtype="<u8")
    return b"".join([_HEAD.pack(_MAGIC, len(head)), head, ends.tobytes(), *parts])


def _slices(layout: _Layout, place: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(number * side, (number + 1) * side) for number, side in zip(place, layout.brick, strict=True))


class Bricks:
    """A payload, of which boxes are read."""

    def __init__(self, payload: bytes | memoryview) -> None:
        magic, length = _HEAD.unpack_from(payload)
        if magic != _MAGIC:
            raise ValueError("these are no bricks")
        shape, brick, compression, types = json.loads(bytes(payload[_HEAD.size : _HEAD.size + length]))
        self._layout = _Layout(tuple(shape), tuple(brick), compression, tuple(types))
        count = math.prod(self._layout.grid) * len(types)
        self._ends = np.frombuffer(payload, "<u8", count + 1, _HEAD.size + length)
        self._data = memoryview(payload)[_HEAD.size + length + 8 * (count + 1) :]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self._layout.shape

    @property
    def masked(self) -> bool:
        """Whether there is a mask."""
        return len(self._layout.types) > 1

    def box(self, corner: Sequence[int], size: Sequence[int], fill: float = 0, *, mask: bool = False) -> Array:
        """The part of ``size`` that begins at ``corner``; ``fill`` where it reaches beyond the array.

        Only the bricks that it touches are decompressed.
        """
        layout, plane = self._layout, int(mask)
        out = np.full(tuple(size), fill, dtype=layout.types[plane])
        there, _ = overlap_of(corner, size, layout.shape)
        for place in _touched(there, layout.brick):
            extent = layout.extent(place)
            start = [c - number * side for c, number, side in zip(corner, place, layout.brick, strict=True)]
            inside, target = overlap_of(start, size, extent)
            out[target] = self._brick(place, extent, plane)[inside]
        return out

    def whole(self, *, mask: bool = False) -> Array:
        """All of it."""
        return self.box((0,) * len(self.shape), self.shape, mask=mask)

    def _brick(self, place: Sequence[int], extent: tuple[int, ...], plane: int) -> Array:
        layout = self._layout
        number = int(np.ravel_multi_index(tuple(place), layout.grid)) + plane * math.prod(layout.grid)
        data = self._data[int(self._ends[number]) : int(self._ends[number + 1])]
        return _decompress(data, extent, np.dtype(layout.types[plane]), layout.compression)


def _touched(box: Sequence[slice], brick: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Places of the bricks that a box has a part in; none where it is empty."""
    if any(part.start >= part.stop for part in box):
        return iter(())
    return itertools.product(*[range(p.start // s, -(-p.stop // s)) for p, s in zip(box, brick, strict=True)])


@cache
def _codec(name: str) -> Any:
    return pa.Codec(name, compression_level=LEVEL) if name == "zstd" else pa.Codec(name)


def _compress(part: Array, compression: str) -> bytes:
    data = np.ascontiguousarray(part)
    if compression == "raw":
        return data.tobytes()
    apart = data.reshape(-1).view(np.uint8).reshape(-1, data.dtype.itemsize).T
    return bytes(_codec(compression).compress(apart.tobytes(), asbytes=True))


def _decompress(data: memoryview, extent: tuple[int, ...], dtype: "np.dtype[Any]", compression: str) -> Array:
    if compression == "raw":
        return np.frombuffer(data, dtype).reshape(extent)
    size = math.prod(extent) * dtype.itemsize
    apart = np.frombuffer(_codec(compression).decompress(data, decompressed_size=size), np.uint8)
    return _joined(apart.reshape(dtype.itemsize, -1), dtype).reshape(extent)


def _joined(apart: NDArray[np.uint8], dtype: "np.dtype[Any]") -> Array:
    """Values from their bytes, which lie apart: (bytes of a value, values), the least significant first."""
    if dtype.itemsize == 2:  # Arithmetic is five times as fast as moving single bytes, and most scans are of this type.
        joined: Array = np.left_shift(apart[1], 8, dtype=np.uint16)
        joined |= apart[0]
        return joined.view(dtype)
    return np.ascontiguousarray(apart.T).reshape(-1).view(dtype)


def _decode_all(record: Record) -> Array:
    return Bricks(record.payload).whole()


register(CODEC, encode, _decode_all)
