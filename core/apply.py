"""The process in which a finished model is applied to files: ``python -P -m core.apply request.json``.

It takes an `ApplyRequest`, holds the place of the output alone, and ends and speaks as `core.launch` does.
"""

import sys
import threading
from pathlib import Path

from core.launch import Say, serve
from core.request import ApplyRequest
from core.workspace import Home


def main(arguments: list[str]) -> int:
    """Do what the request file asks for; gives the exit code."""
    return serve(Path(arguments[0]), ApplyRequest, _run)


def _run(request: ApplyRequest, stop: threading.Event, say: Say) -> None:
    from core.stages.applying import apply

    apply(request, Home.create(Path(request.home)), say, stop.is_set)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
