"""The process that exports a model: ``python -P -m core.export request.json``.

It speaks and ends as `core.launch` does. A folder that it writes is whole or not there, so it may end at any moment.
"""

import sys
import threading
from pathlib import Path

from core.data.private import closed
from core.errors import Stopped
from core.launch import Say, serve
from core.request import ExportRequest
from core.workspace import Home


def main(arguments: list[str]) -> int:
    """Export what the request file asks for; gives the exit code."""
    return serve(Path(arguments[0]), ExportRequest, run)


def run(request: ExportRequest, stop: threading.Event, say: Say = print) -> None:
    """Write the folder, and say what it was compared with.

    Raises:
        UserError: if the request is wrong.
        StageError: if what was written disagrees with the model.
        Stopped: if asked to stop before it began.
    """
    from core.interop.export import export
    from core.interop.subject import Subject

    if stop.is_set():
        raise Stopped
    home = Home.create(Path(request.home))
    subject = Subject.at(Path(request.model), home, with_decoder=request.with_decoder)
    with closed(request.private):
        written = export(subject, request.to, Path(request.out), overwrite=request.overwrite)
    for sentence in (*written.notes, *written.checked):
        say(f"note: {sentence}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
