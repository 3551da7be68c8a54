"""Who may use the servers: one name and password for both, kept in the home's private folder and nowhere else.

They travel in the environment of processes, never on a command line, which everybody on the machine can read.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import UserError
from core.workspace import write_text
from infra.settings import ACCESS_VARIABLE

FILE = "private/access.json"
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Access:
    """A name, its password, and the key with which MLflow signs its forms."""

    user: str
    password: str
    form_key: str

    def server(self, folder: Path) -> dict[str, str]:
        """What both servers need in their environment; ``folder`` keeps MLflow's table of users."""
        config = folder / "mlflow_auth.ini"
        lines = ["[mlflow]", "default_permission = READ", f"database_uri = sqlite:///{folder / 'mlflow_auth.db'}"]
        with owners_alone():
            write_text(config, "\n".join(lines) + "\n")
        return {
            "PREFECT_SERVER_API_AUTH_STRING": f"{self.user}:{self.password}",
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_USERNAME": self.user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.form_key,
        }

    def client(self) -> dict[str, str]:
        """What workers, flows and commands need in theirs."""
        return {
            "PREFECT_API_AUTH_STRING": f"{self.user}:{self.password}",
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }


def open_access(home: Path) -> Access:
    """The access kept in ``home``; made up the first time, or taken from ``MAEFLOW_ACCESS``.

    Raises:
        UserError: if ``MAEFLOW_ACCESS`` is no ``user:password``.
    """
    named = os.environ.get(ACCESS_VARIABLE)
    kept = read_access(home)
    if named is None and kept is not None:
        return kept
    user, password = _split(named) if named is not None else ("maeflow", secrets.token_urlsafe(18))
    if kept is not None and (user, password) == (kept.user, kept.password):
        return kept
    if kept is not None and user == kept.user:
        raise UserError(
            f"{ACCESS_VARIABLE} gives {user!r} another password than MLflow has for it; change it there first "
            f"(docs/operating.md, Access), or choose another name"
        )
    access = Access(user, password, secrets.token_hex(16))
    folder = (home / FILE).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    with owners_alone():
        write_text(home / FILE, json.dumps(asdict(access)) + "\n")
    return access


@contextmanager
def owners_alone() -> Iterator[None]:
    """Files that are made inside are closed to everybody else."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def read_access(home: Path) -> Access | None:
    """The access kept in ``home``, if there is one."""
    file = home / FILE
    return Access(**json.loads(file.read_text())) if file.exists() else None


def _split(named: str) -> tuple[str, str]:
    user, colon, password = named.partition(":")
    if not colon or not user or len(password) < 8:
        raise UserError(f"{ACCESS_VARIABLE} has to be user:password, the password of 8 characters or more")
    return user, password


def forget(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what servers and their clients are told: stages run plugins' code and need none of it."""
    theirs = ("PREFECT_", "MLFLOW_", ACCESS_VARIABLE)
    return {name: value for name, value in environment.items() if not name.startswith(theirs)}
