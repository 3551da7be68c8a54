"""The worker of `maeflow up` and `maeflow worker`: Prefect's for processes, made safe for retries that come at once.

``python -P -m infra.worker --pool NAME`` takes the options of ``prefect worker start``. Pools of other types get the
worker that Prefect has for them.
"""

import logging
import sys
import warnings
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

BUSY = "already holding"
"""What anyio says of a run that still has its place among ``--limit``."""

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # That it takes the place of Prefect's own for the type "process".

    class Worker(ProcessWorker):
        """Prefect's worker tells the crash of a process twice, seconds apart; the second undoes a retry in between."""

        async def run(self, *given: Any, **named: Any) -> ProcessWorkerResult:
            """Carry a run to its end, which has been told when this returns."""
            result = await super().run(*given, **named)
            return result.model_copy(update={"status_code": 0})

        async def get_and_submit_flow_runs(self) -> list[FlowRun]:
            """Take the runs that are due; a retry waits until the attempt before it has given back its place."""
            try:
                return await super().get_and_submit_flow_runs()
            except RuntimeError as error:
                if BUSY not in str(error):
                    raise
                logging.getLogger("prefect.worker").info("a retry waits for the end of the attempt before it")
                return []


def main() -> None:
    """Start a worker as Prefect's own command does."""
    from prefect.cli import app

    sys.argv = ["prefect", "worker", "start", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
