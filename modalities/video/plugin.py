"""The video plugin: a few frames decoded in the worker, arithmetic on the device."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from core.data import crops
from core.data.policies import rand_augment
from core.data.sources import discover
from core.modality import Batch, Item, Media, Modality, Record, Sample, SampleBatch, Stats
from core.model.patches import PatchSpec
from modalities.video.config import PLUGIN, ClipConfig, VideoSettings, ViewConfig
from modalities.video.pictures import film
from modalities.video.reading import SUFFIXES, read, sniff
from modalities.video.sampling import Frames, frames_at, random_crop, random_frames
from modalities.video.storing import decode_frames


@dataclass(frozen=True)
class Cut:
    """What one view takes of a video."""

    frames: Frames
    box: crops.Box
    policy: np.random.Generator | None = None
    """Where RandAugment draws from, if it is wanted."""


class VideoModality(Modality[VideoSettings]):
    """Videos: clips of a few frames, cropped in the worker; scaling to 0..1, flips and erasing on the device."""

    info = PLUGIN
    read_apart = True

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of this stage's input."""
        if self.input_shape is None:
            return self.settings.size
        frames, height, width = self.input_shape
        return frames, height, width

    @property
    def _view(self) -> ViewConfig:
        return self.settings.finetune if self.purpose == "finetune" else self.settings.pretrain

    @property
    def _clip(self) -> ClipConfig:
        return self.settings.clip if self.purpose == "pretrain" else self.settings.finetune_clip or self.settings.clip

    def discover(self, source: str) -> Iterable[Item]:
        """Video files, manifest lines or dataset rows."""
        return discover(source, SUFFIXES, sniff)

    def read(self, item: Item) -> Sequence[Record]:
        """One record per segment, upright, shrunk to its stored size."""
        return read(item, self.settings)

    def patches(self) -> PatchSpec:
        """(T, H, W) in colour or grey."""
        return PatchSpec(self.settings.channels, self.size, self.settings.patch)

    def view(self, record: Record, rng: np.random.Generator, train: bool) -> Sample:
        """(T, H, W, C) uint8: a random clip and crop, or the middle of both."""
        cut = self._random(record, rng) if train else self._fixed(record, 0.5, 0.5)
        return self._samples(record, [cut])[0]

    def repeated(self, record: Record, rngs: Sequence[np.random.Generator]) -> Sequence[Sample]:
        """Several random clips out of one decoding."""
        return self._samples(record, [self._random(record, rng) for rng in rngs])

    def views(self, record: Record) -> Sequence[Sample]:
        """``test_segments`` clips along the video, each with ``test_crops`` crops along the longer side."""
        segments, across = self.settings.test_segments, self.settings.test_crops
        places = np.linspace(0, 1, segments) if segments > 1 else [0.5]
        if self._clip.by == "uniform":
            places = (np.arange(segments) + 0.5) / segments
        sides = np.linspace(0, 1, across) if across > 1 else [0.5]
        return self._samples(record, [self._fixed(record, float(p), float(s)) for p in places for s in sides])

    def _random(self, record: Record, rng: np.random.Generator) -> Cut:
        length, height, width = record.shape[:3]
        frames = random_frames(length, record.meta["fps"], self.size[0], self._clip, rng)
        return Cut(frames, random_crop((width, height), self._view, rng), rng if self._view.rand_augment else None)

    def _fixed(self, record: Record, place: float, side: float) -> Cut:
        length, height, width = record.shape[:3]
        frames = frames_at(length, record.meta["fps"], self.size[0], self._clip, place)
        return Cut(frames, crops.centre_box((width, height), self.size[1:], self.settings.eval_crop, side))

    def _samples(self, record: Record, cuts: Sequence[Cut]) -> list[Sample]:
        """All cuts of one video: each frame is decoded once, whoever wants it."""
        wanted = np.unique(np.concatenate([cut.frames for cut in cuts]))
        pixels = decode_frames(record, wanted.tolist(), self.settings.channels)
        return [Sample(self._cut(pixels, wanted, cut), record.target) for cut in cuts]

    def _cut(self, pixels: NDArray[np.uint8], wanted: Frames, cut: Cut) -> NDArray[np.uint8]:
        left, upper, right, lower = cut.box
        part = pixels[np.searchsorted(wanted, cut.frames), upper:lower, left:right]
        whole = (0, 0, right - left, lower - upper)
        # Channels stay last in memory all the way, which is what the resizing is fastest with.
        clip: NDArray[np.uint8] = (
            crops.resize(torch.from_numpy(part).permute(0, 3, 1, 2), whole, self.size[1:]).permute(0, 2, 3, 1).numpy()
        )
        if cut.policy is not None and self._view.rand_augment:
            pictures = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in clip]
            changed = rand_augment(pictures, self._view.rand_augment, cut.policy)
            clip = np.stack([np.asarray(picture) for picture in changed]).reshape(clip.shape)
        return clip

    def features(self, samples: SampleBatch) -> Tensor:
        """(B, C, T, H, W) float32, 0 to 1."""
        return samples.data.movedim(-1, 1).float() / 255

    def batch(self, samples: SampleBatch, stats: Stats, rng: torch.Generator, train: bool) -> Batch:
        """Normalised; in training flipped and erased clip by clip."""
        x = stats.normalise(self.features(samples))
        if train:
            x = crops.flip(x, self._view.flip, rng)
            x = crops.erase(x, self._view.erasing, rng)
        return Batch(x, samples.target)

    def render(self, x: NDArray[Any]) -> Sequence[Media]:
        """A strip of a few frames, and the clip as an animation."""
        return film(x)
