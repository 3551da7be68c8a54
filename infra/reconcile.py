"""No dead run stays "running": MLflow runs whose process is gone are marked as killed."""

import socket
from pathlib import Path
from typing import Any

import psutil

from infra.mlflow_runs import PREFIX

CLOCK_SLACK = 1.0
"""Seconds by which two readings of a process's start may differ."""


def kill_orphans(client: Any, home: Path) -> list[str]:
    """End the running MLflow runs of this host whose process is no more; gives their ids."""
    experiments = client.search_experiments(filter_string=f"name LIKE '{PREFIX}%'")
    if not experiments:
        return []
    runs = client.search_runs(
        [found.experiment_id for found in experiments], filter_string="attributes.status = 'RUNNING'", max_results=1000
    )
    ended = []
    for run in runs:
        tags = run.data.tags
        if tags.get("maeflow.host") == socket.gethostname() and not _alive(tags):
            client.set_terminated(run.info.run_id, status="KILLED")
            ended.append(run.info.run_id)
    return ended


def _alive(tags: dict[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["maeflow.pid"]))
        return abs(process.create_time() - float(tags["maeflow.pid_started"])) < CLOCK_SLACK
    except (psutil.NoSuchProcess, KeyError, ValueError):
        return False
