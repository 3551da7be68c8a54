"""Input statistics of the training split."""

from typing import Any

import numpy as np
import torch

from core.data.loading import FixedViews
from core.data.store import Ids, PreparedStore
from core.modality import Modality
from core.records import Statistics

LIMIT = 10_000
"""Most items looked at; of a larger split, that many are taken at even distances."""
SMALLEST_STD = 1e-6


def measure(store: PreparedStore, ids: Ids, plugin: Modality[Any]) -> Statistics:
    """Mean and deviation per channel of the plugin's features over the fixed views of ``ids``, in float64.

    Where samples are padded, only their real extent along the first axis counts. Without any item, as in a source of
    test items only, they are 0 and 1, which leave features as they are.
    """
    if len(ids) == 0:
        channels = plugin.patches().channels
        return Statistics(mean=(0.0,) * channels, std=(1.0,) * channels)
    if len(ids) > LIMIT:
        ids = ids[np.linspace(0, len(ids) - 1, LIMIT).round().astype(np.int64)]
    views = FixedViews(store, ids, plugin, 64)
    count, total, square = 0.0, torch.zeros(1), torch.zeros(1)
    for number in range(len(views)):
        samples = views[number]
        x = plugin.features(samples).double()
        real = torch.ones_like(x[:, :1])
        if samples.length is not None:
            extent = torch.arange(x.shape[2]).view(1, 1, -1, *[1] * (x.ndim - 3))
            real = (extent < samples.length.view(-1, 1, *[1] * (x.ndim - 2))).double().expand_as(real)
        axes = [0, *range(2, x.ndim)]
        count += float(real.sum())
        total = total + (x * real).sum(axes)
        square = square + (x * x * real).sum(axes)
    mean = total / max(count, 1.0)
    std = (square / max(count, 1.0) - mean**2).clamp_min(0).sqrt().clamp_min(SMALLEST_STD)
    return Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
