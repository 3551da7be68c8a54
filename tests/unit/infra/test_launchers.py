"""Stage processes: what they say, how they end, and that none outlives its launcher."""

import subprocess
import sys
import textwrap
import time
from contextvars import ContextVar

import psutil
import pytest

from core.config import ComputeConfig
from core.errors import StageError, StageLost, StagePreempted, UserError
from core.request import StageRequest
from core.workspace import Home
from infra.launchers import (
    DONE,
    FAILED,
    FULL,
    LOST,
    STOPPED,
    WRONG,
    Nodes,
    SubprocessLauncher,
    Watch,
    _even,
    _raise_for,
    _Ranks,
    follow,
    launcher_for,
    visible_gpus,
)


def request(home, **changes):
    values = {"stage": "prepare", "home": str(home), "digest": "d", "recipe": {"modality": "image", "data": {}}}
    return StageRequest(**values | changes)


def test_a_wrong_request_is_the_users_error_with_the_stages_own_words(tmp_path):
    with pytest.raises(UserError, match=r"source .*nowhere does not exist"):
        SubprocessLauncher().run(request(tmp_path, source=str(tmp_path / "nowhere")), Watch())


def test_failing_work_is_told_in_one_message(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jpg").write_text("no image")
    with pytest.raises(StageError, match=r"none of the 1 items could be read:\n  a.jpg: not an image"):
        SubprocessLauncher().run(request(tmp_path / "home", source=str(tmp_path / "source")), Watch())


def test_a_killed_process_is_told_apart(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jpg").write_text("no image")
    watch = Watch(started=lambda pid: psutil.Process(pid).kill())
    with pytest.raises(StageError, match=r"was killed.*last checkpoint"):
        SubprocessLauncher().run(request(tmp_path / "home", source=str(tmp_path / "source")), watch)


def test_a_waiting_stage_ends_when_its_launcher_is_killed(tmp_path):
    """The folder is held by us; the stage waits for it, and its launcher is killed with -9 meanwhile."""
    from core.workspace import Home

    code = f"""
        from infra.launchers import SubprocessLauncher, Watch
        from core.request import StageRequest
        request = StageRequest(stage="prepare", home={str(tmp_path)!r}, digest="d", recipe={{}}, source="x")
        told = Watch(started=lambda pid: print(pid, flush=True), line=lambda line: print(line, flush=True))
        SubprocessLauncher().run(request, told)
    """
    with Home.create(tmp_path).stage("prepare", "d").exclusive(lambda _: None):
        launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        stage = psutil.Process(int(launcher.stdout.readline()))
        assert "is being worked on by process" in launcher.stdout.readline()
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
        deadline = time.monotonic() + 10
        while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


def stage_that_waits(tmp_path, home, act):
    """Run a stage that waits for its folder, which we hold, and ``act`` on its process meanwhile."""
    with home.stage("prepare", "d").exclusive(lambda _: None):
        pids = []
        watch = Watch(started=pids.append, line=lambda line: act(psutil.Process(pids[0])))
        SubprocessLauncher().run(request(tmp_path, source="x"), watch)


def test_a_stop_that_the_launcher_did_not_ask_for_is_a_preemption(tmp_path):
    with pytest.raises(StagePreempted, match="saved its work"):
        stage_that_waits(tmp_path, Home.create(tmp_path), lambda process: process.terminate())


def test_a_death_is_worth_another_try_and_failed_work_is_not(tmp_path):
    with pytest.raises(StageLost, match="killed") as lost:
        stage_that_waits(tmp_path, Home.create(tmp_path), lambda process: process.kill())
    assert not isinstance(lost.value, StagePreempted)
    with pytest.raises(StageError) as failed:
        _raise_for(FAILED, ["error: no finite loss"], request(tmp_path))
    assert not isinstance(failed.value, StageLost)
    with pytest.raises(StageLost, match="is full"):
        _raise_for(FULL, ["error: the disk of /h is full", "error: the disk of /h is full"], request(tmp_path))


def test_a_stop_that_the_launcher_asked_for_stays_what_its_asker_raised(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with Home.create(tmp_path).stage("prepare", "d").exclusive(lambda _: None), pytest.raises(KeyboardInterrupt):
        SubprocessLauncher().run(request(tmp_path, source="x"), Watch(tick=interrupt))


@pytest.mark.parametrize(
    ("said", "code", "verdict"),
    [
        ([], 1, LOST),
        (["process: 0 10", "process: 1 11", "ended: 0 5"], 1, -9),
        (["process: 0 10", "process: 1 11", "ended: 0 5", "ended: 1 5"], 1, LOST),
        (["process: 0 10", "process: 1 11", "ended: 0 3", "ended: 1 3"], 1, STOPPED),
        (["process: 0 10", "process: 1 11", "ended: 0 5", "ended: 1 1"], 1, FAILED),
        (["process: 0 10", "process: 1 11", "ended: 0 4", "ended: 1 5"], 1, FULL),
        (["process: 0 10", "process: 1 11", "ended: 0 2", "ended: 1 2"], 1, WRONG),
        (["process: 0 10", "process: 1 11", "ended: 0 0", "ended: 1 0"], 0, DONE),
    ],
)
def test_the_process_with_most_to_say_tells_how_a_common_stage_ended(said, code, verdict):
    passed_on = []
    ranks = _Ranks(passed_on.append)
    for line in [*said, "error: process: 3 4", "ended: badly"]:
        ranks(line)
    assert ranks.verdict(code) == verdict
    assert passed_on == ["error: process: 3 4", "ended: badly"]


def test_visible_gpus_are_those_that_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus({}) == 0
    assert [visible_gpus({"CUDA_VISIBLE_DEVICES": named}) for named in ("", "-1", "3", "0,GPU-8a", "1,-1,2")] == [
        0,
        0,
        1,
        2,
        1,
    ]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: B (UUID: y)'\n")
    tool.chmod(0o755)
    assert visible_gpus({}) == 2


def test_several_processes_are_for_training_alone(tmp_path):
    def chosen(stage, **compute):
        return launcher_for(stage, ComputeConfig(**compute), {"CUDA_VISIBLE_DEVICES": "0,1"})

    assert isinstance(chosen("prepare", processes=2), SubprocessLauncher)
    assert isinstance(chosen("pretrain", device="cpu"), SubprocessLauncher)
    assert isinstance(chosen("finetune", processes=1), SubprocessLauncher)
    assert chosen("finetune", processes=2).processes == 2
    assert chosen("pretrain").processes is None


def test_by_default_as_many_gpus_train_as_can_share_a_step(tmp_path):
    def count(batch, micro, most, nodes=None):
        recipe = {"pretrain": {"batch": batch, "micro_batch": micro}}
        return _even(request(tmp_path, stage="pretrain", recipe=recipe), most, nodes)

    assert [count(64, None, 8), count(64, 16, 8), count(96, 16, 4), count(64, 16, 2), count(64, 16, 0)] == [
        1,
        4,
        3,
        2,
        1,
    ]
    assert count(64, 8, 8, Nodes(2, 0, "h:1")) == 4


def test_lines_are_told_in_the_callers_context_and_all_are_read_whoever_fails_to_listen(tmp_path, monkeypatch):
    (tmp_path / "talker.py").write_text("for n in range(20000): print('line', n)")  # More than a pipe holds.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    place, heard = ContextVar("place"), []

    def listen(line):
        heard.append(place.get())
        raise RuntimeError(line)

    token = place.set("here")
    try:
        code, lines = follow("talker", [], Watch(line=listen), {})
    finally:
        place.reset(token)
    assert code == 0
    assert lines[-1] == "line 19999"
    assert set(heard) == {"here"}
