"""One Prefect server for all commands that a test process starts.

Without a server each command starts one of its own, which takes longer than the rest of many a test. That they do so
is tested where nothing else is; elsewhere commands are given this one.
"""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

from infra.services import Addresses, prefect_server


def environment(**more):
    """Variables of a command of somebody who has this server: those of the test process, without its own settings."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}
    return own | address() | more


def address():
    """The variable that leads to the server."""
    return {"PREFECT_API_URL": f"{_server()[0]}/api"}


def folder():
    """Where the server keeps what it was told."""
    return _server()[1]


@cache
def _server():
    """Address and home of the server, which ends with this process."""
    home = Path(tempfile.mkdtemp(prefix="maeflow-tests-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        addresses = Addresses(prefect=probe.getsockname()[1])
    service, nowhere = prefect_server(home, addresses, None), subprocess.DEVNULL
    process = subprocess.Popen(
        service.command, env=os.environ | service.environment, stdout=nowhere, stderr=nowhere, start_new_session=True
    )
    # The last one registered is called first.
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    atexit.register(process.wait)
    atexit.register(os.killpg, process.pid, signal.SIGTERM)
    deadline = time.monotonic() + service.start_seconds
    while not service.healthy():
        assert process.poll() is None, "the server did not start"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.1)
    return addresses.prefect_url, home
