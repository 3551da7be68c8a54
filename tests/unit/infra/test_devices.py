"""GPUs are handed out in order of arrival, one holder each, and come back however their holder ends."""

import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from core.errors import UserError
from infra.devices import device_names, hidden, take

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from infra.devices import take
with take(Path(sys.argv[1]), sys.argv[2].split(","), 1, print, lambda: None) as taken:
    child = None
    if len(sys.argv) > 3:
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({sys.argv[3]})"],
                                 pass_fds=taken.descriptors)
    print("got", taken.names[0], child.pid if child else "", flush=True)
    time.sleep(60)
"""


def holder(home, names, *more):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER, str(home), names, *more], stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline().split()
    assert line[0] == "got"
    return process, line[1:]


def taken_names(home, names, count=1, tell=lambda _: None, admit=lambda: None):
    with take(home, names, count, tell, admit) as taken:
        return taken.names


def test_two_holders_never_have_the_same_device(tmp_path):
    with (
        take(tmp_path, ["0", "1"], 1, print, lambda: None) as one,
        take(tmp_path, ["0", "1"], 1, print, lambda: None) as two,
    ):
        assert {*one.names, *two.names} == {"0", "1"}
        assert one.environment["CUDA_VISIBLE_DEVICES"] == one.names[0]


def test_a_device_is_free_again_when_its_holder_is_killed(tmp_path):
    process, _ = holder(tmp_path, "0")
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    assert taken_names(tmp_path, ["0"]) == ("0",)
    assert time.monotonic() - start < 2


def test_a_device_stays_taken_as_long_as_the_stage_that_inherited_it_lives(tmp_path):
    process, (_, child) = holder(tmp_path, "0", "3")
    start = time.monotonic()
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = []
    assert taken_names(tmp_path, ["0"], tell=told.append) == ("0",)
    assert time.monotonic() - start > 2
    assert not psutil.pid_exists(int(child)) or psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
    assert told
    assert "waiting for a GPU: 0 taken by process" in told[0]


def test_who_came_first_is_served_first_also_when_it_wants_more(tmp_path):
    order, threads = [], []
    with take(tmp_path, ["0", "1"], 1, print, lambda: None):
        for name, count in (("wants two", 2), ("wants one", 1)):  # A device is free for the second all the time.
            waiter = threading.Thread(
                target=lambda name=name, count=count: order.append((taken_names(tmp_path, ["0", "1"], count), name))
            )
            waiter.start()
            threads.append(waiter)
            time.sleep(1.0)
        assert order == []
    for waiter in threads:
        waiter.join(timeout=20)
    assert [name for _, name in order] == ["wants two", "wants one"]


def test_a_killed_waiter_holds_nobody_up(tmp_path):
    with take(tmp_path, ["0"], 1, print, lambda: None):
        code = HOLDER.replace('"got"', '"never"')
        waiter = subprocess.Popen([sys.executable, "-P", "-c", code, str(tmp_path), "0"])
        queue = next(tmp_path.glob("devices/*/queue"))
        while not list(queue.iterdir()):
            time.sleep(0.05)
        waiter.kill()
        waiter.wait()
        assert list(queue.iterdir())  # Its ticket is still there, and nobody holds it.
    assert taken_names(tmp_path, ["0"]) == ("0",)
    assert not list(queue.iterdir())


def test_leave_is_asked_for_only_by_the_first_in_the_queue(tmp_path):
    asked = []
    with take(tmp_path, ["0"], 1, print, lambda: asked.append("first")):
        later = threading.Thread(target=lambda: taken_names(tmp_path, ["0"], admit=lambda: asked.append("second")))
        later.start()
        time.sleep(0.5)
        last = threading.Thread(target=lambda: taken_names(tmp_path, ["0"], admit=lambda: asked.append("third")))
        last.start()
        time.sleep(0.5)
        assert asked == ["first", "second"]
    later.join(timeout=20)
    last.join(timeout=20)
    assert asked == ["first", "second", "third"]


def test_asking_for_more_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="asks for 3 GPUs, and this machine hands out 2"):
        taken_names(tmp_path, ["0", "1"], count=3)


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"MAEFLOW_DEVICES": "2, 3"}, ("2", "3")),
        ({"MAEFLOW_DEVICES": "none", "CUDA_VISIBLE_DEVICES": "0"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"MAEFLOW_DEVICES": ""}, ()),
    ],
)
def test_what_is_handed_out(monkeypatch, variables, names):
    for name in ("MAEFLOW_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert device_names() == names


def test_none_keeps_stages_off_gpus_that_are_there(monkeypatch):
    monkeypatch.setenv("MAEFLOW_DEVICES", "none")
    assert hidden() == {"CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setenv("MAEFLOW_DEVICES", "0")
    assert hidden() == {}


def test_many_who_come_at_once_are_served_one_after_the_other(tmp_path):
    inside, most = [], []

    def visit():
        with take(tmp_path, ["0", "1"], 2, lambda _: None, lambda: None):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    visitors = [threading.Thread(target=visit) for _ in range(12)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(timeout=60)
    assert most == [1] * 12
    assert not list(tmp_path.glob("devices/*/queue/*"))
