"""Predictions of a whole array from those of overlapping windows, on any number of axes."""

from collections.abc import Callable, Sequence
from itertools import chain, count, islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.data.loading import collate, to_device
from core.data.seeds import torch_rng
from core.data.windows import overlap_of
from core.errors import StageError
from core.modality import Batch, Modality, Record, Sample, Stats
from core.segmentation import IGNORE

SIGMA = 0.125
"""Deviation of the weights of `gaussian` over the extent of the window, as nnU-Net has it (Isensee et al. 2021)."""
LEAST = 1e-3
"""Smallest weight, or corners that one window alone covers would be divided by nothing."""
Blend = Literal["constant", "gaussian"]
Predict = Callable[[Batch], Tensor]
"""Logits (B, K, *input_shape) of a batch."""


def blend_weights(window: Sequence[int], blend: Blend) -> Tensor:
    """Weights (*window) float32 of the predictions of a window: 1, or a Gaussian of 1 in its middle."""
    weights = torch.ones(tuple(window))
    if blend == "constant":
        return weights
    for axis, extent in enumerate(window):
        x = torch.arange(extent, dtype=torch.float32) - (extent - 1) / 2
        along = torch.exp(-(x**2) / (2 * (SIGMA * extent) ** 2))
        weights *= along.view(-1, *[1] * (len(window) - 1 - axis))
    return weights.clamp_min(max(LEAST, float(weights.min())))


class Stitcher:
    """Adds up what windows say of an array of extent ``whole``; holds (K, *whole) and (*whole) float32."""

    def __init__(self, outputs: int, whole: Sequence[int], weights: Tensor) -> None:
        self._sum = torch.zeros(outputs, *whole)
        self._weight = torch.zeros(*whole)
        self._each = weights

    def add(self, logits: Tensor, place: Sequence[int]) -> None:
        """Take the logits (K, *window) of the window at ``place``; what lies outside of the array is left out."""
        there, here = overlap_of(place, tuple(self._each.shape), tuple(self._weight.shape))
        every = (slice(None),)
        self._sum[every + there] += logits[every + here] * self._each[here]
        self._weight[there] += self._each[here]

    def logits(self) -> Tensor:
        """The weighted mean (K, *whole); call it once, in the end.

        Raises:
            StageError: if part of the array was in no window.
        """
        bare = float((self._weight == 0).float().mean())
        if bare:
            raise StageError(f"the plugin's `views` leave {bare:.1%} of a record out; they have to cover it")
        return self._sum.div_(self._weight)


@torch.no_grad()
def predict_whole(
    predict: Predict, record: Record, plugin: Modality[Any], stats: Stats, *, outputs: int, batch: int, blend: Blend
) -> tuple[Tensor, Tensor]:
    """Logits (K, *whole) and mask (*whole) int64 of one record from its windows, ``batch`` at a time, on the CPU.

    Nothing in the mask is labelled where the record has none.

    Raises:
        StageError: if views do not tell their place, or do not cover the record.
    """
    window, device = plugin.patches().input_shape, stats.mean.device
    views = iter(plugin.views(record))  # Which may be made as they are asked for.
    first = next(views)
    _, whole = _where(first)
    stitcher = Stitcher(outputs, whole, blend_weights(window, blend))
    mask = torch.full(whole, IGNORE, dtype=torch.int64)
    views = chain([first], views)
    for number in count():
        some = list(islice(views, batch))
        if not some:
            break
        rng = torch_rng(device, 0, "windows", number)
        inputs = plugin.batch(to_device(collate(some, None), device), stats, rng, train=False)
        for view, logits in zip(some, predict(inputs).float().cpu(), strict=True):
            place, _ = _where(view)
            stitcher.add(logits, place)
            there, here = overlap_of(place, window, whole)
            if isinstance(view.target, np.ndarray):
                mask[there] = torch.as_tensor(view.target[here].astype("int64"))
    return stitcher.logits(), mask


def _where(view: Sample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Corner of a window, and extent of what it is cut from."""
    if view.place is None or view.whole is None:
        raise StageError("the plugin's `views` do not tell `place` and `whole`, without which nothing is segmented")
    return view.place, view.whole
