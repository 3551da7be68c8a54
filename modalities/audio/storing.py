"""Recordings in prepared data: 16 bits, one channel, as FLAC or as they are, of which any stretch can be read."""

import io
from functools import partial

import numpy as np
import soundfile
from numpy.typing import NDArray

from core.data.codecs import register
from core.modality import Record

CODECS = ("flac", "pcm16")
"""Names in `core.data.codecs`."""
SCALE = 32768.0
"""Values of 16 bits that stand for 1."""

Pcm = NDArray[np.int16]


def to_pcm(wave: NDArray[np.float32]) -> Pcm:
    """Samples in -1 to 1 as 16 bits."""
    return np.clip(np.round(wave * SCALE), -SCALE, SCALE - 1).astype(np.int16)


def encode_pcm(pcm: Pcm, codec: str, rate: int) -> bytes:
    """The payload of samples (n,)."""
    if codec == "pcm16":
        return pcm.astype("<i2").tobytes()
    out = io.BytesIO()
    soundfile.write(out, pcm, rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def decode_pcm(record: Record, start: int = 0, count: int | None = None) -> Pcm:
    """``count`` samples from ``start`` on, or all that follow."""
    stop = record.shape[0] if count is None else start + count
    if record.codec == "pcm16":
        return np.frombuffer(record.payload, "<i2")[start:stop]
    with soundfile.SoundFile(io.BytesIO(record.payload)) as sound:
        sound.seek(start)
        pcm: Pcm = sound.read(stop - start, dtype="int16")
        return pcm


def _encode_all(codec: str, pcm: Pcm, rate: int = 16_000) -> bytes:
    return encode_pcm(pcm, codec, rate)


for _name in CODECS:
    register(_name, partial(_encode_all, _name), decode_pcm)
