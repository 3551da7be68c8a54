"""Plugins as installed packages: one that was just scaffolded, one of a third party, and one that is broken."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import one_server
from environments import ROOT, Environment, wheel

from infra.mlflow_runs import PREFIX, connect

pytestmark = pytest.mark.slow
THIRD_PARTY = ROOT / "tests" / "plugin_package"
STAGES = ("pipeline", "prepare", "pretrain", "finetune", "evaluate")
QUICK = [
    *("--set", "pretrain.epochs=2"),
    *("--set", "pretrain.warmup_epochs=1"),
    *("--set", "pretrain.validate_every=2"),
    *("--set", "finetune.epochs=2"),
    *("--set", "evaluate.bootstrap=20"),
    *("--set", "evaluate.label_efficiency=null"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """maeflow and the third-party plugin from their wheels, the repository nowhere on the path."""
    folder = tmp_path_factory.mktemp("plugins")
    made = Environment(folder / "environment")
    for project in (ROOT, THIRD_PARTY):
        place = folder / f"wheels-{project.name}"
        place.mkdir()
        made.install(wheel(project, place))
    return made


@pytest.fixture(scope="module")
def third_party(environment, tmp_path_factory):
    """The home in which the third-party plugin has run its pipeline, on its sample."""
    folder = tmp_path_factory.mktemp("third-party")
    code = "import sys, pathlib, maeflow_inertial.demo as d; print(d.sample(pathlib.Path(sys.argv[1])))"
    (folder / "data").mkdir()
    data = environment.run("python", "-c", code, folder / "data").stdout.strip()
    done = environment.run(
        "maeflow", "run", "inertial/demo", "--data", data, *QUICK, cwd=folder, **one_server.address()
    )
    return folder, done.stdout


@pytest.fixture(scope="module")
def scaffolded(environment, tmp_path_factory):
    """The home in which a plugin has run that was written, installed and checked just before."""
    folder = tmp_path_factory.mktemp("empty")
    said = [
        environment.run(*command, cwd=folder).stdout
        for command in (
            ["maeflow", "new-modality", "sonar"],
            ["python", "-m", "pip", "install", "-e", "maeflow-sonar"],
            ["maeflow", "check-modality", "sonar"],
            ["maeflow", "demo", "sonar", *QUICK],
        )
    ]
    return folder, said


def in_mlflow(folder):
    """Of each stage: status, names of metrics, names of artifacts."""
    client = connect(folder / ".maeflow")
    found = {}
    for stage in STAGES:
        experiment = client.get_experiment_by_name(PREFIX + stage)
        (run,) = client.search_runs([experiment.experiment_id])
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        # Five best of three classes say nothing, so that metric depends on the data; so does the page's name.
        metrics = {name for name in run.data.metrics if "top5" not in name}
        found[stage] = run.info.status, metrics, {re.sub(r"^[0-9a-f]{16}(?=\.html)", "", file) for file in files}
    return found


def headings(folder):
    (page,) = (folder / ".maeflow" / "runs" / "reports").glob("*.html")
    text = page.read_text()
    assert "data:image/png;base64," in text
    return re.findall(r"<h2[^>]*>(.*?)</h2>", text)


def test_the_repository_is_elsewhere(environment):
    code = "import core, flows, maeflow_inertial; print(core.__file__, flows.__file__, maeflow_inertial.__file__)"
    for file in environment.run("python", "-c", code).stdout.split():
        assert Path(file).is_relative_to(environment.folder)
        assert not Path(file).is_relative_to(ROOT)


def test_four_commands_lead_from_an_empty_folder_to_a_report(scaffolded):
    folder, said = scaffolded
    assert "0 are broken, 0 were not run" in said[2]
    assert said[3].strip().splitlines()[-1].startswith("report:")
    assert {status for status, _, _ in in_mlflow(folder).values()} == {"FINISHED"}


def test_a_plugins_runs_and_report_look_like_any_others(scaffolded, third_party):
    (one, _), (other, _) = scaffolded, third_party
    assert in_mlflow(one) == in_mlflow(other)
    assert headings(one) == headings(other)
    assert len(headings(one)) >= 4


def test_the_third_partys_plugin_keeps_the_contract(environment):
    done = environment.run("maeflow", "check-modality", "inertial")
    assert "0 are broken, 0 were not run" in done.stdout
    tests = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", THIRD_PARTY / "tests"]
    ran = environment.run("python", "-m", "pytest", *tests, check=False)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"^[.]+ +\[100%\]", ran.stdout, re.MULTILINE)


def test_lists_name_where_a_plugin_comes_from(environment):
    listed = environment.run("maeflow", "modalities").stdout
    assert re.search(r"^inertial +[\d.]+ +maeflow-inertial +folder.* ok$", listed, re.MULTILINE)
    assert "inertial/demo" in environment.run("maeflow", "recipes").stdout


def test_maeflow_does_not_know_the_third_party(environment):
    found = subprocess.run(
        ["git", "grep", "-il", "inertial", "--", "core", "flows", "infra", "modalities"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode not in (0, 1):
        pytest.skip("not a git checkout")
    assert found.stdout == ""


def test_the_image_pipeline_runs_beside_a_plugin_that_raises_at_import(environment, tmp_path):
    about = tmp_path / "broken" / "maeflow_broken-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: maeflow-broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[maeflow.modalities]\nbroken = broken_config:PLUGIN\n")
    (tmp_path / "broken" / "broken_config.py").write_text("raise OSError('no licence')\n")
    path = {"PYTHONPATH": str(tmp_path / "broken")} | one_server.address()
    code = "import sys, pathlib, modalities.image.demo as d; print(d.sample(pathlib.Path(sys.argv[1])))"
    (tmp_path / "data").mkdir()
    data = environment.run("python", "-c", code, tmp_path / "data").stdout.strip()
    done = environment.run("maeflow", "run", "image/demo", "--data", data, *QUICK, cwd=tmp_path, **path)
    assert done.stdout.strip().splitlines()[-1].startswith("report:")
    assert "no licence" in environment.run("maeflow", "modalities", **path).stdout


@pytest.mark.network
def test_the_third_partys_demo_on_its_real_recordings(environment, tmp_path):
    done = environment.run("maeflow", "demo", "inertial", cwd=tmp_path, PIP_NO_INDEX="")
    assert done.stdout.strip().splitlines()[-1].startswith("report:")
