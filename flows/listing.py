"""What there is: installed modalities, the stages in the home folder, done and not, and their MLflow runs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.records import RECORD_FILE, read_model
from core.registry import claims, fault, plugin_info
from core.request import STAGES
from core.workspace import Home
from flows.privacy import discretion


def modalities() -> None:
    """Print a line per installed plugin; what is wrong with one stands in its line."""
    print(f"{'name':12s} {'version':10s} {'origin':20s} {'sources':30s} status")
    for claim in claims():
        wrong = fault(claim)
        kinds = "" if wrong else ", ".join(plugin_info(claim.name).sources)
        print(f"{claim.name:12s} {claim.version:10s} {claim.package:20s} {kinds:30s} {wrong or 'ok'}")


def folders(home: Path) -> Iterator[tuple[str, Path]]:
    """(stage, folder) of every finished and unfinished stage, oldest first."""
    found = []
    for stage in STAGES:
        parent = home / "prepared" if stage == "prepare" else home / "runs" / stage
        if parent.is_dir():
            found += [(stage, f) for f in parent.iterdir() if f.is_dir() and f.name != "shards"]
    yield from sorted(found, key=lambda pair: pair[1].stat().st_mtime)


def show(home: Path) -> None:
    """Print a line per stage."""
    rows = list(folders(home))
    if not rows:
        print(f"nothing yet in {home}; start with `maeflow demo`")
        return
    print(f"{'stage':10s} {'digest':18s} {'recipe':20s} {'changed':17s} state")
    for stage, folder in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.stat().st_mtime))
        record = _record(folder)
        state = "unfinished" if folder.suffix == ".partial" else _headline(record)
        print(f"{stage:10s} {folder.stem:18s} {record.get('recipe', ''):20s} {when:17s} {state}")


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD_FILE
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return record


def _headline(record: dict[str, Any]) -> str:
    if "counts" in record:
        return ", ".join(f"{n} {split}" for split, n in record["counts"].items())
    metrics = [(k, v) for k, v in record.get("metrics", {}).items() if not k.endswith(("_low", "_high"))]
    return "  ".join(f"{key} {value:.4g}" for key, value in metrics[:3])


def synchronise(home: Path) -> None:
    """Send to MLflow what the runs of this home lack, from where each mirror stopped, and models not registered yet."""
    from infra import registering
    from infra.mlflow_mirror import Mirror
    from infra.mlflow_runs import connect

    client, paths = connect(home), Home(home)
    for state in sorted((home / "runs" / "mirror").glob("*.json")):
        run = client.get_run(state.stem)
        tags = run.data.tags
        folder = paths.stage(tags["maeflow.stage"], tags["maeflow.digest"])
        mirror = Mirror(client, state.stem, lambda folder=folder: folder.current, state)  # type: ignore[misc]
        mirror.pump()
        print(f"{tags['maeflow.stage']:10s} {state.stem}  {mirror.failure or 'complete'}")
    for stage, digest, run_id in registering.waiting(home):
        record = read_model(paths.stage(stage, digest).final)
        with discretion(record.modality):
            why = registering.reason(registering.start(home, record, run_id))
        print(f"{stage:10s} {digest}  {why or 'registered'}")
