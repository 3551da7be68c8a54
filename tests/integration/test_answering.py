"""A finished model's answers to single files: the rows of `predict`, whatever kind of data and whatever a file does."""

import io
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyarrow import parquet

from core import example
from core.data.prepare import named_items
from core.data.shards import DIED
from core.modality import Unreadable
from core.records import read_model
from core.request import ApplyRequest
from core.stages.answering import Answers, Sent, _Apart
from core.stages.applying import apply
from core.workspace import Home

sys.path.insert(0, str(Path(__file__).parents[1]))
from finished import untrained
from signals import Signals, SignalSettings, write

MASKS = ["task.kind=segmentation", "task.classes=[nothing, something]", "data.size=[32, 32, 32]",
         "data.patch=[16, 16, 16]", "evaluate.batch=2"]  # fmt: skip


def predicted(home, folder, source, out):
    """What `maeflow predict` writes for ``source``."""
    record = read_model(folder)
    request = ApplyRequest(
        home=str(home.root), kind="predict", modality=record.modality, model=str(folder), source=str(source),
        out=str(out), sets=("compute.device=cpu",),
    )  # fmt: skip
    apply(request, home, lambda _: None, lambda: False)
    table = out / "index.parquet" if out.is_dir() else out
    return parquet.read_table(table).to_pylist()


def test_a_long_recording_gives_a_row_for_each_of_its_stretches(tmp_path):
    home = Home.create(tmp_path / "home")
    _, folder = untrained(home, "audio/demo", "data.store.seconds=2", classes=("low", "high"))
    rng, wave = np.random.default_rng(0), io.BytesIO()
    soundfile.write(wave, rng.normal(0, 0.1, 16000 * 5).astype(np.float32), 16000, format="WAV")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/long.wav").write_bytes(wave.getvalue())
    expected = predicted(home, folder, tmp_path / "source", tmp_path / "p.parquet")
    found = Answers(folder, "cpu")([Sent(b"RIFF", "torn.wav"), Sent(wave.getvalue(), "long.wav")])
    assert len(expected) > 1
    assert [(row["row"], row["part"]) for row in found] == [(0, 0), *((1, row["part"]) for row in expected)]
    for row, one in zip(found[1:], expected, strict=True):
        assert np.allclose(list(row["probabilities"].values()), one["probabilities"], rtol=0, atol=1e-6)
        assert row["prediction"] == one["prediction"]


def test_masks_come_as_the_files_that_predict_writes_and_no_name_is_kept(tmp_path):
    home = Home.create(tmp_path / "home")
    _, folder = untrained(home, "medical/ct_vit_base_96", *MASKS, classes=("nothing", "something"))
    (tmp_path / "source").mkdir()
    file = example.find(folder, tmp_path / "source")
    assert file.name == "example.nii.gz"
    (expected,) = predicted(home, folder, tmp_path / "source", tmp_path / "masks")
    answers = Answers(folder, "cpu")
    good, bad = answers([Sent(file.read_bytes(), "Jane Roe.nii.gz"), Sent(b"Jane Roe", "Jane Roe.nii.gz")])
    assert good["mask"] == (tmp_path / "masks" / expected["file"]).read_bytes()
    assert (good["suffix"], good["found"]) == (".nii.gz", expected["found"])
    assert bad["mask"] is None
    assert "Jane" not in bad["error"]
    assert "Roe" not in bad["error"]


def test_examples_are_files_that_the_model_answers_to(tmp_path):
    home = Home.create(tmp_path / "home")
    (folder,) = untrained(home, "image/tiny", "data.channels=3")
    file = example.find(folder, tmp_path)
    (row,) = Answers(folder, "cpu")([Sent(file.read_bytes(), file.name)])
    assert row["error"] is None
    assert len(row["features"]) == 48


def test_several_threads_take_turns(tmp_path):
    home = Home.create(tmp_path / "home")
    (folder,) = untrained(home, "image/tiny", "data.channels=3")
    answers = Answers(folder, "cpu")
    data = example.find(folder, tmp_path).read_bytes()
    (expected,), found = answers([Sent(data)]), []
    threads = [threading.Thread(target=lambda: found.extend(answers([Sent(data), None]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row["features"] for row in found if row["row"] == 0] == [expected["features"]] * 4
    assert [row["error"] for row in found if row["row"] == 1] == ["no file"] * 4


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A reader in a process of its own, and the items of a source by their names."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    write(tmp_path / "source", 2)
    for name in ("killer", "hanging", "again"):
        np.save(tmp_path / f"source/c1/{name}.npy", np.zeros((2, 16)))
    plugin = Signals(SignalSettings(), "evaluate")
    reader = _Apart(plugin, 1)
    yield reader, {Path(item.path).stem: item for item in named_items(plugin, str(tmp_path / "source"))}
    reader.close()


def test_a_file_that_ends_its_reader_is_told_of_and_the_next_one_is_read(apart):
    reader, items = apart
    with pytest.raises(Unreadable, match="longer than 1 s"):
        reader.read(items["hanging"])
    with pytest.raises(Unreadable, match=DIED[:30]):
        reader.read(items["killer"])
    (record,) = reader.read(items["again"])
    assert record.shape == (2, 16)


def test_a_reader_that_died_between_two_files_costs_none(apart):
    reader, items = apart
    (process,) = reader._pool._processes.values()
    process.kill()
    process.join()
    assert len(reader.read(items["again"])) == 1
