"""Video files of any kind into records whose clips decode fast; everything that can be wrong becomes a plain reason."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from core.data.crops import resize
from core.data.files import readable
from core.data.sources import load_row
from core.modality import Item, Record, Unreadable
from modalities.video.config import StoreConfig, VideoSettings
from modalities.video.decoding import Facts, Source, frames, look
from modalities.video.storing import CODECS, ClipWriter

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .wmv .flv .3gp .ogv".split()  # noqa: SIM905
)
"""Names that promise a video; whatever else they hold is reported as unreadable."""
COLUMNS = ("video", "clip")
"""Columns of a dataset in which a video may stand."""


def sniff(path: str) -> bool:
    """Whether a file that is not called a video begins like one."""
    try:
        with Path(path).open("rb") as source:
            head = source.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def read(item: Item, settings: VideoSettings) -> list[Record]:
    """The records of one video: its segments, in order.

    Raises:
        Unreadable: with the reason.
    """
    source = _row(item) if item.row is not None else readable(Path(item.path))
    facts = look(source, settings.max_pixels)
    total, store = len(facts.shown), settings.store
    ends = _segments(total, store.segment_frames)
    size = _stored_size(facts, store.short_side)
    records: list[Record] = []
    writer, start = ClipWriter(size, store), 0
    for number, frame in enumerate(_shrunk(source, facts, size), start=1):
        writer.add(frame)
        if number == ends[len(records)]:
            key = item.key if len(ends) == 1 else f"{item.key}#{len(records):03d}"
            records.append(_record(item, key, writer.payload(), (number - start, *size), facts, start, store))
            writer, start = ClipWriter(size, store), number
    return records


def _segments(total: int, longest: int) -> list[int]:
    """Where segments of equal length end: as many as bring them nearest to ``longest`` frames."""
    count = max(1, round(total / longest))
    return [total * number // count for number in range(1, count + 1)]


def _stored_size(facts: Facts, short_side: int | None) -> tuple[int, int]:
    """Height and width of stored frames."""
    width, height = facts.size
    factor = min(1.0, short_side / min(width, height)) if short_side else 1.0
    return max(1, round(height * factor)), max(1, round(width * factor))


def _shrunk(source: Source, facts: Facts, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Upright frames (H, W, 3) of the stored size."""
    width, height = facts.size
    for chunk in frames(source, facts):
        if (height, width) == size:
            yield from chunk
            continue
        pixels = torch.from_numpy(chunk).permute(0, 3, 1, 2)
        yield from resize(pixels, (0, 0, width, height), size).permute(0, 2, 3, 1).numpy()


def _record(
    item: Item, key: str, payload: bytes, shape: tuple[int, int, int], facts: Facts, start: int, store: StoreConfig
) -> Record:
    meta = {"fps": round(facts.rate, 4), "start": round(start / facts.rate, 3), "source": list(facts.size)}
    return Record(key, payload, CODECS[store.codec], (*shape, 3), "uint8", item.target, item.group, meta)


def _row(item: Item) -> Source:
    """The video column of a Hugging Face dataset's row."""
    row = load_row(item)
    value = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return readable(Path(value["path"]))
    if isinstance(value, str):
        return readable(Path(value))
    raise Unreadable(f"the row has no video column (it has {', '.join(row)})")
