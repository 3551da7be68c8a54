"""One process that has imported what all plugins need, and forks for each plugin that a second process is to meet.

Importing torch takes most of the time of a fresh interpreter. The fork has what makes it another process: it hashes
strings differently from the tests, knows nothing of what they have imported, and may die alone.

    python -P forking.py    # as the process that forks: one request a line, one answer a line
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from core.testing.bystander import LIMIT, End, main, surroundings


class Forker:
    """Runs a plugin's second process as a fork of one that waits for it."""

    def __init__(self):
        command = [sys.executable, "-P", __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings()
        )

    def run(self, request, said):
        order = {"request": str(request), "said": str(said), "paths": sys.path}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        words = said.with_suffix(".errors").read_text(errors="replace").strip().splitlines()
        return End((words or [f"exit code {code}"])[-1], late=code == -signal.SIGALRM)

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def serve():
    """Fork for each request, and say how the fork ended."""
    import torch  # noqa: F401 - what takes long in every fork, and starts no thread

    for line in sys.stdin:
        order = json.loads(line)
        fork = os.fork()
        if not fork:
            be_the_other_process(order)
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)


def be_the_other_process(order):
    """Never returns."""
    said = Path(order["said"])
    for descriptor, file in ((1, said), (2, said.with_suffix(".errors"))):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.path[:] = order["paths"]
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    code = 0
    try:
        main(json.loads(Path(order["request"]).read_text()))
    except BaseException:  # noqa: BLE001 - whatever a plugin raises ends the fork alone
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
