"""Logs a tuned model to MLflow: ``python -m infra.log_model HOME FOLDER RUN_ID``, a process of its own.

It is the only place where torch and MLflow meet. The model is exported with a free batch size, so MLflow's own loader
gives a module without any of our code and without unpickling any.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from core.interop.serving import load_classifier
from core.records import TunedModel, read_record
from infra import settings


def main(home: Path, folder: Path, run_id: str) -> None:
    """Log the model of ``folder`` to ``run_id`` under the name ``model``."""
    settings.apply(home)
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    warnings.filterwarnings("ignore")
    mlflow.set_tracking_uri(settings.tracking_uri(home))
    record = read_record(folder, TunedModel)
    shape = (record.geometry.channels, *record.geometry.input_shape)
    dense = record.geometry.input_shape if record.segmenter else ()
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *shape))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, record.target.outputs, *dense))]),
    )
    torch.set_num_threads(1)
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.pytorch.log_model(
            load_classifier(folder),
            name="model",
            signature=signature,
            # A batch of one would fix the batch size at one.
            input_example=np.zeros((2, *shape), dtype=np.float32),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            metadata={"classes": list(record.target.classes), "digest": record.digest},
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
