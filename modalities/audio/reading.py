"""Recordings of any kind into records of one channel at one rate; everything that can be wrong becomes a reason."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from core.data.files import readable
from core.data.sources import load_row
from core.modality import Item, Record, Unreadable
from modalities.audio.config import AudioSettings, RefuseConfig
from modalities.audio.storing import Pcm, encode_pcm, to_pcm

SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aiff .aif .aifc .au .snd .caf .w64 .rf64".split()  # noqa: SIM905
)
"""Names that promise sound; whatever else they hold is reported as unreadable."""
COLUMNS = ("audio", "sound")
"""Columns of a dataset in which a recording may stand."""
RATES = (2_000, 768_000)
"""Sampling rates that a recording can truly have."""
LIMIT = 32767 / 32768
"""From here on a sample stands at the edge of what its file can hold, ..."""
LIMITS = {"PCM_S8": 127 / 128, "PCM_U8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768}
"""... for files whose samples are coarser."""
QUIET = 1e-4
"""Share of the channels' amplitude that is left when they cancel each other out."""
FINEST = 2000
"""Largest term of a ratio of rates; resampling takes memory by its square."""
SMALLEST_STEP = Fraction(1, 32)
"""Smallest ratio that is resampled by at once."""
REACH = 16
"""Samples of the lower rate that resampling looks at on either side, with some to spare."""
ENDLESS = 2**62
"""Frames from which on libsndfile does not know how many there are."""
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

    A recording is read twice, so that whatever its length only one stretch of it is held at a time: once to find out
    what it is like, and once to be kept.

    Raises:
        Unreadable: with the reason.
    """
    codec, rate = settings.store.codec, settings.rate
    with _opened(item) as sound:
        found = _survey(sound, settings.refuse)
    with _opened(item) as sound:
        meta = {"source": [sound.samplerate, sound.channels], "seconds": round(found.frames / sound.samplerate, 3)}
        ends = _ends(sound.samplerate, found.frames, settings)
        sounding = [
            (start, len(pcm), encode_pcm(pcm, codec, rate))
            for start, pcm in _stretches(sound, ends, rate, 1 / max(1.0, found.peak))
            if pcm.min() != pcm.max()
        ]
    if not sounding:
        raise Unreadable("is silent: too quiet for 16 bits")
    return [
        Record(
            item.key if len(ends) == 2 else f"{item.key}#{number:03d}",
            payload,
            codec,
            (samples,),
            "int16",
            item.target,
            item.group,
            meta | {"start": round(start, 3)},
        )
        for number, (start, samples, payload) in enumerate(sounding)
    ]


# --- what a recording is like ---------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What is found out about a recording while it is read."""

    limit: float
    """From here on a sample stands at the edge of what its file can hold."""
    open_end: bool
    """Whether the file can hold more than full scale: what lies beyond is loud, only what stands at it is cut off."""
    frames: int = 0
    samples: int = 0
    clipped: int = 0
    low: float = np.inf
    high: float = -np.inf
    peak: float = 0.0
    """Largest sample after the channels are averaged."""
    mono: float = 0.0
    """Sum of squares after the channels are averaged."""
    channels: float = 0.0
    """Mean over the channels of their sums of squares."""

    def heard(self, block: Wave) -> None:
        """Take note of a block (n, channels)."""
        if not np.isfinite(block).all():
            raise Unreadable("holds values that are no numbers (NaN or infinite)")
        self.frames += len(block)
        self.samples += block.size
        size, mono = np.abs(block), block.mean(axis=1)
        self.clipped += int(((size >= self.limit) & (size <= (1 if self.open_end else np.inf))).sum())
        self.low, self.high = min(self.low, float(block.min())), max(self.high, float(block.max()))
        self.peak = max(self.peak, float(np.abs(mono).max()))
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


def _survey(sound: soundfile.SoundFile, refuse: RefuseConfig) -> _Found:
    """Read a recording to its end, and refuse it where it is of no use."""
    _check_header(sound, refuse)
    found = _Found(LIMITS.get(sound.subtype, LIMIT), sound.subtype in ("FLOAT", "DOUBLE"))
    while len(block := sound.read(BLOCK // sound.channels, dtype="float32", always_2d=True)):
        found.heard(block)
    if missing := (sound.frames - found.frames) / sound.samplerate:
        raise Unreadable(f"breaks off {missing:.2g} s before the end that its header names")
    found.check(refuse)
    return found


def _check_header(sound: soundfile.SoundFile, refuse: RefuseConfig) -> None:
    rate, seconds = sound.samplerate, sound.frames / max(sound.samplerate, 1)
    if not RATES[0] <= rate <= RATES[1]:
        raise Unreadable(f"claims {rate} samples per second")
    if sound.frames >= ENDLESS:
        raise Unreadable("does not say how long it is, as files written into a pipe do not; convert it to a new file")
    if sound.frames == 0:
        raise Unreadable("holds no sound: no sample after its header")
    if seconds < refuse.shortest:
        raise Unreadable(f"too short: {seconds:.3f} s, less than {refuse.shortest:g} s")
    if seconds > refuse.longest:
        raise Unreadable(f"claims to last {seconds:.0f} s, more than {refuse.longest:g} s")


# --- stretches at another rate --------------------------------------------------------------------------------------


def resample(wave: Wave, rate: int, wanted: int) -> Wave:
    """``wave`` (n,) at another rate, by torchaudio's windowed sinc; exact for all usual rates.

    Where a ratio has terms above `FINEST`, the nearest one that has not is taken: off by a part in 2,000, under a cent.
    """
    import torch
    from torchaudio.functional import resample as by_sinc

    changed = torch.from_numpy(wave)
    for ratio in _ratios(rate, wanted):
        changed = by_sinc(changed, ratio.denominator, ratio.numerator)
    result: Wave = changed.numpy()
    return result


def _ratios(rate: int, wanted: int) -> list[Fraction]:
    """By what to resample, one after the other: great reductions in steps, for the sake of memory and accuracy."""
    left, found = Fraction(wanted, rate), []
    while left < SMALLEST_STEP:
        found.append(Fraction(1, 8))
        left *= 8
    if max(left.numerator, left.denominator) > FINEST:
        left = left.limit_denominator(FINEST) if left < 1 else 1 / (1 / left).limit_denominator(FINEST)
    return [*found, left]


def _ends(rate: int, frames: int, settings: AudioSettings) -> list[int]:
    """Where stretches of about the recipe's length begin and end, at samples that fall on one of the wanted rate."""
    whole = math.prod(ratio.denominator for ratio in _ratios(rate, settings.rate))
    count = max(1, round(frames / rate / settings.store.seconds))
    inner = {round(frames * number / count / whole) * whole for number in range(1, count)}
    return [0, *sorted(end for end in inner if 0 < end < frames), frames]


def _stretches(sound: soundfile.SoundFile, ends: list[int], wanted: int, gain: float) -> Iterator[tuple[float, Pcm]]:
    """Start in seconds and samples (n,), one channel at the rate ``wanted``, of the stretches between ``ends``.

    Each is resampled with some of its neighbours around it, so that together they are the recording resampled whole.
    """
    rate, frames = sound.samplerate, ends[-1]
    ratios = _ratios(rate, wanted)
    whole, made = (math.prod(getattr(r, term) for r in ratios) for term in ("denominator", "numerator"))
    margin = math.ceil(REACH * max(1.0, rate / wanted) / whole) * whole
    kept, at = np.zeros(0, np.float32), 0
    for start, end in pairwise(ends):
        first, last = max(0, start - margin), min(frames, end + margin)
        around = np.concatenate([kept, *_mono(sound, last - at)])
        offset, count = (start - first) // whole * made, -(-(end - start) * made // whole)
        yield start / rate, to_pcm(gain * resample(around, rate, wanted)[offset : offset + count])
        kept, at = around[max(0, end - margin) - first :], last


def _mono(sound: soundfile.SoundFile, count: int) -> Iterator[Wave]:
    """The next ``count`` samples, the mean of all channels, in blocks."""
    while count:
        block: Wave = sound.read(min(count, BLOCK // sound.channels), dtype="float32", always_2d=True)
        if not len(block):
            raise Unreadable("reads differently every time: it ended earlier than before")
        yield block.mean(axis=1)
        count -= len(block)


# --- opening --------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(item: Item) -> Iterator[soundfile.SoundFile]:
    """The recording, whose errors become reasons."""
    try:
        # Names as bytes: not all of them are text.
        source = _row(item) if item.row is not None else os.fsencode(readable(Path(item.path)))
        with _sound(source) as sound:
            yield sound
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".").removeprefix("Error : ")
        # That is what libsndfile says of an MP3 file without a single frame; this one has been opened before.
        reason = "no frame of sound found" if reason.startswith("File does not exist") else reason
        raise Unreadable(f"cannot be decoded as sound: {reason}") from None


def _sound(source: bytes | io.BytesIO) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(source)
    except TypeError:  # What soundfile says of files called .raw.
        raise Unreadable("is called .raw: bare samples, without a header that says at which rate") from None


def _row(item: Item) -> bytes | io.BytesIO:
    """A file, or its name, of what the audio column of a Hugging Face dataset's row holds."""
    row = load_row(item)
    value = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, dict) and value.get("bytes"):
        return io.BytesIO(value["bytes"])
    if isinstance(value, dict) and value.get("array") is not None and value.get("sampling_rate"):
        out, wave = io.BytesIO(), np.asarray(value["array"], np.float32)
        wave = wave.T if wave.ndim == 2 and wave.shape[0] < wave.shape[1] else wave  # Channels come first in datasets.
        soundfile.write(out, wave, value["sampling_rate"], "FLOAT", format="WAV")
        out.seek(0)
        return out
    if isinstance(value, dict) and value.get("path"):
        return os.fsencode(readable(Path(value["path"])))
    if isinstance(value, str):
        return os.fsencode(readable(Path(value)))
    raise Unreadable(f"the row has no audio column (it has {', '.join(row)})")
