"""Prepared clips: frames of which any few decode fast, without all those before them.

A payload is a table of offsets and then one packet per frame, without a container. JPEG packets stand alone. H.264
packets come in short closed groups: each begins with a key frame that carries its own parameters, and none is
reordered, so that the packets of a group up to the wanted frame are all that a decoder needs.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import groupby
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from core.data.codecs import register
from core.modality import Record
from modalities.video.config import StoreConfig

Frames = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""
CODECS = {"h264": "h264-frames", "jpeg": "jpeg-frames"}
"""Names under which the payloads are registered."""
FULL_RANGE = np.clip(np.round((np.arange(256) - 16.0) * (255 / 219)), 0, 255).astype(np.uint8)
"""What coded brightness (16 to 235, ITU-R BT.601) stands for."""
_HEAD = struct.Struct("<II")
"""Frames, and frames of a group."""


class ClipWriter:
    """Takes frames one by one and gives the payload of them all; holds packets only, never the frames."""

    def __init__(self, size: tuple[int, int], store: StoreConfig) -> None:
        """Write frames of ``size`` (height, width)."""
        self._store = store
        self._group = store.gop if store.codec == "h264" else 1
        self._packets: list[bytes] = []
        self._count = 0
        self._encoder = _encoder(size, store) if store.codec == "h264" else None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3)."""
        if self._encoder is None:
            self._packets.append(_jpeg(frame, self._store.quality))
        else:
            # The encoder halves colour in both directions and so wants even sides; what is added is never shown.
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(even, format="rgb24")
            picture.pts = self._count
            self._packets += [bytes(packet) for packet in self._encoder.encode(picture)]
        self._count += 1

    def payload(self) -> bytes:
        """What `decode_frames` reads; call it once, last."""
        if self._encoder is not None:
            self._packets += [bytes(packet) for packet in self._encoder.encode(None)]
        ends = np.cumsum([0, *map(len, self._packets)], dtype="<u4")
        return _HEAD.pack(len(self._packets), self._group) + ends.tobytes() + b"".join(self._packets)


def encode_frames(frames: Frames, store: StoreConfig) -> bytes:
    """The payload of frames (T, H, W, 3)."""
    writer = ClipWriter((frames.shape[1], frames.shape[2]), store)
    for frame in frames:
        writer.add(frame)
    return writer.payload()


def decode_frames(record: Record, wanted: Sequence[int], channels: int = 3) -> Frames:
    """The frames ``wanted`` (in any order, some perhaps twice): (len(wanted), H, W, ``channels``).

    Three channels are RGB, one is brightness.

    Raises:
        IndexError: if there is no such frame.
    """
    height, width = record.shape[1:3]
    packets = _Packets(record.payload)
    chosen = sorted(set(wanted))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < len(packets):
        raise IndexError(f"frames {chosen[0]} to {chosen[-1]} of {len(packets)}")
    decode = _jpegs if record.codec == CODECS["jpeg"] else _h264
    out = np.empty((len(wanted), height, width, channels), np.uint8)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(wanted):
        places.setdefault(number, []).append(place)
    for number, frame in zip(chosen, decode(packets, chosen, channels), strict=True):
        for place in places[number]:
            out[place] = frame[:height, :width]
    return out


class _Packets:
    """The packets of a payload, without copying them."""

    def __init__(self, payload: bytes) -> None:
        count, self.group = _HEAD.unpack_from(payload)
        self._ends = np.frombuffer(payload, "<u4", count + 1, _HEAD.size)
        self._data = memoryview(payload)[_HEAD.size + 4 * (count + 1) :]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> memoryview:
        return self._data[int(self._ends[number]) : int(self._ends[number + 1])]


# --- H.264 ------------------------------------------------------------------------------------------------------------


def _encoder(size: tuple[int, int], store: StoreConfig) -> Any:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = size[0] + size[0] % 2, size[1] + size[1] % 2
    encoder.pix_fmt = "yuv420p"
    encoder.framerate, encoder.time_base = 25, Fraction(1, 25)
    groups = f"keyint={store.gop}:min-keyint={store.gop}:scenecut=0:bframes=0:open-gop=0:repeat-headers=1:annexb=1"
    encoder.options = {
        "crf": str(store.crf),
        "preset": "veryfast",
        "tune": "fastdecode",
        "x264-params": f"{groups}:threads=1",
    }
    return encoder


def _h264(packets: _Packets, chosen: Sequence[int], channels: int) -> Iterator[NDArray[np.uint8]]:
    """The chosen frames in order; each group is decoded once, up to the last frame that is wanted of it."""
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoder.options = {"flags": "low_delay"}
    convert = VideoReformatter()
    for group, members in groupby(chosen, key=lambda number: number // packets.group):
        wanted, first = list(members), group * packets.group
        shown: list[av.VideoFrame] = []
        for number in range(first, wanted[-1] + 1):
            shown += decoder.decode(av.Packet(bytes(packets[number])))
        shown += decoder.decode(None)
        decoder.flush_buffers()
        for number in wanted:
            frame = shown[number - first]
            pixels: Any = convert.reformat(frame, format="rgb24").to_ndarray() if channels == 3 else _brightness(frame)
            yield pixels


def _brightness(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """(H, W, 1) in full range, from the plane that holds it: no colour is made to be thrown away."""
    plane = frame.planes[0]
    coded = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]  # type: ignore[call-overload]
    pixels: NDArray[np.uint8] = FULL_RANGE[coded][..., None]
    return pixels


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _jpeg(frame: NDArray[np.uint8], quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality)
    return out.getvalue()


def _jpegs(packets: _Packets, chosen: Sequence[int], channels: int) -> Iterator[NDArray[np.uint8]]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    mode = ImageReadMode.RGB if channels == 3 else ImageReadMode.GRAY
    for number in chosen:
        # Faster than by way of Pillow; the copy makes the buffer writable, without which torch warns.
        data = torch.frombuffer(bytearray(packets[number]), dtype=torch.uint8)
        yield decode_jpeg(data, mode).permute(1, 2, 0).numpy()


# --- as codecs --------------------------------------------------------------------------------------------------------


def _decode_all(record: Record) -> Frames:
    return decode_frames(record, range(record.shape[0]))


def _encode_all(codec: str, frames: Frames, **store: Any) -> bytes:
    return encode_frames(frames, StoreConfig(codec=codec, **store))


for _codec, _name in CODECS.items():
    register(_name, partial(_encode_all, _codec), _decode_all)
