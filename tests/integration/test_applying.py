"""Finished models on new files: the numbers of the stages, and the same bytes whatever happens on the way."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from pyarrow import parquet

from core import recipes
from core.data.store import PreparedStore
from core.errors import StageError, Stopped, UserError
from core.records import write_record
from core.request import ApplyRequest
from core.stages.applying import apply
from core.stages.evaluate import predict_views
from core.stages.finetune import Labelled
from core.stages.ready import ready
from core.stages.work import extract
from core.tasks import Task
from flows import applying

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from dask_prepare import make
from test_stages import Home4, manifest, photo

QUICK = ["data.size=[16,16]", "data.patch=[4,4]", "evaluate.label_efficiency=null", "evaluate.bootstrap=20",
         "pretrain.epochs=1", "pretrain.warmup_epochs=0", "compute.workers=0"]  # fmt: skip
CPU = torch.device("cpu")


class Models:
    """A home with an encoder and a tuned model, and what was measured of them."""

    def __init__(self, root, source, recipe):
        self.at, self.recipe, self.source = Home4(root), recipe, source
        self.home = self.at.home
        self.data = self.at.run("prepare", "d" * 16, recipe, str(source))
        self.encoder = self.at.run("pretrain", "e" * 16, recipe, [(self.data, 1.0)], self.data)
        self.tuned = self.at.run("finetune", "f" * 16, recipe, self.encoder, self.data)

    def request(self, out, source=None, kind="embed", **more):
        record = self.encoder if kind == "embed" else self.tuned
        return ApplyRequest(
            home=str(self.home.root),
            kind=kind,
            modality=record.modality,
            model=str(self.home.resolve(record.folder)),
            source=str(source or self.source),
            out=str(out),
            **more,
        )

    def run(self, out, *given, **more):
        said = []
        apply(self.request(out, *given, **more), self.home, said.append, lambda: False)
        return said

    @property
    def store(self):
        return PreparedStore.open(self.home.resolve(self.data.folder))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """600 digits with a test split of their own."""
    folder = tmp_path_factory.mktemp("digits")
    make(folder / "all", 600, 0)
    for number, file in enumerate(sorted((folder / "all").rglob("*.png"))):
        place = folder / "split" / ("test" if number % 5 == 0 else "train") / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    return folder / "split"


@pytest.fixture(scope="module")
def models(digits, tmp_path_factory):
    sets = [*QUICK, "finetune.epochs=30", "data.finetune.affine=null", "finetune.validate_every=30"]
    return Models(tmp_path_factory.mktemp("home"), digits, recipes.load("image/tiny", sets))


def rows(file):
    return parquet.read_table(file).to_pylist()


def about(file):
    return json.loads(parquet.read_schema(file).metadata[b"maeflow"])


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_features_are_those_that_the_probes_see(models, tmp_path):
    models.run(tmp_path / "f.parquet", batch=64)
    model = ready(models.home.resolve(models.encoder.folder), CPU)
    ids = np.arange(len(models.store))
    expected = extract(model.model, models.store, ids, model.plugin, model.stats, 64)
    by_key = dict(zip(models.store.keys, expected, strict=True))
    found = rows(tmp_path / "f.parquet")
    assert [row["key"] for row in found] == sorted(by_key)
    for row in found:
        assert torch.allclose(torch.tensor(row["features"]), by_key[row["key"]], atol=1e-5, rtol=1e-5)
        assert (row["part"], row["label"]) == (0, row["key"].split("/")[1])
    said = about(tmp_path / "f.parquet")
    assert (said["model"], said["recipe"], said["shape"]) == (models.encoder.digest, "image/tiny", [48])
    assert not [text for text in (str(tmp_path), str(models.source)) if text in json.dumps(said)]


def test_features_of_patches_have_the_pooled_ones_as_their_mean(models, tmp_path):
    models.run(tmp_path / "f.parquet")
    models.run(tmp_path / "p.parquet", patches=True)
    assert about(tmp_path / "p.parquet")["shape"] == [4, 4, 48]
    pooled = np.array([row["features"] for row in rows(tmp_path / "f.parquet")])
    each = np.array([row["features"] for row in rows(tmp_path / "p.parquet")]).reshape(-1, 16, 48)
    assert np.allclose(each.mean(1), pooled, atol=1e-5)


def test_predictions_on_the_test_split_have_the_accuracy_that_evaluate_measured(models, tmp_path):
    report = models.at.run("evaluate", "a" * 16, models.recipe, models.encoder, models.tuned, models.data)
    models.run(tmp_path / "p.parquet", models.source / "test", kind="predict", batch=50)
    found = rows(tmp_path / "p.parquet")
    right = np.mean([row["prediction"] == row["label"] for row in found])
    assert right == pytest.approx(report.metrics["eval/top1"], abs=1e-7)
    assert right > 0.2  # Of ten classes: the model has learned something that could be lost on the way.
    task = Task.of(models.tuned.target)
    model = ready(models.home.resolve(models.tuned.folder), CPU)
    on = Labelled(models.store, task, model.plugin, model.stats)
    test = models.store.ids("test", labelled=True)
    logits, _ = predict_views(model.model, on, test, 256)
    by_key = dict(zip((models.store.keys[i] for i in test), task.probabilities(logits), strict=True))
    for row in found:
        assert torch.allclose(torch.tensor(row["probabilities"]), by_key[f"test/{row['key']}"], atol=1e-6)
        assert row["prediction"] == about(tmp_path / "p.parquet")["classes"][int(np.argmax(row["probabilities"]))]


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_several_labels_and_numbers(tmp_path, kind):
    def label(red, green):
        names = "|".join(name for name, value in (("red", red), ("green", green)) if value > 127) or "dark"
        return names if kind == "multi_label" else f"{red / 255:.4f}"

    source = manifest(tmp_path, label)
    recipe = recipes.load("image/tiny", [*QUICK, "data.channels=3", f"task.kind={kind}"])
    models = Models(tmp_path / "home", source, recipe)
    models.run(tmp_path / "p.parquet", kind="predict")
    found, model = rows(tmp_path / "p.parquet"), ready(models.home.resolve(models.tuned.folder), CPU)
    on = Labelled(models.store, Task.of(models.tuned.target), model.plugin, model.stats)
    ids = np.arange(len(models.store))
    said = on.task.probabilities(predict_views(model.model, replace(on), ids, 256)[0])
    by_key = dict(zip(models.store.keys, said, strict=True))
    with source.open() as lines:
        labels = {row["path"]: row["label"] for row in csv.DictReader(lines)}
    for row in found:
        assert row["label"] == labels[row["key"]]
        numbers = row["probabilities" if kind == "multi_label" else "prediction"]
        assert np.allclose(numbers, by_key[row["key"]], atol=1e-6)
        if kind == "multi_label":
            classes = about(tmp_path / "p.parquet")["classes"]
            assert row["prediction"] == [name for name, p in zip(classes, numbers, strict=True) if p > 0.5]


# --- kills ------------------------------------------------------------------------------------------------------------

KILLING = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from core.request import ApplyRequest
from core.stages.applying import apply
from core.workspace import Home

request, counted = ApplyRequest.model_validate_json(Path(sys.argv[1]).read_bytes()), 0


def deadly(function, moment):
    def call(*arguments, **named):
        global counted
        counted += 1
        if counted == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return call


for moment in range(1, 1000):
    child = os.fork()
    if not child:
        for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name), moment))
        apply(request, Home(Path(request.home)), print, lambda: False)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
print("kills", moment - 1)
"""


def test_killed_at_each_write_in_turn_it_ends_in_the_same_bytes(models, tmp_path, monkeypatch):
    """The first attempt dies at its first change of a file, the second at its second, and so on until one is done."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(70):
        photo(number, (20, 20)).save(source / f"{number:02d}.png")
    (source / "torn.png").write_bytes((source / "00.png").read_bytes()[:60])
    monkeypatch.setattr("core.stages.applying.UNIT_ITEMS", 16)  # So that there are several units.
    code = "import core.stages.applying as a; a.UNIT_ITEMS = 16\n" + KILLING.format(path=sys.path[:2])
    models.run(tmp_path / "whole.parquet", source, batch=4)
    request = models.request(tmp_path / "killed.parquet", source, batch=4)
    (tmp_path / "request.json").write_text(request.model_dump_json())
    command = [sys.executable, "-c", code, str(tmp_path / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 10
    for name in ("parquet", "parquet.unreadable.csv"):
        assert (tmp_path / f"killed.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    assert not (tmp_path / "killed.parquet.partial").exists()


def command(models, out, source, *more):
    words = [str(Path(sys.executable).with_name("maeflow")), "embed", models.encoder.digest, "--data", str(source)]
    return [*words, "--out", str(out), "--home", str(models.home.root), "--set", "compute.device=cpu", *more]


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}


def kill_after(words, out, parts):
    """Start a command and kill it and its children (`kill -9`) when ``parts`` parts are there."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    folder = Path(f"{out}.partial") / "parts"
    while process.poll() is None and len(list(folder.glob("*.parquet"))) < parts:
        time.sleep(0.005)
    assert process.poll() is None, "it was over too soon"
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    assert process.wait() == -signal.SIGKILL
    psutil.wait_procs(family[1:], timeout=10)
    assert not Path(out).exists()
    return len(list(folder.glob("*.parquet")))


def killed_twice(models, source, tmp_path, *more):
    """Bytes of an uninterrupted command and of one that was killed twice, and what the last attempt said."""
    start = time.monotonic()
    whole = subprocess.run(
        command(models, tmp_path / "whole.parquet", source, *more), capture_output=True, text=True, check=False,
        env=environment(),
    )  # fmt: skip
    assert whole.returncode == 0, whole.stdout + whole.stderr
    seconds = time.monotonic() - start
    out = tmp_path / "killed.parquet"
    words = command(models, out, source, *more)
    done = kill_after(words, out, 1)
    assert kill_after(words, out, done + 1) > done
    start = time.monotonic()
    last = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    assert last.returncode == 0, last.stdout + last.stderr
    print(f"uninterrupted {seconds:.1f} s, the last attempt {time.monotonic() - start:.1f} s")
    assert not Path(f"{out}.partial").exists()
    return (tmp_path / "whole.parquet").read_bytes(), out.read_bytes(), last.stdout


@pytest.mark.slow
def test_a_command_that_is_killed_twice_and_resumed_writes_the_same_bytes(models, tmp_path):
    whole, resumed, said = killed_twice(models, models.source, tmp_path, "--batch", "1")
    assert resumed == whole
    assert "600 rows (48)" in said


@pytest.mark.long
def test_five_thousand_digits_killed_twice_are_the_same_bytes(models, tmp_path):
    make(tmp_path / "many", 5000, 1)
    whole, resumed, said = killed_twice(models, tmp_path / "many", tmp_path)
    assert resumed == whole
    assert "5000 rows (48)" in said


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_by_the_command(models, tmp_path):
    out = tmp_path / "f.parquet"
    process = subprocess.Popen(
        command(models, out, models.source, "--batch", "1"), stdout=subprocess.PIPE, text=True, env=environment()
    )
    while not list(Path(f"{out}.partial").glob("parts/*.parquet")):
        time.sleep(0.005)
    (worker,) = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "core.apply" in child.cmdline()
    ]
    worker.kill()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "trying again" in said
    assert len(rows(out)) == 600


def test_a_request_to_stop_keeps_what_is_done(models, tmp_path):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > 400

    request = models.request(tmp_path / "f.parquet", batch=1)
    with pytest.raises(Stopped, match="goes on from there"):
        apply(request, models.home, print, should_stop)
    assert list((tmp_path / "f.parquet.partial" / "parts").glob("*.parquet"))
    models.run(tmp_path / "f.parquet", batch=1)
    assert len(rows(tmp_path / "f.parquet")) == 600
    assert models.run(tmp_path / "f.parquet", batch=1) == ["reused: already done"]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_are_listed_and_names_need_not_be_utf8(models, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.png", "caf\udce9.png", "z.png"):
        photo(1, (20, 20)).save(source / name)
    (source / "empty.png").touch()
    (source / "torn.png").write_bytes((source / "a.png").read_bytes()[:60])
    models.run(tmp_path / "f.parquet", source)
    assert [row["key"] for row in rows(tmp_path / "f.parquet")] == ["a.png", "caf\\xe9.png", "z.png"]
    with (tmp_path / "f.parquet.unreadable.csv").open(newline="") as lines:
        listed = {row["key"]: row["reason"] for row in csv.DictReader(lines)}
    assert listed.keys() == {"empty.png", "torn.png"}
    assert listed["empty.png"] == "empty file"


def test_nothing_readable_is_an_error_and_is_read_again_the_next_time(models, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "empty.png").touch()
    with pytest.raises(StageError, match=r"none of the 1 items could be read:\n  empty.png: empty file"):
        models.run(tmp_path / "f.parquet", tmp_path / "source")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sets": ("data.size=[32,32]",)}, "keeps the settings that it was made with"),
        ({"sets": ("compute.devise=cpu",)}, "did you mean 'device'"),
        ({"sets": ("compute.device=mps",)}, "which this machine does not have"),
    ],
)
def test_settings_of_the_model_stay(models, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        models.run(tmp_path / "f.parquet", **more)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_and_an_output_inside_of_the_source_are_refused(models, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match="holds no item"):
        models.run(tmp_path / "f.parquet", tmp_path / "source")
    with pytest.raises(UserError, match="lies inside of the source"):
        models.run(models.source / "f.parquet")
    assert not (models.source / "f.parquet.partial").exists()


def test_another_request_is_refused_at_the_same_place(models, tmp_path):
    models.run(tmp_path / "f.parquet", models.source / "test")
    before = (tmp_path / "f.parquet").read_bytes()
    with pytest.raises(UserError, match="other files in the source"):
        models.run(tmp_path / "f.parquet")
    with pytest.raises(UserError, match="patches: False there, True asked for"):
        models.run(tmp_path / "f.parquet", models.source / "test", patches=True)
    assert (tmp_path / "f.parquet").read_bytes() == before
    models.run(tmp_path / "f.parquet", overwrite=True)
    assert len(rows(tmp_path / "f.parquet")) == 600


def call(models, kind, record, out, source=None):
    applying.apply(kind, str(record), str(source or models.source), str(out), models.home.root)


def test_models_that_cannot_do_what_is_asked_are_refused_at_once(models, tmp_path, monkeypatch):
    out = tmp_path / "f.parquet"
    monkeypatch.setattr(applying, "run_process", None)  # Nothing is started.
    folder = models.home.resolve(models.tuned.folder)
    for name in (models.tuned.digest, folder, folder / "record.json"):
        with pytest.raises(UserError, match=f"tuned model.*tuned from .{models.encoder.digest}"):
            call(models, "embed", name, out)
    with pytest.raises(UserError, match="an encoder, which predicts nothing"):
        call(models, "predict", models.encoder.digest, out)
    with pytest.raises(UserError, match="holds no encoder and no tuned model"):
        call(models, "embed", models.home.resolve(models.data.folder), out)
    with pytest.raises(UserError, match=r"a Parquet file is written, and no \.csv; let its name end in \.parquet"):
        call(models, "embed", models.encoder.digest, tmp_path / "f.csv")
    with pytest.raises(UserError, match="0123 is no finished folder of pretrain or finetune"):
        call(models, "embed", "0123", out)
    with pytest.raises(UserError, match="does not exist"):
        call(models, "embed", models.encoder.digest, out, tmp_path / "nowhere")
    lost = tmp_path / "lost"
    lost.mkdir()
    write_record(models.encoder.model_copy(update={"modality": "sonar"}), lost)
    with pytest.raises(UserError, match="modality 'sonar' is not installed"):
        call(models, "embed", lost, out)
    assert [path.name for path in tmp_path.iterdir()] == ["lost"]


def test_the_command_says_what_came_out(models, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "p.parquet"
    source.mkdir()
    photo(1, (20, 20)).save(source / "a.png")
    (source / "empty.png").touch()
    call(models, "predict", models.tuned.digest, out, source)
    said = capsys.readouterr().out
    assert f"1 rows (10 classes) in {out}" in said
    assert f"1 could not be read; {out}.unreadable.csv lists them:\n       1  empty file" in said
    assert not list((models.home.root / "runs" / "requests").glob("predict*"))
