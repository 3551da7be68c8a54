"""Every random number comes from the run's seed and from what it is for, never from what was drawn before it.

So results depend neither on the number of workers or processes nor on where a run was interrupted.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from the run's seed and names or numbers that say what it is for."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """A NumPy generator for ``parts``."""
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))


def torch_rng(device: "torch.device", *parts: int | str) -> "torch.Generator":
    """A torch generator on ``device`` for ``parts``."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_of(*parts))
