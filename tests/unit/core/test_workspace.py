"""Folders, locks and logs survive whatever happens to their process."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from core.errors import UserError
from core.tracking import EVENTS_FILE, JsonlTracker
from core.workspace import Home, digest_of, made_once, write_bytes

HOLD = """
import sys, time
from pathlib import Path
from core.workspace import Home
with Home.create(Path(sys.argv[1])).stage("pretrain", "d").exclusive(lambda holder: None):
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_is_made_once_is_there_whole_or_not_at_all(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "half").write_text("1")
        if len(made) == 1:
            raise KeyboardInterrupt
        (folder / "whole").write_text("2")

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "demo" / "data", make)
    assert list((tmp_path / "demo").iterdir()) == []
    for _ in range(2):
        folder = made_once(tmp_path / "demo" / "data", make)
        assert sorted(path.name for path in folder.iterdir()) == ["half", "whole"]
    assert len(made) == 2


def test_of_two_that_make_the_same_the_quicker_ones_stays(tmp_path):
    def slow(folder):
        made_once(tmp_path / "data", lambda other: (other / "quick").write_text("1"))
        (folder / "slow").write_text("2")

    assert [path.name for path in made_once(tmp_path / "data", slow).iterdir()] == ["quick"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_killed_holder_frees_its_folder_at_once(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    told = []
    folder = Home.create(tmp_path).stage("pretrain", "d")
    with pytest.raises(InterruptedError), folder.exclusive(told.append, lambda: bool(told)):
        pass
    assert str(process.pid) in told[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    start = time.monotonic()
    with folder.exclusive(told.append):
        assert time.monotonic() - start < 2


def test_a_finished_folder_appears_whole(tmp_path):
    folder = Home.create(tmp_path).stage("pretrain", "d")
    folder.partial.mkdir(parents=True)
    (folder.partial / "a").write_text("x")
    assert not folder.done
    assert folder.current == folder.partial
    folder.finish()
    assert folder.done
    assert not folder.partial.exists()
    assert (folder.current / "a").read_text() == "x"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"


def test_an_unwritable_home_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="MAEFLOW_HOME"):
        Home.create(tmp_path / "file" / "home")


def test_a_home_of_another_layout_is_refused(tmp_path):
    Home.create(tmp_path)
    (tmp_path / "home.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="layout 99"):
        Home.create(tmp_path)


def test_digests_do_not_depend_on_key_order():
    assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_torn_line_is_cut_off_before_more_is_appended(tmp_path):
    with JsonlTracker(tmp_path) as tracker:
        tracker.metrics(1, {"loss": 1.0})
    with (tmp_path / EVENTS_FILE).open("ab") as log:
        log.write(b'{"kind": "met')
    with JsonlTracker(tmp_path) as tracker:
        tracker.note("go on")
        tracker.progress("x", 1, 2, "items")
        tracker.progress("x", 2, 2, "items")
    events = [json.loads(line) for line in (tmp_path / EVENTS_FILE).read_text().splitlines()]
    assert [e["kind"] for e in events] == ["metrics", "note", "progress", "progress"]


def test_processes_of_one_number_on_two_machines_write_to_different_temporary_files(tmp_path):
    code = "from pathlib import Path; from core.workspace import temporary_beside; import os\n"
    code += (
        "os.getpid = lambda: 1\nprint(temporary_beside(Path('a')), temporary_beside(Path('a')))"  # As in containers.
    )
    run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [run().stdout.split() for _ in "ab"]
    assert all(name.endswith(".tmp") and name.startswith(".a.1-") for names in told for name in names)
    assert [names[0] == names[1] for names in told] == [True, True]
    assert told[0][0] != told[1][0]
