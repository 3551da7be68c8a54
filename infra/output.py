"""Output that outlives who reads it: a worker that dies must not take along the flows whose lines it passed on.

Prefect's console handler ends its process, by `SystemExit`, at the first line that nobody reads any more.
"""

import atexit
import os
import stat
import threading

_SIZE = 1 << 16
_LAST_SECONDS = 1.0
"""How long the last lines may take to reach a slow reader."""


def outlive_readers() -> None:
    """From now on what this process prints into a pipe is dropped once nobody reads it, and no write fails."""
    for descriptor in (1, 2):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            _relay(descriptor)


def _relay(descriptor: int) -> None:
    reader = os.dup(descriptor)
    ours, theirs = os.pipe()
    os.dup2(theirs, descriptor)
    os.close(theirs)
    thread = threading.Thread(target=_pump, args=(ours, reader), daemon=True)
    thread.start()
    atexit.register(_flush, descriptor, thread)


def _pump(ours: int, reader: int) -> None:
    heard = True
    while data := os.read(ours, _SIZE):
        while data and heard:
            try:
                data = data[os.write(reader, data) :]
            except OSError:  # The reader is gone; whoever writes to us must not block, so we read on.
                heard = False


def _flush(descriptor: int, thread: threading.Thread) -> None:
    """Close the other end, so that the thread comes to the end of what was written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    thread.join(_LAST_SECONDS)
