"""Models in MLflow's registry: served by MLflow's own server they say what `maeflow predict` and `embed` say."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from core.errors import UserError
from core.records import EvalReport, read_model, read_record, write_record
from flows.cli import app
from infra import log_model, registering, registry
from infra.access import Access
from infra.mlflow_runs import connect
from infra.services import Addresses, mlflow_server

sys.path.insert(0, str(Path(__file__).parents[1]))
from broken_images import photo
from faulting import free_port
from finished import trained

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
NAME = "maeflow-image-tiny"


def environment(**more):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}
    return own | {"PATH": f"{BIN}:{os.environ['PATH']}"} | more


def maeflow(*words, home):
    command = [str(BIN / "maeflow"), *map(str, words), "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Registered:
    """A home whose encoder and tuned model are in the registry of a SQLite store."""

    def __init__(self, root):
        source = root / "source"
        for number in range(48):
            place = source / ("even", "odd")[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            photo(number, (40 + number, 60)).save(place / f"{number:02d}.jpg", quality=90)
        self.jpeg = root / "one" / "1.jpg"
        self.jpeg.parent.mkdir()
        shutil.copyfile(source / "odd" / "01.jpg", self.jpeg)
        sets = ["data.size=[32, 32]", "data.patch=[8, 8]", "data.channels=3", "data.finetune.affine=null"]
        home, encoder, tuned = trained(root / "home", source, *sets)
        self.home, self.encoder, self.tuned = home.root, encoder, tuned
        self.client = connect(self.home)

    @property
    def address(self):
        return f"sqlite:///{self.home}/mlflow.db"

    def begin(self, folder):
        return registering.begin(self.home, read_model(folder), None, self.client)

    def register(self, folder):
        """What `registering.start` does, in this process, which then forgets MLflow's address."""
        with patch.dict(os.environ):
            log_model.main(self.home, folder, None)

    def versions(self, name):
        return self.client.search_model_versions(f"name = '{name}'")

    def logged(self, stage):
        found = self.client.get_experiment_by_name(f"maeflow/{stage}")
        return self.client.search_logged_models([found.experiment_id]) if found else []

    def folder_of(self, version):
        model = self.client.get_logged_model(version.source.removeprefix("models:/"))
        return Path(model.artifact_location.removeprefix("file://"))


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """The tuned model as in a pipeline; the encoder by a process that is killed, and then by `runs --sync`."""
    made = Registered(tmp_path_factory.mktemp("registry"))
    process = made.begin(made.tuned)
    assert registering.reason(process) is None
    process = made.begin(made.encoder)
    while not made.logged("pretrain"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not made.versions(f"{NAME}-encoder")
    assert [digest for _, digest, _ in registering.waiting(made.home)] == [made.encoder.name]
    assert f"{made.encoder.name}  registered" in maeflow("runs", "--sync", home=made.home)
    return made


@contextmanager
def serving(made, *uris):
    """MLflow's own server for each of ``uris``; gives a function that asks the one of that number."""
    ports = [free_port() for _ in uris]
    with ExitStack() as stack:
        for uri, port in zip(uris, ports, strict=True):
            words = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "--host", "127.0.0.1"]
            log = stack.enter_context((made.home / f"serve-{port}.log").open("w"))
            process = subprocess.Popen(
                [*words, "--port", str(port)], stdout=log, stderr=log, start_new_session=True,
                env=environment(MLFLOW_TRACKING_URI=made.address, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)

        def ask(number, *rows):
            text = [{k: base64.b64encode(v).decode() if k == "file" else v for k, v in row.items()} for row in rows]
            address = f"http://127.0.0.1:{ports[number]}/invocations"
            return httpx.post(address, json={"dataframe_records": text}, timeout=60)

        for port in ports:
            _until_up(port, made.home / f"serve-{port}.log")
        yield ask


def _until_up(port, log):
    for _ in range(600):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ping", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def ask(registered):
    with serving(registered, f"models:/{NAME}@candidate", f"models:/{NAME}-encoder@candidate") as asked:
        yield asked


def rows_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_a_served_picture_has_the_class_and_the_probabilities_that_predict_gives_it(registered, ask, tmp_path):
    out = tmp_path / "p.parquet"
    maeflow("predict", registered.tuned.name, "--data", registered.jpeg.parent, "--out", out, home=registered.home)
    (expected,) = parquet.read_table(out).to_pylist()
    classes = json.loads(parquet.read_schema(out).metadata[b"maeflow"])["classes"]
    data = registered.jpeg.read_bytes()
    named, unnamed = rows_of(ask(0, {"file": data, "name": "Somebody's name.JPG"}, {"file": data, "name": None}))
    assert named == unnamed | {"row": 0}
    assert (named["part"], named["prediction"], named["error"]) == (0, expected["prediction"], None)
    assert list(named["probabilities"]) == classes == ["even", "odd"]
    assert np.allclose(list(named["probabilities"].values()), expected["probabilities"], rtol=0, atol=1e-6)
    assert sum(named["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_served_encoder_gives_the_features_that_embed_gives(registered, ask, tmp_path):
    out = tmp_path / "f.parquet"
    maeflow("embed", registered.encoder.name, "--data", registered.jpeg.parent, "--out", out, home=registered.home)
    (expected,) = parquet.read_table(out).to_pylist()
    (row,) = rows_of(ask(1, {"file": registered.jpeg.read_bytes()}))
    assert len(row["features"]) == 48
    assert np.allclose(row["features"], expected["features"], rtol=0, atol=1e-6)


def test_what_cannot_be_read_costs_its_own_row(registered, ask):
    data = registered.jpeg.read_bytes()
    torn = data[: len(data) // 3]
    given = [{"file": data}, {"file": torn, "name": "a.jpg"}, {"file": b"", "name": "b.jpg"}, {"file": b"no picture"}]
    found = rows_of(ask(0, *given, {"file": data, "name": "../../etc/passwd"}))
    assert [row["row"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["error"] is None for row in found] == [True, False, False, False, True]
    assert [row["prediction"] is None for row in found] == [False, True, True, True, False]
    assert found[2]["error"] == "empty file"
    assert "send its name along" in found[3]["error"]
    assert not [row["error"] for row in found if row["error"] and ("/" in row["error"] or "tmp" in row["error"])]
    assert ask(0, {"image": "as under another name"}).status_code == 400


def test_what_is_registered_says_what_it_is_and_takes_its_own_example(registered):
    import mlflow

    version = registered.client.get_model_version_by_alias(NAME, "candidate")
    record, tags = read_model(registered.tuned), version.tags
    assert (tags["maeflow.digest"], tags["maeflow.stage"]) == (record.digest, "finetune")
    assert tags["maeflow.recipe"] == "image/tiny"
    assert float(tags["finetune/val_top1"]) == pytest.approx(record.metrics["finetune/val_top1"], rel=1e-5)
    assert len(tags["maeflow.data_digest"]) == 16
    assert "2 classes" in version.description
    folder = registered.folder_of(version)
    saved = mlflow.models.Model.load(str(folder))
    assert saved.signature.inputs.input_names() == ["file", "name"]
    assert saved.signature.outputs.input_names() == ["row", "part", "prediction", "probabilities", "error"]
    assert f"maeflow=={record.versions['maeflow']}" in (folder / "requirements.txt").read_text().split()
    example = saved.load_input_example(str(folder))
    answer = mlflow.pyfunc.load_model(str(folder)).predict(example)
    assert answer["error"].tolist() == [None]
    assert sorted(file.name for file in (folder / "artifacts").iterdir()) == ["model.safetensors", "record.json"]


AUDIT = """
import sys
unpickled = []
import mlflow.pyfunc
from core.stages.answering import Answers
sys.addaudithook(lambda event, given: unpickled.append(given) if event == "pickle.find_class" else None)
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import pandas
print(model.predict(pandas.DataFrame([{"file": open(sys.argv[3], "rb").read()}]))["error"].tolist(), unpickled)
"""


def test_nothing_is_pickled(registered):
    for name in (NAME, f"{NAME}-encoder"):
        files = [file.name for file in registered.folder_of(registered.versions(name)[0]).rglob("*")]
        assert "served.py" in files
        assert not [file for file in files if file.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


@pytest.mark.long
def test_nothing_is_unpickled(registered):
    words = [sys.executable, "-c", AUDIT, registered.address, f"models:/{NAME}/1", str(registered.jpeg)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment(), timeout=200)
    assert done.stdout.splitlines()[-1:] == ["[None] []"], done.stdout + done.stderr


def test_killed_and_taken_up_again_there_is_one_of_each(registered):
    """The fixture killed the process of the encoder once; both are asked for again here."""
    kept = [(m.name, m.model_id) for stage in ("pretrain", "finetune") for m in registered.logged(stage)]
    assert sorted(name for name, _ in kept) == ["model", "model", "tensor"]
    for folder, name in ((registered.tuned, NAME), (registered.encoder, f"{NAME}-encoder")):
        assert registered.begin(folder) is None
        registered.register(folder)
        assert [v.tags["maeflow.digest"] for v in registered.versions(name)] == [folder.name]
    assert kept == [(m.name, m.model_id) for stage in ("pretrain", "finetune") for m in registered.logged(stage)]
    assert not list(registering.waiting(registered.home))
    assert {m.status for stage in ("pretrain", "finetune") for m in registered.logged(stage)} == {"READY"}


def test_a_registration_that_was_cut_short_behind_the_version_gets_its_alias(registered):
    name, record = f"{NAME}-encoder", read_model(registered.encoder)
    version = registry.find(registered.client, record)
    registered.client.delete_registered_model_alias(name, "candidate")
    registered.client.delete_model_version_tag(name, version.version, registry.WHOLE)
    registered.register(registered.encoder)
    assert registered.client.get_model_version_by_alias(name, "candidate").version == version.version
    assert registry.is_whole(registry.find(registered.client, record))


def test_promote_shows_both_tests_and_moves_the_champion(registered, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered.address)  # MLflow's store asks for models by it.
    first = CliRunner().invoke(app, ["promote", NAME, "--home", str(registered.home)])
    assert f"models:/{NAME}@champion is version 1" in first.output
    old, home = read_model(registered.tuned), registered.home
    new = old.model_copy(update={"digest": "9" * 16})
    source = registered.versions(NAME)[0].source.removeprefix("models:/")
    registry.complete(registered.client, registry.add(registered.client, home, new, source, None))
    report = read_record(home / "runs/evaluate" / ("0" * 16), EvalReport)
    metrics = {"eval/top1": 0.875, "eval/top1_low": 0.75, "eval/top1_high": 0.9375}
    (home / "runs/evaluate" / ("1" * 16)).mkdir()
    write_record(
        report.model_copy(update={"model": new.digest, "metrics": metrics, "prepared": "b" * 16}),
        home / "runs/evaluate" / ("1" * 16),
    )
    said = CliRunner().invoke(app, ["promote", NAME, "--home", str(home)])
    assert said.exit_code == 0, said.output
    lines = {line.split()[0]: line for line in said.output.splitlines()}
    assert lines["version"].split() == ["version", "1", "2"]
    assert f"{report.metrics['eval/top1']:.4g}" in lines["eval/top1"]
    assert lines["eval/top1"].endswith("0.875 (0.75 to 0.9375)")
    assert "different data" in lines["note:"]
    client = registered.client
    assert [str(client.get_model_version_by_alias(NAME, a).version) for a in ("champion", "candidate")] == ["2", "2"]
    again = CliRunner().invoke(app, ["promote", NAME, "1", "--home", str(home)])
    assert again.exit_code == 0, again.output
    assert str(client.get_model_version_by_alias(NAME, "champion").version) == "1"


def test_promote_names_what_there_is(registered):
    for words, said in (
        ([f"{NAME}s"], f"did you mean '{NAME}'"),
        ([NAME, "77"], "no version or alias '77'; it has 1"),
        ([f"{NAME}-encoder", "champion"], "no version or alias 'champion'; it has 1, candidate"),
    ):
        done = CliRunner().invoke(app, ["promote", *words, "--home", str(registered.home)])
        assert isinstance(done.exception, UserError)
        assert said in str(done.exception)


def test_what_mlflow_knows_of_a_test_serves_where_the_home_has_no_record_of_it(registered, tmp_path):
    from infra.mlflow_runs import start_run
    from infra.settling import finish

    report = registered.home / "runs/evaluate" / ("0" * 16)
    run = start_run(registered.client, registered.home, "evaluate", "image/tiny", {"maeflow.reused": "false"})
    registered.client.log_metric(run, "eval/top1", 0.625)
    finish(registered.client, run, report)
    wanted = registry.promotion(registered.client, tmp_path, NAME, "1")
    assert wanted.measured["1"] == registry.Measured(read_record(report, EvalReport).prepared, {"eval/top1": 0.625})


def test_an_mlflow_that_is_away_costs_a_note(registered, monkeypatch):
    record = read_model(registered.encoder).model_copy(update={"digest": "7" * 16})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert registering.begin(registered.home, record, "run", connect(registered.home)) is None
    assert registering.begin(registered.home, record, None, None) is None
    file = registered.home / "runs/registering" / f"pretrain-{'7' * 16}.json"
    assert json.loads(file.read_text()) == {"run": None}
    assert not list(registering.waiting(registered.home))  # There is no such folder.
    assert not file.exists()
    process = registering.start(registered.home, read_model(registered.encoder), None)
    assert "Max retries exceeded" in registering.reason(process)


@pytest.mark.long
def test_a_server_with_a_password_takes_and_serves_models(registered, tmp_path, monkeypatch):
    access, port = Access("lab", "secret-words", "0" * 32), free_port()
    (tmp_path / "private").mkdir()
    service = mlflow_server(tmp_path, Addresses(mlflow=port), access)
    process = subprocess.Popen(
        service.command, env=environment(**service.environment), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _until_up_at(f"http://127.0.0.1:{port}/health")
        for name, value in ({"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"} | access.client()).items():
            monkeypatch.setenv(name, value)
        client = connect(tmp_path)
        process_ = registering.begin(registered.home, read_model(registered.tuned), None, client)
        assert registering.reason(process_) is None
        assert client.get_model_version_by_alias(NAME, "candidate").tags["maeflow.digest"] == registered.tuned.name
        import mlflow
        import pandas as pd

        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@candidate")
        assert model.predict(pd.DataFrame([{"file": registered.jpeg.read_bytes()}]))["error"].tolist() == [None]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _until_up_at(address):
    for _ in range(300):
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


def test_an_older_version_that_is_completed_late_does_not_become_the_candidate(tmp_path):
    from mlflow import MlflowClient

    from infra import registry

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("maeflow-x")
    first, second = (client.create_model_version("maeflow-x", source=str(tmp_path)) for _ in range(2))
    registry.complete(client, second)
    registry.complete(client, first)
    assert str(client.get_model_version_by_alias("maeflow-x", registry.CANDIDATE).version) == "2"
