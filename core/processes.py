"""Child processes that outlive neither their parent nor their time."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
