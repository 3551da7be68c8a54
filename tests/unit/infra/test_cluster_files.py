"""The container image and the stack of servers: safe by what stands in their files, and read by the tools."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from infra.settings import QUIET

sys.path.insert(0, str(Path(__file__).parents[2]))
from stack_file import DOCKER, FILE, RAW, ROOT, SERVICES, TEXT, VARIABLE, example, filled

SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ONE_SHOT = {name for name, service in SERVICES.items() if service["restart"].startswith("on-failure")}
each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def compose(*arguments, **variables):
    """Run ``docker compose``, or skip."""
    own = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    plugin = (
        shutil.which("docker") and subprocess.run(["docker", "compose", "version"], env=own, check=False).returncode
    )
    if plugin != 0:
        pytest.skip("needs the docker command with its compose plugin (no engine)")
    command = ["docker", "compose", "--file", str(DOCKER / "compose.yaml"), "--env-file", os.devnull, *arguments]
    return subprocess.run(command, env=own | variables, capture_output=True, text=True, check=False)


# An identifier `gpu` would be taken for the mark of that name.
@pytest.mark.parametrize("profile", ["cpu", "gpu"], ids=["for-cpu", "for-gpu"])
def test_compose_itself_reads_the_file_as_we_do(profile):
    said = compose("--profile", profile, "config", "--format", "json", **filled())
    assert said.returncode == 0, said.stderr
    read = json.loads(said.stdout)["services"]
    assert set(read) == {name for name, service in SERVICES.items() if service.get("profiles", [profile]) == [profile]}
    for name, service in read.items():
        assert service["image"] == SERVICES[name]["image"]
        ours = {key: value for key, value in SERVICES[name].get("environment", {}).items() if value is not None}
        assert {key: value for key, value in service["environment"].items() if value is not None} == ours
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_compose_refuses_each_missing_value_by_name():
    required = sorted({found[1] for found in VARIABLE.finditer(TEXT) if found[2] == ":?"})
    assert len(required) == 12
    for name in required:
        without = {key: value for key, value in filled().items() if key != name}
        said = compose("--profile", "cpu", "config", "--quiet", **without)
        assert said.returncode != 0
        assert f"required variable {name} is missing a value: set it" in said.stderr


def test_the_example_names_all_that_is_required_and_nothing_unknown():
    text = (DOCKER / ".env.example").read_text()
    used = {found[1]: found[2] for found in VARIABLE.finditer(TEXT)}
    required = {name for name, rule in used.items() if rule == ":?"}
    assert required == set(example()) - {"COMPOSE_PROFILES"}
    optional = set(re.findall(r"^# ([A-Z_0-9]+)=", text, re.MULTILINE))
    passed_on = {"MAEFLOW_DEVICES", "PIP_INDEX_URL", "TORCH_INDEX_URL"}
    assert optional == {name for name, rule in used.items() if rule == ":-"} | passed_on
    assert {name for name, value in example().items() if value} == {
        "COMPOSE_PROFILES",
        "MLFLOW_AUTH_ADMIN_USERNAME",
        "MLFLOW_TRACKING_USERNAME",
    }


@each_service
def test_secrets_come_from_the_environment_and_have_no_default(name):
    for key, value in RAW[name].get("environment", {}).items():
        if SECRET.search(key):
            assert VARIABLE.fullmatch(value)[2] == ":?", key
    # A command line can be read by everybody on the host.
    said = json.dumps([SERVICES[name].get("command", []), SERVICES[name].get("entrypoint", [])])
    assert not any(value in said for key, value in filled().items() if SECRET.search(key))


def test_only_the_two_servers_are_published_and_only_to_this_host():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"prefect": ["127.0.0.1:4200:4200"], "mlflow": ["127.0.0.1:5000:5000"]}


def test_the_database_and_the_store_are_out_of_the_workers_reach():
    assert FILE["networks"] == {"front": None, "database": {"internal": True}, "objects": {"internal": True}}
    members = {
        network: {name for name, service in SERVICES.items() if network in service["networks"]}
        for network in FILE["networks"]
    }
    assert members["database"] == {"postgres", "prefect", "mlflow"}
    assert members["objects"] == {"objects", "bucket", "mlflow"}


@each_service
def test_a_service_has_few_rights_and_bounded_memory(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & set(service)
    assert "docker.sock" not in json.dumps(service)
    # Images of others say who they run as; ours does in its Dockerfile.
    assert service["image"].startswith("maeflow:") or service["user"] not in {"root", "0", "0:0"}


@each_service
def test_images_are_pinned(name):
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.search(r"\d", tag)
    if image == "maeflow":
        assert tag in {f"{VERSION}-cpu", f"{VERSION}-gpu"}
        assert tag.endswith(SERVICES[name]["build"]["target"])


@each_service
def test_a_service_tells_its_health_or_ends_by_itself(name):
    service = SERVICES[name]
    assert ("healthcheck" in service) != (name in ONE_SHOT)
    for other, wanted in service.get("depends_on", {}).items():
        ends = other in ONE_SHOT
        assert wanted["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_nothing_is_reported_and_leases_survive_a_restart():
    for name in ("prefect", "mlflow", "deploy", "worker-cpu", "worker-gpu"):
        variables = SERVICES[name]["environment"]
        for key in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
            assert variables[key] == QUIET[key]
    assert SERVICES["prefect"]["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "-master.telemetry=false" in SERVICES["objects"]["command"]


def test_the_server_tells_no_retry_of_an_older_cancellation():
    key = "PREFECT_SERVER_EVENTS_MAXIMUM_WEBSOCKET_BACKFILL"
    assert SERVICES["prefect"]["environment"][key] == QUIET[key]


def test_clients_reach_the_servers_under_names_that_they_answer_to():
    client = SERVICES["worker-gpu"]["environment"]
    assert client["PREFECT_API_URL"] == "http://prefect:4200/api"
    hosts = SERVICES["mlflow"]["command"][SERVICES["mlflow"]["command"].index("--allowed-hosts") + 1]
    assert client["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts.split(",")
    assert client["PREFECT_API_AUTH_STRING"] == SERVICES["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]
    assert "basic-auth" in SERVICES["mlflow"]["command"]


def test_only_the_gpu_worker_reserves_devices():
    reserving = {name for name, service in SERVICES.items() if "reservations" in service["deploy"]["resources"]}
    assert reserving == {"worker-gpu"}
    (devices,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices["capabilities"] == ["gpu"]
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]


def test_code_inside_the_file_is_code():
    for service in SERVICES.values():
        pieces = [*service.get("command", []), *service.get("healthcheck", {}).get("test", [])]
        for piece in pieces:
            if "import " in piece:
                compile(piece, "compose.yaml", "exec")
    assert subprocess.run(["sh", "-n", str(DOCKER / "databases.sh")], check=False).returncode == 0
    # One that is not executable is sourced by the image's own script, and its `set` stays on there.
    assert os.access(DOCKER / "databases.sh", os.X_OK)
    config = configparser.ConfigParser()
    config.read(DOCKER / "mlflow-auth.ini")
    assert config["mlflow"]["database_uri"] == "postgresql+psycopg2://mlflow@postgres:5432/mlflow_auth"


DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def instructions():
    """Instructions of the Dockerfile with their arguments, lines joined."""
    lines = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def test_the_dockerfile_pleases_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("needs hadolint")
    said = subprocess.run([linter, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_images_start_from_pinned_ones_and_run_as_nobody_in_particular():
    stages, users = {}, {}
    for word, rest in instructions():
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            assert base in stages or re.fullmatch(r"[a-z]+:\d+\.\d+-[a-z-]+", base), base
            stages[name] = base
        elif word == "USER":
            users[name] = rest
    targets = {service["build"]["target"] for service in SERVICES.values() if "build" in service}
    assert targets == {"cpu", "gpu"} == set(users)
    assert set(users.values()) == {"10001:10001"}
    assert "groupadd --gid 10001" in DOCKERFILE


def test_the_image_holds_no_secret_no_address_and_nothing_fetched():
    words = [word for word, _ in instructions()]
    assert "ADD" not in words
    for word, rest in instructions():
        if word in {"ENV", "ARG"}:
            assert not SECRET.search(rest)
            assert "://" not in rest
    assert "--no-cache-dir" in DOCKERFILE
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    assert "apt-get" not in DOCKERFILE


def test_all_that_is_copied_passes_the_ignore_file_and_is_all_that_does():
    copied = {
        part
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for part in rest.split()[:-1]
    }
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / part).exists() for part in copied)
    assert lines[1] == "*"


def test_a_filled_in_file_is_neither_committed_nor_packed():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "secret.env"} <= set(ignored)  # Wheels leave out what git does.
    assert "**/.env" in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()


def test_a_wheel_carries_these_files():
    from hatchling.builders.wheel import WheelBuilder

    packed = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    for folder in ("docker", "kubernetes", "work_pools"):
        for file in (ROOT / "infra" / folder).rglob("*"):
            if file.is_file() and file.name != ".env":
                assert file.relative_to(ROOT).as_posix() in packed
