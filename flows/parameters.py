"""The pipeline's parameters as a form: what Prefect's pages show and check before anything runs."""

import inspect
from typing import TYPE_CHECKING, Any

from core.registry import plugin_info

if TYPE_CHECKING:
    from prefect.utilities.callables import ParameterSchema


def form(modality: str) -> "ParameterSchema":
    """The schema of the pipeline's parameters with the settings of ``modality`` in place of a bare mapping.

    Raises:
        UserError: if there is no such plugin.
    """
    from prefect.utilities.callables import parameter_schema

    from flows.pipeline import pipeline

    settings = plugin_info(modality).settings

    def typed(**values: Any) -> None:
        """Only its signature and its docstring count."""

    signature = inspect.signature(pipeline.fn)
    given = [p.replace(annotation=settings) if p.name == "data" else p for p in signature.parameters.values()]
    typed.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
    typed.__doc__ = pipeline.fn.__doc__
    return parameter_schema(typed)
