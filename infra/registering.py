"""Which finished models still have to be registered in MLflow, and the process that does it.

A file in ``runs/registering`` of the home stands for each; it is there until the model is, whoever is killed meanwhile.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.records import PretrainedEncoder, TunedModel
from core.request import StageName
from core.workspace import Home, write_text
from infra import registry

FOLDER = "runs/registering"


def begin(home: Path, record: registry.Finished, run_id: str | None, client: Any) -> "subprocess.Popen[str] | None":
    """Start what registers a finished model, in a process of its own; None where it is registered, or MLflow is away.

    ``client`` is None where MLflow could not be reached; `waiting` tells of the model then.
    """
    file = _file(home, record)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"run": run_id}) + "\n")
    try:
        found = registry.find(client, record) if client is not None else None
    except Exception:  # noqa: BLE001 - tracking is best effort
        return None
    if registry.is_whole(found):
        done(home, record)
        return None
    return start(home, record, run_id) if client is not None else None


def start(home: Path, record: registry.Finished, run_id: str | None) -> "subprocess.Popen[str]":
    """The process that registers a finished model."""
    place = [str(home), str(Home(home).resolve(record.folder))]
    command = [sys.executable, "-P", "-m", "infra.log_model", *place, *([run_id] if run_id else [])]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def reason(process: "subprocess.Popen[str]") -> str | None:
    """Wait for a process of `start`; why it failed, None where it did not."""
    _, errors = process.communicate()
    return (errors.strip().splitlines() or ["no reason given"])[-1] if process.returncode else None


def done(home: Path, record: registry.Finished) -> None:
    """Nothing is left to do for a model."""
    _file(home, record).unlink(missing_ok=True)


def waiting(home: Path) -> Iterator[tuple[StageName, str, str | None]]:
    """(stage, digest, MLflow run) of each model that should be registered and is not; of removed ones none is."""
    stages: tuple[StageName, ...] = ("pretrain", "finetune")
    for stage in stages:
        for file in sorted((home / FOLDER).glob(f"{stage}-*.json")):
            digest = file.stem.removeprefix(f"{stage}-")
            if Home(home).stage(stage, digest).done:
                yield stage, digest, json.loads(file.read_bytes())["run"]
            else:
                file.unlink()


def _file(home: Path, record: PretrainedEncoder | TunedModel) -> Path:
    return home / FOLDER / f"{record.stage}-{record.digest}.json"
