"""A stack with a password and private data, in a machine without a network: who gets in, and what comes out."""

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from leaks import find
from test_medical_privacy import NEEDLES, QUICK, ward  # noqa: F401 - a fixture

pytestmark = pytest.mark.long
SOCKETS = Path(__file__).parents[1] / "sockets"
HERE = {"::1", "localhost", "0.0.0.0", "::", "None", ""}


def cut_off():
    """Words that start a command in a network of its own, which has loopback only; none where that is not allowed."""
    words = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    able = shutil.which("unshare") and shutil.which("ip")
    if able and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
        return words
    return []


class Machine:
    """Runs commands in one home and one network."""

    def __init__(self, root):
        self.home, self.said = root / "home", []
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}
        self.sockets = root / "sockets.txt"
        path = os.pathsep.join([str(SOCKETS), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.environment = kept | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MAEFLOW_TEST_SOCKETS": str(self.sockets),
        }  # fmt: skip
        self.ports = [] if cut_off() else ["--prefect-port", "4338", "--mlflow-port", "5338"]

    def __call__(self, *words, **more):
        command = [sys.executable, "-P", "-m", "flows.cli", *map(str, words), "--home", str(self.home)]
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=300, env=self.environment | more, cwd=self.home.parent
        )
        self.said += [done.stdout, done.stderr]
        return done.returncode, (done.stdout + done.stderr).decode()


def asked(url, credentials=None):
    """The status with which an address answers."""
    request = urllib.request.Request(url)
    if credentials:
        request.add_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


UNCHECKED = """
import json, sys
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
values = {"sources": [{"path": sys.argv[1]}]}
with get_client(sync_client=True) as client:
    found = client.read_deployment_by_name("medical/demo")
    body = {"parameters": values, "enforce_parameter_schema": False, "state": {"type": "SCHEDULED"}}
    run = client._client.post(f"/deployments/{found.id}/create_flow_run", json=body).json()
    import time
    for _ in range(120):
        now = client.read_flow_run(run["id"])
        if now.state.is_final():
            break
        time.sleep(1)
    print(json.dumps([now.state.name, now.state.message, now.parameters]))
"""


def unchecked(machine, environment, path):
    """What becomes of a private path in a form whose check somebody has turned off."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", UNCHECKED, path],
        capture_output=True,
        text=True,
        check=True,
        env=machine.environment | environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def inside(root, source):
    """What is done in the network of its own; its findings are printed as JSON."""
    machine, found = Machine(root), {}
    try:
        found["up"] = machine("up", "--background", "--auth", *machine.ports)
        state = json.loads((machine.home / "stack" / "stack.json").read_text())
        prefect, mlflow = (f"http://127.0.0.1:{state['addresses'][name]}" for name in ("prefect", "mlflow"))
        addresses = (f"{prefect}/api/admin/version", f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=5")
        right = machine("access")[1].strip()
        machine.said.pop(-2)  # The one output that is meant to hold the password.
        for name, credentials in (("missing", None), ("wrong", right[:-1] + "#"), ("right", right)):
            found[name] = [asked(address, credentials) for address in addresses]
        found["deploy"] = machine("deploy", "medical/demo")
        stranger = {"PREFECT_API_URL": f"{prefect}/api", "MLFLOW_TRACKING_URI": mlflow}
        found["stranger"] = machine("trigger", "medical/demo", "--data", source, **stranger)
        found["intruder"] = machine("deploy", "medical/demo", PREFECT_API_AUTH_STRING=f"{right}#", **stranger)
        labels = ("--labelled", source / "labels.csv")
        found["run"] = machine("trigger", "medical/demo", "--data", source, *labels, *QUICK, "--watch")
        found["failed"] = machine("trigger", "medical/demo", "--data", source / "cut", *QUICK, "--watch")
        found["unchecked"] = unchecked(machine, stranger | {"PREFECT_API_AUTH_STRING": right}, "/wards/of-somebody")
        found["secret"] = right.partition(":")[2]
        found["command lines"] = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    finally:
        found["down"] = machine("down")
    found["said"] = [text.decode(errors="replace") for text in machine.said]
    print(json.dumps(found))


@pytest.fixture(scope="module")
def findings(ward, tmp_path_factory):  # noqa: F811 - the fixture
    root = tmp_path_factory.mktemp("protected")
    command = [*cut_off(), sys.executable, __file__, str(root), str(ward)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


def test_everything_works_with_the_password(findings):
    _, found = findings
    for step in ("up", "deploy", "run", "down"):
        assert found[step][0] == 0, found[step][1]
    assert "Completed" in found["run"][1]
    assert found["failed"][0] == 1


def test_both_servers_refuse_who_lacks_it(findings):
    _, found = findings
    assert found["missing"] == [401, 401]
    assert found["wrong"] == [401, 401]
    assert found["right"] == [200, 200]
    for who in ("stranger", "intruder"):
        code, text = found[who]
        assert code == 2
        assert "asks for a password" in text


def test_the_password_is_nowhere_but_where_it_is_kept(findings):
    root, found = findings
    secrets = (found["secret"], base64.b64encode(f"maeflow:{found['secret']}".encode()).decode())
    places = find(root / "home", secrets, extra=[text.encode() for text in (*found["said"], *found["command lines"])])
    assert places == []
    # The search sees where it is kept.
    assert found["secret"] in (root / "home" / "private" / "access.json").read_text()


def test_runs_of_a_worker_tell_no_names_either(findings):
    root, found = findings
    assert find(root / "home", NEEDLES, extra=[text.encode() for text in found["said"]]) == []
    assert (root / "home" / "prefect" / "prefect.db").stat().st_size > 100_000


def test_a_path_in_a_form_without_its_check_is_refused_and_forgotten(findings):
    _, found = findings
    state, message, parameters = found["unchecked"]
    assert state == "Failed"
    assert "private source was given by its path" in message
    assert parameters == {}


def test_no_process_tries_to_leave_the_machine(findings):
    root, _ = findings
    lines = [line.split("\t") for line in (root / "sockets.txt").read_text().splitlines()]
    assert any("prefect" in who for _, _, who in lines)
    assert any("mlflow" in who for _, _, who in lines)
    away = [line for line in lines if not _stays(line[1])]
    assert away == []


def _stays(about):
    """Whether an address, written as Python, is of this machine: loopback, or a file."""
    address = about.lstrip("(").split(",")[0].removeprefix("b").strip("'\"")
    return address in HERE or address.startswith(("127.", "/", "\\x00"))


@pytest.mark.parametrize(
    ("about", "stays"),
    [
        ("('127.0.0.1', 4200)", True),
        ("('::1', 80, 0, 0)", True),
        ("'/run/some.sock'", True),
        ("b'\\x00abstract'", True),
        ("'localhost'", True),
        ("None", True),
        ("('10.1.2.3', 80)", False),
        ("('::ffff:8.8.8.8', 80, 0, 0)", False),
        ("b'example.org'", False),
        ("'localhost.example.org'", False),
    ],
)
def test_an_address_is_known_to_be_of_this_machine(about, stays):
    assert _stays(about) == stays


if __name__ == "__main__":
    inside(Path(sys.argv[1]), Path(sys.argv[2]))
