"""The image plugin: bytes from the worker, arithmetic on the device."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from core.data.codecs import decode
from core.data.sources import discover
from core.modality import Batch, Item, Media, Modality, Record, Sample, SampleBatch, Stats
from core.model.patches import PatchSpec
from modalities.image import augment
from modalities.image.config import PLUGIN, AugmentConfig, ImageSettings
from modalities.image.reading import SUFFIXES, read, sniff

BICUBIC = Image.Resampling.BICUBIC
SMALLEST_PICTURE = 112
"""Pixels below which a rendered picture is enlarged, so that people see its patches."""
Array = NDArray[Any]


class ImageModality(Modality[ImageSettings]):
    """Images: random resized crops in the worker; scaling to 0..1, flips and erasing on the device."""

    info = PLUGIN

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of this stage's input."""
        if self.input_shape is None:
            return self.settings.size
        height, width = self.input_shape
        return height, width

    @property
    def _augment(self) -> AugmentConfig:
        return self.settings.finetune if self.purpose == "finetune" else self.settings.pretrain

    def discover(self, source: str) -> Iterable[Item]:
        """Image files, manifest lines or dataset rows."""
        return discover(source, SUFFIXES, sniff)

    def read(self, item: Item) -> Sequence[Record]:
        """One record: the image, upright, shrunk to its stored size."""
        return [read(item, self.settings)]

    def patches(self) -> PatchSpec:
        """(H, W) with the recipe's channels."""
        return PatchSpec(self.settings.channels, self.size, self.settings.patch)

    def view(self, record: Record, rng: np.random.Generator, train: bool) -> Sample:
        """(C, H, W) in the stored type: a random crop or motion, or the fixed centre crop."""
        if record.codec == "raw" and (record.dtype != "uint8" or record.shape[2] not in (1, 3)):
            pixels = self._array_view(decode(record), rng, train)
        else:
            picture = _picture(record)
            pixels = np.asarray(self._train_view(picture, rng) if train else self._fixed_view(picture))
        if pixels.ndim == 2:
            return Sample(pixels[None], record.target)
        return Sample(np.ascontiguousarray(pixels.transpose(2, 0, 1)), record.target)

    def _train_view(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        settings = self._augment
        height, width = self.size
        if settings.affine:
            picture = augment.affine(self._whole(picture), settings.affine, rng)
        else:
            box = augment.crop_box(picture.size, settings, rng)
            picture = picture.resize((width, height), BICUBIC, box=box)
        if settings.rand_augment:
            picture = augment.rand_augment(picture, settings.rand_augment, rng)
        return picture

    def _fixed_view(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        if self.settings.eval_crop == 1:
            return self._whole(picture)
        box = augment.centre_box(picture.size, self.size, self.settings.eval_crop)
        return picture.resize((width, height), BICUBIC, box=box)

    def _whole(self, picture: Image.Image) -> Image.Image:
        height, width = self.size
        return picture if picture.size == (width, height) else picture.resize((width, height), BICUBIC)

    def _array_view(self, pixels: Array, rng: np.random.Generator, train: bool) -> Array:
        """The same views for arrays of any type and number of channels."""
        height, width = pixels.shape[:2]
        settings = self._augment
        if train and not settings.affine:
            box = augment.crop_box((width, height), settings, rng)
        elif train or self.settings.eval_crop == 1:
            box = (0.0, 0.0, float(width), float(height))
        else:
            box = augment.centre_box((width, height), self.size, self.settings.eval_crop)
        return augment.resize_array(pixels, box, self.size)

    def features(self, samples: SampleBatch) -> Tensor:
        """(B, C, H, W) float32; integers over their largest value, so 0 to 1."""
        data = samples.data
        if data.dtype.is_floating_point:
            return data.float()
        return data.float() / torch.iinfo(data.dtype).max

    def batch(self, samples: SampleBatch, stats: Stats, rng: torch.Generator, train: bool) -> Batch:
        """Normalised; in training flipped and erased sample by sample."""
        x = stats.normalise(self.features(samples))
        if train:
            x = augment.flip(x, self._augment.flip, rng)
            x = augment.erase(x, self._augment.erasing, rng)
        return Batch(x, samples.target)

    def render(self, x: Array) -> Sequence[Media]:
        """A PNG of the first one or three channels; small images are enlarged without smoothing."""
        shown = x[:3] if x.shape[0] >= 3 else x[:1]
        pixels = np.clip(np.round(shown * 255), 0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0))
        factor = max(1, -(-SMALLEST_PICTURE // max(picture.size)))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        out = io.BytesIO()
        picture.save(out, "PNG")
        return [Media("image", ".png", out.getvalue())]


def _picture(record: Record) -> Image.Image:
    if record.codec == "raw":
        return Image.fromarray(decode(record).squeeze(2) if record.shape[2] == 1 else decode(record))
    return Image.open(io.BytesIO(record.payload))
