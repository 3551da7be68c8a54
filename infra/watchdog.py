"""Ends helper processes that others started for us, when this process is gone, however it ended.

Prefect starts a temporary server for flows that have no server configured, and stops it when Python exits in good
order; after `kill -9` the server would stay for ever.
"""

import subprocess
import sys

import psutil

_CODE = """
import os, signal, sys
import psutil
pids = [int(line) for line in sys.stdin if line.strip()]
for pid in pids:
    try:
        process = psutil.Process(pid)
        if any(sys.argv[1] in part for part in process.cmdline()):
            process.terminate()
    except psutil.NoSuchProcess:
        pass
"""

_guards: list["subprocess.Popen[str]"] = []


def guard_children(mark: str) -> list[int]:
    """Have the children whose command line holds ``mark`` ended when this process is gone; gives their ids."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if any(mark in part for part in child.cmdline()):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    if found:
        # It reads to the end of its input, which comes when the last holder of the other end, this process, is gone.
        guard = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, mark], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        assert guard.stdin is not None
        guard.stdin.write("".join(f"{pid}\n" for pid in found))
        guard.stdin.flush()
        _guards.append(guard)
    return found
