"""A local stack: both servers and a worker, started, watched, restarted and stopped together.

``stack/stack.json`` in the home says which processes there are. The supervisor holds ``stack/lock``, which the kernel
drops with it; a supervisor that comes after a killed one takes over what still runs.
"""

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from core.errors import StageError, UserError
from core.workspace import write_text
from infra import identity, services, settings
from infra.access import Access, open_access, read_access
from infra.reconcile import flow_processes
from infra.services import Addresses, Service

STATE, LOCK, PORTS = "stack/stack.json", "stack/lock", "stack/ports.json"
ROUND_SECONDS = 1.0
RECONCILE_SECONDS = 10.0
PATIENCE = (0.0, 1.0, 5.0, 15.0, 60.0)
"""Seconds before a process that died is started anew: the first time, the second ... ."""
LONG_AGO = 600.0
"""Seconds without a death after which the next one counts as the first."""
STOP_SECONDS = 25.0
DOWN_SECONDS = 5 * STOP_SECONDS + 15
"""Runs, worker and two servers, one after the other, and what has to be killed."""
SERVERS = ("prefect", "mlflow")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How the stack is to be started."""

    addresses: Addresses = field(default_factory=Addresses)
    protected: bool = False
    """Whether both servers ask for a password."""
    pool: str = settings.DEFAULT_POOL
    limit: int | None = None
    """Most runs at once; no bound where None."""


@dataclass(frozen=True)
class Handle:
    """A process that may be somebody else's child."""

    pid: int
    started: float
    """When it was made, as `infra.identity` counts."""

    @classmethod
    def of(cls, pid: int) -> "Handle":
        """The handle of a running process."""
        return cls(pid, identity.made_at(pid))

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        return identity.find(self.pid, self.started)


@dataclass(frozen=True)
class State:
    """What ``stack.json`` holds."""

    supervisor: Handle
    addresses: Addresses
    protected: bool
    pool: str
    processes: dict[str, Handle]
    ready: bool = False

    @classmethod
    def read(cls, home: Path) -> "State | None":
        """The state kept in ``home``; None where there was never a stack, or it was stopped."""
        try:
            saved: dict[str, Any] = json.loads((home / STATE).read_text())
        except FileNotFoundError:
            return None
        return cls(
            Handle(**saved["supervisor"]),
            Addresses(**saved["addresses"]),
            saved["protected"],
            saved["pool"],
            {name: Handle(**handle) for name, handle in saved["processes"].items()},
            saved["ready"],
        )

    @property
    def alive(self) -> bool:
        """Whether somebody watches over it."""
        return self.supervisor.process() is not None

    @property
    def running(self) -> dict[str, bool]:
        """Which of its processes run."""
        return {name: handle.process() is not None for name, handle in self.processes.items()}


def addresses(home: Path, host: str, prefect: int | None, mlflow: int | None) -> Addresses:
    """Where the servers of ``home`` are to listen: a port that is not given is the last one, so that links go on."""
    last = dict[str, int]()
    with suppress(OSError, ValueError):
        last = json.loads((home / PORTS).read_text())
    kept = Addresses()
    return Addresses(host, prefect or last.get("prefect", kept.prefect), mlflow or last.get("mlflow", kept.mlflow))


def client_of(home: Path, state: State) -> dict[str, str]:
    """What a command needs in its environment to speak to the servers of ``state``."""
    return services.client_environment(state.addresses, read_access(home) if state.protected else None)


def join(home: Path) -> bool:
    """Point this process at the servers of ``home``, unless its environment names others; whether it names any.

    Call it before Prefect is imported.
    """
    if os.environ.get("PREFECT_API_URL"):
        return True
    state = State.read(home)
    if state is None or not any(state.running.values()):
        return False
    for name, value in client_of(home, state).items():
        os.environ.setdefault(name, value)
    return True


def join_or_refuse(home: Path) -> None:
    """Point this process at the servers, as `join` does.

    Raises:
        UserError: if there are none.
    """
    if not join(home):
        raise UserError(f"no server runs for {home}; start one with `maeflow up`, or set PREFECT_API_URL")


@dataclass
class Supervisor:
    """Keeps the processes of a stack alive until it is asked to stop."""

    home: Path
    options: Options
    tell: Tell
    prepare: Callable[[], None]
    """Called when both servers answer, before the worker starts, with the client's environment set."""
    reconcile: Callable[[], None]
    """Called every few seconds."""
    announce: Callable[[], None] = lambda: None
    """Called when all is up."""
    stopping: threading.Event = field(default_factory=threading.Event)
    _handles: dict[str, Handle] = field(default_factory=dict)
    _deaths: dict[str, int] = field(default_factory=dict)
    _again: dict[str, float] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)
    _services: list[Service] = field(default_factory=list)
    _ready: bool = False
    _access: Access | None = None

    def run(self) -> None:
        """Start what is missing, tell when all is up, watch until stopped, stop all.

        Raises:
            UserError: if a port is taken or the host needs a password.
            StageError: if a server does not come up.
        """
        self._access = open_access(self.home) if self.options.protected else None
        services.check_host(self.options.addresses.host, self._access)
        self._take_over()
        self._services = [*self._servers(), self._worker()]
        try:
            self._start()
            if self._ready:
                self.announce()
            watcher = threading.Thread(target=self._reconciling, daemon=True)
            watcher.start()
            while not self.stopping.wait(ROUND_SECONDS):
                self._look()
        finally:
            self._stop()

    def _take_over(self) -> None:
        """Keep what a supervisor that was killed has left running, if it is what is asked for now."""
        state = State.read(self.home)
        for name in SERVERS:
            if state is not None and name in state.processes and state.processes[name].process() is None:
                _end_left(state.processes[name])
        if state is None or not any(state.running.values()):
            services.check_ports(self.options.addresses)
            return
        same = (state.addresses, state.protected, state.pool)
        if same != (self.options.addresses, self.options.protected, self.options.pool):
            self.tell("stopping what an earlier `maeflow up` with other options left running")
            stop_all(self.home, state.processes)
            services.check_ports(self.options.addresses)
            return
        self._handles = {name: h for name, h in state.processes.items() if h.process() is not None}
        self.tell(f"taking over what runs already: {', '.join(self._handles)}")

    def _start(self) -> None:
        *servers, worker = self._services
        for service in servers:
            self._keep(service)
        for service in servers:
            self._await(service)
        if self.stopping.is_set():
            return
        os.environ.update(self._client())
        self.prepare()
        self._keep(worker)
        self._ready = True
        self._save()
        where = self.options.addresses
        write_text(self.home / PORTS, json.dumps({"prefect": where.prefect, "mlflow": where.mlflow}) + "\n")

    def _client(self) -> dict[str, str]:
        return services.client_environment(self.options.addresses, self._access)

    def _servers(self) -> list[Service]:
        where = (self.home, self.options.addresses, self._access)
        return [services.prefect_server(*where), services.mlflow_server(*where)]

    def _worker(self) -> Service:
        return services.worker(self.home, self._client(), self.options.pool, self.options.limit)

    def _keep(self, service: Service) -> None:
        """Start ``service`` unless it runs."""
        handle = self._handles.get(service.name)
        if handle is None or handle.process() is None:
            if handle is not None and service.name != "worker":  # What a worker leaves are runs, which go on.
                _end_left(handle)
            self._handles[service.name] = start(service, self.home)
            self._save()

    def _await(self, service: Service) -> None:
        end = time.monotonic() + service.start_seconds
        while not service.healthy() and not self.stopping.is_set():
            dead = self._handles[service.name].process() is None
            if dead or time.monotonic() > end:
                what = "ended at once" if dead else f"does not answer after {service.start_seconds:.0f} s"
                log = log_file(self.home, service.name)
                raise StageError(f"{service.name} {what}; its log, {log}, ends with:\n{_tail(log)}")
            time.sleep(0.2)

    def _look(self) -> None:
        """Start anew what died."""
        for service in self._services:
            if self._handles[service.name].process() is not None:
                continue
            now = time.monotonic()
            if service.name not in self._again:
                lately = now - self._last.get(service.name, now) < LONG_AGO
                deaths = self._deaths.get(service.name, 0) if lately else 0
                wait = PATIENCE[min(deaths, len(PATIENCE) - 1)]
                self._again[service.name], self._deaths[service.name] = now + wait, deaths + 1
                self._last[service.name] = now
                self.tell(f"{service.name} ended; it is started again in {wait:.0f} s")
            if now >= self._again[service.name]:
                del self._again[service.name]
                try:
                    self._keep(service)
                except OSError as error:  # A full disk; what still runs goes on, and the next round tries again.
                    self.tell(f"{service.name} cannot be started: {error.strerror}")

    def _reconciling(self) -> None:
        while not self.stopping.wait(RECONCILE_SECONDS):
            with suppress(Exception):  # A server that is being restarted; the next round finds it.
                self.reconcile()

    def _save(self) -> None:
        options = self.options
        state = State(
            Handle.of(os.getpid()), options.addresses, options.protected, options.pool, self._handles, self._ready
        )
        write_text(self.home / STATE, json.dumps(asdict(state), indent=1) + "\n")

    def _stop(self) -> None:
        """Runs first, so that they save; then the worker, so that their ends are told; the servers last."""
        stop_all(self.home, self._handles)
        (self.home / STATE).unlink(missing_ok=True)


def start(service: Service, home: Path) -> Handle:
    """Start a process of its own group, which signals of a terminal do not reach; its output goes to its log."""
    log = log_file(home, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > services.LOG_BYTES:
        log.replace(log.with_suffix(".old.log"))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **service.environment}
    with log.open("ab") as out:
        process = subprocess.Popen(
            service.command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=log.parent,
            env=environment,
        )
    handle = Handle.of(process.pid)
    threading.Thread(target=process.wait, daemon=True).start()  # Or it would stay a zombie.
    return handle


def log_file(home: Path, name: str) -> Path:
    """Where a process of the stack writes what it says."""
    return home / "stack" / f"{name}.log"


def stop_all(home: Path, handles: Mapping[str, Handle]) -> None:
    """End runs, then the worker, then the servers, each with all its descendants."""
    _end_runs(home, handles.get("worker"))
    for name in ("worker", "prefect", "mlflow"):
        if name in handles and (process := handles[name].process()) is not None:
            _end(process)


def _end_runs(home: Path, worker: Handle | None) -> None:
    """Ask the flows of a worker to save and end, which would kill them; those whose worker is gone as well."""
    flows = []
    for flow in flow_processes(home):
        with suppress(psutil.NoSuchProcess):
            ours = flow.orphaned or (worker is not None and flow.parent == worker.pid)
            if flow.here and flow.alive and flow.served and ours:
                flows.append(psutil.Process(flow.pid))
                flows[-1].terminate()
    psutil.wait_procs(flows, timeout=STOP_SECONDS)


def _end_left(handle: Handle) -> None:
    """Kill what a server that was killed has left behind, which would keep its port."""
    if psutil.pid_exists(handle.pid):  # A new process has its number.
        return
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == handle.pid:
                process.kill()


def _end(process: psutil.Process) -> None:
    family = [process]
    with suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in left:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(left, timeout=5)


@contextmanager
def alone(home: Path) -> Iterator[bool]:
    """Hold the stack's lock; gives whether this process got it."""
    (home / LOCK).parent.mkdir(parents=True, exist_ok=True)
    with (home / LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def down(home: Path, tell: Tell) -> None:
    """Stop the stack of ``home``, whoever watches over it.

    Raises:
        UserError: if there is none.
        StageError: if it does not end.
    """
    state = State.read(home)
    if state is None or not (state.alive or any(state.running.values())):
        raise UserError(f"nothing runs for {home}; `maeflow up` starts it")
    supervisor = state.supervisor.process()
    if supervisor is None:
        with alone(home) as mine:
            if not mine:
                raise UserError("`maeflow up` is just taking it over; call `maeflow down` again when it is up")
            tell("its supervisor is gone; ending what it left")
            stop_all(home, state.processes)
            (home / STATE).unlink(missing_ok=True)
        return
    supervisor.send_signal(signal.SIGTERM)
    try:
        supervisor.wait(DOWN_SECONDS)
    except psutil.TimeoutExpired:
        raise StageError(f"process {state.supervisor.pid} does not end; kill it, then `maeflow down` again") from None


def _tail(file: Path, lines: int = 8) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
