"""Log-mel spectrograms of a whole batch of waveforms at once, on whatever device they are.

``kaldi`` gives the numbers of `torchaudio.compliance.kaldi.fbank` with the settings of AST and AudioMAE (Hanning
window, pre-emphasis, no dither, power, natural logarithm), which works clip by clip.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import melscale_fbanks

from modalities.audio.config import AudioSettings

EPSILON = float(torch.finfo(torch.float32).eps)
"""Smallest energy: Kaldi's floor under the logarithm."""
EMPHASIS = 0.97
"""Kaldi's pre-emphasis coefficient."""
CHUNK = 2**18
"""Values of filled frames that a CPU works on at once: more would leave its caches."""
AT_ONCE = 16
"""Bands that a CPU sums up at once."""


Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True)
class Framing:
    """How a waveform is cut into frames, and what bands are looked at."""

    rate: int
    """Samples per second."""
    window: int
    """Samples of a frame."""
    shift: int
    """Samples from one frame to the next."""
    bands: int
    low: float
    """Lower edge of the lowest band, in Hz."""
    high: float
    """Upper edge of the highest band, in Hz."""
    kaldi: bool = True

    @classmethod
    def of(cls, settings: AudioSettings, bands: int | None = None) -> "Framing":
        """The framing that ``settings`` ask for, with another number of ``bands`` where a stage has its own."""
        spectrum, rate = settings.spectrogram, settings.rate
        # Kaldi rounds down, 400 and 160 samples at 16 kHz, 551 and 220 at 22.05 kHz.
        window, shift = (int(rate * ms * 0.001) for ms in (spectrum.window_ms, spectrum.shift_ms))
        high = spectrum.high_hz or rate / 2
        return cls(rate, window, shift, bands or settings.size[1], spectrum.low_hz, high, spectrum.kind == "kaldi")

    @property
    def points(self) -> int:
        """Points of the Fourier transform: Kaldi fills the window up to a power of two."""
        return 2 ** math.ceil(math.log2(self.window)) if self.kaldi else self.window

    def frames(self, samples: int) -> int:
        """Whole frames in a waveform of ``samples``."""
        return max(0, 1 + (samples - self.window) // self.shift)

    def samples(self, frames: Count) -> Count:
        """Samples that ``frames`` frames need; a number, or a tensor of them."""
        return (frames - 1) * self.shift + self.window


def log_mel(waves_BS: Tensor, framing: Framing) -> Tensor:
    """Waveforms (B, S), -1 to 1, as natural logarithms of mel energies (B, frames, bands), float32."""
    count, frames = len(waves_BS), framing.frames(waves_BS.shape[1])
    at_once = max(1, CHUNK // (frames * framing.points)) if waves_BS.device.type == "cpu" else count
    out = waves_BS.new_empty(count, frames, framing.bands, dtype=torch.float32)
    for rows, part in zip(torch.split(out, at_once), torch.split(waves_BS.float(), at_once), strict=True):
        torch.clamp_min(_energies(part, framing), EPSILON, out=rows).log_()
    return out


def _energies(waves_BS: Tensor, framing: Framing) -> Tensor:
    """Mel energies (B, frames, bands)."""
    frames = waves_BS.unfold(1, framing.window, framing.shift)
    # Filled up here, since `rfft` does that itself ten times as slowly.
    filled = frames.new_zeros(*frames.shape[:2], framing.points)
    inside = filled[..., : framing.window]
    if framing.kaldi:
        # In Kaldi's own order, so that even the rounding of what all but cancels out is the same.
        frames = frames - frames.mean(-1, keepdim=True)
        torch.sub(frames[..., 1:], EMPHASIS * frames[..., :-1], out=inside[..., 1:])
        inside[..., 0] = frames[..., 0] - EMPHASIS * frames[..., 0]
        inside *= _window(framing, waves_BS.device)
    else:
        torch.mul(frames, _window(framing, waves_BS.device), out=inside)
    real, imaginary = torch.view_as_real(torch.fft.rfft(filled)).square_().unbind(-1)
    return _banded(real + imaginary, framing)


def _banded(power_BTF: Tensor, framing: Framing) -> Tensor:
    """Sums of the spectrum under each filter: (B, frames, points / 2 + 1) to (B, frames, bands)."""
    if power_BTF.device.type != "cpu":
        with _all_digits():
            return power_BTF @ filters(framing, power_BTF.device)
    # All but one in fifty of the weights are zero: a few bands at a time need only the points below them.
    flat = power_BTF.flatten(0, 1)
    bands = flat.new_empty(len(flat), framing.bands)
    for part, (points, weights) in zip(torch.split(bands, AT_ONCE, dim=1), _narrow_filters(framing), strict=True):
        torch.mm(flat[:, points], weights, out=part)
    return bands.view(*power_BTF.shape[:2], framing.bands)


@contextmanager
def _all_digits() -> Iterator[None]:
    """Products with all 24 bits, also where training lets CUDA round to TF32."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


@lru_cache(maxsize=16)
def _window(framing: Framing, device: torch.device) -> Tensor:
    return torch.hann_window(framing.window, periodic=not framing.kaldi, device=device)


@lru_cache(maxsize=16)
def _narrow_filters(framing: Framing) -> list[tuple[slice, Tensor]]:
    """Filters of `AT_ONCE` neighbouring bands each, and the points of the spectrum that these cover."""
    parts = []
    for few in torch.split(filters(framing, torch.device("cpu")), AT_ONCE, dim=1):
        covered = few.any(dim=1).nonzero().flatten().tolist() or [0]
        points = slice(covered[0], covered[-1] + 1)
        parts.append((points, few[points].contiguous()))
    return parts


@lru_cache(maxsize=16)
def filters(framing: Framing, device: torch.device) -> Tensor:
    """Triangular mel filters (points / 2 + 1, bands), by Kaldi's rule or by torchaudio's."""
    edges = framing.low, framing.high
    banks: Tensor
    if framing.kaldi:
        banks, _ = get_mel_banks(framing.bands, framing.points, framing.rate, *edges, 100.0, -500.0, 1.0)
        banks = pad(banks, (0, 1)).T.contiguous()  # Kaldi leaves the last point out.
    else:
        banks = melscale_fbanks(framing.points // 2 + 1, *edges, framing.bands, framing.rate)
    return banks.to(device)


def band_centres(framing: Framing) -> list[float]:
    """Centre of each band in Hz."""
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (framing.low, framing.high))
    step = (high - low) / (framing.bands + 1)
    return [700.0 * math.expm1((low + step * (number + 1)) / 1127.0) for number in range(framing.bands)]
