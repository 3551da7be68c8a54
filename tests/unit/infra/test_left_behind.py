import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psutil
from prefect.states import Cancelling, Pending, Running

from infra import identity, reconcile, stack
from infra.orchestrator import left_to_worker, of_earlier_attempt, unheard

PARENT = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"


def test_what_a_killed_server_leaves_behind_is_ended():
    server = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        left = psutil.Process(int(server.stdout.readline()))
        handle = stack.Handle.of(server.pid)
        server.kill()
        server.wait()
        assert left.is_running()
        stack._end_left(handle)
        left.wait(10)
        assert not left.is_running()
        assert other.poll() is None
    finally:
        other.kill()
        server.stdout.close()


def test_a_flow_knows_when_its_worker_is_gone(tmp_path):
    worker = subprocess.Popen(["sleep", "60"])
    try:
        reconcile.register(tmp_path, "run", served=True)
        (own,) = reconcile.flow_processes(tmp_path)
        assert own.alive
        assert not own.orphaned
        about = json.loads(own.file.read_text())
        parent = {"parent": worker.pid, "parent_started": identity.made_at(worker.pid)}
        own.file.write_text(json.dumps(about | parent))
        assert not reconcile.flow_processes(tmp_path)[0].orphaned
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert reconcile.flow_processes(tmp_path)[0].orphaned
        assert reconcile.flow_processes(tmp_path)[0].alive
        own.file.write_text(json.dumps(about | parent | {"served": False}))
        assert not reconcile.flow_processes(tmp_path)[0].orphaned
    finally:
        worker.kill()


def test_a_flow_is_known_until_its_process_ends_and_strange_files_hold_nobody_up(tmp_path):
    code = (
        "import sys; from pathlib import Path; from infra import reconcile\n"
        "home = Path(sys.argv[1]); reconcile.register(home, 'run', served=True)\n"
        "print(len(reconcile.flow_processes(home)))"
    )
    for strange, text in (("a.json", "{}"), ("b.json", "no json")):
        file = tmp_path / "runs" / "flows" / strange
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
    assert reconcile.flow_processes(tmp_path) == []


def test_the_end_of_a_flow_is_told_by_its_living_worker_or_after_a_while(tmp_path):
    flow = reconcile.FlowProcess("run", "host", 1, 0.0, served=True, file=tmp_path / "run.json")
    mine = replace(flow, parent=os.getpid(), parent_started=identity.made_at(os.getpid()))
    gone = {}
    assert [left_to_worker(mine, gone, now) for now in (100.0, 129.0, 130.0)] == [True, True, False]
    assert not left_to_worker(replace(mine, parent_started=-1.0), {}, 100.0)  # Its worker is gone as well.
    assert not left_to_worker(replace(mine, served=False), {}, 100.0)


def test_a_retry_does_not_end_for_the_process_before_it(tmp_path):
    reconcile.register(tmp_path, "run", served=True)
    (flow,) = reconcile.flow_processes(tmp_path)
    known = datetime.fromtimestamp(flow.file.stat().st_mtime, UTC)
    before, after = known - timedelta(seconds=4), known + timedelta(seconds=4)
    assert not of_earlier_attempt(flow, Running(timestamp=before))
    assert of_earlier_attempt(flow, Running(timestamp=after))
    assert of_earlier_attempt(flow, Pending(timestamp=after))
    assert not of_earlier_attempt(flow, Cancelling(timestamp=after))


def test_a_cancellation_is_left_to_a_living_worker_for_a_minute(tmp_path):
    flow = reconcile.FlowProcess("run", "host", 1, 0.0, served=True, file=tmp_path / "run.json")
    mine = replace(flow, parent=os.getpid(), parent_started=identity.made_at(os.getpid()))
    assert [unheard(mine, seconds) for seconds in (0.0, 60.0, 61.0)] == [False, False, True]
    assert unheard(replace(mine, parent_started=-1.0), 0.0)  # Its worker is gone.
    assert not unheard(replace(mine, served=False), 61.0)
