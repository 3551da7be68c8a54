"""A video file as upright RGB frames at a constant rate, a few at a time.

PyAV looks at the file: what it holds, how it is turned, when its frames are shown. decord then decodes, and PyAV where
decord cannot. Both use one thread, for files are read side by side.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from core.modality import Unreadable

Frames = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""
CHUNK_BYTES = 64 * 2**20
"""Decoded frames that are held at once."""
PICTURES = ("image2", "_pipe", "gif", "tty", "apng")
"""Formats that ffmpeg opens as videos and people do not."""
FALLBACK_RATE = 25.0
"""Frames per second where a file does not say when its frames are shown."""
Source = Path | bytes


@dataclass(frozen=True)
class Facts:
    """What is known of a video before it is decoded."""

    width: int
    height: int
    turns: int
    """Quarter turns to the left that make the frames upright."""
    rate: float
    """Frames per second, as shown."""
    shown: NDArray[np.int64]
    """(T,) which coded frame is shown at each tick of that rate."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright."""
        return (self.height, self.width) if self.turns % 2 else (self.width, self.height)


def look(source: Source, max_pixels: int) -> Facts:
    """What ``source`` holds; nothing but one frame is decoded.

    Raises:
        Unreadable: with the reason, if it is no video that can be used.
    """
    try:
        with _opened(source) as container:
            stream = _video_of(container)
            width, height = _size_of(stream, max_pixels)
            turns = _turns(next(container.decode(stream), None))
            times = _times(source, stream.index)
            declared = stream.frames
        rate, shown = timeline(times, float(stream.average_rate or FALLBACK_RATE))
    except Unreadable:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError, IndexError) as error:
        raise Unreadable(f"not a video that can be opened ({_words(error)})") from None
    if declared and len(times) < 0.9 * declared:
        raise Unreadable(f"cut short: {len(times)} of {declared} frames are there")
    return Facts(width, height, turns, rate, shown)


def frames(source: Source, facts: Facts) -> Iterator[Frames]:
    """The frames of ``source``, upright and at a constant rate, in chunks of bounded size.

    Raises:
        Unreadable: if it cannot be decoded to its end.
    """
    # Turned videos are PyAV's: what decord does with them depends on its version.
    ways: list[Callable[[Source, Facts], Iterator[Frames]]] = [_by_pyav] if facts.turns else [_by_decord, _by_pyav]
    told = 0
    for number, way in enumerate(ways):
        skip = told
        try:
            for chunk in way(source, facts):
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                if len(fresh):
                    told += len(fresh)
                    yield np.ascontiguousarray(np.rot90(fresh, facts.turns, axes=(1, 2)))
        except Exception as error:  # noqa: BLE001 - decord has errors of its own, of no common kind
            if number == len(ways) - 1:
                seconds = told / facts.rate
                raise Unreadable(f"damaged after {seconds:.1f} s ({_words(error)})") from None
        else:
            return


def timeline(times: NDArray[np.float64], declared: float) -> tuple[float, NDArray[np.int64]]:
    """Frames per second, and which frame is on screen at each tick of that rate: (T,).

    Args:
        times: (N,) when each frame is first shown, in seconds, rising; may be empty or without meaning.
        declared: the rate to believe where ``times`` says nothing.
    """
    count = len(times)
    span = float(times[-1] - times[0]) if count > 1 else 0.0
    if not math.isfinite(span) or span <= 0:
        return declared, np.arange(count)
    rate = (count - 1) / span
    ticks = (times - times[0]) * rate
    if np.abs(ticks - np.arange(count)).max() <= 1:  # Constant, but for rounding.
        return rate, np.arange(count)
    return rate, np.clip(np.searchsorted(ticks, np.arange(count) + 1e-6, side="right") - 1, 0, count - 1)


# --- looking ----------------------------------------------------------------------------------------------------------


def _opened(source: Source) -> Any:
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    # Metadata of any encoding: nothing of it is used.
    return av.open(file, metadata_errors="replace")


def _video_of(container: Any) -> Any:
    name = container.format.name
    if any(name.endswith(kind) or name.startswith(kind) for kind in PICTURES):
        raise Unreadable("is a picture or a text, not a video")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        sound = ", only sound" if container.streams.audio else ""
        raise Unreadable(f"holds no video{sound}")
    stream = streams[0]
    if stream.codec_context is None:
        raise Unreadable("its codec is unknown")
    stream.thread_count = 1
    return stream


def _size_of(stream: Any, max_pixels: int) -> tuple[int, int]:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise Unreadable(f"frames of {width}x{height} pixels, the limit is {max_pixels} pixels")
    return width, height


def _times(source: Source, index: int) -> NDArray[np.float64]:
    """When frames are shown, in seconds, without decoding them; packets that are thrown away do not count."""
    with _opened(source) as container:
        stream = container.streams[index]
        stamps = [(p.pts, p.size) for p in container.demux(stream) if not p.is_discard]
        base = float(stream.time_base or 0)
    known = [pts for pts, size in stamps if size and pts is not None]
    if len(known) < sum(1 for _, size in stamps if size):
        return np.full(sum(1 for _, size in stamps if size), np.nan)
    return np.sort(np.array(known, np.float64)) * base


def _turns(frame: Any) -> int:
    """Quarter turns to the left; other angles than quarters are left alone."""
    if frame is None:
        raise Unreadable("no frame of it can be decoded")
    angle = int(frame.rotation or 0)
    return (angle // 90) % 4 if angle % 90 == 0 else 0


def _words(error: Exception) -> str:
    text = (str(getattr(error, "strerror", "") or error).splitlines() or [""])[0]
    return text.strip()[:120] or type(error).__name__


# --- decoding ---------------------------------------------------------------------------------------------------------


def _chunk(facts: Facts) -> int:
    return max(1, CHUNK_BYTES // (3 * facts.width * facts.height))


def _by_decord(source: Source, facts: Facts) -> Iterator[Frames]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    video = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)
    if len(video) <= facts.shown[-1]:
        raise EOFError(f"{len(video)} frames where {facts.shown[-1] + 1} are expected")
    size = _chunk(facts)
    for start in range(0, len(facts.shown), size):
        chunk: Frames = video.get_batch(facts.shown[start : start + size].tolist()).asnumpy()
        if chunk.shape[1:3] != (facts.height, facts.width):
            raise ValueError(f"frames of {chunk.shape[2]}x{chunk.shape[1]} pixels")
        yield chunk


def _by_pyav(source: Source, facts: Facts) -> Iterator[Frames]:
    size, held = _chunk(facts), []
    with _opened(source) as container:
        coded = enumerate(container.decode(_video_of(container)))
        number, frame = -1, None
        for wanted in facts.shown.tolist():
            while number < wanted:
                number, picture = next(coded, (-1, None))
                if picture is None:
                    raise EOFError(f"its frames end at {wanted} of {facts.shown[-1] + 1}")
                frame = picture
            held.append(frame.to_ndarray(format="rgb24", width=facts.width, height=facts.height))  # type: ignore[union-attr]
            if len(held) == size:
                yield np.stack(held)
                held = []
    if held:
        yield np.stack(held)
