"""The pipeline's parameters as a form: what Prefect's pages show and check before anything runs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.utilities.callables import ParameterSchema


def form(modality: str) -> "ParameterSchema":
    """The schema of the pipeline's parameters for ``modality``.

    Raises:
        UserError: if there is no such plugin.
    """
    from prefect.utilities.callables import parameter_schema

    from flows.typed import pipeline_flow

    return parameter_schema(pipeline_flow(modality).fn)
