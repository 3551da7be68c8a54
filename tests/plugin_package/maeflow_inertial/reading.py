"""One recording into segments; everything that can be wrong with a file becomes a plain reason, without its path."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.codecs import encode
from core.data.sources import load_row
from core.modality import Item, Record, Unreadable

SUFFIXES = frozenset({".csv", ".npy"})
"""Names that promise a recording; files of other names are left alone."""
CHANNELS = 6
"""Accelerometer x, y, z, then gyroscope x, y, z."""
COLUMNS = ("signal", "array", "values")
"""Columns of a Hugging Face dataset that may hold (time, channels); the first that is there counts."""
Array = NDArray[Any]


def read(item: Item, segment: int) -> list[Record]:
    """The recording in segments of ``segment`` samples that together cover it, each (channels, time) float16.

    Half precision keeps 11 significant bits, about what such sensors measure with.

    Raises:
        Unreadable: with the reason.
    """
    signal = _checked(_from_row(item) if item.row is not None else _from_file(Path(item.path)))
    records = []
    for number, start in enumerate(starts(len(signal), segment)):
        part = signal[start : start + segment].T
        meta = {"start": start}
        payload = encode(part, "raw")
        key = f"{item.key}#{number:03d}"
        records.append(Record(key, payload, "raw", part.shape, str(part.dtype), item.target, item.group, meta))
    return records


def starts(length: int, part: int, count: int | None = None) -> list[int]:
    """Where ``count`` parts of a signal begin, at even distances from its start to its end.

    By default as few as cover it, so that neighbours overlap a little; a signal no longer than a part has one.
    """
    if length <= part:
        return [0]
    count = -(-length // part) if count is None else count
    if count == 1:
        return [(length - part) // 2]
    return [round(number * (length - part) / (count - 1)) for number in range(count)]


def _from_file(path: Path) -> Array:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise Unreadable("missing file") from None
    except IsADirectoryError:
        raise Unreadable("is a folder, not a file") from None
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    if not data:
        raise Unreadable("empty file")
    return _from_npy(data) if path.suffix.lower() == ".npy" else _from_csv(data)


def _from_npy(data: bytes) -> Array:
    if not data.startswith(b"\x93NUMPY"):
        raise Unreadable("is called .npy, but is not a NumPy array")
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError) as error:
        pickled = "pickle" in str(error)
        reason = "holds pickled objects, which are never loaded" if pickled else "damaged or cut off array"
        raise Unreadable(reason) from None
    return array


def _from_csv(data: bytes) -> Array:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise Unreadable("is called .csv, but is not text") from None
    header = lines[0].split(",") if lines else []
    if len(header) != CHANNELS:
        raise Unreadable(f"its first line has {_columns(len(header))}; needed are the names of {CHANNELS} channels")
    if all(map(_is_number, header)):
        raise Unreadable("its first line holds numbers; needed are the names of the channels")
    if not any(line.strip() for line in lines[1:]):
        raise Unreadable("holds no samples, only the names of the channels")
    try:
        return np.loadtxt(lines[1:], delimiter=",", comments=None, dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise Unreadable(f"not a table of numbers: {str(error).partition(';')[0][:120]}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _from_row(item: Item) -> Array:
    row = load_row(item)
    value: Any = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if value is None:
        raise Unreadable(f"the row has none of the columns {', '.join(COLUMNS)} (it has {', '.join(row)})")
    try:
        return np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError):
        raise Unreadable("the row holds no (time, channels) table of numbers") from None


def _checked(array: Array) -> Array:
    """(time, channels) float16 of a sound recording."""
    if array.dtype.kind not in "uif" or array.ndim != 2:
        raise Unreadable(f"an array of shape {array.shape} and type {array.dtype}, not (time, channels) of numbers")
    if array.shape[1] != CHANNELS:
        raise Unreadable(f"has {_columns(array.shape[1])}, not {CHANNELS}: accelerometer and gyroscope, x, y, z each")
    if array.shape[0] == 0:
        raise Unreadable("holds no samples")
    if not np.isfinite(array).all():
        raise Unreadable("holds values that are not finite")
    if max(-array.min(), array.max()) > np.finfo(np.float16).max:
        raise Unreadable("holds values beyond 65504; give them in larger units, such as g and rad/s")
    return array.astype(np.float16)


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


def fit(signal: Array, start: int, window: int) -> tuple[Array, int]:
    """(channels, ``window``) of ``signal`` from ``start``, and how many of its samples are real.

    What is missing at the end repeats the last sample.
    """
    part = signal[:, start : start + window]
    real = part.shape[1]
    return np.pad(part, ((0, 0), (0, window - real)), mode="edge"), real
