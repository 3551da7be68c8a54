"""Child processes that outlive neither their parent nor their time."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

PATIENCE = 0.5
"""Seconds after which whoever waits for another process looks whether it should stop."""
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End this process when process ``parent`` is gone, however it ended. Call it first in a child.

    The kernel does it at once on Linux; elsewhere, and for a parent that died before this call, a thread looks
    twice a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def rank_here() -> int | None:
    """Number of this process among those that torchrun has started to train together; None where it did not."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


@contextmanager
def side_by_side(workers: int, start: Callable[[int], None]) -> Iterator[ProcessPoolExecutor]:
    """Processes that begin with ``start``, which is given the number of this one; the block ends with their work.

    Where it ends by an exception, as by a request to stop, work that has not begun never does, and what has is not
    waited for but killed: it must keep its results in files that are whole or not there.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start, (os.getpid(),))
    try:
        yield pool
    except BaseException:
        for child in set(active_children()) - others:
            child.kill()
        # One call for both: the one that ends a pool's own block would take an earlier wish to cancel back.
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def ends_after(seconds: float | None, told: int) -> Iterator[None]:
    """End this process when the block takes longer, whatever code it hangs in.

    Where it hung is written to the file descriptor ``told``, so that others see why this process is gone.
    """
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True, file=told)  # A thread of C, which needs no interpreter lock.
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
