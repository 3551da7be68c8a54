"""Log-mel spectrograms of a whole batch of waveforms at once, on whatever device they are.

``kaldi`` gives the numbers of `torchaudio.compliance.kaldi.fbank` with the settings of AST and AudioMAE (Hanning
window, pre-emphasis, no dither, power, natural logarithm), which works clip by clip. Up to the power all of it is
linear, so a waveform is emphasised once instead of frame by frame, and the mean of a frame is taken out at the end.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torchaudio
from torch import Tensor

from modalities.audio.config import AudioSettings

EPSILON = float(torch.finfo(torch.float32).eps)
"""Smallest energy: Kaldi's floor under the logarithm."""
EMPHASIS = 0.97
"""Kaldi's pre-emphasis coefficient."""
CHUNK = 2**20
"""Values of windowed frames that a CPU works on at once: more would leave its caches."""


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

    def samples(self, frames: int) -> int:
        """Samples that ``frames`` frames need."""
        return (frames - 1) * self.shift + self.window


def log_mel(waves_BS: Tensor, framing: Framing) -> Tensor:
    """Waveforms (B, S), -1 to 1, as natural logarithms of mel energies (B, frames, bands), float32."""
    waves = waves_BS.float()
    clips = len(waves)
    if waves.device.type == "cpu":
        clips = max(1, CHUNK // (framing.points * framing.frames(waves.shape[1])))
    parts = [_energies(part, framing) for part in waves.split(clips)]
    return torch.cat(parts).clamp_min_(EPSILON).log_()


def _energies(waves_BS: Tensor, framing: Framing) -> Tensor:
    """Mel energies (B, frames, bands)."""
    window, transformed = _window(framing, waves_BS.device)
    # What is constant all along is taken out of every frame anyway; without it less is lost to rounding.
    waves_BS = waves_BS - waves_BS.mean(1, keepdim=True) if framing.kaldi else waves_BS
    heard = (
        torch.cat([waves_BS[:, :1], waves_BS[:, 1:] - EMPHASIS * waves_BS[:, :-1]], 1) if framing.kaldi else waves_BS
    )
    frames = heard.unfold(1, framing.window, framing.shift) * window
    spectrum = torch.fft.rfft(frames, n=framing.points)
    if framing.kaldi:
        # A frame's mean m leaves (1 - 0.97) m after emphasis; the sample that has none before it is under a zero.
        mean = waves_BS.unfold(1, framing.window, framing.shift).mean(-1, keepdim=True)
        spectrum = spectrum - (1 - EMPHASIS) * mean * transformed
    return torch.view_as_real(spectrum).square_().sum(-1) @ filters(framing, waves_BS.device)


@lru_cache(maxsize=16)
def _window(framing: Framing, device: torch.device) -> tuple[Tensor, Tensor]:
    """The window, (window,), and its Fourier transform, (points / 2 + 1,) complex."""
    window = torch.hann_window(framing.window, periodic=not framing.kaldi, dtype=torch.float64)
    transformed = torch.fft.rfft(window, n=framing.points)
    return window.float().to(device), transformed.to(torch.complex64).to(device)


@lru_cache(maxsize=16)
def filters(framing: Framing, device: torch.device) -> Tensor:
    """Triangular mel filters (points / 2 + 1, bands), by Kaldi's rule or by torchaudio's."""
    bins = framing.points // 2 + 1
    if not framing.kaldi:
        banks = torchaudio.functional.melscale_fbanks(bins, framing.low, framing.high, framing.bands, framing.rate)
        return banks.to(device)
    from torchaudio.compliance.kaldi import get_mel_banks

    banks, _ = get_mel_banks(framing.bands, framing.points, framing.rate, framing.low, framing.high, 100.0, -500.0, 1.0)
    return torch.nn.functional.pad(banks, (0, 1)).T.contiguous().to(device)


def band_centres(framing: Framing) -> list[float]:
    """Centre of each band in Hz."""
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (framing.low, framing.high))
    step = (high - low) / (framing.bands + 1)
    return [700.0 * math.expm1((low + step * (number + 1)) / 1127.0) for number in range(framing.bands)]
