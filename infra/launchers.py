"""Starting stage processes and watching them: a stage's crash, end of memory or cancellation ends one process tree."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from core.errors import StageError, UserError
from core.request import StageRequest
from core.workspace import write_text
from infra.settings import debug

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 3
GRACE_SECONDS = 30.0
"""How long a stage may take to save when it is asked to stop."""
POLL_SECONDS = 0.1


@dataclass
class Watch:
    """What a launcher tells while a stage runs."""

    line: Callable[[str], None] = lambda _: None
    """Called with each line the stage prints."""
    tick: Callable[[], None] = lambda: None
    """Called a few times a second."""
    started: Callable[[int], None] = lambda _: None
    """Called with the process's id."""


class Launcher(Protocol):
    """A way to run a stage somewhere else than in this process."""

    def run(self, request: StageRequest, watch: Watch) -> None:
        """Run the stage until its finished folder is there.

        Raises:
            UserError: if the stage found the request wrong.
            StageError: if the work failed, or the process died.
        """


@dataclass
class SubprocessLauncher:
    """One process on this machine, which saves and ends when this one is gone."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables set for the stage alone."""

    def run(self, request: StageRequest, watch: Watch) -> None:
        """Start ``python -P -m core.launch`` and wait for it."""
        file = _write_request(request)
        # What a process says goes into errors, which are stored; where sources are private, a traceback must not.
        apart = debug() and request.private
        try:
            code, lines = follow("core.launch", [str(file)], watch, self.environment, apart=apart)
        finally:
            file.unlink(missing_ok=True)
        _raise_for(code, lines, request)


def follow(
    module: str, arguments: Sequence[str], watch: Watch, environment: Mapping[str, str], *, apart: bool = False
) -> tuple[int, list[str]]:
    """Run ``module`` in a process that ends with this one; gives its exit code and the last lines that it printed.

    With ``apart`` its errors go where ours go, not among those lines.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if apart else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C in a terminal is for us; we then ask the stage to save.
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )
    lines: list[str] = []
    reader = threading.Thread(target=_relay, args=(process, lines, watch), daemon=True)
    try:
        watch.started(process.pid)
        reader.start()
        while process.poll() is None:
            watch.tick()
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
    except BaseException:
        end(process)
        raise
    reader.join(timeout=5)
    watch.tick()
    return process.returncode, lines


def _write_request(request: StageRequest) -> Path:
    folder = Path(request.home) / "runs" / "requests"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{request.stage}-{request.digest}-{os.getpid()}.json"
    write_text(file, request.model_dump_json())
    return file


def _relay(process: "subprocess.Popen[str]", lines: list[str], watch: Watch) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        del lines[:-200]
        watch.line(line.rstrip())


def end(process: "subprocess.Popen[str]") -> None:
    """Ask a stage to save and end by closing its input; kill its whole tree when it does not."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid)


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, children first."""
    try:
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=5)


def _raise_for(code: int, lines: list[str], request: StageRequest) -> None:
    if code == DONE:
        return
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = [] if request.private else lines[-5:]  # Other lines may quote names and contents.
    message = "\n".join(said or last) or "it said nothing"
    if code == WRONG:
        raise UserError(message)
    if code == STOPPED:
        raise StageError(f"{request.stage} was stopped and has saved its work; run the same command to go on")
    if code < 0:
        why = "killed, perhaps for lack of memory" if code == -9 else f"ended by signal {-code}"
        raise StageError(
            f"{request.stage}: its process was {why}; run the same command to go on from its last checkpoint"
        )
    raise StageError(message if said else f"{request.stage} failed:\n{message}")
