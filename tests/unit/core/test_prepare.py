"""Preparation: what is read, what is not, and that nothing depends on how often it was interrupted."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from core.config import ComputeConfig, PluginSettings, PrepareConfig, Recipe, TaskConfig
from core.data import readers, shards
from core.data.prepare import prepare
from core.data.sources import discover
from core.data.store import PreparedStore
from core.errors import StageError, Stopped, UserError
from core.modality import Unreadable
from core.tracking import NullTracker
from core.workspace import Home

sys.path.insert(0, str(Path(__file__).parents[2]))
from signals import Signals, SignalSettings, write


def run(source, home, *, should_stop=lambda: False, workers=None, task=None, plugin=Signals, tracker=None, **settings):
    recipe = Recipe(
        modality="signals",
        data=PluginSettings(),
        prepare=PrepareConfig(**settings),
        compute=ComputeConfig(workers=workers),
        task=task or TaskConfig(),
    )
    place = Home.create(home)
    folder = home / "prepared" / "d.partial"
    folder.mkdir(exist_ok=True)
    record = prepare(
        recipe,
        str(source),
        plugin=plugin(SignalSettings(), "evaluate"),
        home=place,
        workdir=folder,
        digest="d",
        tracker=tracker or NullTracker(),
        should_stop=should_stop,
    )
    return record, folder


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_source_becomes_rows_with_encoded_targets(tmp_path):
    write(tmp_path / "source", 40)
    record, folder = run(tmp_path / "source", tmp_path / "home", shard_items=8)
    store = PreparedStore.open(folder)
    assert record.counts == {"train": 28, "val": 4, "test": 8}
    assert record.labelled == record.counts
    assert record.target.classes == ("c0", "c1")
    assert len(store) == 40
    assert len(list(folder.glob("data-*.arrow"))) == 8
    for row in store.rows(store.ids("train")):
        number = int(row.key[-8:-4])
        assert row.target == number % 2
        assert np.array_equal(np.frombuffer(row.payload, np.float32), np.load(tmp_path / "source" / row.key).ravel())


def test_the_folder_opens_with_hugging_face_datasets(tmp_path):
    from datasets import load_from_disk

    write(tmp_path / "source", 20)
    _, folder = run(tmp_path / "source", tmp_path / "home", shard_items=8)
    data = load_from_disk(str(folder))
    assert len(data) == 20
    assert set(data.column_names) == {"key", "payload", "codec", "shape", "dtype", "meta"}
    assert sorted(data["key"]) == sorted(PreparedStore.open(folder).keys)
    assert data[0]["shape"] == [2, 16]


def test_statistics_are_those_of_the_training_split(tmp_path):
    write(tmp_path / "source", 60)
    record, folder = run(tmp_path / "source", tmp_path / "home")
    store = PreparedStore.open(folder)
    x = np.stack([np.frombuffer(r.payload, np.float32).reshape(2, 16) for r in store.rows(store.ids("train"))])
    assert np.allclose(record.statistics.mean, x.astype(np.float64).mean((0, 2)), atol=1e-9)
    assert np.allclose(record.statistics.std, x.astype(np.float64).std((0, 2)), atol=1e-9)


def test_unreadable_files_are_listed_and_cost_nothing_else(tmp_path):
    write(tmp_path / "source", 40)
    (tmp_path / "source/c0/bad.npy").write_text("no array")
    (tmp_path / "source/c0/odd.npy").write_bytes(b"")
    np.save(tmp_path / "source/c0/none.npy", np.zeros(3))
    record, folder = run(tmp_path / "source", tmp_path / "home")
    card = json.loads((folder / "card.json").read_text())
    assert record.unreadable == 3
    reasons = {bad["file"]: bad["reason"] for bad in card["unreadable"]}
    assert reasons["c0/bad.npy"] == "not an array"
    assert "EOFError" in reasons["c0/odd.npy"]
    assert reasons["c0/none.npy"] == "nothing in it"
    assert sum(record.counts.values()) == 40
    assert str(tmp_path) not in (folder / "card.json").read_text()


def test_too_many_unreadable_files_end_with_a_list(tmp_path):
    write(tmp_path / "source", 4)
    for number in range(3):
        (tmp_path / f"source/c0/bad{number}.npy").write_text("x")
    with pytest.raises(
        StageError, match=r"3 of the 7 items could not be read:\n  c0/bad0.npy: not an array(.|\n)*max_unreadable"
    ):
        run(tmp_path / "source", tmp_path / "home")


def test_nothing_readable_is_one_clear_message(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.npy").write_text("x")
    with pytest.raises(StageError, match="none of the 1 items could be read"):
        run(tmp_path / "source", tmp_path / "home", max_unreadable=1.0)


def test_duplicates_are_counted_and_on_one_side(tmp_path):
    write(tmp_path / "source", 30)
    for number in range(30):
        origin = tmp_path / f"source/c{number % 2}/s{number:04d}.npy"
        (origin.parent / f"twin{number}.npy").write_bytes(origin.read_bytes())
    record, folder = run(tmp_path / "source", tmp_path / "home")
    store = PreparedStore.open(folder)
    assert record.duplicates == 30
    sides = {}
    for split in ("train", "val", "test"):
        for digest in store.hashes(store.ids(split)):
            assert sides.setdefault(digest, split) == split


def test_new_files_prepare_only_their_own_shards(tmp_path):
    write(tmp_path / "source", 60)
    run(tmp_path / "source", tmp_path / "home", shard_items=8)
    shard_folder = tmp_path / "home/prepared/shards"
    before = set(shard_folder.iterdir())
    write(tmp_path / "source/c0", 1, prefix="new")
    run(tmp_path / "source", tmp_path / "home", shard_items=8)
    added = set(shard_folder.iterdir()) - before
    assert len([p for p in added if p.suffix == ".arrow"]) == 1
    assert len(before) == 16


def test_stopping_keeps_finished_shards(tmp_path):
    write(tmp_path / "source", 60)
    calls = iter([False, False, True])
    with pytest.raises(Stopped):
        run(tmp_path / "source", tmp_path / "home", shard_items=8, should_stop=lambda: next(calls))
    assert len(list((tmp_path / "home/prepared/shards").glob("*.json"))) == 2
    _, resumed = run(tmp_path / "source", tmp_path / "home", shard_items=8)
    _, whole = run(tmp_path / "source", tmp_path / "other", shard_items=8)
    assert files(resumed) == files(whole)


def test_a_file_that_ends_its_reader_costs_that_file_only(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "SMALL_ITEMS", 5)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    write(tmp_path / "source", 24)
    np.save(tmp_path / "source/c0/killer.npy", np.zeros((2, 16)))
    record, folder = run(tmp_path / "source", tmp_path / "home", shard_items=8, workers=2)
    card = json.loads((folder / "card.json").read_text())
    assert [bad["file"] for bad in card["unreadable"]] == ["c0/killer.npy"]
    assert "died" in card["unreadable"][0]["reason"]
    assert sum(record.counts.values()) == 24


def test_a_file_that_hangs_its_reader_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "SMALL_ITEMS", 5)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    write(tmp_path / "source", 24)
    for name in ("c0/hanging.npy", "c1/killer.npy"):
        np.save(tmp_path / "source" / name, np.zeros((2, 16)))
    record, folder = run(tmp_path / "source", tmp_path / "home", shard_items=8, workers=2, seconds_per_item=2)
    card = json.loads((folder / "card.json").read_text())
    reasons = {bad["file"]: bad["reason"] for bad in card["unreadable"]}
    assert set(reasons) == {"c0/hanging.npy", "c1/killer.npy"}
    assert "longer than 2 s" in reasons["c0/hanging.npy"]
    assert "died" in reasons["c1/killer.npy"]
    assert sum(record.counts.values()) == 24


class Apart(Signals):
    """Never read by the stage's own process."""

    read_apart = True


def test_a_plugin_may_ask_to_be_read_apart(tmp_path, monkeypatch):
    """So that its first killer costs no second attempt, however small the source."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from test_prepare import Apart as Importable  # A child process imports it by this name.

    write(tmp_path / "source", 6)
    np.save(tmp_path / "source/c1/killer.npy", np.zeros((2, 16)))
    record, folder = run(tmp_path / "source", tmp_path / "home", plugin=Importable, workers=2)
    assert [bad["file"] for bad in json.loads((folder / "card.json").read_text())["unreadable"]] == ["c1/killer.npy"]
    assert sum(record.counts.values()) == 6


def test_processes_give_the_same_bytes_as_none(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    write(tmp_path / "source", 24)
    _, alone = run(tmp_path / "source", tmp_path / "a", shard_items=8)
    monkeypatch.setattr(readers, "SMALL_ITEMS", 5)
    _, several = run(tmp_path / "source", tmp_path / "b", shard_items=8, workers=2)
    assert files(alone) == files(several)


def test_killed_at_any_moment_it_ends_in_the_same_bytes(tmp_path):
    write(tmp_path / "source", 48, prefix="slow")
    code = f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
        from pathlib import Path
        from test_prepare import run
        print("go", flush=True)
        run(Path({str(tmp_path / "source")!r}), Path({str(tmp_path / "killed")!r}), shard_items=4)
    """
    kills = 0
    for moment in (0.1, 0.5, 0.9, 1.3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(moment)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
    assert kills >= 2
    _, resumed = run(tmp_path / "source", tmp_path / "killed", shard_items=4)
    _, whole = run(tmp_path / "source", tmp_path / "whole", shard_items=4)
    assert files(resumed) == files(whole)
    assert not list((tmp_path / "killed/prepared/shards").glob("*.reading"))


def in_a_process(source, home, **settings):
    """Exit status of preparing in a process of its own."""
    code = f"""
        import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
        from pathlib import Path
        from test_prepare import run
        if __name__ == "__main__":
            run(Path({str(source)!r}), Path({str(home)!r}), **{settings!r})
    """
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode


def test_a_small_source_survives_a_killer_at_the_second_attempt(tmp_path):
    write(tmp_path / "source", 12)
    np.save(tmp_path / "source/c1/killer.npy", np.zeros((2, 16)))
    assert in_a_process(tmp_path / "source", tmp_path / "home") == 9
    assert in_a_process(tmp_path / "source", tmp_path / "home") == 0
    card = json.loads((tmp_path / "home/prepared/d.partial/card.json").read_text())
    assert [bad["file"] for bad in card["unreadable"]] == ["c1/killer.npy"]
    assert sum(card["counts"].values()) == 12


class Stillborn(Signals):
    """Ends every child process before it reads."""

    def __setstate__(self, state):
        os._exit(3)


def test_processes_that_never_read_end_with_the_likely_reasons(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(readers, "SMALL_ITEMS", 1)
    write(tmp_path / "source", 3)
    from test_prepare import Stillborn  # A child process imports it by this name.

    plugin = Stillborn(SignalSettings(), "evaluate")
    (unit,) = shards.plan(list(plugin.discover(str(tmp_path / "source"))), plugin, 10)
    with pytest.raises(StageError, match="die before they read anything"):
        readers.Readers(plugin, tmp_path, 1, lambda _: None, lambda: False).run([unit])


class Locked(Signals):
    """Cannot read what has no key yet: nothing in the source changes when there is one."""

    def read(self, item):
        if not (Path(item.path).parents[2] / "key").exists():
            raise Unreadable("permission denied")
        return super().read(item)


def test_what_could_not_be_read_is_tried_again_after_a_failure(tmp_path):
    write(tmp_path / "source", 20)
    with pytest.raises(StageError, match=r"none of the 20 items could be read:\n.*permission denied"):
        run(tmp_path / "source", tmp_path / "home", plugin=Locked)
    (tmp_path / "key").touch()
    record, _ = run(tmp_path / "source", tmp_path / "home", plugin=Locked)
    assert record.unreadable == 0


def test_a_full_disk_is_told_before_anything_is_read(tmp_path):
    write(tmp_path / "source", 3)
    with (tmp_path / "source/c0/huge.npy").open("wb") as sparse:
        sparse.truncate(8 * 2**40)
    with pytest.raises(
        UserError, match=r"may need 16384.0 GiB in .*home.prepared.* has .* GiB free; make room, or set"
    ):
        run(tmp_path / "source", tmp_path / "home")
    assert not list((tmp_path / "home/prepared/shards").iterdir())


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    write(tmp_path / "source", 12)
    folder = os.fsencode(tmp_path / "source/c0")
    (tmp_path / "source/c0/s0000.npy").rename(os.fsdecode(folder + b"/caf\xe9.npy"))
    record, folder = run(tmp_path / "source", tmp_path / "home")
    assert record.unreadable == 0
    assert "c0/caf\\xe9.npy" in PreparedStore.open(folder).keys


def test_datasets_never_share_shards_however_alike_their_rows(tmp_path):
    from datasets import Dataset

    digests = []
    for number in range(2):
        Dataset.from_dict({"array": [[number, number]] * 4}).save_to_disk(str(tmp_path / f"data{number}"))
        items = discover(str(tmp_path / f"data{number}"), frozenset(), lambda _: False)
        digests.append([u.digest for u in shards.plan(items, Signals(SignalSettings(), "evaluate"), 10)])
    assert digests[0] != digests[1]


class Twice(Signals):
    """Gives two records one key."""

    def read(self, item):
        return [*super().read(item), *super().read(item)]


class Halves(Signals):
    """Gives each half of a signal as a record of its own."""

    def read(self, item):
        (whole,) = super().read(item)
        return [replace(whole, key=f"{item.key}#{half}") for half in range(2)]


def test_several_records_of_an_item_stay_together_and_need_their_own_keys(tmp_path):
    write(tmp_path / "source", 30)
    record, folder = run(tmp_path / "source", tmp_path / "home", plugin=Halves)
    store = PreparedStore.open(folder)
    assert record.duplicates == 0
    assert len(store) == 60
    for split in ("train", "val", "test"):
        keys = {store.keys[i].partition("#")[0] for i in store.ids(split)}
        assert len(store.ids(split)) == 2 * len(keys)
    with pytest.raises(StageError, match=r"2 records the key 'c\d/s\d+.npy'"):
        run(tmp_path / "source", tmp_path / "other", plugin=Twice)


class Table(Signals):
    """One file of many rows, each of a specimen that was measured three times."""

    def read(self, item):
        (whole,) = super().read(item)
        return [
            replace(whole, key=f"{item.key}#{row:03d}", target=str(row % 2), group=f"specimen-{row // 3}")
            for row in range(90)
        ]


def test_rows_of_one_file_are_divided_between_splits_by_their_own_groups(tmp_path):
    write(tmp_path / "source", 1)
    record, folder = run(tmp_path / "source", tmp_path / "home", plugin=Table)
    store = PreparedStore.open(folder)
    assert record.duplicates == 0
    assert record.counts["test"] == 18
    assert record.counts["val"] in range(3, 16)
    where = {}
    for split in ("train", "val", "test"):
        for group in store.groups(store.ids(split)):
            assert where.setdefault(group, split) == split
    assert len(where) == 30


class Rows(Signals):
    """Items that are rows of one file, each with a split of its own."""

    def discover(self, source):
        (whole,) = super().discover(source)
        return [
            replace(whole, key=f"row-{n:03d}", target=str(n % 2), split=("train", "val", "test")[n % 3])
            for n in range(90)
        ]

    def read(self, item):
        (whole,) = super().read(item)
        return [replace(whole, payload=np.full(whole.shape, float(item.key[4:]), whole.dtype).tobytes())]


def test_items_of_one_file_keep_the_splits_they_are_given(tmp_path):
    write(tmp_path / "source", 1)
    record, _ = run(tmp_path / "source", tmp_path / "home", plugin=Rows)
    assert record.duplicates == 0
    assert record.counts == {"train": 30, "val": 30, "test": 30}


def test_labelled_items_that_cannot_be_held_out_are_told_before_anything_is_trained(tmp_path):
    class OneGroup(Table):
        def read(self, item):
            return [replace(row, group=None) for row in super().read(item)]

    said = []
    tracker = NullTracker()
    tracker.note = said.append
    write(tmp_path / "source", 1)
    record, _ = run(tmp_path / "source", tmp_path / "home", plugin=OneGroup, workers=0, tracker=tracker)
    assert record.counts["test"] == 0
    assert any(text.endswith("groups stay whole, and there are 1") for text in said)


def test_data_without_labels_are_not_told_to_lack_test_items(tmp_path):
    class Nameless(Signals):
        def discover(self, source):
            return [replace(item, target=None) for item in super().discover(source)]

    said = []
    tracker = NullTracker()
    tracker.note = said.append
    write(tmp_path / "source", 20)
    run(tmp_path / "source", tmp_path / "home", plugin=Nameless, workers=0, tracker=tracker)
    assert said == []


def test_windows_of_a_recording_without_a_group_are_one(tmp_path):
    """The silence in one recording does not tie it to another's: 30 recordings, all of them alike."""
    write(tmp_path / "source", 30)
    for file in (tmp_path / "source").rglob("*.npy"):
        np.save(file, np.full((2, 16), float(file.stem[1:]), np.float32))
    _, folder = run(tmp_path / "source", tmp_path / "home", plugin=Silence)
    store = PreparedStore.open(folder)
    assert len(store.ids("test")) > 0
    assert {store.keys[i].partition("#")[0] for i in range(60)} == set(store.groups(np.arange(60)))


class Silence(Halves):
    """Two windows per recording, without anything in them."""

    def read(self, item):
        return [replace(r, payload=np.zeros(r.shape, r.dtype).tobytes()) for r in super().read(item)]


def test_a_shard_without_rows_opens_with_hugging_face_datasets(tmp_path):
    from datasets import load_from_disk

    write(tmp_path / "source", 20)
    for number in range(10):
        (tmp_path / f"source/c0/bad{number}.npy").write_text("no array")
    _, folder = run(tmp_path / "source", tmp_path / "home", shard_items=1, max_unreadable=0.5)
    sizes = [sum(b.num_rows for b in pa.ipc.open_stream(f.read_bytes())) for f in folder.glob("*.arrow")]
    assert 0 in sizes
    assert len(load_from_disk(str(folder))) == 20


def test_test_items_only_leave_features_as_they_are(tmp_path):
    write(tmp_path / "source/test", 12)
    record, _ = run(tmp_path / "source", tmp_path / "home")
    assert record.counts == {"train": 0, "val": 0, "test": 12}
    assert record.statistics.mean == (0.0, 0.0)
    assert record.statistics.std == (1.0, 1.0)


def test_labels_that_do_not_suit_the_task_are_named(tmp_path):
    write(tmp_path / "source", 10)
    with pytest.raises(UserError, match="regression task met the label 'c0'"):
        run(tmp_path / "source", tmp_path / "home", task=TaskConfig(kind="regression"))


def test_readers_leave_the_processors_to_each_other():
    code = (
        "import os\nfrom core.data.readers import _start\n_start(os.getppid())\n"
        "import torch\nprint(torch.get_num_threads())"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1"]
