"""The medical plugin: crops out of bricks in the worker, windows and motions on the device."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import TaskKind
from core.data import crops
from core.data.bricks import Bricks
from core.data.masks import with_masks
from core.data.windows import window_places
from core.modality import Batch, Item, Media, Modality, Record, Sample, SampleBatch, Stats
from core.model.patches import PatchSpec
from core.segmentation import IGNORE
from modalities.medical import augment
from modalities.medical.config import PLUGIN, AugmentConfig, MedicalSettings
from modalities.medical.finding import find
from modalities.medical.reading import fixed_point, read

Array = NDArray[Any]
SQUARE = (0.9, 1.1)
"""Aspect ratios of random crops of images."""


class MedicalModality(Modality[MedicalSettings]):
    """Radiographs and volumes; a volume is never in memory as a whole once it is prepared."""

    info = PLUGIN
    read_apart = True

    @property
    def size(self) -> tuple[int, ...]:
        """Extent of this stage's input along each axis."""
        return self.settings.size if self.input_shape is None else self.input_shape

    @property
    def _augment(self) -> AugmentConfig:
        return self.settings.finetune if self.purpose == "finetune" else self.settings.pretrain

    @property
    def _masked(self) -> bool:
        return self.task.kind is TaskKind.SEGMENTATION

    def discover(self, source: str) -> Iterable[Item]:
        """Series, images and NIfTI files, whatever they are called; others are counted in ``noticed``."""
        items, noticed = find(source, self.settings)
        if self._masked:
            items = with_masks(items, source)
            noticed["scans without a mask"] = sum(item.target is None for item in items)
        self.noticed = +noticed
        return items

    def read(self, item: Item) -> Sequence[Record]:
        """Volumes in RAS at the recipe's spacing, or images, in true units."""
        return read(item, self.settings, classes=len(self.task.classes))

    def patches(self) -> PatchSpec:
        """(H, W), or (R, A, S), with a channel for each window."""
        intensity = self.settings.intensity
        channels = len(intensity.windows) if intensity.kind == "windows" else self.settings.channels
        return PatchSpec(channels, self.size, self.settings.patch)

    def view(self, record: Record, rng: np.random.Generator, train: bool) -> Sample:
        """(*size) in the stored type, with a last axis of 3 for colour: a random crop, or the middle."""
        if not self.settings.volumes:
            return self._image(record, rng if train else None)
        spare = self._spare(record)
        corner = [int(rng.integers(s + 1)) if train and s > 0 else s // 2 for s in spare]
        return self._crop(record, corner)

    def views(self, record: Record) -> Sequence[Sample]:
        """Crops along the longest axis; of what is to be segmented, windows that cover all of it."""
        if not self.settings.volumes:
            return [self._image(record, None)]
        spare = self._spare(record)
        middle, along = [s // 2 for s in spare], int(np.argmax(spare))
        if self._masked:
            places = window_places(record.shape, self.size, self.overlap)
            # A short scan stands in the middle, as in training.
            return [self._crop(record, np.where(np.array(spare) < 0, middle, place).tolist()) for place in places]
        if self.settings.views == 1 or spare[along] <= 0:
            return [self._crop(record, middle)]
        ends = np.linspace(0, spare[along], self.settings.views).round().astype(int)
        return [self._crop(record, [int(e) if a == along else m for a, m in enumerate(middle)]) for e in ends]

    def _spare(self, record: Record) -> list[int]:
        """By how many voxels a volume is longer than the input, along each axis; negative where it is shorter."""
        return [n - size for n, size in zip(record.shape, self.size, strict=True)]

    def _crop(self, record: Record, corner: Sequence[int]) -> Sample:
        """A box of a volume; beyond its borders lies its lowest value, which nobody has labelled."""
        payload = Bricks(record.payload)
        data = payload.box(corner, self.size, record.meta["least"])
        if not self._masked:
            return Sample(data, record.target)
        mask = payload.box(corner, self.size, IGNORE, mask=True) if payload.masked else None
        return Sample(data, mask, place=tuple(corner), whole=tuple(record.shape))

    def _image(self, record: Record, rng: np.random.Generator | None) -> Sample:
        """An image resized to the size: all of it, or a random part."""
        pixels = Bricks(record.payload).whole()
        height, width = pixels.shape[:2]
        scale = self._augment.crop_scale
        box = (0, 0, width, height)
        if rng is not None and scale != (1.0, 1.0):
            box = crops.random_box((width, height), scale, SQUARE, rng)
        planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels.reshape(height, width, -1), -1, 0)))
        resized = crops.resize(planes, box, (self.size[0], self.size[1])).numpy()
        return Sample(resized if pixels.ndim == 3 else resized[0], record.target)

    def features(self, samples: SampleBatch) -> Tensor:
        """(B, C, *size) float32: each window 0 to 1; or shares of the scan's range; or deviations from its mean."""
        intensity, data = self.settings.intensity, samples.data.float()
        if intensity.kind == "windows":
            return torch.stack([((data - low) / (high - low)).clamp(0, 1) for low, high in intensity.windows], dim=1)
        x = data / fixed_point(self.settings)
        return x if x.ndim == len(self.size) + 2 else x[:, None]

    def batch(self, samples: SampleBatch, stats: Stats, rng: torch.Generator, train: bool) -> Batch:
        """Normalised; in training turned, mirrored and changed in intensity, sample by sample."""
        x, change = stats.normalise(self.features(samples)), self._augment
        mask = samples.target.long() if self._masked and samples.target is not None else None
        if train:
            x, mask = augment.flip(x, mask, change.flip, rng)
            x, mask = augment.rotate(x, mask, change.rotate, rng)
            x = augment.intensity(x, change.scale, change.shift, rng)
            x = x if self.settings.volumes else crops.erase(x, change.erasing, rng)
        return Batch(x, samples.target if mask is None else mask)

    def render(self, x: Array) -> Sequence[Media]:
        """An image, or three slices through the middle of a volume, with the window they are shown in."""
        from modalities.medical.pictures import shown

        return shown(x, self.settings)
