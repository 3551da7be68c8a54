"""What MLflow runs to serve a model: it copies this file into the logged model, and nothing is pickled.

Files come as bytes (base64 over HTTP) in the column ``file``, with what they were called in the column ``name``, which
may be left out. The rest is maeflow's own, which has to be installed where models are served.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

if TYPE_CHECKING:
    from core.stages.answering import Answers


class Served(PythonModel):  # type: ignore[misc]
    """A finished model that answers to files."""

    _answers: "Answers"

    def load_context(self, context: Any) -> None:
        """Load the weights that lie beside the record; ``device`` in the model's configuration says where to."""
        from core.stages.answering import Answers

        self._answers = Answers(Path(context.artifacts["record"]).parent, (context.model_config or {})["device"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row for each record of each file, or with the reason why there is none (`core.stages.answering`)."""
        from core.stages.answering import Sent

        names = model_input["name"] if "name" in model_input else [None] * len(model_input)
        files = [
            Sent(bytes(data), name if isinstance(name, str) else "") if isinstance(data, (bytes, bytearray)) else None
            for data, name in zip(model_input["file"], names, strict=True)
        ]
        return pd.DataFrame(self._answers(files), dtype=object)


set_model(Served())
