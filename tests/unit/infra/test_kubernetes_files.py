"""What is applied to a Kubernetes cluster: valid by its schemas, restricted in its rights, and consistent in itself."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from infra.launchers import FAILED, GRACE_SECONDS, WRONG

ROOT = Path(__file__).parents[3]
KUBERNETES = ROOT / "infra" / "kubernetes"
POOLS = ROOT / "infra" / "work_pools"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
RELEASES = ("1.30", "1.32", "1.35")
SEEN_BY_EVERY_RELEASE = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}


def documents(folder=KUBERNETES):
    """Every object of every manifest."""
    files = [file for file in sorted(folder.rglob("*.yaml")) if file.name != "kustomization.yaml"]
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def named(kind, name):
    (found,) = [one for one in documents() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pod_specs():
    """The pods of manifests and of the pool's template."""
    template = json.loads((POOLS / "kubernetes.json").read_text())
    owners = [one for one in documents() if "template" in one.get("spec", {})]
    pods = {one["metadata"]["name"]: one["spec"]["template"] for one in owners}
    return pods | {"run": template["job_configuration"]["job_manifest"]["spec"]["template"]}


PODS = pod_specs()
each_pod = pytest.mark.parametrize("name", sorted(PODS))


@pytest.mark.parametrize("release", RELEASES)
def test_manifests_are_valid(release):
    assert len(documents()) == 14
    for document in documents():
        kubernetes_validate.validate(document, release, strict=True)


def test_validation_sees_a_misspelt_field():
    broken = named("Deployment", "maeflow-worker")
    broken["spec"]["template"]["spec"]["containers"][0]["evn"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="evn"):
        kubernetes_validate.validate(broken, RELEASES[-1], strict=True)


@pytest.mark.parametrize("folder", ["", "multi-node"])
def test_kubectl_builds_them_for_one_namespace_with_pinned_images(folder):
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl (no cluster)")
    said = subprocess.run(["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    built = list(yaml.safe_load_all(said.stdout))
    assert {one["metadata"].get("namespace", "maeflow") for one in built} == {"maeflow"}
    assert set(re.findall(r"image: (\S+)", said.stdout)) <= {f"maeflow:{VERSION}-cpu", f"maeflow:{VERSION}-gpu"}
    for one in built:
        kubernetes_validate.validate(one, RELEASES[-1], strict=True)
    if not folder:
        (servers,) = [one for one in built if one["kind"] == "ConfigMap"]
        assert servers["metadata"]["name"] == "maeflow-servers"
        assert not [key for key in servers["data"] if re.search("PASSWORD|AUTH", key)]


@each_pod
def test_a_pod_passes_the_restricted_standard(name):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, and a root file system to read only."""
    pod = PODS[name]["spec"]
    context = pod["securityContext"]
    assert SEEN_BY_EVERY_RELEASE.items() <= context.items()
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all(set(volume) & {"emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert {"name": "temporary", "mountPath": "/tmp"} in container["volumeMounts"]
    enforced = named("Namespace", "maeflow")["metadata"]["labels"]
    assert enforced["pod-security.kubernetes.io/enforce"] == "restricted"


@each_pod
def test_a_pod_has_time_to_save(name):
    grace = PODS[name]["spec"]["terminationGracePeriodSeconds"]
    if name == "run":
        properties = json.loads((POOLS / "kubernetes.json").read_text())["variables"]["properties"]
        grace = properties[grace.strip("{} ")]["minimum"]
    assert grace >= max(60, 2 * GRACE_SECONDS)


@each_pod
def test_a_pod_refers_to_what_is_there(name):
    pod, labels = PODS[name]["spec"], PODS[name]["metadata"]["labels"]
    defaults = json.loads((POOLS / "kubernetes.json").read_text())["variables"]["properties"]

    def meant(value):
        return defaults[value.strip("{} ")]["default"] if value.startswith("{{") else value

    named("ServiceAccount", meant(pod["serviceAccountName"]))
    for volume in pod["volumes"]:
        if "persistentVolumeClaim" in volume:
            claim = named("PersistentVolumeClaim", meant(volume["persistentVolumeClaim"]["claimName"]))
            assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    # Policies choose pods by these, and one that no policy chooses may talk to nobody.
    assert labels["app.kubernetes.io/name"] == "maeflow"
    assert named("NetworkPolicy", "closed")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_no_secret_is_written_down_and_flow_runs_get_no_token():
    assert not [one for one in documents() if one["kind"] == "Secret"]
    assert [name for name, pod in PODS.items() if pod["spec"]["automountServiceAccountToken"]] == ["maeflow-worker"]
    (worker,) = PODS["maeflow-worker"]["spec"]["containers"]
    # Without these two, Prefect copies its own password into every Job.
    variables = {one["name"]: one.get("value") for one in worker["env"]}
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert (variables[f"{prefix}_NAME"], variables[f"{prefix}_KEY"]) == ("maeflow-servers", "PREFECT_API_AUTH_STRING")


def test_the_worker_may_handle_jobs_and_nothing_more():
    rules = named("Role", "maeflow-worker")["rules"]
    assert not [one for one in documents() if one["kind"].startswith("ClusterRole")]
    assert {resource for rule in rules for resource in rule["resources"]} == {
        "jobs",
        "pods",
        "pods/log",
        "pods/status",
        "events",
    }
    assert "*" not in json.dumps(rules)
    for rule in rules:
        assert rule["resources"] == ["jobs"] or set(rule["verbs"]) == {"get", "list", "watch"}


def test_nodes_of_a_training_find_each_other():
    job, service = named("Job", "training"), named("Service", "training")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    arguments = container["args"]
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert spec["completionMode"] == "Indexed"
    assert int(options["--nodes"]) == spec["completions"] == spec["parallelism"]
    (port,) = service["spec"]["ports"]
    assert options["--rendezvous"] == f"training-0.{pod['subdomain']}:{port['port']}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    given = {one["name"] for one in container["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(arguments))) <= given
    assert container["command"] == ["python", "-P", "-m", "infra.node"]
    assert container["ports"] == [{"name": "rendezvous", "containerPort": port["port"]}]


def test_a_training_is_tried_again_but_not_what_would_fail_again():
    spec = named("Job", "training")["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob"
    assert fail["onExitCodes"]["values"] == [FAILED, WRONG]
    assert fail["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert spec["backoffLimit"] > 0


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_a_pools_defaults_satisfy_its_own_schema(kind):
    template = json.loads((POOLS / f"{kind}.json").read_text())
    schema, job = template["variables"], json.dumps(template["job_configuration"])
    jsonschema.Draft202012Validator.check_schema(schema)
    defaults = {name: one["default"] for name, one in schema["properties"].items() if "default" in one}
    jsonschema.validate(defaults, schema, jsonschema.Draft202012Validator)
    used = set(re.findall(r"\{\{ (\w+) \}\}", job))
    # `env` of the Docker pool is merged into the job's own by Prefect.
    assert used | ({"env"} if kind == "docker" else set()) == set(schema["properties"])
    for one in schema["properties"].values():
        assert one["title"]
        assert one["description"].endswith(".")


def test_a_run_asks_for_gpus_memory_and_shared_memory():
    template = json.loads((POOLS / "kubernetes.json").read_text())
    assert template["variables"]["properties"]["namespace"]["default"] == "maeflow"
    job = template["job_configuration"]["job_manifest"]["spec"]
    assert job["backoffLimit"] == 0
    (container,) = PODS["run"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "{{ memory }}", "nvidia.com/gpu": "{{ gpus }}"}
    shared = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shm_size }}"}}
    assert shared in PODS["run"]["spec"]["volumes"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
