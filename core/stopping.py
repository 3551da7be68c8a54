"""How a process learns that it should save and end, and that it does so in time.

Whoever wants it to stop sends SIGTERM or SIGINT, or closes its standard input, as a launcher does that is gone. Where
torchrun started it, the end of torchrun counts as well.
"""

import faulthandler
import os
import signal
import sys
import threading
import time

from core.processes import rank_here

LAST_SECONDS = 60.0
"""How long a process may take to end once it was asked to; then it ends itself, whatever it hangs in."""
LAST_SECONDS_TOGETHER = 25.0
"""The same where several train together: when one hangs, it is for lack of another, and nothing is left to save."""


def listen(stop: threading.Event) -> None:
    """Set ``stop`` when this process should end, and see to it that it does; called once, by the main thread."""
    ears, mouth = os.pipe()
    os.set_blocking(mouth, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # A main thread that waits in C never comes to run its handlers; these bytes are written by the kernel's signal.
    signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    together = rank_here() is not None
    limit = LAST_SECONDS_TOGETHER if together else LAST_SECONDS
    for work in ((_hear, ears, stop), (_until_closed, stop), (_end_late, stop, limit)):
        threading.Thread(target=work[0], args=work[1:], daemon=True).start()
    if together:
        threading.Thread(target=_until_orphaned, args=(os.getppid(), stop), daemon=True).start()


def heard() -> None:
    """From now on requests to stop change nothing: the work is over, and how it ended is to be told undisturbed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _hear(ears: int, stop: threading.Event) -> None:
    while heard := os.read(ears, 64):
        if {signal.SIGTERM, signal.SIGINT} & set(heard):
            stop.set()


def _until_closed(stop: threading.Event) -> None:
    """Standard input never holds anything; its end means that the launcher is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


def _until_orphaned(parent: int, stop: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    stop.set()


def _end_late(stop: threading.Event, limit: float) -> None:
    stop.wait()
    # A thread of C, which needs no interpreter lock. Where errors must not be seen, descriptor 2 leads nowhere.
    faulthandler.dump_traceback_later(limit, exit=True, file=2)
    time.sleep(limit + 1)  # Whoever else uses that one timer has taken it away.
    os._exit(1)
