"""How processes end: on request, in time, and with a code that says why."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

from core.errors import UserError, disk_full
from core.launch import FULL


def start(code, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


HUNG = """
    import ctypes, sys, threading
    from core import stopping
    stopping.LAST_SECONDS = 1.0
    stopping.listen(threading.Event())
    print("listens", flush=True)
    if sys.argv[1] == "python":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    mutex = ctypes.create_string_buffer(64)  # All zeros: a free mutex, of the kind that locks once.
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def ends_itself(process, ask):
    assert process.stdout.readline() == "listens\n"
    time.sleep(0.2)
    asked = time.monotonic()
    ask(process)
    assert process.wait(10) == 1
    assert 0.8 < time.monotonic() - asked < 5
    assert "Timeout" in process.stdout.read()
    process.stdout.close()


def test_a_process_that_hangs_in_python_ends_itself_after_a_signal():
    ends_itself(start(HUNG, "python"), lambda process: process.terminate())


def test_a_process_that_hangs_in_c_hears_signals_and_the_end_of_its_input():
    """The main thread waits for a lock of C: no handler of Python's ever runs."""
    ends_itself(start(HUNG, "c"), lambda process: process.send_signal(signal.SIGTERM))
    ends_itself(start(HUNG, "c"), lambda process: process.stdin.close())


def test_a_full_disk_has_a_code_and_words_of_its_own(tmp_path):
    request = tmp_path / "request.json"
    request.write_text('{"stage": "prepare", "home": "/the/home", "digest": "d", "recipe": {}}')
    code = """
        import sys
        from pathlib import Path
        from core.launch import serve
        from core.request import StageRequest

        def work(request, stop, say):
            with open("/dev/full", "w") as out:
                out.write("x")

        sys.exit(serve(Path(sys.argv[1]), StageRequest, work))
    """
    said, _ = (process := start(code, str(request))).communicate()
    assert process.returncode == FULL
    assert "error: the disk of /the/home is full; make room and run it again\n" in said


def test_a_full_disk_is_known_behind_other_errors():
    wrapping = UserError("the home cannot be written to")
    wrapping.__context__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))  # As `raise ... from None` leaves it.
    assert disk_full(wrapping)
    assert disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not disk_full(OSError(errno.EACCES, "no"))
