"""Stage processes: what they say, how they end, and that none outlives its launcher."""

import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from core.errors import StageError, UserError
from core.request import StageRequest
from infra.launchers import SubprocessLauncher, Watch


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
