"""Attention within windows of a grid of 1 to 4 axes, shifted in every other block (Liu et al. 2021, section 3.2).

A shifted partition begins before the grid and ends after it; what lies outside is left out of attention. That gives
each patch the neighbours that Swin's cyclic shift with its masks gives it, without either.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Partition(nn.Module):
    """One division of a grid into windows."""

    order: Tensor
    """(W, L) int64: the patches of each window; N where it reaches beyond the grid."""
    inverse: Tensor
    """(N,) int64: where each patch stands in ``order``, flattened."""

    def __init__(self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> None:
        super().__init__()
        count = math.prod(grid)
        whole = torch.arange(count).reshape(*grid)
        # Windows that are moved forward leave a part of one before them.
        starts = [range(-((w - s) % w), n, w) for n, w, s in zip(grid, window, shift, strict=True)]
        order = torch.stack([_window(whole, corner, window, count) for corner in itertools.product(*starts)])
        places = torch.empty(count + 1, dtype=torch.int64)
        places[order.flatten()] = torch.arange(order.numel())
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", places[:count], persistent=False)

    def run(self, block: nn.Module, tokens_BND: Tensor, present_BN: Tensor) -> Tensor:
        """``tokens_BND`` after ``block`` in each window by itself; those that are not ``present_BN`` are not seen."""
        batch, _, width = tokens_BND.shape
        windows, length = self.order.shape
        padded = nn.functional.pad(tokens_BND, (0, 0, 0, 1))
        inside = padded[:, self.order.flatten()].reshape(batch * windows, length, width)
        seen = nn.functional.pad(present_BN, (0, 1))[:, self.order.flatten()].reshape(batch * windows, length)
        # A window in which nothing can be seen still has to attend to something, or it would give NaN.
        seen = seen | ~seen.any(dim=1, keepdim=True)
        changed: Tensor = block(inside, attn_mask=seen[:, None, None, :])
        return changed.reshape(batch, windows * length, width)[:, self.inverse]


class WindowedBlocks(nn.Module):
    """Runs transformer blocks in windows of a grid, every other one in shifted windows."""

    def __init__(self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int] | None) -> None:
        """Take the windows' extent along each axis, and their shift; by default half a window.

        Raises:
            ValueError: if there is not one extent for each axis of the grid.
        """
        super().__init__()
        if len(window) != len(grid):
            raise ValueError(f"decoder.window {tuple(window)} needs one extent for each axis of the grid {tuple(grid)}")
        sides = [min(w, n) for w, n in zip(window, grid, strict=True)]
        moved = [w // 2 for w in sides] if shift is None else [s % w for s, w in zip(shift, sides, strict=True)]
        # An axis that is one window wide has nothing to shift.
        moved = [s if w < n else 0 for s, w, n in zip(moved, sides, grid, strict=True)]
        self.patches = math.prod(grid)
        self.partitions = nn.ModuleList([Partition(grid, sides, [0] * len(sides)), Partition(grid, sides, moved)])

    def forward(self, blocks: nn.ModuleList, tokens_BTD: Tensor, ids_BT: Tensor, valid_BN: Tensor | None) -> Tensor:
        """Tokens (B, T, D) of the patches ``ids_BT``, in that order, after all ``blocks``; others count as absent."""
        batch, _, width = tokens_BTD.shape
        places = ids_BT.unsqueeze(-1).expand(-1, -1, width)
        grid = tokens_BTD.new_zeros(batch, self.patches, width).scatter(1, places, tokens_BTD)
        present = torch.zeros(batch, self.patches, dtype=torch.bool, device=grid.device).scatter(1, ids_BT, value=True)
        if valid_BN is not None:
            present = present & valid_BN
        for number, block in enumerate(blocks):
            partition = self.partitions[number % 2]
            assert isinstance(partition, Partition)
            grid = partition.run(block, grid, present)
        return grid.gather(1, places)


def _window(whole: Tensor, corner: Sequence[int], window: Sequence[int], outside: int) -> Tensor:
    """(L,) int64: the patches of the window that begins at ``corner``; ``outside`` beyond the grid."""
    inside = torch.full(tuple(window), outside)
    low = [max(0, c) for c in corner]
    high = [min(n, c + w) for n, c, w in zip(whole.shape, corner, window, strict=True)]
    target = tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
    inside[target] = whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return inside.flatten()
