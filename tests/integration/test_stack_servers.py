"""Both servers of infra/docker/compose.yaml on a real PostgreSQL, with the file's own commands and variables.

Containers aside, this is the stack: roles and databases by `databases.sh`, passwords asked for, hosts checked.
"""

import base64
import configparser
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from stack_file import DOCKER, SERVICES, filled

pytestmark = pytest.mark.long

BIN = Path(sys.executable).parent


def postgres_bin():
    """The folder of PostgreSQL's programs, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    # psql's \getenv came with 14.
    usable = [place for place in places if (place / "initdb").exists() and (place / "psql").exists()]
    if not usable:
        pytest.skip("needs PostgreSQL 14 or newer (initdb, pg_ctl, psql)")
    return usable[0]


def account():
    """Who may run PostgreSQL: anybody but root."""
    if os.getuid():
        return {}
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("needs an account `postgres`: PostgreSQL does not run as root")
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def postgres():
    """A server of our own with what databases.sh makes; gives its port."""
    tools, who, port = postgres_bin(), account(), str(free_port())
    # Not below pytest's own folder, which only the tests' account may enter.
    folder = tempfile.mkdtemp(prefix="maeflow-postgres-")
    if who:
        shutil.chown(folder, who["user"], who["group"])

    def call(*command, **environment):
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ | environment, **who)

    wanted = SERVICES["postgres"]["environment"]
    data = f"{folder}/data"
    arguments = wanted["POSTGRES_INITDB_ARGS"].split()
    call(tools / "initdb", "--pgdata", data, "--username", "postgres", "--auth-local=trust", *arguments)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    call(tools / "pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
    script = Path(folder) / "databases.sh"
    script.write_text((DOCKER / "databases.sh").read_text())
    try:
        script.chmod(0o755)
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        call("sh", script, POSTGRES_USER="postgres", PGHOST=folder, PGPORT=port, PATH=path, **wanted)
        yield tools, port
    finally:
        call(tools / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def status(address, user=None, host=None):
    """What a server answers to ``user:password`` under the name ``host``."""
    headers = {"Host": host} if host else {}
    if user:
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Running:
    """A service of the stack as a process of this machine; ``here`` is its address."""

    def __init__(self, name, folder, postgres_port, *, health, **changes):
        service, self.port = SERVICES[name], free_port()
        self.here = f"http://127.0.0.1:{self.port}"
        words = [*service["entrypoint"], *service["command"]]
        inside = {"0.0.0.0": "127.0.0.1", words[words.index("--port") + 1]: str(self.port)}
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        variables = {key: self.moved(value, postgres_port) for key, value in service["environment"].items()}
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [BIN / words[0], *(inside.get(word, word) for word in words[1:])],
            env=own | variables | changes,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if status(self.here + health) == 200:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        pytest.fail(f"{name} did not come up:\n{self.log.read_text()[-3000:]}")

    @staticmethod
    def moved(value, postgres_port):
        """A value with the database's place in the stack replaced by its place here."""
        places = {"postgres": "127.0.0.1", "5432": postgres_port}
        return places.get(value, value.replace("@postgres:5432", f"@127.0.0.1:{postgres_port}"))

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def test_roles_reach_their_own_databases_only(postgres):
    tools, port = postgres
    for role in ("prefect", "mlflow"):
        password = filled()[f"{role.upper()}_DB_PASSWORD"]
        for database in ("prefect", "mlflow", "mlflow_auth"):
            said = subprocess.run(
                [tools / "psql", "-h", "127.0.0.1", "-p", port, "-U", role, "-d", database, "-Atc", "select 1"],
                env=os.environ | {"PGPASSWORD": password},
                capture_output=True,
                text=True,
                check=False,
            )
            if database.startswith(role):
                assert said.stdout == "1\n", said.stderr
            else:
                assert "permission denied" in said.stderr


def test_prefect_keeps_its_tables_there_and_asks_for_the_password(postgres, tmp_path):
    _, port = postgres
    server = Running("prefect", tmp_path, port, health="/api/health", PREFECT_HOME=str(tmp_path))
    try:
        pools = f"{server.here}/api/work_pools/default"
        assert status(pools) == 401
        assert status(pools, "somebody:else") == 401
        assert status(pools, filled()["PREFECT_AUTH_STRING"]) == 404
    finally:
        server.stop()
    assert not list(tmp_path.glob("*.db"))


def test_mlflow_knows_its_users_and_its_names(postgres, tmp_path):
    _, port = postgres
    config = configparser.ConfigParser()
    config.read(DOCKER / "mlflow-auth.ini")
    config["mlflow"]["database_uri"] = Running.moved(config["mlflow"]["database_uri"], port)
    with (tmp_path / "auth.ini").open("w") as file:
        config.write(file)
    changes = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini")}
    server = Running("mlflow", tmp_path, port, health="/health", **changes)
    try:
        asked = f"{server.here}/api/2.0/mlflow/experiments/search?max_results=1"
        right = f"{filled()['MLFLOW_AUTH_ADMIN_USERNAME']}:{filled()['MLFLOW_AUTH_ADMIN_PASSWORD']}"
        # The name by which workers know it, which MLflow refuses unless told.
        known = SERVICES["worker-cpu"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert status(asked, host=known) == 401
        assert status(asked, "admin:wrong", host=known) == 401
        assert status(asked, right, host=known) == 200
        assert status(asked, right, host="elsewhere.example") == 403
    finally:
        server.stop()
    assert not list(tmp_path.glob("*.db"))
