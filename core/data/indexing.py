"""Looking into many files before items are formed: the same small function on each, in processes where that pays."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from core.processes import die_with

T = TypeVar("T")
FEW = 4000
"""Files up to which starting processes takes longer than looking at them in this one."""
CHUNK = 64
"""Files that are handed to a process at a time."""


def index(paths: Sequence[str], look: Callable[[str], T], workers: int | None = None) -> list[T]:
    """What ``look``, a function of a module, gives for each of ``paths``, in their order."""
    workers = workers or os.cpu_count() or 1
    if len(paths) <= FEW or workers == 1:
        return [look(path) for path in paths]
    with ProcessPoolExecutor(workers, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        return list(pool.map(look, paths, chunksize=CHUNK))
