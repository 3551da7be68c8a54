"""The whole pipeline from the command line: real files, a real Prefect server, a real MLflow database."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import one_server
from broken_images import build, photo

pytestmark = pytest.mark.slow
SMALL = ["data.size=[16, 16]", "data.patch=[4, 4]", "data.channels=3", "compute.threads=1", "evaluate.bootstrap=20",
         "compute.registry=false"]  # fmt: skip


def maeflow(*arguments, home=None, alone=False):
    """Run a command; ``alone`` it has no server but one that it starts itself."""
    command = [str(Path(sys.executable).with_name("maeflow")), *map(str, arguments)]
    variables = one_server.environment(**({"MAEFLOW_HOME": str(home)} if home else {}))
    if alone:
        del variables["PREFECT_API_URL"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=variables)


def sets(*values):
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Two classes of small pictures that differ in their colours."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(60):
        place = folder / ("warm", "cold")[number % 2]
        place.mkdir(exist_ok=True)
        red, green, blue = photo(number, (20, 20)).split()
        from PIL import Image

        bands = (red, green, blue.point(lambda _: 0)) if number % 2 else (red.point(lambda _: 0), green, blue)
        Image.merge("RGB", bands).save(place / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def finished(labelled, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    done = maeflow(
        "run", "image/tiny", "--data", labelled, *sets(*SMALL, "compute.registry=true"), home=home, alone=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home, done


def runs_of(home, stage):
    from infra.mlflow_runs import PREFIX, connect

    client = connect(home)
    experiment = client.get_experiment_by_name(PREFIX + stage)
    return client, client.search_runs([experiment.experiment_id])


def first_of(home, stage):
    """The run of the command that made ``home``: tests that run it again may have come before this one."""
    client, found = runs_of(home, stage)
    return client, min(found, key=lambda run: run.info.start_time)


def test_every_stage_leaves_a_finished_folder_and_the_report_comes_last(finished):
    home, done = finished
    for stage in ("pretrain", "finetune", "evaluate"):
        folders = [p for p in (home / "runs" / stage).iterdir() if p.is_dir()]
        assert folders
        assert all((folder / "record.json").exists() for folder in folders)
        assert not [path for folder in folders for path in folder.rglob("*.pt")]
    last = done.stdout.strip().splitlines()[-1]
    report = Path(re.search(r"report: +(.*)$", last).group(1))
    page = report.read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r"(src|href)=[\"']?https?://", page)


def test_mlflow_holds_one_run_for_the_pipeline_and_one_per_stage(finished):
    home, _ = finished
    _, pipeline = first_of(home, "pipeline")
    assert pipeline.info.status == "FINISHED"
    assert "eval/top1" in pipeline.data.metrics
    for stage in ("prepare", "pretrain", "finetune", "evaluate"):
        client, run = first_of(home, stage)
        tags = run.data.tags
        assert run.info.status == "FINISHED"
        assert tags["maeflow.pipeline_run"] == pipeline.info.run_id
        assert pipeline.data.tags[f"maeflow.{stage}_run"] == run.info.run_id
        assert "mlflow.parentRunId" not in tags
        assert re.fullmatch(r"[0-9a-f-]{36}", tags["prefect.flow_run_id"])
        assert "record.json" in [f.path for f in client.list_artifacts(run.info.run_id)]


def test_curves_pictures_parameters_and_datasets_are_in_mlflow(finished):
    home, _ = finished
    client, run = first_of(home, "pretrain")
    expected = {
        "pretrain/loss",
        "pretrain/mask_ratio",
        "pretrain/lr",
        "pretrain/grad_norm",
        "perf/samples_per_s",
        "perf/data_wait",
    }
    assert expected <= set(run.data.metrics)
    assert run.data.params["pretrain.epochs"] == "3"
    assert run.inputs.dataset_inputs[0].dataset.name == "image"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "images") if "reconstructions" in f.path]


def test_mlflows_own_loader_gives_a_module_that_classifies_a_batch(finished):
    home, _ = finished
    client, run = first_of(home, "finetune")
    logged = [client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]
    assert {model.name for model in logged} == {"model", "tensor"}
    (model,) = [model for model in logged if model.name == "tensor"]
    code = (
        "import mlflow, sys, torch\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pytorch.load_model('models:/' + sys.argv[2])\n"
        "for n in (1, 2, 7): print(tuple(model(torch.rand(n, 3, 16, 16)).shape))\n"
        "print('core' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{home}/mlflow.db", model.model_id],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.stdout.split("\n")[:4] == ["(1, 2)", "(2, 2)", "(7, 2)", "False"], done.stderr[-2000:]


def test_encoder_and_tuned_model_are_registered_from_their_runs(finished):
    home, _ = finished
    for stage, name in (("pretrain", "maeflow-image-tiny-encoder"), ("finetune", "maeflow-image-tiny")):
        client, run = first_of(home, stage)
        version = client.get_model_version_by_alias(name, "candidate")
        assert (str(version.version), version.run_id) == ("1", run.info.run_id)
        assert version.tags["maeflow.digest"] == run.data.tags["maeflow.digest"]
    assert not list((home / "runs/registering").glob("*.json"))


def test_the_same_command_again_reuses_every_stage(finished, labelled):
    home, _ = finished
    done = maeflow("run", "image/tiny", "--data", labelled, *sets(*SMALL), home=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already done") == 4
    _, origin = first_of(home, "pretrain")
    _, found = runs_of(home, "pretrain")
    same = [run for run in found if run.data.tags["maeflow.digest"] == origin.data.tags["maeflow.digest"]]
    reused = [run.data.tags.get("maeflow.reuses_run") for run in same if run.data.tags["maeflow.reused"] == "true"]
    assert set(reused) == {origin.info.run_id}
    assert len(same) == 1 + len(reused)


def test_changed_fine_tuning_reuses_the_encoder_and_single_stages_run_alone(finished, labelled):
    home, _ = finished
    (encoder,) = [p for p in (home / "runs" / "pretrain").iterdir() if p.is_dir()]
    done = maeflow("finetune", "image/tiny", "--from", encoder, *sets(*SMALL, "finetune.epochs=1"), home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    (following,) = [line for line in done.stdout.splitlines() if line.startswith("next: ")]
    words = shlex.split(following)[1:]
    assert words[:3] == ["maeflow", "evaluate", "image/tiny"]
    done = maeflow(*words[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([p for p in (home / "runs" / "pretrain").iterdir() if p.is_dir()]) == 1
    listed = maeflow("runs", home=home)
    assert listed.stdout.count("finetune ") == 2


def test_without_labels_it_ends_after_pretraining_with_its_report(tmp_path):
    for number in range(30):
        photo(number, (20, 20)).save(tmp_path / f"{number}.png")
    home = tmp_path / ".home"
    done = maeflow("run", "image/tiny", "--data", tmp_path, *sets(*SMALL), home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ends after pretraining" in done.stdout
    assert "report:" in done.stdout.splitlines()[-1]
    assert not (home / "runs" / "finetune").exists()


def test_a_folder_with_twenty_unusable_files_completes_and_lists_exactly_those(tmp_path):
    unusable, _ = build(tmp_path / "mess")
    home = tmp_path / "home"
    done = maeflow("run", "image/tiny", "--data", tmp_path / "mess", *sets(*SMALL, "pretrain.epochs=1"), home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    (card,) = (home / "prepared").glob("*/card.json")
    found = json.loads(card.read_text())
    assert {bad["file"] for bad in found["unreadable"]} == unusable
    assert sum(found["counts"].values()) == 180


def test_two_sources_share_an_epoch_and_labelled_test_items_are_kept_out(labelled, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for number, file in enumerate(sorted(labelled.rglob("*.png"))):
        (raw / f"{number:02d}.png").write_bytes(file.read_bytes())
    for number in range(40):
        photo(500 + number, (20, 20)).save(raw / f"x{number}.png")
    home = tmp_path / "home"
    small = sets(*SMALL, "evaluate.label_efficiency=null", "pretrain.epochs=1")
    done = maeflow(
        "run", "image/tiny", "--data", raw, "--data", f"{labelled}=0.5", "--labelled", labelled, *small, home=home
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal labelled test items and are kept out of pretraining" in done.stdout
    _, (run,) = runs_of(home, "pretrain")
    assert run.data.metrics["pretrain/held_out"] > 0


def test_two_commands_at_once_share_the_work(labelled, tmp_path):
    home = tmp_path / "home"
    command = [
        str(Path(sys.executable).with_name("maeflow")),
        "run",
        "image/tiny",
        "--data",
        str(labelled),
        "--home",
        str(home),
    ]
    command += sets(*SMALL, "evaluate.label_efficiency=null", "pretrain.epochs=30")
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert any("is being worked on by process" in text for text in texts)
    for stage in ("pretrain", "finetune", "evaluate"):
        assert len([p for p in (home / "runs" / stage).iterdir() if p.is_dir()]) == 1
        events = (next(p for p in (home / "runs" / stage).iterdir() if p.is_dir()) / "events.jsonl").read_text()
        assert events.count('"rewind"') <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "image/tiny", "--data", "{photos}", "--set", "pretrain.epoch=3"], ["pretrain.epoch", "'epochs'"]),
        (["run", "image/tiny", "--data", "{photos}", "--set", "pretrain.epochs=x"], ["pretrain.epochs", "integer"]),
        (["run", "image/tiny", "--data", "/nowhere/at/all"], ["/nowhere/at/all", "does not exist"]),
        (["run", "image/tinny", "--data", "{photos}"], ["image/tinny", "'image/tiny'"]),
        (["run", "image/tiny", "--data", "{photos}", "--home", "/proc/none"], ["/proc/none", "MAEFLOW_HOME"]),
        (["run", "image/tiny"], ["--data"]),
        (["runn"], ["runn"]),
        (["demo", "imag"], ["'imag'", "'image'"]),
    ],
)
def test_wrong_requests_exit_with_2_and_say_what_is_wrong(arguments, words, labelled, tmp_path):
    filled = [a.replace("{photos}", str(labelled)) for a in arguments]
    start = time.monotonic()
    done = maeflow(*filled, home=tmp_path / "home")
    assert done.returncode == 2, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 10


def test_all_broken_is_exit_1_and_one_clear_message(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("no image")
    done = maeflow("run", "image/tiny", "--data", tmp_path, home=tmp_path / "home")
    assert done.returncode == 1
    assert "none of the 3 items could be read" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_lists_and_doctor(tmp_path):
    assert "image/tiny" in maeflow("recipes").stdout
    assert "modality: image" in maeflow("recipes", "image/tiny").stdout
    assert re.search(r"image +[\d.]+ +maeflow +folder", maeflow("modalities").stdout)
    doctor = maeflow("doctor", home=tmp_path)
    assert doctor.returncode == 0, doctor.stdout
    assert "BAD" not in doctor.stdout


def test_a_checkpoint_of_others_is_tuned_and_evaluated_without_pretraining(finished, labelled, tmp_path):
    import timm
    import torch

    home, _ = finished
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes).state_dict(), tmp_path / "theirs.pth")
    begin = ["--checkpoint", tmp_path / "theirs.pth", "--labelled", labelled]
    command = ["run", "image/tiny", *begin, *sets(*SMALL, "evaluate.label_efficiency=null")]
    for done_before in (False, True):
        done = maeflow(*command, home=home)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "checkpoint theirs.pth: facebookresearch/mae" in done.stdout
        assert "30 of 30 weights found" in done.stdout
        assert re.search(r"inputs +minus \(0.485, 0.456, 0.406\)", done.stdout)
        assert "pretrain " not in done.stdout
        assert done.stdout.count("already done") == (4 if done_before else 1)
        assert "eval/top1" in done.stdout
    words = ["--recipe", "image/tiny", "--data", labelled, "--out", tmp_path / "features.parquet", *sets(*SMALL)]
    features = maeflow("embed", *begin[:2], *words, home=home)
    assert features.returncode == 0, features.stdout + features.stderr
    assert "checkpoint theirs.pth" in features.stdout
    assert "60 rows (48)" in features.stdout
    (tmp_path / "theirs.pth").write_bytes(b"")
    refused = maeflow(*command, home=home)
    assert refused.returncode == 2
    assert "error: checkpoint theirs.pth: it is empty; get it again" in refused.stderr
    nothing = maeflow("run", "image/tiny", home=home)
    assert nothing.returncode == 2
    assert "there is nothing to pretrain on: give --data" in nothing.stderr
