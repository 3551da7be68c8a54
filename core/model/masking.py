"""Which patches are hidden: samplers that give every sample the same number of visible patches.

A sampler draws one score per patch from a seeded generator on the device; the patches with the lowest scores are
kept. Structure (tubes, blocks, slices) comes from sharing scores. Nothing here waits for the device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.config import CountRule, MaskConfig, MaskKind


@dataclass(slots=True)
class Mask:
    """Visible and hidden patches, the same numbers for every sample."""

    keep_BK: Tensor
    """(B, K) int64 indices of the visible patches."""
    masked_BM: Tensor
    """(B, M) int64 indices of the hidden patches, in random order."""

    @property
    def ratio(self) -> float:
        """Share of the patches that really is hidden."""
        kept, masked = self.keep_BK.shape[1], self.masked_BM.shape[1]
        return masked / (kept + masked)

    def realised(self, valid_BN: Tensor | None) -> float | Tensor:
        """Share of the real patches that is hidden, a scalar on the device where some patches are padding."""
        if valid_BN is None:
            return self.ratio
        return valid_BN.gather(1, self.masked_BM).sum() / valid_BN.sum()


PADDING = 8.0
"""What is added to the scores of padding; more than any score of a real patch."""
MaskSampler = Callable[[int, torch.Generator, Tensor | None], Mask]
"""(samples, generator, valid (B, N) or None) to a `Mask` on the generator's device."""


def keep_count(patches: int, ratio: float, rule: CountRule) -> int:
    """Patches of ``patches`` that stay visible; at least one is kept and one hidden.

    Raises:
        ValueError: if there are fewer than two patches.
    """
    if patches < 2:
        raise ValueError(f"a grid of {patches} patch cannot be masked; make the patches smaller")
    if rule is CountRule.FLOOR_KEEP:
        keep = int(patches * (1 - ratio))
    elif rule is CountRule.FLOOR_MASK:
        keep = patches - int(patches * ratio)
    else:
        keep = round(patches * (1 - ratio))
    return min(max(keep, 1), patches - 1)


def split_by_score(scores_BN: Tensor, keep: int) -> Mask:
    """Keep the ``keep`` lowest-scored patches of each sample; the order within each part is the scores' own."""
    order = torch.argsort(scores_BN, dim=1, stable=True)
    return Mask(order[:, :keep], order[:, keep:])


def sampler(config: MaskConfig, grid: tuple[int, ...]) -> MaskSampler:
    """The sampler that ``config`` names, on ``grid``.

    Raises:
        ValueError: if the configuration does not fit the grid.
    """
    draw, keep = _SCORES[config.kind](config, grid)

    def sample(samples: int, rng: torch.Generator, valid_BN: Tensor | None) -> Mask:
        scores = draw(samples, rng)
        if valid_BN is not None:
            # Padding is hidden first, so that the encoder sees real patches before any of it.
            scores = scores + (~valid_BN) * PADDING
        mask = split_by_score(scores, keep)
        if config.kind is MaskKind.RANDOM:
            return mask
        shuffle = torch.rand(mask.masked_BM.shape, generator=rng, device=rng.device)
        if valid_BN is not None:
            # Real patches come first here, too, for a decoder that looks at only some of the hidden ones.
            shuffle = shuffle + (~valid_BN).gather(1, mask.masked_BM)
        return Mask(mask.keep_BK, mask.masked_BM.gather(1, shuffle.argsort(dim=1)))

    return sample


def running_cells(grid: tuple[int, ...], fraction: float) -> Callable[[int, torch.Generator], Tensor]:
    """Draws which patches a decoder looks at first, (B, N) bool: about ``fraction`` of every cell of 2x2 patches.

    The chosen patches go round their cell by one with every index of the first axis, and start anywhere
    (Wang et al. 2023, VideoMAE V2, section 3.2).

    Raises:
        ValueError: if the grid has fewer than three axes.
    """
    if len(grid) < 3:
        raise ValueError(f"running cells move along the first of three axes or more, the grid is {grid}")
    chosen = min(max(round(4 * fraction), 1), 3)
    row, column = torch.meshgrid(torch.arange(grid[-2]) % 2, torch.arange(grid[-1]) % 2, indexing="ij")
    place = torch.where(row == 0, column, 3 - column)  # Round the cell: right, down, left.
    middle = math.prod(grid[1:-2])
    turns = place.repeat(grid[0], middle, 1, 1) - torch.arange(grid[0]).view(-1, 1, 1, 1)

    def draw(samples: int, rng: torch.Generator) -> Tensor:
        start = torch.randint(4, (samples, 1), generator=rng, device=rng.device)
        return (turns.to(rng.device).reshape(1, -1) - start) % 4 < chosen

    return draw


Draw = Callable[[int, torch.Generator], Tensor]


def _random(config: MaskConfig, grid: tuple[int, ...]) -> tuple[Draw, int]:
    """Every patch by itself (He et al. 2021, section 3)."""
    count = math.prod(grid)
    return _uniform(count), keep_count(count, config.ratio, config.count_rule)


def _tube(config: MaskConfig, grid: tuple[int, ...]) -> tuple[Draw, int]:
    """The same places at every index of the first axis (Tong et al. 2022, section 3.3); counted per index."""
    if len(grid) < 2:
        raise ValueError(f"mask kind 'tube' needs at least two axes, the grid is {grid}")
    places = math.prod(grid[1:])
    draw = _ranks(places)
    keep = keep_count(places, config.ratio, config.count_rule) * grid[0]
    return (lambda samples, rng: draw(samples, rng).repeat(1, grid[0])), keep


def _block(config: MaskConfig, grid: tuple[int, ...]) -> tuple[Draw, int]:
    """Whole blocks of patches, cut only where the count demands it."""
    block = config.block or ()
    if len(block) != len(grid):
        raise ValueError(f"mask block {block} needs one extent for each axis of the grid {grid}")
    coarse = tuple(math.ceil(n / b) for n, b in zip(grid, block, strict=True))
    draw = _ranks(math.prod(coarse))
    jitter = _uniform(math.prod(grid))

    def scores(samples: int, rng: torch.Generator) -> Tensor:
        x = draw(samples, rng).reshape(samples, *coarse)
        for axis, (n, b) in enumerate(zip(grid, block, strict=True), start=1):
            x = x.repeat_interleave(b, dim=axis, output_size=b * x.shape[axis]).narrow(axis, 0, n)
        return x.reshape(samples, -1) + 1e-6 * jitter(samples, rng)

    return scores, keep_count(math.prod(grid), config.ratio, config.count_rule)


def _axis(config: MaskConfig, grid: tuple[int, ...]) -> tuple[Draw, int]:
    """Whole slices along one axis, such as frames, time steps or frequency bands."""
    if config.axis >= len(grid):
        raise ValueError(f"mask axis {config.axis} does not exist on the grid {grid}")
    draw = _ranks(grid[config.axis])
    shape = [1] * len(grid)
    shape[config.axis] = grid[config.axis]

    def scores(samples: int, rng: torch.Generator) -> Tensor:
        return draw(samples, rng).reshape(samples, *shape).expand(samples, *grid).reshape(samples, -1)

    slices = keep_count(grid[config.axis], config.ratio, config.count_rule)
    return scores, slices * math.prod(grid) // grid[config.axis]


def _axes(config: MaskConfig, grid: tuple[int, ...]) -> tuple[Draw, int]:
    """Whole slices along every axis at once; a patch is visible where none of its slices is hidden (AudioMAE, 2-D)."""
    ratios = config.ratios or ()
    if len(ratios) != len(grid):
        raise ValueError(f"mask ratios {ratios} need one share for each axis of the grid {grid}")
    kept = [keep_count(n, r, config.count_rule) if r else n for n, r in zip(grid, ratios, strict=True)]
    if math.prod(kept) == math.prod(grid):
        raise ValueError("mask ratios are all 0: nothing would be hidden")
    draws, jitter = [_ranks(n) for n in grid], _uniform(math.prod(grid))

    def scores(samples: int, rng: torch.Generator) -> Tensor:
        total = torch.zeros(samples, *grid, device=rng.device)
        for axis, (draw, keep) in enumerate(zip(draws, kept, strict=True)):
            hidden = draw(samples, rng) * grid[axis] >= keep - 0.5
            shape = [samples] + [1] * len(grid)
            shape[1 + axis] = grid[axis]
            total = total + hidden.view(shape)
        # Where padding leaves room for some of them, patches that are equally hidden are chosen from at random.
        return total.reshape(samples, -1) + 0.5 * jitter(samples, rng)

    return scores, math.prod(kept)


def _uniform(count: int) -> Draw:
    return lambda samples, rng: torch.rand(samples, count, generator=rng, device=rng.device)


def _ranks(count: int) -> Draw:
    """Random ranks in [0, 1): unlike floats drawn at random, never equal, so that shared scores stay together."""
    draw = _uniform(count)
    return lambda samples, rng: draw(samples, rng).argsort(dim=1).argsort(dim=1).float() / count


_SCORES: dict[MaskKind, Callable[[MaskConfig, tuple[int, ...]], tuple[Draw, int]]] = {
    MaskKind.RANDOM: _random,
    MaskKind.TUBE: _tube,
    MaskKind.BLOCK: _block,
    MaskKind.AXIS: _axis,
    MaskKind.AXES: _axes,
}
