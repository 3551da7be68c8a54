"""MLflow runs: one for the pipeline and one for each stage, all on top level, in one experiment per stage.

MLflow's chart page plots top-level runs only, so that the experiment of a stage overlays that stage of all pipelines.
Tags and notes link the runs of one pipeline with each other.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.request import STAGES
from infra import identity
from infra.settings import MLFLOW_MODE, artifact_root, store_uri, tracking_uri

PREFIX = "maeflow/"
"""Experiments are named `maeflow/<stage>`."""
PARAM_LIMIT = 6000
"""Characters beyond which MLflow cuts a parameter off; the recipe is an artifact as well."""
KEY = "maeflow.key"
"""Tag under which a run of a flow is found again when the flow is retried."""


def connect(home: Path) -> Any:
    """An `MlflowClient` on the home's own database or the server the user named."""
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=tracking_uri(home))


def experiment(client: Any, home: Path, stage: str) -> str:
    """The id of a stage's experiment, made when it is first needed."""
    from mlflow.exceptions import MlflowException

    name = PREFIX + stage
    found = client.get_experiment_by_name(name)
    if found is None:
        root = artifact_root(home)
        try:
            place = f"{root}/{stage}" if root else None
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # Another process was quicker.
            found = client.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


def make_experiments(home: Path) -> None:
    """Make the experiments of all stages, with their artifacts in the home.

    Made through a server, they would have an address of that server in place of a folder, and runs without it would
    find no artifacts.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store_uri(home))
    for stage in (*STAGES, "pipeline"):
        if client.get_experiment_by_name(PREFIX + stage) is None:
            place = (home / "mlartifacts" / stage).as_uri()
            client.create_experiment(PREFIX + stage, artifact_location=place)


def start_run(client: Any, home: Path, stage: str, name: str, tags: Mapping[str, str]) -> str:
    """A new run, tagged with the process that feeds it; gives its id."""
    run = client.create_run(
        experiment(client, home, stage), run_name=name, tags={"maeflow.stage": stage, **_owner(), **tags}
    )
    return str(run.info.run_id)


def find_run(client: Any, home: Path, stage: str, key: str) -> Any:
    """The run that was started under ``key`` before, by a flow that was retried since; None if there is none."""
    query = f"tags.`{KEY}` = '{key}'"
    found = client.search_runs([experiment(client, home, stage)], filter_string=query, max_results=1)
    return found[0] if found else None


def reopen(client: Any, run_id: str) -> None:
    """Have an ended run run again, fed by this process."""
    set_tags(client, run_id, _owner())
    with suppress(Exception):  # There is none where its process was killed.
        client.delete_tag(run_id, "maeflow.error")
    client.update_run(run_id, status="RUNNING")


def last_steps(client: Any, run: Any) -> dict[str, int]:
    """The last step of each curve that MLflow has of a run."""
    keys = run.data.metrics
    return {key: max(point.step for point in client.get_metric_history(run.info.run_id, key)) for key in keys}


def _owner() -> dict[str, str]:
    return {
        "maeflow.host": socket.gethostname(),
        "maeflow.pid": str(os.getpid()),
        "maeflow.pid_started": str(identity.made_at(os.getpid())),
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted parameters; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{key}"] = text[:PARAM_LIMIT]
    return flat


def log_recipe(client: Any, run_id: str, recipe: Mapping[str, Any], groups: Iterable[str]) -> None:
    """The groups of the recipe that concern a stage as parameters, and the whole of it as an artifact."""
    import yaml
    from mlflow.entities import Param

    chosen = {group: recipe[group] for group in groups if recipe.get(group) is not None}
    params = [Param(key, value) for key, value in flatten(chosen).items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_text(run_id, yaml.safe_dump(dict(recipe), sort_keys=False), "recipe.yaml")


def log_values(client: Any, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Some metrics at once."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def log_dataset(client: Any, run_id: str, name: str, digest: str, context: str) -> None:
    """A dataset as an input of a run, by the digest of its contents."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"prepared": digest})
    dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set several tags."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, value[:8000]) for key, value in tags.items()])


def link(run_id: str, experiment_id: str) -> str:
    """Path of a run's page below the address of MLflow's user interface."""
    return f"#/experiments/{experiment_id}/runs/{run_id}{MLFLOW_MODE}"


def chart(experiment_id: str) -> str:
    """Path of the page that plots all runs of an experiment beside each other."""
    return f"#/experiments/{experiment_id}/runs{MLFLOW_MODE}&compareRunsMode=CHART"


def compare(run_ids: Sequence[str], experiment_id: str) -> str:
    """Path of the page that compares some runs of an experiment."""
    from urllib.parse import quote

    runs, places = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
    return f"#/compare-runs?runs={runs}&experiments={places}&{MLFLOW_MODE[1:]}"
