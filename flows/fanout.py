"""Shards written before the stage asks for them: Prefect tasks on a Dask cluster start processes that write some each.

The stage that follows finds them and does the rest, so its result is the same bytes whatever becomes of the cluster.
"""

import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from core.data import plans
from core.data.private import FOLDER, closed, secret_of
from core.data.readers import THREADS
from core.data.shards import is_done
from core.errors import UserError
from core.request import StageRequest
from core.workspace import Home, write_text
from flows import console
from flows.privacy import discretion
from infra.launchers import DONE, Watch, follow

if TYPE_CHECKING:
    from prefect_dask.task_runners import DaskTaskRunner

    from flows.stages import Context

LOCAL, HERE = "local:", ("127.0.0.1", "localhost", "::1")
TITLE = "prepare on Dask"
GROUPS_PER_THREAD, GROUP_UNITS = 4, 4
"""Most groups of units for each thread of the cluster, and how many units a group should at least have: more groups
start more processes, which takes seconds each; fewer leave threads idle at the end."""
LOOK_SECONDS = 1.0
"""How often it is looked whether the flow is still there, and what is done."""
PATIENCE = 60.0
"""Seconds within which the first worker has to join."""
FORGOTTEN_SECONDS = 3600.0
"""Age at which what a killed flow left behind is removed."""
QUIET = {
    "distributed.worker.multiprocessing-method": "spawn",  # A fork of a flow's process ends with an error.
    "distributed.scheduler.http-routes": [],
    "distributed.worker.http-routes": [],
}
"""Dask's settings for a cluster of this process: its workers know nothing of the flow, its ports serve no pages."""


def warm_shards(context: "Context", request: StageRequest) -> None:
    """Have the shards of a preparation written on the cluster of `compute.dask`; what fails there the stage does.

    Raises:
        UserError: if the extra is not installed, or nobody answers at the address.
    """
    address = context.recipe.compute.dask
    if address is None or context.home.stage(request.stage, request.digest).done:
        return
    out = console.current()
    with discretion(context.recipe.modality):
        runner = _runner(address)
        out.stage(TITLE)
        text = "stopped"
        try:
            with _plan(context.home, request) as (folder, units):
                shards = context.home.root / "prepared" / "shards"
                reasons = _write(runner, address, folder, units, _Progress(shards, units, out)) if units else []
                done = sum(is_done(shards, digest) for digest in units)
            text = f"{done} of {len(units)} shards written"
        finally:
            out.finished(f"{TITLE}: {text}")
        for reason in sorted(set(reasons)):
            out.line(f"  note: left to this machine: {reason}")


# --- the plan ---------------------------------------------------------------------------------------------------------


@contextmanager
def _plan(home: Home, request: StageRequest) -> Iterator[tuple[Path, list[str]]]:
    """A plan, there and held within, and the units in it; it names files, so a private one is the owner's alone."""
    if request.private:
        secret_of(home)  # Makes the owner's folder.
    parent = home.root / (FOLDER if request.private else "runs/units")
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob("units-*"):
        if time.time() - old.stat().st_mtime > FORGOTTEN_SECONDS and plans.abandoned(old):
            shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"units-{request.digest}-{secrets.token_hex(4)}"
    with closed(request.private):
        folder.mkdir()
        write_text(folder / plans.REQUEST, request.model_dump_json())
        (folder / plans.LOCK).touch()
    try:
        with plans.held(folder):
            code, _ = follow("core.units", [str(folder)], Watch(), {})
            # A source that is no good, or a full disk, the stage will meet and tell of.
            yield folder, plans.planned(folder) if code == DONE else []
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the cluster ------------------------------------------------------------------------------------------------------


def _runner(address: str) -> "DaskTaskRunner":
    """Prefect's task runner for the cluster at ``address``; nothing is started yet.

    Raises:
        UserError: if the extra is not installed.
    """
    try:
        import dask
        from distributed.security import Security
        from prefect_dask.task_runners import DaskTaskRunner
    except ModuleNotFoundError as error:
        raise UserError(
            f"compute.dask: {address} needs the package {error.name}; install it by `pip install 'maeflow[dask]'`, or "
            "set compute.dask=null"
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if not address.startswith(LOCAL):
        return DaskTaskRunner(address=address)
    dask.config.set(QUIET)
    cluster = {
        "n_workers": int(address.removeprefix(LOCAL)),
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "security": Security.temporary(),  # Who can reach a scheduler without it can run code as its owner.
        "dashboard_address": None,
        "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        "memory_limit": None,
        "silence_logs": logging.CRITICAL,
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


def _write(
    runner: "DaskTaskRunner", address: str, folder: Path, units: Sequence[str], progress: "_Progress"
) -> list[str]:
    """Have ``units`` written; gives the reasons for which some were not."""
    with runner:
        threads = _join(runner, address)
        groups = _groups(units, threads)
        try:
            with _one_server(address):
                futures = [runner.submit(write_shards, {"folder": str(folder), "digests": group}) for group in groups]
            while not all(future.wrapped_future.done() for future in futures):
                progress()
                time.sleep(LOOK_SECONDS / 5)
            return [reason for future in futures if (reason := _reason(future))]
        except BaseException:
            (folder / plans.LOCK).unlink(missing_ok=True)  # Tasks see it, wherever they are, and end their processes.
            raise


def _join(runner: "DaskTaskRunner", address: str) -> int:
    """Connect to the cluster; gives the number of its threads.

    Raises:
        UserError: if nobody is there.
    """
    try:
        client = runner.client
        client.wait_for_workers(1, timeout=PATIENCE)
        threads: dict[str, int] = client.nthreads()
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"compute.dask: no scheduler with workers at {address} ({type(error).__name__}); start them, or set "
            "compute.dask=null to prepare on this machine alone"
        ) from None
    return max(1, sum(threads.values()))


def _groups(units: Sequence[str], threads: int) -> list[list[str]]:
    """``units`` in groups of one task each."""
    count = min(len(units), max(threads, min(len(units) // GROUP_UNITS, threads * GROUPS_PER_THREAD)))
    return [list(units[number::count]) for number in range(count)]


@contextmanager
def _one_server(address: str) -> Iterator[None]:
    """Within, tasks are told of this flow's server; each worker would else start a temporary one of its own.

    Raises:
        UserError: if workers elsewhere cannot reach it.
    """
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    if urlsplit(url).hostname in HERE and not address.startswith(LOCAL) and urlsplit(address).hostname not in HERE:
        raise UserError(
            f"compute.dask: workers of {address} cannot reach Prefect's server at {url}; set PREFECT_API_URL to one "
            "that other machines reach"
        )
    with temporary_settings({PREFECT_API_URL: url}):
        yield


def _reason(future: Any) -> str:
    """Why a task did not write all of its shards; "" if it did."""
    try:
        result: str = future.result()
    except Exception as error:  # noqa: BLE001 - lost workers, workers without maeflow: the stage does the work
        return f"a task on the cluster failed ({type(error).__name__})"
    return result


class _Progress:
    """Tells how many units are done, at most once a second."""

    def __init__(self, shards: Path, units: Sequence[str], out: console.Console) -> None:
        self._shards, self._out, self._waiting, self._total = shards, out, list(units), len(units)
        self._start = self._last = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._last < LOOK_SECONDS:
            return
        self._last = now
        self._waiting = [digest for digest in self._waiting if not is_done(self._shards, digest)]
        done = self._total - len(self._waiting)
        self._out.update(TITLE, done, self._total, "shards", done / (now - self._start))


# --- on the cluster ---------------------------------------------------------------------------------------------------


@task(name="write shards", task_run_name="write shards", cache_policy=NO_CACHE, persist_result=False)
def write_shards(folder: str, digests: list[str]) -> str:
    """Start a process that writes units of a plan, on the machine of a Dask worker, and end it when its flow is gone.

    Gives why some could not be written, in words that may be shown; "" if all were.
    """
    code, lines = follow("core.units", [folder, *digests], Watch(tick=_Look(Path(folder))), dict.fromkeys(THREADS, "1"))
    if code == DONE:
        return ""
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(said) or f"a process ended with {code} on {os.uname().nodename}"


class _Look:
    """Raises when the flow that holds a plan is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._next = folder, 0.0

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        if plans.abandoned(self._folder):
            raise InterruptedError("the flow is gone")
