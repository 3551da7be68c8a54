"""The three processes of a local stack: Prefect's server, MLflow's server, and a worker."""

import errno
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from core.errors import UserError
from infra import settings
from infra.access import LOOPBACK, Access
from infra.settings import MLFLOW_PORT, PREFECT_PORT

HEALTH_SECONDS = 3.0
START_SECONDS = 200.0
"""How long a server may take until it answers: 90 were not enough with six busy processes per core."""
LOG_BYTES = 10 << 20
"""A log above this size is set aside when its process is started anew."""


@dataclass(frozen=True)
class Addresses:
    """Where both servers listen."""

    host: str = "127.0.0.1"
    prefect: int = PREFECT_PORT
    mlflow: int = MLFLOW_PORT

    @property
    def prefect_url(self) -> str:
        """Prefect's pages; the API is below them."""
        return f"http://{self.host}:{self.prefect}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's pages, and where runs are written to."""
        return f"http://{self.host}:{self.mlflow}"


@dataclass(frozen=True)
class Service:
    """A process to keep alive."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    healthy: Callable[[], bool]
    """Whether it answers."""
    start_seconds: float
    """How long it may take until it does."""


def client_environment(addresses: Addresses, access: Access | None) -> dict[str, str]:
    """What a worker, a flow or a command needs to speak to both servers."""
    return {
        "PREFECT_API_URL": f"{addresses.prefect_url}/api",
        "PREFECT_UI_URL": addresses.prefect_url,
        "MLFLOW_TRACKING_URI": addresses.mlflow_url,
        **(access.client() if access else {}),
    }


def prefect_server(home: Path, addresses: Addresses, access: Access | None) -> Service:
    """Prefect's server with its scheduler; its database is in the home, or where Prefect's own setting says."""
    command = ("-m", "prefect", "server", "start", "--host", addresses.host, "--port", str(addresses.prefect))
    environment = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_UI_API_URL": f"{addresses.prefect_url}/api",
        **(access.server(home / "private") if access else {}),
    }
    healthy = _answers(f"{addresses.prefect_url}/api/health")
    return Service("prefect", _python(*command), environment, healthy, START_SECONDS)


def mlflow_server(home: Path, addresses: Addresses, access: Access | None) -> Service:
    """MLflow's server: two processes; its database is in the home, or where MLflow's own setting says."""
    command: tuple[str, ...] = (
        "-m",
        "mlflow",
        "server",
        "--host",
        addresses.host,
        "--port",
        str(addresses.mlflow),
        "--workers",
        "1",
    )
    environment = {
        "MLFLOW_BACKEND_STORE_URI": settings.store_uri(home),
        "MLFLOW_ARTIFACTS_DESTINATION": (home / "mlartifacts").as_uri(),
        **(access.server(home / "private") if access else {}),
    }
    if access:
        command = (*command, "--app-name", "basic-auth")
    if addresses.host not in LOOPBACK:  # MLflow turns away whoever calls it by another name.
        known = (f"{addresses.host}:{addresses.mlflow}", "localhost:*", "127.0.0.1:*")
        command = (*command, "--allowed-hosts", ",".join(known))
    return Service("mlflow", _python(*command), environment, _answers(f"{addresses.mlflow_url}/health"), START_SECONDS)


def worker(home: Path, client: Mapping[str, str], pool: str, limit: int | None) -> Service:
    """A process that takes runs from ``pool``, at most ``limit`` at once, and starts one process for each."""
    command: tuple[str, ...] = ("-m", "infra.worker", "--pool", pool, "--name", socket.gethostname())
    if limit is not None:
        command = (*command, "--limit", str(limit))
    environment = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "INFO",
        settings.HOME_VARIABLE: str(home),
        **client,
    }
    return Service("worker", _python(*command), environment, lambda: True, 60)


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", *arguments)


def _answers(url: str) -> Callable[[], bool]:
    def ask() -> bool:
        try:
            with urlopen(url, timeout=HEALTH_SECONDS) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    return ask


def check_host(host: str, access: Access | None) -> None:
    """Refuse to listen to other machines without a password: who reaches Prefect's API may run code here.

    Raises:
        UserError: that says how to go on.
    """
    if host in ("0.0.0.0", "::", "") or ":" in host:  # noqa: S104 - refused, not bound to
        raise UserError(
            f"--host {host}: give the one name or IPv4 address under which other machines reach this one; the servers' "
            "pages and links are made of it"
        )
    if host not in LOOPBACK and access is None:
        raise UserError(f"--host {host} would let other machines in without a password; add --auth, or leave it out")


def check_ports(addresses: Addresses) -> None:
    """Refuse taken ports.

    Raises:
        UserError: that names the port, who has it, and a free one.
    """
    if addresses.prefect == addresses.mlflow:
        raise UserError(f"both servers cannot listen at port {addresses.prefect}; change one of them")
    for option, port in (("--prefect-port", addresses.prefect), ("--mlflow-port", addresses.mlflow)):
        if not 0 < port < 65536:
            raise UserError(f"{option} {port}: ports are numbers from 1 to 65535")
        if _free(addresses.host, port):
            continue
        other = next(n for n in range(port + 1, 65536) if _free(addresses.host, n))
        raise UserError(f"port {port} is taken{_holder(port)}; add {option} {other}, which is free")


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise UserError(f"--host {host} is no address of this machine ({error.strerror})") from None
    return True


def _holder(port: int) -> str:
    """Who listens, as far as this user may know."""
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        found = [c.pid for c in listening if getattr(c.laddr, "port", None) == port]
        name = psutil.Process(found[0]).name() if found and found[0] else None
    except (psutil.Error, OSError):
        return ""
    return f" by process {found[0]} ({name})" if name else ""
