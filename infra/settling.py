"""MLflow runs whose process is gone: finished where their work was, as after an outage that hid it, else killed."""

import json
from pathlib import Path
from typing import Any

from core.records import RECORD_FILE
from core.workspace import Home
from infra.mlflow_mirror import Mirror
from infra.mlflow_runs import last_steps, set_tags

ARTIFACTS = ("record.json", "card.json", "card.md", "results.json", "reconstructions.png", "seconds.json")
"""Files of a finished folder that are copied to its run."""
INPUTS = ("prepared", "encoder", "model")
"""Fields of a record that name, by its digest, what the stage began with."""


def finish(client: Any, run_id: str, folder: Path) -> None:
    """Copy the finished folder's artifacts to its run, tag that with what it began with, and end it as finished."""
    for name in ARTIFACTS:
        if (folder / name).exists():
            client.log_artifact(run_id, str(folder / name))
    record = json.loads((folder / RECORD_FILE).read_bytes())
    begun = {f"maeflow.{name}": record[name] for name in INPUTS if isinstance(record.get(name), str)}
    set_tags(client, run_id, {name: digest for name, digest in begun.items() if digest})
    client.set_terminated(run_id, status="FINISHED")


def settle(client: Any, home: Path, run: Any) -> None:
    """End a run for its process, which is gone; what MLflow lacks of finished work is sent first.

    Raises:
        MlflowException: if MLflow is away again; the next call goes on.
    """
    run_id, tags = str(run.info.run_id), run.data.tags
    folder = Home(home).stage(tags["maeflow.stage"], tags.get("maeflow.digest", "none"))
    if not folder.done or _by_another(client, run):
        client.set_terminated(run_id, status="KILLED")
        return
    if tags.get("maeflow.reused") != "true":
        mirror = Mirror(client, run_id, lambda: folder.current, home / "runs" / "mirror" / f"{run_id}.json")
        mirror.skip(last_steps(client, run))
        mirror.pump()
        if mirror.failure:
            return
    finish(client, run_id, folder.final)


def _by_another(client: Any, run: Any) -> bool:
    """Whether a later run has done the work that this one was killed in."""
    tags = run.data.tags
    query = f"tags.`maeflow.digest` = '{tags['maeflow.digest']}' AND attributes.status = 'FINISHED'"
    found = client.search_runs([run.info.experiment_id], filter_string=query)
    return tags.get("maeflow.reused") != "true" and any(one.data.tags.get("maeflow.reused") != "true" for one in found)
