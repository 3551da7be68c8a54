"""From an empty home to a comparison of three runs, as people go: real servers, a real worker, a real browser.

The steps follow each other, and each says what it found to the next; run all of them: `make test-e2e`.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from core.recipes import load
from infra.mlflow_runs import chart, compare

sys.path.insert(0, str(Path(__file__).parents[1]))
from walking import ANALYTICS, BIN, differing, filled, free_ports, run_id

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e

SOON_SECONDS = 15
CROWDED = 2.5
"""Busy processes per core above which the machine says nothing about times; the stack alone makes one or two."""
EPOCHS = "epochs (Optional)"
BY_PYTHON = """
import sys
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment

with get_client(sync_client=True) as client:
    pretrain = client.read_deployment_by_name("image/tiny").parameters["pretrain"]
print(run_deployment("image/tiny", parameters={"pretrain": pretrain | {"epochs": int(sys.argv[1])}}, timeout=0).id)
"""


def form_page(stack, deployment, version=""):
    return f"{stack.prefect}{version}/deployments/deployment/{stack.deployment(deployment)['id']}/run"


def refused_by_form(stack, browser):
    """What a form shows after it was sent and refused; no run was made."""
    before = stack.count()
    assert browser.submit().status == httpx.codes.CONFLICT
    browser.page.get_by_text("Failure reason").first.wait_for()
    assert stack.count() == before
    return browser.read()


def test_up_starts_in_an_empty_home(stack):
    said = stack.up("--background")
    assert stack.prefect in said
    assert stack.mlflow in said
    assert f"next:  maeflow deploy --home {stack.home}\n" in said
    assert "ok   worker" in stack.maeflow("status")


def test_up_again_says_that_it_runs(stack):
    before = stack.processes()
    again = stack.up("--background")
    assert "runs already" in again
    assert "note:" not in again
    assert "note:" not in stack.maeflow("up", "--background")  # Ports that are not given are those of before.
    assert "it goes on at these addresses" in stack.up("--background", "--prefect-port", "4999")
    assert stack.processes() == before


def test_a_taken_port_is_named_and_another_offered(stack, tmp_path):
    other, taken = free_ports(1)[0], str(stack.prefect_port)
    ports = ["--prefect-port", taken, "--mlflow-port", str(other)]
    words = [sys.executable, "-m", "flows.cli", "up", "--home", str(tmp_path / "other"), *ports]
    said = stack._run(words, stack.environment, 2)
    assert f"port {taken} is taken" in said
    offered = re.search(r"add --prefect-port (\d+), which is free", said)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", int(offered.group(1))))


def test_deploy_registers_pipelines_and_stages(stack, walk):
    said = stack.maeflow("deploy", "image/tiny", "--data", walk.data)
    assert "5 new" in said
    assert "5 new" in stack.maeflow("deploy", "medical/demo")
    found = stack.deployment("image/tiny")
    assert found["parameters"]["sources"] == [{"path": str(walk.data), "weight": 1.0}]
    assert found["enforce_parameter_schema"]


def test_trigger_changes_one_value_and_nothing_beside_it(stack, walk):
    said = stack.maeflow("trigger", "image/tiny", "--set", "pretrain.epochs=4")
    walk.runs["trigger"], walk.epochs["trigger"] = run_id(said), 4
    run = stack.wait(walk.runs["trigger"], "Running", 60)
    assert run["parameters"]["pretrain"]["epochs"] == 4
    assert differing(run["parameters"], stack.deployment("image/tiny")["parameters"]) == {"pretrain.epochs"}


def test_a_run_begins_soon(stack, walk, record_property):
    seconds = stack.seconds_to(walk.runs["trigger"], "Running")
    record_property("house figures", f"a run began {seconds:.1f} s after it was triggered")
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    if seconds > SOON_SECONDS and busy > CROWDED:
        pytest.skip(f"it took {seconds:.1f} s, with {busy:.1f} busy processes per core beside it")
    assert seconds <= SOON_SECONDS


def test_the_form_refuses_and_then_starts_a_run(stack, walk, browser):
    browser.open(form_page(stack, "image/tiny"))
    browser.field(EPOCHS).fill("0")
    said = refused_by_form(stack, browser)
    assert "'pretrain.epochs'" in said
    assert "minimum of 0" in said
    browser.field(EPOCHS).fill("2")
    browser.page.get_by_text(EPOCHS, exact=True).first.scroll_into_view_if_needed()
    browser.keep("form")
    before = {run["id"] for run in stack.newest()}
    walk.runs["form"], walk.epochs["form"] = browser.submit().json()["id"], 2
    assert {run["id"] for run in stack.newest()} - before == {walk.runs["form"]}
    run = stack.run(walk.runs["form"])
    # What nobody has filled in, a form sends as None.
    before = {"labelled": None, "checkpoint": None} | stack.deployment("image/tiny")["parameters"]
    assert differing(run["parameters"], before) == {"pretrain.epochs"}


def test_run_deployment_starts_a_run(stack, walk):
    walk.runs["python"], walk.epochs["python"] = run_id(stack.python(BY_PYTHON, "5")), 5
    run = stack.run(walk.runs["python"])
    assert differing(run["parameters"], stack.deployment("image/tiny")["parameters"]) == {"pretrain.epochs"}


def test_an_event_starts_the_stage_prepare(stack, walk, tmp_path):
    example = ROOT / "infra" / "automations" / "prepare_on_arrival.yaml"
    mine = tmp_path / "mine.yaml"
    identity = json.loads(stack.prefect_command("deployment", "inspect", "image-prepare/tiny", "--output", "json"))[
        "id"
    ]
    mine.write_text(filled(example, DEPLOYMENT_ID=identity))
    stack.prefect_command("automation", "create", "--from-file", mine)
    folder = walk.data / "train"
    arrived = [
        "maeflow.data.arrived",
        "--resource-id",
        "maeflow.inbox",
        "--payload",
        json.dumps({"folder": str(folder)}),
    ]
    stack.prefect_command("event", "emit", *arrived)
    walk.prepared = wait_for_run_of(stack, identity)
    assert stack.run(walk.prepared)["parameters"]["source"] == str(folder)


def wait_for_run_of(stack, deployment):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = [run["id"] for run in stack.newest() if run["deployment_id"] == deployment]
        if found:
            return found[0]
        time.sleep(0.3)
    raise AssertionError("the event started nothing")


@pytest.mark.parametrize(
    ("change", "told"),
    [("pretrain.epoch=3", "did you mean 'epochs'?"), ("pretrain.epochs=many", "pretrain.epochs")],
)
def test_trigger_refuses_before_anything_starts(stack, change, told):
    before = stack.count()
    assert told in stack.maeflow("trigger", "image/tiny", "--set", change, code=2)
    assert stack.count() == before


def test_prefects_own_command_is_checked_as_well(stack):
    before = stack.count()
    said = stack.prefect_command("deployment", "run", "image/tiny", "--param", 'pretrain={"epochs": "many"}', code=1)
    assert "pretrain.epochs" in said
    assert stack.count() == before


def test_prefects_own_command_finds_the_server_as_the_docs_say(stack):
    words = f'eval "$("{BIN}/maeflow" env --home "{stack.home}")" && "{BIN}/prefect" deployment inspect image/tiny'
    said = subprocess.run(["sh", "-c", words], env=stack.environment, capture_output=True, text=True, check=True).stdout
    assert "flows.typed.image" in said


def test_deploy_again_changes_nothing_and_keeps_what_waits(stack, walk):
    later = ["--start-in", "1 hour", "--param", "seed=7"]
    walk.waiting = run_id(stack.prefect_command("deployment", "run", "image/tiny", *later))
    assert stack.run(walk.waiting)["parameters"]["seed"] == 7
    before = stack.deployment("image/tiny")
    assert "0 new, 0 changed, 5 unchanged" in stack.maeflow("deploy", "image/tiny", "--data", walk.data)
    after = stack.deployment("image/tiny")
    assert {key for key in before if before[key] != after[key]} <= {"status", "last_polled"}
    assert stack.run(walk.waiting)["state_name"] == "Scheduled"


def test_the_api_takes_a_private_source_by_its_name_alone(stack, walk):
    scan = walk.data / "test"
    before = stack.count()
    path = f"sources={json.dumps([{'path': str(scan)}])}"
    said = stack.prefect_command("deployment", "run", "medical/demo", "--param", path, code=1)
    assert "sources[0].path" in said
    assert stack.count() == before
    name = stack.maeflow("source", "medical", scan).strip()
    assert name.startswith("private:")
    named = f"sources={json.dumps([{'path': name}])}"
    said = stack.prefect_command("deployment", "run", "medical/demo", "--start-in", "1 hour", "--param", named)
    assert stack.run(run_id(said))["state_name"] == "Scheduled"


def test_the_form_takes_a_private_source_by_its_name_alone(stack, browser):
    browser.open(form_page(stack, "medical/demo"))
    browser.page.get_by_role("button", name="Add item").first.click()
    browser.field("path").fill("/data/scans/somebody")
    said = refused_by_form(stack, browser)
    assert "'sources[0].path'" in said
    assert "^private:" in said


def test_the_second_interface_has_the_same_form(stack, browser):
    browser.open(form_page(stack, "image/tiny", "/v2"))
    browser.page.get_by_text(EPOCHS, exact=True).first.wait_for()
    shown = browser.read()
    labels = {line.removesuffix(" (Optional)") for line in shown.splitlines()}
    keys = {key.rpartition(".")[2] for key in differing(load("image/tiny").model_dump(mode="json"), {})}
    groups = {"data", "store", "affine", "mask", "decoder", "label_efficiency", "segmenter"}
    assert keys - {"modality"} | groups <= labels
    assert "Passes over the training split." in shown
    browser.field(EPOCHS).fill("0")
    assert "'pretrain.epochs'" in refused_by_form(stack, browser)
    browser.keep("form_v2")
    # It asks for analytics whatever the server's settings say; without an answer it works as well.
    assert set(browser.strangers) <= {ANALYTICS}
    browser.strangers.clear()


def test_all_runs_complete(stack, walk):
    for run in (*walk.runs.values(), walk.prepared):
        stack.wait(run, "Completed", 300)
    for run in walk.runs.values():
        page = re.search(r"^report: (.+)$", stack.told(run), re.MULTILINE)
        assert Path(page[1]).is_relative_to(stack.home)
        assert Path(page[1]).is_file()


def stage_page(stack, run, stage):
    """The artifact that a stage of a run has left."""
    query = {"flow_run_id": {"any_": [run]}, "type": {"any_": ["markdown"]}, "key": {"any_": [f"image-tiny-{stage}"]}}
    return stack.post("/artifacts/filter", artifacts=query)[0]


def test_every_stage_leaves_a_page_with_links_that_work(stack, walk):
    for stage in ("prepare", "pretrain", "finetune", "evaluate"):
        text = stage_page(stack, walk.runs["trigger"], stage)["data"]
        links = dict(re.findall(r"- \[(.+?)\]\((http.+?)\)", text))
        assert len(links) == 2, text
        for address in links.values():
            assert httpx.get(address).status_code == 200
        shown = next(re.search(r"/runs/([0-9a-f]{32})", address) for address in links.values() if "/runs/" in address)
        (run,) = stack.mlflow_runs(stage, walk.runs["trigger"])
        assert run["info"]["run_id"] == shown.group(1)
    assert "](data:image/webp;base64," in stage_page(stack, walk.runs["trigger"], "pretrain")["data"]


def test_every_stage_showed_its_progress(stack, walk):
    query = {"flow_run_id": {"any_": [walk.runs["trigger"]]}, "type": {"any_": ["progress"]}}
    bars = {bar["key"]: bar["data"] for bar in stack.post("/artifacts/filter", artifacts=query)}
    assert bars["pretrain-progress"] == 100.0
    assert {"finetune-progress", "evaluate-progress"} <= bars.keys()


def test_mlflow_leads_back_to_prefect(stack, walk, browser):
    for stage in ("pipeline", "prepare", "pretrain", "finetune", "evaluate"):
        (run,) = stack.mlflow_runs(stage, walk.runs["trigger"])
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        assert tags["prefect.deployment"] == "tiny"
        assert tags["prefect.flow_run_url"].startswith(stack.prefect)
    browser.open(tags["prefect.flow_run_url"])
    for stage in ("prepare", "pretrain", "finetune", "evaluate"):
        browser.page.get_by_text(f"{stage} ...").first.wait_for()
    assert "Completed" in browser.read()
    browser.keep("flow_run")


def test_the_page_of_a_stage_shows_reconstructions(stack, walk, browser):
    page = stage_page(stack, walk.runs["trigger"], "pretrain")
    browser.open(f"{stack.prefect}/artifacts/artifact/{page['id']}")
    picture = browser.page.get_by_alt_text("reconstructions")
    picture.wait_for()
    assert picture.evaluate("one => one.complete && one.naturalWidth") > 100
    browser.keep("stage_page")


def test_mlflow_compares_the_runs(stack, walk, browser):
    if "form" not in walk.runs:
        pytest.skip("the run of the form is missing")
    found = {how: stack.mlflow_runs("pretrain", run)[0] for how, run in walk.runs.items()}
    runs = [run["info"]["run_id"] for run in found.values()]
    experiment = found["form"]["info"]["experiment_id"]
    browser.open(f"{stack.mlflow}/{compare(runs, experiment)}")
    browser.page.get_by_text("Comparing 3 Runs").wait_for()
    row = browser.page.get_by_role("row").filter(has=browser.page.get_by_text("pretrain.epochs", exact=True))
    values = re.findall(r"\d+", row.first.inner_text().replace("pretrain.epochs", ""))
    assert [int(value) for value in values] == list(walk.epochs.values())
    shown = browser.read().splitlines()
    for run in found.values():
        (loss,) = (metric["value"] for metric in run["data"]["metrics"] if metric["key"] == "pretrain/loss")
        assert {"pretrain/loss", f"{round(loss, 3):g}"} <= set(shown)
    browser.keep("mlflow_comparison")
    browser.open(f"{stack.mlflow}/{chart(experiment)}")
    browser.page.get_by_text("3 matching runs").wait_for()
    browser.page.get_by_placeholder("Search metric charts").fill("pretrain/.*loss")
    browser.page.get_by_text("pretrain/loss").first.wait_for()
    browser.page.get_by_text("pretrain/val_loss").first.wait_for()
    browser.keep("mlflow_charts")


def test_prefects_own_deploy_takes_the_file(stack, walk):
    stack.prefect_command("deploy", "--all", cwd=ROOT)
    for name in ("image/tiny", "image/demo", "medical/demo"):
        found, recipe = stack.deployment(name), load(name).model_dump(mode="json")
        assert found["parameters"] == {key: value for key, value in recipe.items() if key != "modality"}
        assert found["enforce_parameter_schema"]
        assert found["work_pool_name"] == "maeflow"
    for stage in ("prepare", "pretrain", "finetune", "evaluate"):
        assert stack.deployment(f"image-{stage}/tiny")["entrypoint"] == f"flows.typed.image_{stage}"
    given = f"sources={json.dumps([{'path': str(walk.data)}])}"
    said = stack.prefect_command("deployment", "run", "image/demo", "--param", given)
    stack.wait(run_id(said), "Running", 60)


def test_down_leaves_no_process(stack):
    assert len(stack.processes()) >= 5
    stack.maeflow("down")
    assert stack.processes() == []
    ports = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert not {stack.prefect_port, stack.mlflow_port} & ports
