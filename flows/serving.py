"""``maeflow up``, ``status`` and ``worker``: the stack as people start it and look at it."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from core.errors import StageError, UserError
from flows import console
from infra import devices, stack
from infra.settings import MLFLOW_MODE, QUIET
from infra.stack import Options, State, Supervisor, client_of, join

READY_SECONDS = 240.0


def start(home: Path, options: Options, *, background: bool) -> None:
    """Start the stack and stay with it, or leave it to a process in the background; say where it is.

    Raises:
        UserError: if a port is taken or the host needs a password.
        StageError: if a server does not come up.
    """
    if background:
        _in_background(home, options)
        return
    with stack.alone(home) as mine:
        if not mine:
            _runs_already(home, options)
            return
        supervisor = Supervisor(
            home, options, _tell, lambda: _prepare(home, options), lambda: _reconcile(home, options)
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: supervisor.stopping.set())
        print("starting Prefect, MLflow and a worker ...", flush=True)
        supervisor.announce = lambda: _up(home)
        supervisor.run()
        print("stopped", flush=True)


def _up(home: Path) -> None:
    state = State.read(home)
    assert state is not None
    _say(home, state)
    print("Ctrl-C stops them; runs save first", flush=True)


def _in_background(home: Path, options: Options) -> None:
    state = State.read(home)
    if state is None or not state.alive:
        log = stack.log_file(home, "up")
        log.parent.mkdir(parents=True, exist_ok=True)
        where = options.addresses
        command = [sys.executable, "-P", "-m", "flows.cli", "up", "--home", str(home), "--host", where.host]
        command += ["--prefect-port", str(where.prefect), "--mlflow-port", str(where.mlflow), "--pool", options.pool]
        command += ["--auth"] if options.protected else []
        command += ["--limit", str(options.limit)] if options.limit is not None else []
        with log.open("wb") as out:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        print("starting Prefect, MLflow and a worker ...", flush=True)
        _say(home, _wait_ready(home, started, log))
    else:
        _runs_already(home, options)


def _runs_already(home: Path, options: Options) -> None:
    print("it runs already:")
    state = _wait_ready(home)
    _say(home, state)
    if state.addresses != options.addresses:
        print("note:  it goes on at these addresses; `maeflow down` first, to have it at others", flush=True)


def _wait_ready(home: Path, process: "subprocess.Popen[bytes] | None" = None, log: Path | None = None) -> State:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        state = State.read(home)
        if state is not None and state.ready and state.alive:
            return state
        if process is not None and process.poll() is not None:
            said = log.read_text(errors="replace") if log else ""
            raise StageError(said.strip().rpartition("error: ")[2] or "it ended without a word")
        time.sleep(0.2)
    raise StageError(f"it is not up after {READY_SECONDS:.0f} s; its logs are in {home / 'stack'}")


def _say(home: Path, state: State) -> None:
    print(f"  Prefect   {state.addresses.prefect_url}   deployments, runs, logs")
    print(f"  MLflow    {state.addresses.mlflow_url}/{MLFLOW_MODE}   curves, comparisons, models")
    print(f"  logs      {home / 'stack'}")
    if state.protected:
        print(f"  password  `{console.command(home, 'access')}` shows it")
    print(f"  commands  Prefect's and MLflow's own find the servers after: eval \"$({console.command(home, 'env')})\"")
    print(f"next:  {console.command(home, 'deploy')}", flush=True)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _prepare(home: Path, options: Options) -> None:
    """What both servers have to hold before the first run."""
    from infra.mlflow_runs import make_experiments
    from infra.orchestrator import set_up

    make_experiments(home)
    set_up(options.pool, len(devices.device_names()))


def _reconcile(home: Path, options: Options) -> None:
    from infra.orchestrator import reconcile_all

    reconcile_all(home, options.pool)


def exports(home: Path) -> str:
    """Lines for a shell after which commands that are not ours speak to the servers of ``home``.

    Raises:
        UserError: if none runs.
    """
    state = State.read(home)
    if state is None or not any(state.running.values()):
        raise UserError(f"no server runs for {home}; start one with `maeflow up`")
    values = QUIET | client_of(home, state)
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items())


def show(home: Path) -> bool:
    """Print what runs; whether all of it does."""
    state = State.read(home)
    if state is None or not (state.alive or any(state.running.values())):
        print(f"nothing runs for {home}; `maeflow up` starts it")
        return False
    for name, runs in {"supervisor": state.alive, **state.running}.items():
        print(f"{'ok  ' if runs else 'DOWN'} {name:12s} {_where(state, name)}")
    if not state.alive:
        print("nobody watches over it; `maeflow up` takes it over, `maeflow down` ends it")
    join(home)
    _show_runs()
    return state.alive and all(state.running.values())


def _where(state: State, name: str) -> str:
    return {"prefect": state.addresses.prefect_url, "mlflow": state.addresses.mlflow_url}.get(name, "")


def _show_runs() -> None:
    from infra.orchestrator import unfinished

    try:
        runs = unfinished()
    except Exception as error:  # noqa: BLE001 - a server that does not answer is a finding
        print(f"DOWN prefect      does not answer ({type(error).__name__})")
        return
    for state, name, since, identity in runs:
        print(f"     {state:12s} {name}, since {since}  {identity}")
    if not runs:
        print("     no run is waiting or running")


def work(home: Path, pool: str, limit: int | None) -> None:
    """Keep a worker for the servers that the environment names, or for this home's, until told to stop.

    Raises:
        UserError: if there are no servers.
    """
    from infra import services

    stack.join_or_refuse(home)
    from infra.orchestrator import reconcile_all, set_up

    set_up(pool, len(devices.device_names()))
    service = services.worker(home, {}, pool, limit)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    environment = {**os.environ, **service.environment}
    process = subprocess.Popen(service.command, env=environment, start_new_session=True)
    while not stopping.wait(stack.RECONCILE_SECONDS):
        if process.poll() is not None:  # Its runs go on, and the next worker takes new ones.
            print("the worker ended; it is started again", flush=True)
            process = subprocess.Popen(service.command, env=environment, start_new_session=True)
        with suppress(Exception):  # A server that is away; the next round finds it.
            reconcile_all(home, pool)
    if process.poll() is None:
        stack.stop_all(home, {"worker": stack.Handle.of(process.pid)})
