"""What maeflow keeps in Prefect beside deployments: the work pool, slots for GPUs, and rules against dead runs."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed

from core.errors import StageError, UserError
from infra import identity, reconcile
from infra.mlflow_runs import connect
from infra.settling import settle

HEARTBEAT = "maeflow: end runs without a heartbeat"
WITHIN = timedelta(seconds=95)
"""Three heartbeats and some; less has been seen to end runs that live."""
BEGIN_WITHIN = timedelta(minutes=3)
"""A run that a worker took and whose process has not begun by then never will."""
SAVE_SECONDS = 40.0
"""How long a cancelled flow may take to have its stage saved, and to tell MLflow."""
CANCEL_SECONDS = 60.0
"""How long a living worker may take to end what is to be cancelled: Prefect's kills it after 30, and then tells."""
WORKER_TELLS_SECONDS = 30.0
"""How long a living worker may take to tell that a process of its own is gone; it mostly takes less than one."""
_gone: dict[str, float] = {}
AGAIN = "what it did is saved: retry it, or trigger it again, and it goes on from there"
LIVE = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


@contextmanager
def client() -> Iterator[SyncPrefectClient]:
    """A client of the server that the environment names.

    Raises:
        UserError: if the server asks for another password.
        StageError: if it does not answer.
    """
    try:
        with get_client(sync_client=True) as prefect:
            yield prefect
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        raise UserError(
            f"{_address()} asks for a password and did not take ours; set PREFECT_API_AUTH_STRING=user:password, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (`maeflow access` shows them where it runs)"
        ) from None
    except httpx.TransportError as error:
        raise StageError(
            f"{_address()} does not answer ({type(error).__name__}); is it up? see `maeflow status`"
        ) from None


def _address() -> str:
    return f"Prefect's server at {os.environ.get('PREFECT_API_URL', '').removesuffix('/api')}"


def slot_name(host: str | None = None) -> str:
    """The concurrency limit that counts the GPUs of a machine."""
    return f"maeflow-gpu-{host or socket.gethostname()}"


def slot_limit() -> int | None:
    """How many GPUs of this machine Prefect hands out at once; None where it counts none."""
    with client() as prefect:
        try:
            return prefect.read_global_concurrency_limit_by_name(slot_name()).limit
        except ObjectNotFound:
            return None


def set_up(pool: str, devices: int) -> None:
    """Make what is not there yet; calling it again changes nothing."""
    with client() as prefect:
        ensure_pool(prefect, pool)
        ensure_slots(prefect, devices)
    _ensure_heartbeat_rule()


def ensure_pool(prefect: SyncPrefectClient, pool: str) -> None:
    """A work pool whose workers start processes; one that is there already, of whatever type, stays as it is."""
    from prefect.workers.process import ProcessWorker

    try:
        prefect.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        wanted = WorkPoolCreate(name=pool, type="process", base_job_template=template, description="maeflow's runs")
        try:
            prefect.create_work_pool(wanted)
        except ObjectAlreadyExists:  # Another worker was quicker.
            return


def ensure_slots(prefect: SyncPrefectClient, devices: int) -> None:
    """At most as many slots as this machine has GPUs; people may lower their number, and raise it again."""
    name = slot_name()
    try:
        found = prefect.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        if devices:
            prefect.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=devices))
        return
    if not devices:
        prefect.delete_global_concurrency_limit_by_name(name)
    elif found.limit > devices:
        prefect.upsert_global_concurrency_limit_by_name(name, devices)


def _ensure_heartbeat_rule() -> None:
    """Prefect tells nobody when a machine goes away with its worker: silence is the sign."""
    if asyncio.run(_rule_exists()):
        return
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ended},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=WITHIN,
    )
    message = f"its process gave no sign of life for {WITHIN.seconds} s; {AGAIN}"
    rule = Automation(
        name=HEARTBEAT,
        description="Ends a run as crashed when its machine or its worker is gone.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )
    asyncio.run(rule.acreate())


async def _rule_exists() -> bool:
    async with get_client() as prefect:
        return bool(await prefect.read_automations_by_name(HEARTBEAT))


def reconcile_all(home: Path, pool: str) -> None:
    """Tell both servers of runs that ended without telling."""
    with client() as prefect:
        mlflow = connect(home)
        steps: tuple[Callable[[], object], ...] = (
            lambda: _end_dead_flows(prefect, home),
            lambda: _cancel_unheard(prefect, home),
            lambda: _end_never_begun(prefect, pool),
            lambda: _end_completed(prefect, mlflow),
            lambda: reconcile.kill_orphans(mlflow, home),
            lambda: _end_elsewhere(prefect, mlflow, home),
        )
        for step in steps:
            with suppress(Exception):  # A server is away, or one run cannot be ended; the others are.
                step()


def _end_dead_flows(prefect: SyncPrefectClient, home: Path) -> None:
    for process in reconcile.flow_processes(home):
        if not process.here or process.alive:
            continue
        try:
            run = prefect.read_flow_run(UUID(process.flow_run))
        except (ObjectNotFound, ValueError):  # It ran without this server, or is nobody's.
            process.file.unlink(missing_ok=True)
            continue
        if run.state is not None and of_earlier_attempt(process, run.state):
            _gone.pop(process.flow_run, None)
            continue
        if run.state is not None and run.state.type in LIVE and left_to_worker(process, _gone, time.monotonic()):
            continue
        _end(prefect, run, f"its process {process.pid} on {process.host} is gone; {AGAIN}")
        process.file.unlink(missing_ok=True)
        _gone.pop(process.flow_run, None)


def of_earlier_attempt(flow: reconcile.FlowProcess, state: State[Any]) -> bool:
    """Whether a run that is in ``state`` was retried after ``flow`` began, and the new attempt is not known yet.

    An attempt makes itself known after it runs; what is known of it then takes the place of ``flow``.
    """
    if state.type == StateType.RUNNING:
        return state.timestamp.timestamp() > flow.known_since
    return state.type == StateType.PENDING


def left_to_worker(flow: reconcile.FlowProcess, gone: dict[str, float], now: float) -> bool:
    """Whether the end of a flow is its worker's to tell: told by two, it could undo a retry that came in between.

    ``gone`` holds when each flow was first seen to be gone, in seconds of a clock that says ``now``.
    """
    return flow.served and not flow.orphaned and now - gone.setdefault(flow.flow_run, now) < WORKER_TELLS_SECONDS


def _cancel_unheard(prefect: SyncPrefectClient, home: Path) -> None:
    """Cancel what people want cancelled and no worker ends."""
    for process in reconcile.flow_processes(home):
        if not (process.here and process.alive and process.served):
            continue
        with suppress(ObjectNotFound):
            run = prefect.read_flow_run(UUID(process.flow_run))
            if run.state is None or run.state.type != StateType.CANCELLING:
                continue
            if unheard(process, (datetime.now(UTC) - run.state.timestamp).total_seconds()):
                _cancel(prefect, run, process)


def unheard(flow: reconcile.FlowProcess, seconds: float) -> bool:
    """Whether nobody ends a flow that people have wanted cancelled for ``seconds``.

    A worker that came later knows nothing of its process; one that had lost its connection to the server may not have
    heard of the wish.
    """
    return flow.served and (flow.orphaned or seconds > CANCEL_SECONDS)


def _cancel(prefect: SyncPrefectClient, run: FlowRun, flow: reconcile.FlowProcess) -> None:
    why = "its worker was gone" if flow.orphaned else "its worker did not hear of it"
    _end_process(flow)
    state = prefect.read_flow_run(run.id).state  # The flow itself may have told that it was ended.
    if state is not None and state.type in (StateType.CANCELLING, StateType.CRASHED):
        prefect.set_flow_run_state(run.id, Cancelled(message=f"{why}; {AGAIN}"), force=True)


def _end_process(flow: reconcile.FlowProcess) -> None:
    """Have a flow save and end; kill it when it does not."""
    with suppress(psutil.NoSuchProcess):
        process = identity.find(flow.pid, flow.started)
        if process is None:
            return
        process.terminate()
        end = time.monotonic() + SAVE_SECONDS
        while flow.alive and time.monotonic() < end:  # Not psutil's wait: a worker that hangs keeps it as a zombie.
            time.sleep(0.2)
        process.kill()


def _end_never_begun(prefect: SyncPrefectClient, pool: str) -> None:
    if prefect.read_work_pool(pool).type != "process":  # Elsewhere images are fetched, and machines waited for.
        return
    waiting = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PENDING])))
    where = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    for run in prefect.read_flow_runs(flow_run_filter=waiting, work_pool_filter=where):
        if run.state is not None and datetime.now(UTC) - run.state.timestamp > BEGIN_WITHIN:
            _end(prefect, run, "a worker took it and ended before it began; trigger it again")


def _end(prefect: SyncPrefectClient, run: FlowRun, why: str) -> None:
    """The end of a run that should have had one."""
    run = prefect.read_flow_run(run.id)  # It may have ended, or begun, since it was listed.
    if run.state is None or run.state.type not in LIVE:
        return
    state: Any = Cancelled(message=why) if run.state.type == StateType.CANCELLING else Crashed(message=why)
    prefect.set_flow_run_state(run.id, state, force=True)


def _end_elsewhere(prefect: SyncPrefectClient, mlflow: Any, home: Path) -> None:
    """MLflow runs of flows on other machines, by what Prefect knows of them."""
    runs = [run for run in reconcile.running(mlflow) if run.data.tags.get("maeflow.host") != socket.gethostname()]
    ended = _ended(prefect, [run.data.tags.get("prefect.flow_run_id", "") for run in runs])
    for run in runs:
        if run.data.tags.get("prefect.flow_run_id") in ended:
            settle(mlflow, home, run)


def _end_completed(prefect: SyncPrefectClient, mlflow: Any) -> None:
    """MLflow runs of pipelines that completed while MLflow was away."""
    runs = [run for run in reconcile.running(mlflow) if run.data.tags.get("maeflow.stage") == "pipeline"]
    found = _ended(prefect, [run.data.tags.get("prefect.flow_run_id", "") for run in runs])
    for run in runs:
        if found.get(run.data.tags.get("prefect.flow_run_id", "")) == StateType.COMPLETED:
            mlflow.set_terminated(run.info.run_id, status="FINISHED")


def _ended(prefect: SyncPrefectClient, flow_runs: Iterable[str]) -> dict[str, StateType]:
    """How each of some flow runs ended; those that have not are left out."""
    wanted = [UUID(one) for one in set(flow_runs) if one]
    if not wanted:
        return {}
    found = prefect.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=wanted)))
    return {str(run.id): run.state.type for run in found if run.state is not None and run.state.is_final()}


def forget_parameters() -> None:
    """Have the server forget what the flow run of this process was given."""
    if flow_run.id is None:
        return
    with suppress(Exception), client() as prefect:
        prefect.update_flow_run(UUID(str(flow_run.id)), parameters={})


def unfinished() -> list[tuple[str, str, str, str]]:
    """State, name, time and id of the runs that wait or work, newest first."""
    soon = FlowRunFilterExpectedStartTime(before_=datetime.now(UTC) + timedelta(minutes=1))
    with client() as prefect:
        found: list[FlowRun] = []
        for states in (LIVE, [StateType.SCHEDULED]):
            kind = FlowRunFilterState(type=FlowRunFilterStateType(any_=states))
            wanted = FlowRunFilter(state=kind, expected_start_time=soon)
            found += prefect.read_flow_runs(flow_run_filter=wanted, limit=50)
    return [
        (run.state_name or "", run.name, f"{run.state.timestamp.astimezone():%H:%M:%S}", str(run.id))
        for run in found
        if run.state
    ]
