"""Recordings of any kind into records of one channel at one rate; everything that can be wrong becomes a reason."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from core.data.files import readable
from core.data.sources import load_row
from core.modality import Item, Record, Unreadable
from modalities.audio.config import AudioSettings, RefuseConfig
from modalities.audio.storing import encode_pcm, to_pcm

SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aiff .aif .aifc .au .snd .caf .w64 .rf64".split()  # noqa: SIM905
)
"""Names that promise sound; whatever else they hold is reported as unreadable."""
COLUMNS = ("audio", "sound")
"""Columns of a dataset in which a recording may stand."""
RATES = (2_000, 768_000)
"""Sampling rates that a recording can truly have."""
LIMIT = 32767 / 32768
"""From here on a sample stands at the edge of what its file can hold."""
QUIET = 1e-4
"""Share of the channels' amplitude that is left when they cancel each other out."""
FINEST = 640
"""Largest denominator of a ratio of rates, off by two millionths at most; resampling takes memory by its square."""
BLOCK = 2**20
"""Values read from a file at once."""

Wave = NDArray[np.float32]


def sniff(path: str) -> bool:
    """Whether a file that is not called a recording begins like one."""
    try:
        with Path(path).open("rb") as source:
            head = source.read(12)
    except OSError:
        return False
    chunked = head[:4] in (b"RIFF", b"FORM") and head[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    return chunked or head[:4] in (b"fLaC", b"OggS", b"RF64", b"caff")


def read(item: Item, settings: AudioSettings) -> list[Record]:
    """The records of one recording: its stretches, in order, without those in which nothing sounds.

    Raises:
        Unreadable: with the reason.
    """
    source = _row(item) if item.row is not None else readable(Path(item.path))
    with _plain_reasons(), soundfile.SoundFile(source) as sound:
        _check_header(sound, settings.refuse)
        found = _Found()
        stretches = [
            (start, to_pcm(_fitted(resample(wave, sound.samplerate, settings.rate))))
            for start, wave in _stretches(sound, settings.store.seconds, found)
        ]
        found.check(settings.refuse)
        meta = {"source": [sound.samplerate, sound.channels], "seconds": round(sound.frames / sound.samplerate, 3)}
    sounding = [(start, pcm) for start, pcm in stretches if pcm.min() != pcm.max()]
    if not sounding:
        raise Unreadable("is silent: too quiet for 16 bits")
    codec, rate = settings.store.codec, settings.rate
    return [
        Record(
            item.key if len(stretches) == 1 else f"{item.key}#{number:03d}",
            encode_pcm(pcm, codec, rate),
            codec,
            pcm.shape,
            "int16",
            item.target,
            item.group,
            meta | {"start": round(start, 3)},
        )
        for number, (start, pcm) in enumerate(sounding)
    ]


def resample(wave: Wave, rate: int, wanted: int) -> Wave:
    """``wave`` (n,) at another rate, by torchaudio's windowed sinc."""
    import torch
    from torchaudio.functional import resample as by_sinc

    ratio = Fraction(wanted, rate)
    if ratio.denominator > FINEST:
        ratio = ratio.limit_denominator(FINEST)
    changed: Wave = by_sinc(torch.from_numpy(wave), ratio.denominator, ratio.numerator).numpy()
    return changed


@dataclass
class _Found:
    """What is found out about a recording while it is read."""

    samples: int = 0
    clipped: int = 0
    low: float = np.inf
    high: float = -np.inf
    mono: float = 0.0
    """Sum of squares after the channels are averaged."""
    channels: float = 0.0
    """Mean over the channels of their sums of squares."""

    def heard(self, block: Wave, mono: Wave) -> None:
        """Take note of a block (n, channels) and of its mean over the channels."""
        if not np.isfinite(block).all():
            raise Unreadable("holds values that are no numbers (NaN or infinite)")
        self.samples += block.size
        # Values beyond 1, which floating point can hold, are loud; those that stand right at it were cut off.
        size = np.abs(block)
        self.clipped += int(((size >= LIMIT) & (size <= 1)).sum())
        self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))
        self.mono += float(np.square(mono, dtype=np.float64).sum())
        self.channels += float(np.square(block, dtype=np.float64).sum()) / block.shape[1]

    def check(self, refuse: RefuseConfig) -> None:
        """Refuse what is silent or distorted."""
        if self.low == self.high:
            raise Unreadable("is silent: all samples are " + ("zero" if self.low == 0 else "the same"))
        if self.mono <= QUIET**2 * self.channels:
            raise Unreadable("its channels cancel each other out: one is the other upside down")
        if self.clipped > refuse.clipped * self.samples:
            raise Unreadable(f"is clipped: {self.clipped / self.samples:.0%} of its samples stand at the limits")


def _check_header(sound: soundfile.SoundFile, refuse: RefuseConfig) -> None:
    rate, seconds = sound.samplerate, sound.frames / max(sound.samplerate, 1)
    if not RATES[0] <= rate <= RATES[1]:
        raise Unreadable(f"claims {rate} samples per second")
    if sound.frames == 0:
        raise Unreadable("holds no sound: no sample after its header")
    if seconds < refuse.shortest:
        raise Unreadable(f"too short: {seconds:.3f} s, less than {refuse.shortest:g} s")
    if seconds > refuse.longest:
        raise Unreadable(f"claims to last {seconds:.0f} s, more than {refuse.longest:g} s")


def _stretches(sound: soundfile.SoundFile, seconds: float, found: _Found) -> Iterator[tuple[float, Wave]]:
    """Start in seconds and samples (n,), one channel at the file's rate, of stretches of about ``seconds``."""
    total, rate = sound.frames, sound.samplerate
    count = max(1, round(total / rate / seconds))
    ends = [total * number // count for number in range(count + 1)]
    for start, end in pairwise(ends):
        yield start / rate, _mono(sound, end - start, found)


def _mono(sound: soundfile.SoundFile, count: int, found: _Found) -> Wave:
    """The next ``count`` samples, the mean of all channels."""
    parts: list[Wave] = []
    left = count
    while left:
        block: Wave = sound.read(min(left, BLOCK // sound.channels), dtype="float32", always_2d=True)
        if not len(block):
            missing = (sound.frames - sound.tell()) / sound.samplerate
            raise Unreadable(f"breaks off {missing:.1f} s before the end that its header names")
        mono: Wave = block.mean(axis=1)
        found.heard(block, mono)
        parts.append(mono)
        left -= len(block)
    return np.concatenate(parts)


def _fitted(wave: Wave) -> Wave:
    """``wave``, made less loud where it would not fit into -1 to 1."""
    return wave / max(1.0, float(np.abs(wave).max()))


@contextmanager
def _plain_reasons() -> Iterator[None]:
    try:
        yield
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".").removeprefix("Error : ")
        # That is what libsndfile says of an MP3 file without a single frame; this one has been opened before.
        reason = "no frame of sound found" if reason.startswith("File does not exist") else reason
        raise Unreadable(f"cannot be decoded as sound: {reason}") from None


def _row(item: Item) -> Any:
    """A file of what the audio column of a Hugging Face dataset's row holds."""
    row = load_row(item)
    value = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, dict) and value.get("bytes"):
        return io.BytesIO(value["bytes"])
    if isinstance(value, dict) and value.get("array") is not None and value.get("sampling_rate"):
        out = io.BytesIO()
        soundfile.write(out, np.asarray(value["array"], np.float32), value["sampling_rate"], "FLOAT", format="WAV")
        out.seek(0)
        return out
    if isinstance(value, dict) and value.get("path"):
        return readable(Path(value["path"]))
    if isinstance(value, str):
        return readable(Path(value))
    raise Unreadable(f"the row has no audio column (it has {', '.join(row)})")
