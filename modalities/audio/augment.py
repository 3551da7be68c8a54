"""What is changed at random in a batch of waveforms or spectrograms, on the device; each sample by itself."""

import torch
from torch import Tensor

from core.modality import Mixed


def gain(waves_BS: Tensor, most_db: float, rng: torch.Generator) -> Tensor:
    """Louder or softer by up to ``most_db`` decibels."""
    level = (_uniform(waves_BS, rng) * 2 - 1) * most_db
    return waves_BS * torch.pow(10.0, level / 20)[:, None]


def add_noise(
    waves_BS: Tensor,
    share: float,
    below_db: tuple[float, float],
    rng: torch.Generator,
    length_B: Tensor | None = None,
) -> Tensor:
    """White noise in a ``share`` of the samples, drawn to lie ``below_db`` (least, most) decibels under each.

    ``length_B`` is how many of its values sound, where the rest is padding.
    """
    low, high = below_db
    below = low + (high - low) * _uniform(waves_BS, rng)
    power = waves_BS.square().sum(1) / (waves_BS.shape[1] if length_B is None else length_B)
    level = power.sqrt() * torch.pow(10.0, -below / 20)
    level = torch.where(_uniform(waves_BS, rng) < share, level, 0.0)
    noise = torch.randn(waves_BS.shape, generator=rng, device=waves_BS.device)
    return waves_BS + noise * level[:, None]


def mixup(waves_BS: Tensor, probability: float, beta: int, rng: torch.Generator) -> tuple[Tensor, Mixed]:
    """Waveforms mixed with others of the batch (Zhang et al. 2018), and with which and how much.

    The shares are Beta(``beta``, ``beta``): the middle one of 2 ``beta`` - 1 uniform numbers is.
    """
    count, device = len(waves_BS), waves_BS.device
    partner = torch.randperm(count, generator=rng, device=device)
    numbers = torch.rand((count, 2 * beta - 1), generator=rng, device=device)
    share = numbers.sort(dim=1).values[:, beta - 1]  # `median` has no deterministic form on CUDA.
    share = torch.where(_uniform(waves_BS, rng) < probability, share, 1.0)
    mixed = waves_BS * share[:, None] + waves_BS[partner] * (1 - share[:, None])
    return mixed, Mixed(partner, share)


def hide_span(x_BCTM: Tensor, axis: int, most: float, rng: torch.Generator) -> Tensor:
    """Zeros in one span along ``axis``, as long as up to the share ``most`` of it (SpecAugment, Park et al. 2019)."""
    size = x_BCTM.shape[axis]
    width = _uniform(x_BCTM, rng) * most * size
    start = _uniform(x_BCTM, rng) * (size - width)
    place = torch.arange(size, device=x_BCTM.device)
    inside = (place >= start[:, None]) & (place < (start + width)[:, None])
    shape = [len(x_BCTM)] + [1] * (x_BCTM.ndim - 1)
    shape[axis] = size
    return x_BCTM.masked_fill(inside.view(shape), 0.0)


def _uniform(x: Tensor, rng: torch.Generator) -> Tensor:
    """One number of 0 to 1 for each sample, (B,)."""
    return torch.rand(len(x), generator=rng, device=x.device)
