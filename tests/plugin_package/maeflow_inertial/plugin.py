"""The inertial plugin: half-precision windows from the workers, vectors and their lengths on the device."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from core.data.codecs import decode
from core.data.sources import discover
from core.errors import UserError
from core.modality import Batch, Item, Media, Modality, Record, Sample, SampleBatch, Stats
from core.model.patches import PatchSpec
from maeflow_inertial.augment import augment
from maeflow_inertial.config import PLUGIN, AugmentConfig, InertialSettings
from maeflow_inertial.drawing import draw
from maeflow_inertial.reading import CHANNELS, SUFFIXES, Array, fit, read, starts


class InertialModality(Modality[InertialSettings]):
    """Eight channels: acceleration x, y, z, rotation x, y, z, and the lengths of both vectors."""

    info = PLUGIN

    @property
    def _window(self) -> int:
        """Samples of this stage's input: a stage may have a size of its own."""
        if self.input_shape is None:
            return self.settings.window
        if len(self.input_shape) != 1 or self.input_shape[0] % self.settings.patch:
            shape, patch = self.input_shape, self.settings.patch
            raise UserError(f"input_shape {shape} must be one number of samples, a multiple of data.patch {patch}")
        return self.input_shape[0]

    @property
    def _augment(self) -> AugmentConfig:
        return self.settings.finetune if self.purpose == "finetune" else self.settings.pretrain

    # --- while data are prepared ---

    def discover(self, source: str) -> Iterable[Item]:
        """Recordings of a folder, lines of a manifest or rows of a dataset."""
        return discover(source, SUFFIXES, lambda _: False)

    def read(self, item: Item) -> Sequence[Record]:
        """One record per segment."""
        return read(item, self.settings.segment)

    # --- in loader workers: cheap, random, compact ---

    def view(self, record: Record, rng: np.random.Generator, train: bool) -> Sample:
        """(6, window) float16: a random window of the segment in training, else the one in its middle."""
        signal = decode(record)
        spare = max(0, signal.shape[1] - self._window)
        return self._sample(record, signal, int(rng.integers(spare + 1)) if train else spare // 2)

    def views(self, record: Record) -> Sequence[Sample]:
        """Windows at even distances over the segment."""
        signal = decode(record)
        places = starts(signal.shape[1], self._window, self.settings.views)
        return [self._sample(record, signal, start) for start in places]

    def _sample(self, record: Record, signal: Array, start: int) -> Sample:
        data, real = fit(signal, start, self._window)
        # The length is told for full windows, too: a batch knows its padding only where every sample tells.
        return Sample(data, record.target, real)

    # --- on the device: a whole batch at once ---

    def patches(self) -> PatchSpec:
        """Eight channels, one axis: time."""
        return PatchSpec(CHANNELS + 2, (self._window,), (self.settings.patch,))

    def features(self, samples: SampleBatch) -> Tensor:
        """(B, 8, window) float32 in the units of the files."""
        return _with_lengths(samples.data.float())

    def batch(self, samples: SampleBatch, stats: Stats, rng: torch.Generator, train: bool) -> Batch:
        """Normalised, in training changed at random; patches of padding alone are told."""
        x = samples.data.float()
        if train:
            x = augment(x, stats.std[:CHANNELS], self._augment, rng)
        return Batch(stats.normalise(_with_lengths(x)), samples.target, self._valid(samples.length))

    def _valid(self, length: Tensor | None) -> Tensor | None:
        """(B, N): whether a patch holds a real sample."""
        if length is None:
            return None
        return torch.arange(0, self._window, self.settings.patch, device=length.device) < length.unsqueeze(1)

    # --- for people ---

    def render(self, x: Array) -> Sequence[Media]:
        """Both vectors as curves over seconds."""
        s = self.settings
        return [Media("image", ".png", draw(x, s.rate, s.units, s.drawn))]


def _with_lengths(x: Tensor) -> Tensor:
    """(B, 6, W) with the lengths of acceleration and rotation behind: (B, 8, W)."""
    lengths = [vector.norm(dim=1, keepdim=True) for vector in (x[:, :3], x[:, 3:])]
    return torch.cat([x, *lengths], dim=1)
