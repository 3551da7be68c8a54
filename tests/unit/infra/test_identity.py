"""A process is known by its number and when it was made, whatever the clock says."""

import os
import subprocess
import sys

import psutil

from infra import identity


def test_a_process_is_found_until_it_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    made = identity.made_at(child.pid)
    assert identity.find(child.pid, made).pid == child.pid
    assert identity.find(child.pid, made - 5) is None
    child.kill()
    child.wait()
    assert identity.find(child.pid, made) is None


def test_a_clock_that_is_set_moves_nothing(monkeypatch):
    made = identity.made_at(os.getpid())
    boot, created = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created + 3600)
    assert identity.find(os.getpid(), made) is not None
