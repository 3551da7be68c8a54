"""The image plugin: bytes from the worker, arithmetic on the device."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from core.config import TaskKind
from core.data import crops
from core.data.codecs import decode
from core.data.masks import mask_file, with_masks
from core.data.policies import rand_augment
from core.data.sources import discover
from core.data.windows import cut_window, window_places
from core.errors import UserError
from core.modality import Batch, Item, Media, Modality, Record, Sample, SampleBatch, Stats
from core.model.patches import PatchSpec
from core.segmentation import IGNORE
from modalities.image.augment import affine
from modalities.image.config import PLUGIN, AugmentConfig, ImageSettings
from modalities.image.masks import image_of, mask_of, read_mask, resize_mask, with_mask
from modalities.image.reading import SUFFIXES, read, sniff

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

    @property
    def _masked(self) -> bool:
        return self.task.kind is TaskKind.SEGMENTATION

    def discover(self, source: str) -> Iterable[Item]:
        """Image files, manifest lines or dataset rows."""
        items = discover(source, SUFFIXES, sniff)
        return with_masks(items, source) if self._masked else items

    def read(self, item: Item) -> Sequence[Record]:
        """One record: the image, upright, shrunk to its stored size, with its mask where there is one."""
        mask = mask_file(item) if self._masked else None
        record = read(item, self.settings)
        return [record if mask is None else with_mask(record, read_mask(mask), self.settings.store.short_side)]

    def patches(self) -> PatchSpec:
        """(H, W) with the recipe's channels."""
        return PatchSpec(self.settings.channels, self.size, self.settings.patch)

    def view(self, record: Record, rng: np.random.Generator, train: bool) -> Sample:
        """(C, H, W) in the stored type: a random crop or motion, or the fixed centre crop."""
        if self._masked:
            return self._window(record, rng if train else None)
        pixels = _pixels(record)
        height, width = pixels.shape[1:]
        settings = self._augment
        if train and settings.affine and pixels.shape[0] in (1, 3) and pixels.dtype is torch.uint8:
            whole = crops.resize(pixels, (0, 0, width, height), self.size)
            pixels = _tensor(affine(_picture(whole), settings.affine, rng))
        else:
            pixels = crops.resize(pixels, self._box(width, height, rng if train else None), self.size)
        if train and settings.rand_augment:
            pixels = _tensor(*rand_augment([_picture(pixels)], settings.rand_augment, rng))
        return Sample(pixels.numpy(), record.target)

    def views(self, record: Record) -> Sequence[Sample]:
        """The one fixed view; in segmentation windows that cover the image."""
        if not self._masked:
            return super().views(record)
        pixels, mask = _pixels(record).numpy(), mask_of(record)
        return [self._cut(pixels, mask, p) for p in window_places(pixels.shape[1:], self.size, self.overlap)]

    def _window(self, record: Record, rng: np.random.Generator | None) -> Sample:
        """A window of the stored image with its mask, from its middle; in training from anywhere, and zoomed into.

        Windows have the scale in which `views` covers the image; a resized crop of all of it would not.
        """
        pixels, mask = _pixels(record).numpy(), mask_of(record)
        spare = [max(0, n - size) for n, size in zip(pixels.shape[1:], self.size, strict=True)]
        sample = self._cut(pixels, mask, [s // 2 if rng is None else int(rng.integers(s + 1)) for s in spare])
        if rng is None:
            return sample
        settings = self._augment
        if settings.affine or settings.rand_augment:
            raise UserError(
                "data: affine and rand_augment change images and not their masks; set both to null for segmentation"
            )
        box = crops.random_box((self.size[1], self.size[0]), settings.crop_scale, settings.crop_ratio, rng)
        data = crops.resize(torch.from_numpy(sample.data), box, self.size).numpy()
        return Sample(data, None if sample.target is None else resize_mask(sample.target, box, self.size))

    def _cut(self, pixels: Array, mask: Array | None, corner: Sequence[int]) -> Sample:
        """The window at ``corner``; beyond the border of an image that is too small it is black and not labelled."""
        dense = None if mask is None else cut_window(mask, corner, self.size, IGNORE)
        data = cut_window(pixels, corner, self.size, 0)
        return Sample(data, dense, place=tuple(corner), whole=pixels.shape[1:])

    def _box(self, width: int, height: int, rng: np.random.Generator | None) -> crops.Box:
        """What part of an image is seen: a random crop, or the centre where ``rng`` is absent."""
        if rng is not None and not self._augment.affine:
            return crops.random_box((width, height), self._augment.crop_scale, self._augment.crop_ratio, rng)
        if rng is not None or self.settings.eval_crop == 1:
            return 0, 0, width, height
        return crops.centre_box((width, height), self.size, self.settings.eval_crop)

    def features(self, samples: SampleBatch) -> Tensor:
        """(B, C, H, W) float32; integers over their largest value, so 0 to 1."""
        data = samples.data
        if data.dtype.is_floating_point:
            return data.float()
        return data.float() / torch.iinfo(data.dtype).max

    def batch(self, samples: SampleBatch, stats: Stats, rng: torch.Generator, train: bool) -> Batch:
        """Normalised; in training flipped and erased sample by sample."""
        x, target = stats.normalise(self.features(samples)), samples.target
        if train and self._masked and target is not None:
            both = crops.flip(torch.cat([x, target[:, None].to(x)], dim=1), self._augment.flip, rng)
            x, target = both[:, :-1], both[:, -1].to(target)
        elif train:
            x = crops.flip(x, self._augment.flip, rng)
        if train:
            x = crops.erase(x, self._augment.erasing, rng)
        return Batch(x, target)

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


def _pixels(record: Record) -> Tensor:
    """(C, H, W) of what is stored."""
    record = image_of(record)
    if record.codec == "jpeg":
        from torchvision.io import ImageReadMode, decode_jpeg  # Takes seconds to import; not every source needs it.

        # Faster than by way of Pillow; the copy makes the buffer writable, without which torch warns.
        mode = ImageReadMode.GRAY if record.shape[2] == 1 else ImageReadMode.RGB
        picture: Tensor = decode_jpeg(torch.frombuffer(bytearray(record.payload), dtype=torch.uint8), mode)
        return picture
    pixels = decode(record)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _picture(pixels: Tensor) -> Image.Image:
    array = pixels.numpy()
    return Image.fromarray(array[0] if array.shape[0] == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def _tensor(picture: Image.Image) -> Tensor:
    array = np.asarray(picture)
    return torch.from_numpy(np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C"))
