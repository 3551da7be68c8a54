"""Logs and registers a finished model in MLflow: ``python -m infra.log_model HOME FOLDER [RUN_ID]``, its own process.

It is the only place where torch and MLflow meet. What is registered, ``model``, takes files and answers as `maeflow
predict` and `embed` do (`infra.served`). Beside it ``tensor`` is a tuned model as a program of tensors, exported with a
free batch size, so MLflow's own loader gives a module without any of our code. Neither is pickled. Called again, it
does what is not done yet, and nothing else.
"""

import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.records import RECORD_FILE, TunedModel, read_model
from core.registry import entries
from core.workspace import held
from infra import mlflow_runs as runs
from infra import registry, settings
from infra.access import forget
from infra.registering import done

MODEL, TENSOR = "model", "tensor"
TENSOR_BYTES = 1 << 30
"""Weights above this size are not kept twice: `maeflow export --to torch-export` writes the program of such a model."""
EXAMPLE_SECONDS = 300.0
Save = Callable[[Path, Any], None]
"""Writes a model into a folder, with what MLflow knows of it already."""


def main(home: Path, folder: Path, run_id: str | None) -> None:
    """Have the model of ``folder`` logged to the run that made it, or else to ``run_id``, and registered."""
    settings.apply(home)
    warnings.filterwarnings("ignore")
    with held(home / "runs" / "registering" / "lock", lambda _: None):
        record = read_model(folder)
        client = runs.connect(home)
        found = registry.find(client, record)
        if not registry.is_whole(found):
            logging = _Logging(client, home, folder, record, _run_of(client, home, record) or run_id)
            if isinstance(record, TunedModel) and (folder / record.weights).stat().st_size <= TENSOR_BYTES:
                logging.log(TENSOR, lambda place, known: _save_tensor(folder, record, place, known))
            model_id = logging.log(MODEL, lambda place, known: _save_model(folder, record, place, known))
            found = found or registry.add(client, home, record, model_id, logging.run_id)
            registry.complete(client, found)
        done(home, record)


def _run_of(client: Any, home: Path, record: registry.Finished) -> str | None:
    """The run in which the work was done."""
    query = f"tags.`maeflow.digest` = '{record.digest}' AND tags.`maeflow.reused` = 'false'"
    found = client.search_runs([runs.experiment(client, home, record.stage)], filter_string=query, max_results=1)
    return str(found[0].info.run_id) if found else None


class _Logging:
    """Puts models into the experiment of their stage, each once, however often a process before was killed."""

    def __init__(self, client: Any, home: Path, folder: Path, record: registry.Finished, run_id: str | None) -> None:
        from mlflow import set_tracking_uri

        self._client, self._home, self._record, self.run_id = client, home, record, run_id
        self._experiment = runs.experiment(client, home, record.stage)
        # Last, since MLflow keeps it in the environment, where it would count as a server of the user's own.
        set_tracking_uri(settings.tracking_uri(home))

    def log(self, name: str, save: Save) -> str:
        """The id of the logged model ``name``, which ``save`` writes where it is not there."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.entities.logged_model_status import LoggedModelStatus
        from mlflow.models import Model

        model = self._begun(name)
        if model.status == LoggedModelStatus.READY:
            return str(model.model_id)
        # In the home, whose disk has room for models.
        with tempfile.TemporaryDirectory(dir=self._home / "runs" / "registering") as made:
            known = Model(model_uuid=model.model_id, model_id=model.model_id, run_id=self.run_id)
            known.metadata = {"digest": self._record.digest, "recipe": self._record.recipe}
            save(Path(made) / "saved", known)
            self._client.log_model_artifacts(model.model_id, str(Path(made) / "saved"))
        if self.run_id is not None:
            outputs = self._client.get_run(self.run_id).outputs
            if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
                self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def _begun(self, name: str) -> Any:
        """The logged model, new or as an earlier process left it."""
        query = f"name = '{name}' AND tags.`maeflow.digest` = '{self._record.digest}'"
        found = self._client.search_logged_models([self._experiment], filter_string=query)
        if found:
            return found[0]
        tags = {"maeflow.digest": self._record.digest, "maeflow.recipe": self._record.recipe}
        return self._client.create_logged_model(
            self._experiment, name=name, source_run_id=self.run_id, tags=tags, model_type=self._record.stage
        )


# --- what takes files -------------------------------------------------------------------------------------------------


def _save_model(folder: Path, record: registry.Finished, place: Path, known: Any) -> None:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    inputs = Schema([ColSpec(DataType.binary, "file"), ColSpec(DataType.string, "name", required=False)])
    with tempfile.TemporaryDirectory(prefix="maeflow-example-") as made:
        file = _example(folder, Path(made))
        shown = pd.DataFrame([{"file": file.read_bytes(), "name": file.name}]) if file else None
    mlflow.pyfunc.save_model(
        str(place),
        python_model=str(Path(__file__).with_name("served.py")),
        artifacts={"record": str(folder / RECORD_FILE), "weights": str(folder / record.weights)},
        model_config={"device": "auto"},
        mlflow_model=known,
        signature=ModelSignature(inputs=inputs, outputs=Schema(_answers(record))),
        input_example=shown,
        pip_requirements=_requirements(record),
    )


def _answers(record: registry.Finished) -> list[Any]:
    """Columns of what comes back; but for `row` and `part` they are null where there is an ``error``."""
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import Array, Map

    numbers, texts = Array(DataType.double), Array(DataType.string)
    said: Mapping[str, Any] = {"features": numbers}
    if isinstance(record, TunedModel):
        kind = record.target.task.kind
        if kind == "segmentation":
            said = {"mask": DataType.binary, "suffix": DataType.string, "found": texts}
        elif record.target.classes:
            several = kind == "multi_label"
            said = {"prediction": texts if several else DataType.string, "probabilities": Map(DataType.double)}
        else:
            said = {"prediction": numbers}
    columns = [*said.items(), ("error", DataType.string)]
    return [
        ColSpec(DataType.long, "row"),
        ColSpec(DataType.long, "part"),
        *(ColSpec(kind, name, required=False) for name, kind in columns),
    ]


def _requirements(record: registry.Finished) -> list[str]:
    """What has to be installed where the model is served: maeflow, the plugin's package, torch."""
    named = {"maeflow": version("maeflow"), entries()[record.modality].package: entries()[record.modality].version}
    return [f"{name}=={at}" for name, at in named.items()] + [f"torch=={version('torch').split('+')[0]}"]


def _example(folder: Path, out: Path) -> Path | None:
    """A file that the model answers to, out of a process without passwords, since plugins' code runs in it."""
    command = [sys.executable, "-P", "-m", "core.example", str(folder), str(out)]
    nowhere = subprocess.DEVNULL
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(
            command, env=forget(os.environ), stdout=nowhere, stderr=nowhere, timeout=EXAMPLE_SECONDS, check=False
        )
    return next(out.iterdir(), None)


# --- what takes tensors -----------------------------------------------------------------------------------------------


def _save_tensor(folder: Path, record: TunedModel, place: Path, known: Any) -> None:
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from core.interop.serving import load_classifier

    shape = (record.geometry.channels, *record.geometry.input_shape)
    dense = record.geometry.input_shape if record.segmenter else ()
    torch.set_num_threads(1)
    known.metadata = {**known.metadata, "classes": list(record.target.classes)}
    mlflow.pytorch.save_model(
        load_classifier(folder),
        str(place),
        mlflow_model=known,
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, record.target.outputs, *dense))]),
        ),
        # A batch of one would fix the batch size at one.
        input_example=np.zeros((2, *shape), dtype=np.float32),
        serialization_format="pt2",
        pip_requirements=[f"torch=={version('torch').split('+')[0]}"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
