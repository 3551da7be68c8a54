"""A real stack whose parts die under a run: little work is lost, the end is told, and the next try goes on.

The whole table is `benchmarks/faults.py`; here are its most important rows, on one stack.
"""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from faulting import CHECKPOINT_SECONDS, Stack, Watchman, kill_tree, until, write_images

from core.workspace import Home

pytestmark = pytest.mark.slow

EPOCHS = 150
"""Ten seconds on a quick machine, in which a run is cancelled, and half a minute on a slow one."""
SLACK_SECONDS = 1.5
"""What a busy machine may add to an interval between two checkpoints."""


def prepared(stack, folder):
    """The source's prepared folder, made without a flow, which would take longer."""
    from core import digests, recipes
    from core.data.sources import listing
    from core.request import StageRequest
    from infra.launchers import SubprocessLauncher, Watch

    source = str(folder / "images")
    recipe = recipes.load(str(folder / "faults.yaml"))
    digest = digests.prepare_digest(recipe, listing(source), b"")
    values = recipe.model_dump(mode="json")
    request = StageRequest(stage="prepare", home=str(stack.home), digest=digest, recipe=values, source=source)
    SubprocessLauncher().run(request, Watch())
    return str(Home(stack.home).stage("prepare", digest).final)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A stack, what runs begin with, and who looks on; at the end no two processes may have worked at one digest."""
    root = tmp_path_factory.mktemp("faults")
    stack, kept = Stack(root / "home", devices="none"), dict(os.environ)
    watchman = Watchman(stack.home)
    try:
        stack.up()
        stack.deploy(write_images(root / "images"))
        stack.connect()
        watchman.start()
        yield stack, prepared(stack, root)
        assert not watchman.stop()
        assert watchman.samples > 20
    finally:
        watchman.ended.set()
        stack.entered.close()
        stack.down()
        os.environ.clear()
        os.environ.update(kept)


def begun(bench, seed, **sets):
    stack, folder = bench
    run = stack.start("pretrain", before=folder, **{"seed": seed, "pretrain.epochs": EPOCHS, **sets})
    run.underway(after=0.5)
    return run


def whole(run):
    """What holds of every run at its end."""
    steps, seconds = run.lost()
    assert seconds <= CHECKPOINT_SECONDS + SLACK_SECONDS, f"{steps} steps were lost"
    assert run.curve_faults() == []
    assert run.mlflow_run().info.status == "FINISHED"


def ended_in_mlflow(run, status, seconds=30):
    found, _ = until(lambda: run.mlflow_run().info.status == status, seconds)
    assert found, f"MLflow has {run.mlflow_run().info.status}"


def test_a_run_outlives_its_training_process_and_then_its_worker(bench):
    stack, _ = bench
    run = begun(bench, 1)
    worker = stack.pid("worker")
    os.kill(run.stage_pid(), signal.SIGKILL)
    again, _ = until(lambda: len(run.resumed_at()) == 2, 60)
    assert again, run.log()
    assert run.resumed_at()[1] > 0
    os.kill(worker, signal.SIGKILL)
    run.reaches("Completed")
    assert stack.pid("worker") != worker
    whole(run)


@pytest.mark.long
def test_a_preempted_tree_has_saved_at_the_signal(bench):
    run = begun(bench, 2, **{"compute.workers": 1})
    assert len(kill_tree(run.stage_pid(), signal.SIGTERM)) > 1
    run.reaches("Completed")
    assert len(run.resumed_at()) == 2
    assert run.lost()[0] == 0
    whole(run)


def test_cancelled_killed_and_retried_a_run_stays_one_run_with_whole_curves(bench):
    run = begun(bench, 3)
    first = run.mlflow_run().info.run_id
    pid = run.stage_pid()
    assert run.hears(3, then=run.cancel) == 1
    gone, took = until(lambda: not alive(pid), 30)
    assert gone, f"the stage is still there after {took:.0f} s"
    run.reaches("Cancelled", seconds=30)
    ended_in_mlflow(run, "KILLED")
    kept, _ = until(run.cancellations, 30)
    assert kept
    assert run.hears(2) == 0, "a retry would be told of the cancellation before it, and end"
    run.retry()
    resumed, _ = until(lambda: len(run.resumed_at()) == 2, 60)
    assert resumed, run.log()
    os.kill(run.flow_pid, signal.SIGKILL)
    run.reaches("Crashed", seconds=30)
    run.retry()  # While Prefect's worker is still busy with the end of the attempt before.
    run.reaches("Completed")
    assert run.lost()[0] == 0
    assert all(run.resumed_at()[1:])
    assert run.mlflow_run().info.run_id == first
    whole(run)


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.long
def test_the_end_of_a_run_whose_worker_was_stopped_is_told(bench):
    stack, _ = bench
    run = begun(bench, 4)
    os.kill(stack.pid("worker"), signal.SIGTERM)
    run.reaches("Crashed", seconds=60)
    assert "retry" in run.state.message
    ended_in_mlflow(run, "KILLED")
    assert run.lost()[0] == 0


@pytest.mark.long
def test_a_run_is_cancelled_although_its_worker_does_not_hear_of_it(bench):
    stack, _ = bench
    run = begun(bench, 5, **{"pretrain.epochs": 600})
    flow, worker = run.flow_pid, psutil.Process(stack.pid("worker"))
    worker.suspend()
    try:
        run.cancel()
        gone, took = until(lambda: not alive(flow), 120)
        assert gone, f"its process is still there after {took:.0f} s"
        assert took > 30, "the worker heard of it"
        run.reaches("Cancelled", seconds=30)
        assert "did not hear" in run.state.message
        ended_in_mlflow(run, "KILLED")
        assert run.lost()[0] == 0
    finally:
        worker.resume()


def test_more_gpus_than_prefect_hands_out_are_refused_and_not_waited_for(bench):
    from core.errors import UserError
    from flows.admission import _never_more
    from infra.orchestrator import client, ensure_slots, slot_name

    with client() as prefect:
        ensure_slots(prefect, 1)
        try:
            _never_more(1)
            with pytest.raises(UserError, match=r"asks for 2 GPUs, and Prefect's concurrency limit .* is 1"):
                _never_more(2)
        finally:
            ensure_slots(prefect, 0)
        assert slot_name() not in {limit.name for limit in prefect.read_global_concurrency_limits(limit=10, offset=0)}
    _never_more(2)
