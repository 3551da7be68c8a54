"""The audio plugin: samples of sound from the worker, spectrograms on the device."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.sources import discover
from core.modality import Batch, Item, Media, Mixed, Modality, Record, Sample, SampleBatch, Stats
from core.model.patches import PatchSpec
from modalities.audio import augment
from modalities.audio.config import PLUGIN, AudioSettings, AugmentConfig
from modalities.audio.reading import SUFFIXES, read, sniff
from modalities.audio.spectrogram import Framing, log_mel
from modalities.audio.storing import SCALE, decode_pcm


class AudioModality(Modality[AudioSettings]):
    """Sound: clips of 16-bit samples cut in the worker; spectrograms, noise, mixing and masking on the device."""

    info = PLUGIN
    read_apart = True

    @property
    def size(self) -> tuple[int, int]:
        """Frames and bands of this stage's input."""
        if self.input_shape is None:
            return self.settings.size
        frames, bands = self.input_shape
        return frames, bands

    @property
    def framing(self) -> Framing:
        """How waveforms become spectrograms."""
        return Framing.of(self.settings, self.size[1])

    @property
    def _augment(self) -> AugmentConfig:
        return self.settings.finetune if self.purpose == "finetune" else self.settings.pretrain

    def discover(self, source: str) -> Iterable[Item]:
        """Sound files, manifest lines or dataset rows."""
        return discover(source, SUFFIXES, sniff)

    def read(self, item: Item) -> Sequence[Record]:
        """One record per stretch of a recording, at the recipe's rate."""
        return read(item, self.settings)

    def patches(self) -> PatchSpec:
        """(frames, bands) of one channel."""
        return PatchSpec(1, self.size, self.settings.patch)

    def view(self, record: Record, rng: np.random.Generator, train: bool) -> Sample:
        """(S,) int16 and the frames that hold sound: a random clip, or the one in the middle."""
        spare = record.shape[0] - self._samples
        if not train:
            return self._clip(record, max(0, spare) // 2)
        sample = self._clip(record, int(rng.integers(spare + 1)) if spare > 0 else 0)
        if self._augment.roll and rng.random() < self._augment.roll:
            roll(sample.data[: record.shape[0]], rng)
        return sample

    def views(self, record: Record) -> Sequence[Sample]:
        """``test_clips`` clips along the recording; one where it is no longer than that."""
        spare, count = record.shape[0] - self._samples, self.settings.test_clips
        if spare <= 0 or count == 1:
            return [self._clip(record, max(0, spare) // 2)]
        return [self._clip(record, round(start)) for start in np.linspace(0, spare, count)]

    @property
    def _samples(self) -> int:
        """Samples of a clip."""
        return self.framing.samples(self.size[0])

    def _clip(self, record: Record, start: int) -> Sample:
        wanted = self._samples
        clip = np.zeros(wanted, np.int16)
        found = decode_pcm(record, start, min(wanted, record.shape[0]))
        clip[: len(found)] = found
        return Sample(clip, record.target, self.framing.frames(len(found)))

    def features(self, samples: SampleBatch) -> Tensor:
        """(B, 1, frames, bands): natural logarithms of mel energies; what is padded has those of silence."""
        return self._spectrograms(samples.data.float() / SCALE, self._real(samples.length))

    def batch(self, samples: SampleBatch, stats: Stats, rng: torch.Generator, train: bool) -> Batch:
        """Normalised; in training with the recipe's changes. Padding is 0, the mean, and marked as not valid."""
        waves, length, change = samples.data.float() / SCALE, samples.length, self._augment
        mixed: Mixed | None = None
        if train and change.gain_db:
            waves = augment.gain(waves, change.gain_db, rng)
        if train and change.noise:
            sounding = None if length is None else self.framing.samples(length)
            waves = augment.add_noise(waves, change.noise, change.noise_db, rng, sounding)
        if train and change.mixup and self.purpose == "finetune":
            waves, mixed = augment.mixup(waves, change.mixup, change.mixup_beta, rng)
            length = None if length is None else _mixed_length(length, mixed)
        real = self._real(length)
        x = stats.normalise(self._spectrograms(waves, real))
        x = x if real is None else x.masked_fill(~real[:, None, :, None], 0.0)
        if train and change.time_mask:
            x = augment.hide_span(x, 2, change.time_mask, rng)
        if train and change.band_mask:
            x = augment.hide_span(x, 3, change.band_mask, rng)
        return Batch(x, samples.target, self._valid(real), mixed)

    def _spectrograms(self, waves_BS: Tensor, real_BT: Tensor | None) -> Tensor:
        x = log_mel(waves_BS, self.framing)
        if self.settings.spectrogram.centre != "none":
            weights = torch.ones_like(x[..., :1]) if real_BT is None else real_BT[..., None].to(x.dtype)
            mean = (x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1.0)
            x = x - (mean.mean(2, keepdim=True) if self.settings.spectrogram.centre == "clip" else mean)
        return x[:, None]

    def _real(self, length_B: Tensor | None) -> Tensor | None:
        """(B, frames) bool: which frames hold sound."""
        if length_B is None:
            return None
        return torch.arange(self.size[0], device=length_B.device) < length_B[:, None]

    def _valid(self, real_BT: Tensor | None) -> Tensor | None:
        """(B, N) bool: patches that begin with a frame that holds sound."""
        if real_BT is None:
            return None
        patch, (_, bands) = self.settings.patch[0], self.patches().grid
        return real_BT[:, ::patch].repeat_interleave(bands, dim=1)

    def render(self, x: NDArray[Any]) -> Sequence[Media]:
        """A picture with axes in seconds and Hz, and a sound with that spectrogram."""
        from modalities.audio.pictures import shown  # Drawing takes a while to import, and only pictures need it.

        return shown(x, self.framing, absolute=self.settings.spectrogram.centre == "none")


def _mixed_length(length_B: Tensor, mixed: Mixed) -> Tensor:
    """(B,) frames that sound: of what was mixed, as many as of its longer part."""
    return torch.where(mixed.share < 1, torch.maximum(length_B, length_B[mixed.partner]), length_B)


def roll(wave: NDArray[np.int16], rng: np.random.Generator) -> None:
    """Turn the samples (S,) round in place, by at least one: the axis of time, the only one there is."""
    if len(wave) > 1:
        wave[:] = np.roll(wave, int(rng.integers(1, len(wave))))
