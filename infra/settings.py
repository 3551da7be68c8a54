"""Every environment variable that maeflow reads or sets, in one place."""

import os
from pathlib import Path

HOME_VARIABLE = "MAEFLOW_HOME"
DEFAULT_HOME = ".maeflow"
DEVICES_VARIABLE = "MAEFLOW_DEVICES"
"""GPUs that runs on this machine may take, by number or identifier; default: what `nvidia-smi` shows."""
ACCESS_VARIABLE = "MAEFLOW_ACCESS"
"""``user:password`` for both servers, where it is not to be made up."""
POOL_VARIABLE = "MAEFLOW_POOL"
DEFAULT_POOL = "maeflow"
"""Prefect's work pool for runs on this machine."""
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
"""Where the servers of a local stack listen."""
MLFLOW_MODE = "?workflowType=machine_learning"
"""Part of every link: without it MLflow's pages open in another mode."""
MLFLOW_PAGES_VARIABLE = "MAEFLOW_MLFLOW_URL"
"""Address under which people reach MLflow's pages, where it is not the one that runs write to."""

QUIET = {
    # No telemetry of Prefect or MLflow leaves the machine (MLflow wants `true`, not `1`).
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # A tracking server that is down must not hold anything up: MLflow's default retries take four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # The default of 20 s is tight on a busy machine of two cores.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_CLI_PROMPT": "false",
    # A worker looks for new runs every other second; by default it waits ten.
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    # Slots are counted on disk: kept in memory, those of dead holders would stay taken when the server restarts.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Each attempt at a run listens for its cancellation, and is told of the last minute's as well; so a run retried
    # soon after it was cancelled could be cancelled again. A second bridges what is lost between two connections.
    "PREFECT_SERVER_EVENTS_MAXIMUM_WEBSOCKET_BACKFILL": "PT1S",
    # MLflow's server would start a dozen further processes for jobs that nobody here submits.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
"""Defaults set before Prefect or MLflow is imported; what the user has set stays."""


def home_folder(given: str | None = None) -> Path:
    """The home: as given, else ``MAEFLOW_HOME``, else ``.maeflow`` in the working directory; absolute."""
    return Path(given or os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute()


def tracking_uri(home: Path) -> str:
    """MLflow's address: ``MLFLOW_TRACKING_URI``, else a SQLite file in the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home}/mlflow.db"


def store_uri(home: Path) -> str:
    """The database of MLflow's server: ``MLFLOW_BACKEND_STORE_URI``, else a SQLite file in the home."""
    return os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{home}/mlflow.db"


def artifact_root(home: Path) -> str | None:
    """Where new experiments keep artifacts; None leaves it to a tracking server of the user's own."""
    return None if os.environ.get("MLFLOW_TRACKING_URI") else (home / "mlartifacts").as_uri()


def debug() -> bool:
    """Whether errors show their tracebacks."""
    return bool(os.environ.get("MAEFLOW_DEBUG"))


def pool() -> str:
    """The work pool that deployments go to."""
    return os.environ.get(POOL_VARIABLE) or DEFAULT_POOL


def mlflow_pages() -> str | None:
    """Where people reach MLflow's pages; None where no server runs."""
    named = os.environ.get(MLFLOW_PAGES_VARIABLE) or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return named.rstrip("/") if named.startswith("http") else None


def calm() -> None:
    """Set the defaults of `QUIET`, as a process needs that a worker of somebody else's has started."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def apply(home: Path, *, verbose: bool = False) -> None:
    """Set defaults for this process and its children. Call it before Prefect or MLflow is imported."""
    calm()
    os.environ[HOME_VARIABLE] = str(home)
    if not any(os.environ.get(name) for name in ("PREFECT_API_URL", "PREFECT_HOME")):
        os.environ["PREFECT_HOME"] = str(home / "prefect")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "DEBUG" if verbose else "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
