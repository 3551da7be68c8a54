"""A finished model in the form of another tool: what is asked for is checked here, and done in a process of its own."""

import time
from pathlib import Path

from core.interop.outgoing import check_format, check_packages, check_place
from core.records import read_model
from core.registry import plugin_info
from core.request import ExportRequest
from core.workspace import Home
from flows import console
from flows.applying import writable
from flows.finished import finished_folder
from flows.privacy import discretion
from infra.launchers import Watch, run_process


def export(record: str, to: str, out: str, home: Path, *, with_decoder: bool = False, overwrite: bool = False) -> None:
    """Write the folder ``out``, telling what it was compared with, and say what to do next.

    Raises:
        UserError: if the request is wrong, or the format has no place for the model.
        StageError: if what was written disagrees with the model; nothing is left of it then.
    """
    folder = finished_folder(Home(home), record, "pretrain", "finetune")
    modality = read_model(folder).modality
    plugin_info(modality)  # One that is not installed is told of before anything else.
    check_format(to)
    check_packages(to)
    check_place(Path(out).absolute(), overwrite=overwrite)
    place, start, screen = Path(out).absolute(), time.monotonic(), console.for_terminal()
    with discretion(modality):
        request = ExportRequest(
            home=str(home),
            modality=modality,
            model=str(folder),
            to=to,
            out=writable(place),
            with_decoder=with_decoder,
            overwrite=overwrite,
        )

        def line(text: str) -> None:
            if text.startswith("note: "):
                screen.line(f"  {text.removeprefix('note: ')}")

        screen.line(f"export of {folder.parent.name} {folder.name} to {to} ...")
        run_process("core.export", request, Watch(line=line))
    screen.line(f"done in {time.monotonic() - start:.0f} s; {to} is in {place}")
    screen.line(f"next:  {place / 'README.md'} has the code that loads it; fill in its licence before you pass it on")
