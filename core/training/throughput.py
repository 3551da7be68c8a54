"""What share of the machine's own arithmetic peak training reaches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from core.config import Precision


@dataclass
class Work:
    """Floating-point operations of one optimiser step, once counted."""

    flops: float = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, operations are counted; what they compute does not change."""
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops = float(counter.get_total_flops())


def measure_peak(device: torch.device, precision: Precision) -> float:
    """Operations per second of a large square matrix product in the precision that training uses; a few milliseconds.

    The numbers multiplied are constant, so that no random generator moves.
    """
    size = 4096 if device.type == "cuda" else 768
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    matrix = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best = 0.0
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        matrix @ matrix
        _wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
