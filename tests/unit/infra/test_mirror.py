"""Events into a real MLflow database: nothing lost, nothing twice."""

import io
import socket
import subprocess
import sys

import pytest
from PIL import Image

from core.tracking import JsonlTracker
from core.workspace import Home
from infra import mlflow_runs as runs
from infra.mlflow_mirror import Mirror
from infra.reconcile import kill_orphans


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow-home")


@pytest.fixture(scope="module")
def client(home):
    return runs.connect(home)


@pytest.fixture
def run_id(client, home):
    return runs.start_run(client, home, "pretrain", "test", {})


def history(client, run_id, key):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


def png():
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


def test_events_arrive_once_across_restarts_and_rewinds(client, run_id, tmp_path):
    state = tmp_path / "state.json"
    with JsonlTracker(tmp_path) as tracker:
        for step in range(1, 6):
            tracker.metrics(step, {"pretrain/loss": 1.0 / step})
        Mirror(client, run_id, lambda: tmp_path, state).pump()
        tracker.rewind(3)
        for step in range(4, 9):
            tracker.metrics(step, {"pretrain/loss": 1.0 / step, "pretrain/lr": 0.1})
        tracker.picture("reconstructions", 8, png())
        tracker.media("reconstructions", 8, b"GIF89a", ".gif")
        assert Mirror(client, run_id, lambda: tmp_path, state).close()
    assert history(client, run_id, "pretrain/loss") == [(s, pytest.approx(1 / s)) for s in range(1, 9)]
    assert [step for step, _ in history(client, run_id, "pretrain/lr")] == [4, 5, 6, 7, 8]
    assert any("reconstructions" in f.path for f in client.list_artifacts(run_id, "images"))
    assert [f.path for f in client.list_artifacts(run_id, "media")] == ["media/reconstructions-00000008.gif"]


def test_files_arrive_of_a_folder_that_gets_its_final_name_meanwhile(client, run_id, tmp_path):
    partial, final = tmp_path / "work.partial", tmp_path / "work"
    partial.mkdir()
    with JsonlTracker(partial) as tracker:
        tracker.picture("reconstructions", 1, png())
        tracker.media("reconstructions", 1, b"GIF89a", ".gif")
    asked = []

    def folder():
        """Answers as it was when it was asked first; by the time of the answer the folder has moved on."""
        asked.append(None)
        if len(asked) == 2:
            partial.rename(final)
            return partial
        return final if final.exists() else partial

    assert Mirror(client, run_id, folder, tmp_path / "state.json").close()
    assert any("reconstructions" in f.path for f in client.list_artifacts(run_id, "images"))
    assert client.list_artifacts(run_id, "media")


def test_a_half_written_event_waits_for_its_end(client, run_id, tmp_path):
    log = tmp_path / "events.jsonl"
    log.write_bytes(b'{"t":1,"kind":"metrics","step":1,"values":{"a":1}}\n{"t":2,"kind":"metr')
    mirror = Mirror(client, run_id, lambda: tmp_path, tmp_path / "state.json")
    mirror.pump()
    with log.open("ab") as out:
        out.write(b'ics","step":2,"values":{"a":2}}\n')
    mirror.pump()
    assert history(client, run_id, "a") == [(1, 1.0), (2, 2.0)]


def test_an_outage_loses_nothing(client, run_id, tmp_path):
    class Down:
        def log_batch(self, *args, **kwargs):
            raise ConnectionError("no server")

    with JsonlTracker(tmp_path) as tracker:
        tracker.metrics(1, {"a": 1.0})
        mirror = Mirror(Down(), run_id, lambda: tmp_path, tmp_path / "state.json")
        mirror.pump()
        assert "no server" in mirror.failure
        tracker.metrics(2, {"a": 2.0})
        assert not mirror.close()
    later = Mirror(client, run_id, lambda: tmp_path, tmp_path / "state.json")
    later.pump()
    assert later.failure is None
    assert history(client, run_id, "a") == [(1, 1.0), (2, 2.0)]


def test_runs_of_dead_processes_are_ended_and_others_left(client, home, run_id):
    code = (
        "import sys; from pathlib import Path; from infra import mlflow_runs as r\n"
        "home = Path(sys.argv[1]); print(r.start_run(r.connect(home), home, 'pretrain', 'dead', {}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    dead = done.stdout.split()[-1]
    assert client.get_run(dead).info.status == "RUNNING"
    assert dead in kill_orphans(client, home)
    assert client.get_run(dead).info.status == "KILLED"
    assert client.get_run(run_id).info.status == "RUNNING"


def test_long_and_nested_settings_become_parameters(client, run_id):
    runs.log_recipe(client, run_id, {"a": {"b": {"c": [1, 2]}, "d": "x" * 9000}, "e": 1}, ("a",))
    params = client.get_run(run_id).data.params
    assert params["a.b.c"] == "[1, 2]"
    assert len(params["a.d"]) == runs.PARAM_LIMIT
    assert "e" not in params


def test_a_run_that_was_over_before_mlflow_was_back_is_finished_and_not_killed(client, home):
    digest = "0123456789abcdef"
    folder = Home.create(home).stage("pretrain", digest)
    folder.final.mkdir(parents=True)
    (folder.final / "record.json").write_text("{}")
    with JsonlTracker(folder.final) as tracker:
        for step in range(1, 6):
            tracker.metrics(step, {"loss": 1.0 / step})
    gone = subprocess.Popen(["true"])
    owner = {"maeflow.host": socket.gethostname(), "maeflow.pid": str(gone.pid), "maeflow.pid_started": "1.0"}
    gone.wait()
    done, undone = (
        runs.start_run(client, home, "pretrain", "r", {**owner, "maeflow.digest": name, "maeflow.reused": "false"})
        for name in (digest, "fedcba9876543210")
    )
    runs.log_values(client, done, {"loss": 1.0}, step=1)
    assert {done, undone} <= set(kill_orphans(client, home))
    assert client.get_run(done).info.status == "FINISHED"
    assert sorted(step for step, _ in history(client, done, "loss")) == [1, 2, 3, 4, 5]
    assert [artifact.path for artifact in client.list_artifacts(done)] == ["record.json"]
    assert client.get_run(undone).info.status == "KILLED"


def test_a_run_that_was_killed_stays_so_though_another_has_done_its_work(client, home):
    digest = "00112233445566aa"
    Home.create(home).stage("pretrain", digest).final.mkdir(parents=True)
    tags = {"maeflow.digest": digest, "maeflow.reused": "false"}
    other = runs.start_run(client, home, "pretrain", "r", tags)
    client.set_terminated(other, status="FINISHED")
    gone = {"maeflow.host": socket.gethostname(), "maeflow.pid": "1", "maeflow.pid_started": "1.0"}
    killed = runs.start_run(client, home, "pretrain", "r", tags)
    runs.set_tags(client, killed, gone)
    assert killed in kill_orphans(client, home)
    assert client.get_run(killed).info.status == "KILLED"
