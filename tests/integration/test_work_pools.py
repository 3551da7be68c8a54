"""The work pools of infra/work_pools on a real Prefect server: taken, held to their schemas, turned into jobs."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path
from uuid import uuid4

import kubernetes_validate
import pytest

pytestmark = pytest.mark.long

TEMPLATES = Path(__file__).parents[2] / "infra" / "work_pools"
KINDS = ("process", "docker", "kubernetes")
PREFECT = str(Path(sys.executable).with_name("prefect"))


class Server:
    """A Prefect server of this test's own, and what it answers."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.api = f"http://127.0.0.1:{port}/api"
        own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")}
        self.environment = own | {"PREFECT_HOME": str(folder), "PREFECT_API_URL": self.api}
        command = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", port, "--no-services"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet)

    def wait(self):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            try:
                return self.ask("health")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        pytest.fail("the server did not come up")

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def refused(self, path, body):
        with pytest.raises(urllib.error.HTTPError) as error:
            self.ask(path, body)
        assert error.value.code == 422
        return error.value.read().decode()

    def prefect(self, *command):
        return subprocess.run(
            [PREFECT, "--no-prompt", *command], env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("prefect"))
    try:
        server.wait()
        for kind in KINDS:
            file = TEMPLATES / f"{kind}.json"
            made = server.prefect("work-pool", "create", kind, "--type", kind, "--base-job-template", str(file))
            assert made.returncode == 0, made.stdout + made.stderr
        server.flow = server.ask("flows/", {"name": "pipeline"})["id"]
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def template(kind):
    return json.loads((TEMPLATES / f"{kind}.json").read_text())


def deployment(server, pool, **variables):
    return {"name": uuid4().hex, "flow_id": server.flow, "work_pool_name": pool, "job_variables": variables}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_is_made_of_each_template(server, kind):
    pool = server.ask(f"work_pools/{kind}")
    assert pool["type"] == kind
    assert pool["base_job_template"] == template(kind)
    assert server.ask("deployments/", deployment(server, kind))["work_pool_name"] == kind


@pytest.mark.parametrize(
    ("pool", "variables", "why"),
    [
        ("process", {"gpus": 1}, "'gpus' was unexpected"),
        ("docker", {"shm_size": "lots"}, "does not match"),
        ("docker", {"mlflow_password": "in the open"}, "does not match"),
        ("docker", {"image": "maeflow:latest"}, "does not match"),
        ("kubernetes", {"gpus": 0}, "less than the minimum of 1"),
        ("kubernetes", {"grace_seconds": 5}, "less than the minimum of 60"),
        ("kubernetes", {"image": "maeflow"}, "does not match"),
        ("kubernetes", {"node_selector": {"gpu": 1}}, "not of type 'string'"),
    ],
)
def test_variables_against_the_schema_are_refused(server, pool, variables, why):
    assert why in server.refused("deployments/", deployment(server, pool, **variables))


def test_a_template_whose_job_names_an_unknown_variable_is_refused(server):
    broken = template("kubernetes")
    del broken["variables"]["properties"]["home_claim"]
    body = {"name": "broken", "type": "kubernetes", "base_job_template": broken}
    assert "undeclared variable(s): home_claim" in server.refused("work_pools/", body)


def render(server, worker, kind, **variables):
    """What a worker makes of a flow run, by Prefect's own code."""
    code = f"""
        import asyncio, json, sys
        from uuid import uuid4
        from prefect.blocks.system import Secret
        from prefect.client.schemas.objects import FlowRun
        from prefect_{kind}.worker import {worker}
        async def main():
            for name in ("username", "password"):
                await Secret(value="hidden " + name).save("mlflow-" + name, overwrite=True)
            template, values = json.load(sys.stdin)
            job = await {worker}.from_template_and_values(template, values)
            job.prepare_for_flow_run(FlowRun(id=uuid4(), name="calm-heron", flow_id=uuid4()))
            print(job.model_dump_json())
        asyncio.run(main())
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=server.environment,
        input=json.dumps([template(kind), variables]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def test_a_flow_run_becomes_a_job_that_kubernetes_takes(server):
    wanted = {"gpus": 4, "node_selector": {"gpu": "h100"}, "shm_size": "32Gi", "env": {"OMP_NUM_THREADS": "4"}}
    job = render(server, "KubernetesWorkerJobConfiguration", "kubernetes", **wanted)["job_manifest"]
    kubernetes_validate.validate(job, "1.32", strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}} in pod["volumes"]
    assert {"name": "OMP_NUM_THREADS", "value": "4"} in container["env"]
    # The image's own entry point is maeflow; flow runs are started by prefect.
    assert container["command"] + container["args"] == ["/usr/bin/env", "prefect", "flow-run", "execute"]
    # A node that is drained gives the run back to the pool, where its stage goes on from the last checkpoint.
    assert {"name": "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "value": "reschedule"} in container["env"]


def test_a_flow_run_becomes_a_container_with_secrets_from_blocks(server):
    job = render(server, "DockerWorkerJobConfiguration", "docker", gpus=2, env={"OMP_NUM_THREADS": "4"})
    assert job["env"]["MLFLOW_TRACKING_PASSWORD"] == "hidden password"
    assert job["env"]["OMP_NUM_THREADS"] == "4"
    (devices,) = job["container_create_kwargs"]["device_requests"]
    assert devices == {"Driver": "nvidia", "Count": 2, "Capabilities": [["gpu"]]}
    stored = server.ask("work_pools/docker")["base_job_template"]
    assert "hidden password" not in json.dumps(stored)
