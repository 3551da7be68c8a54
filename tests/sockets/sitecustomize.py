"""Writes down whom each Python process speaks to: put this folder on PYTHONPATH, and name a file."""

import os
import sys

_FILE = os.environ.get("MAEFLOW_TEST_SOCKETS")
_EVENTS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")


def _note(event, arguments):
    if event in _EVENTS:
        # (socket, address) or (host, port, ...): what is not an object is whom it is about.
        about = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        line = f"{event}\t{about!r}\t{' '.join(sys.argv[:3])}\n"
        handle = os.open(_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, line.encode(errors="replace"))
        os.close(handle)


if _FILE:
    sys.addaudithook(_note)
