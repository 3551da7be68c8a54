r"""Starting stage processes and watching them: a stage's crash, end of memory or cancellation ends one process tree.

On several machines each runs its part of a training by itself. A Kubernetes Job of two pods (``completionMode:
Indexed``, ``completions`` and ``parallelism`` 2, ``subdomain`` of the pods: a headless service) with one home that both
mount has each pod run, with the Job's own name for JOB and the service's for SERVICE::

    python -P -m infra.node "$MAEFLOW_HOME/runs/requests/REQUEST.json" \
        --nodes 2 --rank "$JOB_COMPLETION_INDEX" --rendezvous JOB-0.SERVICE:29500

REQUEST.json is a `StageRequest`. Pods must reach each other at port 29500 and at all above 1024, by which processes
talk. The exit code is 0 when the finished folder is there; 3 when the pod, or the other one, was told to stop and the
checkpoint is written; 5 when a process is lost or the disk is full: these two are worth starting both pods again, and
1 and 2 are not. Give pods ``terminationGracePeriodSeconds: 45``.
"""

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import psutil

from core.config import ComputeConfig
from core.data.private import FOLDER, closed
from core.errors import StageError, StageLost, StagePreempted, UserError, disk_full
from core.request import Request, StageRequest
from core.workspace import write_text
from infra.access import forget
from infra.devices import installed
from infra.settings import debug

DONE, FAILED, WRONG, STOPPED, FULL, LOST = range(6)
"""Exit codes of `core.launch`."""
TOGETHER = ("pretrain", "finetune")
"""Stages that several processes can work at."""
GRACE_SECONDS = 20.0
"""How long a stage may take to save when it is asked to stop."""
POLL_SECONDS = 0.1
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


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
            StageLost: if a process died, or the disk is full.
            StagePreempted: if somebody else asked the stage to stop; it has saved its work.
            StageError: if the work failed.
        """


@dataclass
class SubprocessLauncher:
    """One process on this machine, which saves and ends when this one is gone."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables set for the stage alone."""
    inherited: tuple[int, ...] = ()
    """File descriptors that the process keeps open, such as those of locks."""

    def run(self, request: StageRequest, watch: Watch) -> None:
        """Start ``python -P -m core.launch`` and wait for it."""
        run_process("core.launch", request, watch, self.environment, self.inherited)


def run_process(
    module: str,
    request: Request,
    watch: Watch,
    environment: Mapping[str, str] = NO_VARIABLES,
    inherited: Sequence[int] = (),
) -> None:
    """Run ``module``, which takes ``request`` as a file, and wait for it.

    Raises:
        UserError: if it found the request wrong.
        StageLost: if the process died, or a disk is full.
        StagePreempted: if somebody else asked it to stop; it has saved its work.
        StageError: if the work failed.
    """
    with _written(request) as file:
        code, lines = follow(module, [str(file)], watch, environment, apart=_apart(request), inherited=inherited)
    _raise_for(code, lines, request)


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, and which of them this is."""

    count: int
    """Machines in all."""
    rank: int
    """Number of this one, from 0."""
    rendezvous: str
    """``host:port`` of machine 0, where all meet."""


@dataclass
class TorchrunLauncher:
    """Several processes that train together on this machine, or on this one and others; each `core.launch`."""

    processes: int | None = None
    """On this machine. None: as many as it has GPUs, or fewer where these cannot share a step evenly."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables set for the stage alone."""
    inherited: tuple[int, ...] = ()
    """File descriptors that torchrun keeps open, such as those of locks."""
    nodes: Nodes | None = None
    """The machines that take part; None: this one alone."""

    def run(self, request: StageRequest, watch: Watch) -> None:
        """Start torchrun and wait for it.

        It passes our standard input on, so that all processes see us go; they also see torchrun go.
        """
        count = self.processes or _even(request, visible_gpus(self.environment), self.nodes)
        if count == 1 and self.nodes is None:
            SubprocessLauncher(self.environment, self.inherited).run(request, watch)
            return
        ranks = _Ranks(watch.line)
        with _written(request) as file:
            arguments = [
                *_torchrun(count, self.nodes, request),
                sys.executable,
                "-P",
                "-u",
                "-m",
                "core.launch",
                str(file),
            ]
            environment = _TOGETHER | _threads(count) | _loopback(self.nodes) | self.environment
            try:
                code, lines = follow(
                    "torch.distributed.run",
                    arguments,
                    replace(watch, line=ranks),
                    environment,
                    apart=_apart(request),
                    inherited=self.inherited,
                    linger=GRACE_SECONDS,
                )
            finally:
                ranks.end(str(file))
        _raise_for(ranks.verdict(code), lines, request)


_TOGETHER = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _threads(count: int) -> dict[str, str]:
    """Each process has its part of the processors, unless somebody says otherwise."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}


def _loopback(nodes: Nodes | None) -> dict[str, str]:
    """On one machine nothing has to resolve the machine's own name, which not every container can."""
    if nodes or not sys.platform.startswith("linux") or "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    return {"GLOO_SOCKET_IFNAME": "lo"}


def _torchrun(count: int, nodes: Nodes | None, request: StageRequest) -> list[str]:
    """Arguments of torchrun; it never restarts anything, since who launched it knows better what is worth it."""
    common = [f"--nproc-per-node={count}", "--max-restarts=0", "--no-python"]
    if nodes is None:
        return ["--standalone", "--nnodes=1", "--local-addr=127.0.0.1", *common]
    meeting = ["--rdzv-backend=static", f"--rdzv-endpoint={nodes.rendezvous}", f"--rdzv-id={request.digest}"]
    return [f"--nnodes={nodes.count}", f"--node-rank={nodes.rank}", *meeting, *common]


def _even(request: StageRequest, most: int, nodes: Nodes | None) -> int:
    """The largest number of processes up to ``most`` that can share the micro-batches of a step evenly."""
    config: dict[str, Any] = request.recipe[request.stage]
    micro_batches = config["batch"] // (config.get("micro_batch") or config["batch"])
    machines = nodes.count if nodes else 1
    return next((n for n in range(most, 1, -1) if micro_batches % (n * machines) == 0), 1)


class _Ranks:
    """What the processes under torchrun tell of themselves, taken out of the lines that they print."""

    def __init__(self, line: Callable[[str], None]) -> None:
        self._line = line
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}

    def __call__(self, line: str) -> None:
        """Keep a line of theirs, pass on any other."""
        what, _, rest = line.partition(": ")
        numbers = rest.split()
        kept = {"process": self._pids, "ended": self._codes}.get(what)
        if kept is not None and len(numbers) == 2 and all(n.isdigit() for n in numbers):
            kept[int(numbers[0])] = int(numbers[1])
        else:
            self._line(line)

    def verdict(self, code: int) -> int:
        """How the stage ended: by the process that has most to say; torchrun's own ``code`` tells success alone."""
        if code == DONE:
            return DONE
        codes = set(self._codes.values())
        known = next((c for c in (WRONG, FULL, FAILED, STOPPED) if c in codes), None)
        if known is not None:
            return known
        met = bool(self._pids)
        return (code if code < 0 else -9) if met and (len(self._codes) < len(self._pids) or code < 0) else LOST

    def end(self, file: str) -> None:
        """Kill those that are still there, as after the death of torchrun; ``file`` is in their command line."""
        for pid in self._pids.values():
            with suppress(psutil.NoSuchProcess):
                if file in psutil.Process(pid).cmdline():
                    kill_tree(pid)


def visible_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that a process with these variables sees: by ``CUDA_VISIBLE_DEVICES``, else as `nvidia-smi` lists them."""
    named = environment.get("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
    if named is not None:
        names = [name.strip() for name in named.split(",")]
        return next((place for place, name in enumerate(names) if name in ("", "-1", "none")), len(names))
    return installed()


def launcher_for(
    stage: str,
    compute: ComputeConfig,
    environment: Mapping[str, str],
    *,
    inherited: Sequence[int] = (),
    nodes: Nodes | None = None,
) -> Launcher:
    """What runs ``stage`` on this machine: one process, or as many as ``compute.processes`` and its GPUs say.

    ``inherited`` are file descriptors that stay open as long as the work goes on.
    """
    variables, kept = dict(environment), tuple(inherited)
    count = compute.processes
    if count is None and compute.device in ("cpu", "mps"):
        count = 1
    if stage not in TOGETHER or (nodes is None and count == 1):
        return SubprocessLauncher(variables, kept)
    return TorchrunLauncher(count, variables, kept, nodes)


def _apart(request: Request) -> bool:
    """What a process says goes into errors, which are stored; where sources are private, a traceback must not."""
    return debug() and request.private


def follow(
    module: str,
    arguments: Sequence[str],
    watch: Watch,
    environment: Mapping[str, str],
    *,
    apart: bool = False,
    inherited: Sequence[int] = (),
    linger: float = 5,
) -> tuple[int, list[str]]:
    """Run ``module`` in a process that ends with this one; gives its exit code and the last lines that it printed.

    With ``apart`` its errors go where ours go, not among those lines. ``inherited`` are file descriptors that it keeps.
    Whoever it leaves behind may still print for ``linger`` seconds.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if apart else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C in a terminal is for us; we then ask the stage to save.
        pass_fds=tuple(inherited),
        env={**forget(os.environ), "PYTHONUNBUFFERED": "1", **environment},  # A stage speaks to no server.
    )
    lines: list[str] = []
    # Loggers of a flow ask in whose context they are called.
    reader = threading.Thread(target=copy_context().run, args=(_relay, process, lines, watch), daemon=True)
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
    reader.join(timeout=linger)
    watch.tick()
    return process.returncode, lines


@contextmanager
def _written(request: Request) -> Iterator[Path]:
    """The request as a file that is there as long as its process.

    Raises:
        StageLost: if the disk is full.
    """
    # Processes of several machines, or containers, may have one number.
    file = Path(request.home) / f"{request.file}-{os.getpid()}-{secrets.token_hex(4)}.json"
    try:
        with closed(file.parts[-3] == FOLDER):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, request.model_dump_json())
    except OSError as error:
        if disk_full(error):
            raise StageLost(f"the disk of {request.home} is full; make room and run it again") from error
        raise
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _relay(process: "subprocess.Popen[str]", lines: list[str], watch: Watch) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line.rstrip())
        del lines[:-200]
        with suppress(Exception):  # Whoever listens: a pipe that nobody reads would stop the stage.
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


def _raise_for(code: int, lines: list[str], request: Request) -> None:
    if code == DONE:
        return
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    lost = [line.removeprefix("lost: ") for line in lines if line.startswith("lost: ")]
    last = lost or ([] if request.private else lines[-5:])  # Other lines may quote names and contents.
    message = "\n".join(dict.fromkeys(said or last)) or "it said nothing"  # Several processes say one thing.
    if code == WRONG:
        raise UserError(message)
    if code == STOPPED:
        raise StagePreempted(f"{request.title} was stopped and has saved its work; run the same command to go on")
    if code == FULL:
        raise StageLost(message)
    if code < 0:
        why = "killed, perhaps for lack of memory" if code == -9 else f"ended by signal {-code}"
        raise StageLost(
            f"{request.title}: its process was {why}; run the same command to go on from its last checkpoint"
        )
    if code == LOST:
        raise StageLost(f"{request.title}: {message}; run the same command to go on from its last checkpoint")
    raise StageError(message if said else f"{request.title} failed:\n{message}")
