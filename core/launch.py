"""The process in which a stage runs: ``python -P -m core.launch request.json``.

It holds the stage's folder alone while it works, and watches its standard input: when that closes, its launcher is
gone or wants it to stop, so it saves and ends. Exit codes: 0 the finished folder is there, 1 the work failed, 2 the
request was wrong, 3 stopped after saving. What a person should know goes to standard output, a line each; where sources
are private, nothing else does, since libraries quote names and contents in what they print.
"""

import faulthandler
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.data.private import resolve_source
from core.errors import StageError, Stopped, UserError, discreet
from core.recipes import resolve
from core.records import AnyRecord, PreparedData, PretrainedEncoder, R, TunedModel, read_record, write_record
from core.request import StageRequest
from core.tracking import JsonlTracker
from core.workspace import Home, StageFolder, write_text

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 3
DEBUG = "MAEFLOW_DEBUG"
"""Set where errors show where they come from."""


Say = Callable[[str], None]
"""Tells a person a line."""


def main(arguments: list[str]) -> int:
    """Run the stage that the request file asks for; gives the exit code."""
    return serve(Path(arguments[0]), run)


def serve(file: Path, work: Callable[[StageRequest, threading.Event, Say], None]) -> int:
    """Do ``work`` for the request in ``file``, with an event that says when to stop; gives the exit code."""
    faulthandler.enable()
    say, private = _Voice(), False
    stop = threading.Event()
    _stop_on_signals(stop)
    threading.Thread(target=_stop_when_closed, args=(stop,), daemon=True).start()
    try:
        request = StageRequest.model_validate_json(file.read_bytes())
        if private := request.private:
            say.alone()
        work(request, stop, say)
    except (Stopped, InterruptedError) as saved:
        say(f"stopped: {saved or 'while waiting'}")
        return STOPPED
    except UserError as error:
        return _complain(error, str(error), WRONG, say)
    except StageError as error:
        return _complain(error, str(error), FAILED, say)
    except Exception as error:  # noqa: BLE001 - the last line of defence: one clear line, the rest in the log
        text = discreet(error) if private else f"{type(error).__name__}: {error}"
        return _complain(error, text, FAILED, say, trace=not private)
    return DONE


class _Voice:
    """Says lines on the standard output that this process was started with."""

    def __init__(self) -> None:
        self._out = sys.stdout

    def __call__(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def alone(self) -> None:
        """From now on nobody else is heard: not libraries, not warnings, not processes that this one starts."""
        self._out = os.fdopen(os.dup(1), "w")
        faulthandler.enable(self._out)  # Where it crashed is told in places of code.
        if os.environ.get(DEBUG):
            os.dup2(2, 1)  # Seen by who asked for it; the launcher keeps what comes by standard output.
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def run(request: StageRequest, stop: threading.Event, say: Say = print) -> None:
    """Do the work unless its folder is already there; waits while another process does it."""
    home = Home.create(Path(request.home))
    folder = home.stage(request.stage, request.digest)

    def waiting(holder: str) -> None:
        say(f"waiting: {request.stage} {request.digest} is being worked on by {holder}")

    with folder.exclusive(waiting, stop.is_set):
        if folder.done:
            say(f"reused: {request.stage} {request.digest} is already done")
            return
        folder.partial.mkdir(parents=True, exist_ok=True)
        write_text(folder.partial / "request.json", request.model_dump_json(indent=1) + "\n")
        with JsonlTracker(folder.partial) as tracker:
            record = _stage(request, home, folder, tracker, stop)
        write_record(record, folder.partial)
        _tidy(folder)
        folder.finish()


def _stage(
    request: StageRequest, home: Home, folder: StageFolder, tracker: JsonlTracker, stop: threading.Event
) -> AnyRecord:
    from core.stages import stage_function
    from core.stages.work import Work

    recipe = resolve(request.recipe, "of the request")
    work = Work(home, request.digest, folder.partial, tracker, stop.is_set)
    record: AnyRecord = stage_function(request.stage)(recipe, *_inputs(request, home), work)
    return record


def _inputs(request: StageRequest, home: Home) -> tuple[Any, ...]:
    """What the stage's function takes between the recipe and the work."""
    if request.stage == "prepare":
        return (resolve_source(home, _given(request.source, "source")),)
    labelled = _record(home, request.labelled, PreparedData) if request.labelled else None
    if request.stage == "pretrain":
        return [(_record(home, given.folder, PreparedData), given.weight) for given in request.data], labelled
    encoder = _record(home, request.encoder, PretrainedEncoder)
    prepared = _record(home, request.labelled, PreparedData)
    if request.stage == "finetune":
        return encoder, prepared
    return encoder, _record(home, request.tuned, TunedModel), prepared


def _record(home: Home, folder: str | None, kind: type[R]) -> R:
    return read_record(home.resolve(_given(folder, kind.__name__)), kind)


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise UserError(f"the stage request lacks its {name}")
    return value


def _tidy(folder: StageFolder) -> None:
    """Remove temporary files of writers that were killed."""
    for left in folder.partial.rglob(".*.tmp"):
        left.unlink()
    shutil.rmtree(folder.partial / "checkpoints", ignore_errors=True)


def _stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _stop_when_closed(stop: threading.Event) -> None:
    """Standard input never holds anything; its end means that the launcher is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop.set()


def _complain(error: Exception, text: str, code: int, say: Say, *, trace: bool = False) -> int:
    if trace or os.environ.get(DEBUG):
        traceback.print_exception(error)
    for line in text.splitlines():
        say(f"error: {line}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
