"""The process in which a stage runs: ``python -P -m core.launch request.json``.

It holds the stage's folder alone while it works, and watches its standard input: when that closes, its launcher is
gone or wants it to stop, so it saves and ends. Exit codes: 0 the finished folder is there, 1 the work failed, 2 the
request was wrong, 3 stopped after saving, 4 the disk is full, 5 another process of this training is gone.

With torchrun in front of it there are several such processes, which train together: the first holds the folder and
writes, the others follow it. Each says its number and how it ended, since torchrun keeps exit codes to itself. What a
person should know goes to standard output, a line each; where sources are private, nothing else does, since libraries
quote names and contents in what they print.
"""

import faulthandler
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.private import resolve_source
from core.errors import PeerLost, StageError, Stopped, UserError, discreet, disk_full
from core.processes import rank_here
from core.recipes import resolve
from core.records import AnyRecord, PreparedData, PretrainedEncoder, R, TunedModel, read_record, write_record
from core.request import RequestT, StageRequest
from core.stopping import heard, listen
from core.tracking import JsonlTracker, NullTracker, Tracker
from core.workspace import Home, StageFolder, write_text

if TYPE_CHECKING:
    from core.stages.work import Work
    from core.training.distributed import World

DONE, FAILED, WRONG, STOPPED, FULL, LOST = range(6)
TOGETHER = ("pretrain", "finetune")
"""Stages that several processes work at."""
DEBUG = "MAEFLOW_DEBUG"
"""Set where errors show where they come from."""


Say = Callable[[str], None]
"""Tells a person a line."""


def main(arguments: list[str]) -> int:
    """Run the stage that the request file asks for; gives the exit code."""
    rank = rank_here()
    if rank is None:
        return serve(Path(arguments[0]), StageRequest, run)
    out, code = os.dup(1), LOST
    try:
        os.write(out, f"process: {rank} {os.getpid()}\n".encode())
        code = serve(Path(arguments[0]), StageRequest, run)
    finally:
        with suppress(OSError):  # Nobody may be left to hear it.
            os.write(out, f"ended: {rank} {code}\n".encode())
        os._exit(code)  # Libraries that talk to other processes may wait for one that is gone.


def serve(file: Path, kind: type[RequestT], work: Callable[[RequestT, threading.Event, Say], None]) -> int:
    """Do ``work`` for the request of ``kind`` in ``file``, told by an event when to stop; gives the exit code."""
    faulthandler.enable()
    say, private = _Voice(), False
    stop = threading.Event()
    listen(stop)
    home = "the home folder"
    try:
        request = kind.model_validate_json(file.read_bytes())
        home = request.place
        if private := request.private:
            say.alone()
        work(request, stop, say)
    except (Stopped, InterruptedError) as saved:
        if not rank_here():  # One speaks for all.
            say(f"stopped: {saved or 'while waiting'}")
        return STOPPED
    except Exception as error:  # noqa: BLE001 - the last line of defence: one clear line, the rest in the log
        if disk_full(error):
            return _complain(error, f"the disk of {home} is full; make room and run it again", FULL, say)
        if isinstance(error, PeerLost):
            say(f"lost: {error}")
            return LOST
        if isinstance(error, (UserError, StageError)):
            return _complain(error, str(error), WRONG if isinstance(error, UserError) else FAILED, say)
        text = discreet(error) if private else f"{type(error).__name__}: {error}"
        return _complain(error, text, FAILED, say, trace=not private)
    finally:
        heard()
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
    world = _world(request)
    if world and not world.leads:
        return _help(request, world, stop)
    home = Home.create(Path(request.home))
    folder = home.stage(request.stage, request.digest)

    def waiting(holder: str) -> None:
        say(f"waiting: {request.stage} {request.digest} is being worked on by {holder}")

    with _calling(world) as call, folder.exclusive(waiting, stop.is_set):
        if folder.done:
            say(f"reused: {request.stage} {request.digest} is already done")
            return None
        folder.partial.mkdir(parents=True, exist_ok=True)
        write_text(folder.partial / "request.json", request.model_dump_json(indent=1) + "\n")
        with JsonlTracker(folder.partial) as tracker:
            call()
            record = _stage(request, home, tracker, stop, world)
        write_record(record, folder.partial)
        _tidy(folder)
        folder.finish()
    return None


def _world(request: StageRequest) -> "World | None":
    """The processes that this one trains with, once all are there; None where it is alone."""
    if rank_here() is None:
        return None
    if request.stage not in TOGETHER:
        raise UserError(f"{request.stage} is the work of one process; torchrun is for {' and '.join(TOGETHER)}")
    from core.training.distributed import join

    return join()


@contextmanager
def _calling(world: "World | None") -> Iterator[Callable[[], None]]:
    """Gives what tells the other processes to begin; those that were never told to learn at the end to leave."""
    called = world is None

    def call() -> None:
        nonlocal called
        if world and not called:
            called = True
            world.told(1)

    try:
        yield call
    finally:
        if world and not called:
            with suppress(PeerLost):
                world.told(0)


def _help(request: StageRequest, world: "World", stop: threading.Event) -> None:
    """Train with the others, without a lock, a tracker or a record, once the first process says that there is work."""
    if world.told(0):
        _stage(request, Home(Path(request.home)), NullTracker(), stop, world)


def _stage(
    request: StageRequest, home: Home, tracker: Tracker, stop: threading.Event, world: "World | None"
) -> AnyRecord:
    from core.stages import stage_function
    from core.stages.work import Work
    from core.training.distributed import World

    recipe = resolve(request.recipe, "of the request")
    folder = home.stage(request.stage, request.digest).partial
    work = Work(home, request.digest, folder, tracker, stop.is_set, world or World())
    if request.checkpoint is not None:
        return _adopted(request, home, work)
    start = {"start": _record(home, request.encoder, PretrainedEncoder)} if _goes_on(request) else {}
    record: AnyRecord = stage_function(request.stage)(recipe, *_inputs(request, home), work, **start)
    return record


def _goes_on(request: StageRequest) -> bool:
    """Whether pretraining begins with an encoder that there is already."""
    return request.stage == "pretrain" and request.encoder is not None


def _adopted(request: StageRequest, home: Home, work: "Work") -> AnyRecord:
    """A foreign checkpoint in the place of what the stage would train."""
    from core.stages.adopt import adopt, adopt_tuned

    recipe, checkpoint = resolve(request.recipe, "of the request"), request.checkpoint
    assert checkpoint is not None, "this is asked before"
    data = _record(home, request.labelled, PreparedData) if request.labelled else None
    if request.stage == "pretrain":
        return adopt(recipe, data, checkpoint, work)
    encoder = _record(home, request.encoder, PretrainedEncoder)
    return adopt_tuned(recipe, encoder, _record(home, request.labelled, PreparedData), checkpoint, work)


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
    tuned = _record(home, request.tuned, TunedModel) if request.tuned else None
    return encoder, tuned, prepared


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


def _complain(error: Exception, text: str, code: int, say: Say, *, trace: bool = False) -> int:
    if trace or os.environ.get(DEBUG):
        traceback.print_exception(error)
    for line in text.splitlines():
        say(f"error: {line}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
