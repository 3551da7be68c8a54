"""Which process is meant: numbers come again, so a process is known by its number and when it was made."""

import psutil

SLACK_SECONDS = 0.5


def made_at(pid: int) -> float:
    """Seconds between the start of this machine and that of process ``pid``; no change of the clock moves it.

    Raises:
        psutil.NoSuchProcess: if there is none.
    """
    process = psutil.Process(pid)
    while True:
        before = psutil.boot_time()
        created = process.create_time()
        if psutil.boot_time() == before:
            return float(created - before)


def find(pid: int, made: float) -> psutil.Process | None:
    """Process ``pid`` that was made at ``made``, if it still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(made_at(pid) - made) < SLACK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None
