"""No dead run stays "running": flows are known by their processes, and whoever finds one gone tells the servers.

A flow that runs writes ``runs/flows/<flow run>.json`` in the home and removes it when it ends; a file whose process is
no more is that of a run which was killed.
"""

import atexit
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from core.workspace import write_text
from infra import identity
from infra.mlflow_runs import PREFIX
from infra.settling import settle

FOLDER = "runs/flows"


@dataclass(frozen=True)
class FlowProcess:
    """The process of a flow run."""

    flow_run: str
    host: str
    pid: int
    started: float
    served: bool
    """Whether a worker started it, not a person."""
    file: Path
    parent: int = 0
    """Who started it."""
    parent_started: float = 0.0

    @property
    def orphaned(self) -> bool:
        """Whether the worker that started it is gone, so that nobody would end it; to be asked on its own machine."""
        return self.served and self.parent > 0 and not process_alive(self.parent, self.parent_started)

    @property
    def known_since(self) -> float:
        """When it made itself known, in seconds since the epoch; 0 if it has ended since."""
        try:
            return self.file.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @property
    def here(self) -> bool:
        """Whether it ran on this machine."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it runs; to be asked on its own machine."""
        return process_alive(self.pid, self.started)


def process_alive(pid: int, started: float) -> bool:
    """Whether process ``pid``, made at ``started`` as `infra.identity` counts, still runs."""
    return identity.find(pid, started) is not None


def register(home: Path, flow_run: str | None, *, served: bool) -> None:
    """Have this process known as the one that carries ``flow_run``, until it ends: Prefect hears of the end late."""
    if flow_run is None:
        return
    file = home / FOLDER / f"{flow_run}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    about = {"host": socket.gethostname(), "pid": os.getpid(), "started": identity.made_at(os.getpid())}
    write_text(file, json.dumps({**about, "served": served, **_parent()}) + "\n")
    atexit.register(file.unlink, missing_ok=True)


def _parent() -> dict[str, float]:
    parent = psutil.Process().parent()
    return {"parent": parent.pid, "parent_started": identity.made_at(parent.pid)} if parent else {}


def flow_processes(home: Path) -> list[FlowProcess]:
    """All flows that run, or were killed, and whose end nobody has told yet."""
    found = []
    for file in sorted((home / FOLDER).glob("*.json")):
        try:
            found.append(FlowProcess(flow_run=file.stem, file=file, **json.loads(file.read_text())))
        except (FileNotFoundError, TypeError, ValueError):  # It ended this moment, or is no file of ours.
            continue
    return found


def kill_orphans(client: Any, home: Path) -> list[str]:
    """End the running MLflow runs of this host whose process is no more, by what became of their work.

    Gives their ids.
    """
    ended = []
    for run in running(client):
        tags = run.data.tags
        if tags.get("maeflow.host") == socket.gethostname() and not _alive(tags):
            with suppress(Exception):  # One that MLflow cannot end now is tried again, and holds up no other.
                settle(client, home, run)
                ended.append(run.info.run_id)
    return ended


def running(client: Any) -> list[Any]:
    """Our MLflow runs that count as running."""
    experiments = client.search_experiments(filter_string=f"name LIKE '{PREFIX}%'")
    if not experiments:
        return []
    places = [found.experiment_id for found in experiments]
    return list(client.search_runs(places, filter_string="attributes.status = 'RUNNING'", max_results=1000))


def _alive(tags: dict[str, str]) -> bool:
    try:
        return process_alive(int(tags["maeflow.pid"]), float(tags["maeflow.pid_started"]))
    except (KeyError, ValueError):
        return False
