"""Shards that a Dask cluster writes are those of one process: whoever is killed on the way, and without a name told."""

import importlib.machinery
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from core import launch, recipes
from core.data.sources import listing
from core.digests import prepare_digest
from core.errors import UserError
from core.request import StageRequest
from core.workspace import Home
from flows import console, fanout

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from fanning import compare
from leaks import find
from test_private_sources import NEEDLES, folders, packages  # noqa: F401 - a fixture among them

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
SETS = ("data.size=[16,16]", "data.patch=[4,4]", "prepare.shard_items=32", "compute.threads=1")
COUNT, UNITS = 300, 16


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with a file for each of some hundred digits, one of them broken."""
    found, place = load_digits(), tmp_path_factory.mktemp("digits")
    for number in range(COUNT):
        folder = place / str(found.target[number])
        folder.mkdir(exist_ok=True)
        Image.fromarray((found.images[number] * 15).astype(np.uint8)).save(folder / f"{number}.png")
    (place / "0" / "broken.png").write_text("no image")
    return place


@pytest.fixture(scope="module")
def alone(digits, tmp_path_factory):
    """What one process makes of them, without a flow."""
    home, request = preparation(tmp_path_factory.mktemp("alone") / "home", digits)
    launch.run(request, threading.Event(), lambda _: None)
    return home.stage("prepare", request.digest).final


def preparation(root, source, *sets):
    """A home, and the request to prepare ``source`` in it."""
    recipe, source = recipes.load("image/tiny", [*SETS, *sets]), str(source)
    digest, values = prepare_digest(recipe, listing(source)), recipe.model_dump(mode="json")
    return Home.create(root), StageRequest(stage="prepare", home=str(root), digest=digest, recipe=values, source=source)


def start(home, recipe, source, *sets, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}
    command = [sys.executable, str(TESTS / "fanning.py"), str(home), recipe, str(source), *sets]
    command += [] if recipe.startswith("ward") else SETS
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=kept | variables, cwd=TESTS.parent
    )


def done(process):
    """The finished folder, once the process has said where it is."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    done.said = out
    return Path(out.splitlines()[-1].rpartition(": ")[2])


def wait_for(look, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


def family(process):
    return psutil.Process(process.pid).children(recursive=True)


def command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def writers(process):
    """The processes that write units now, without the one that plans."""
    return [p for p in family(process) if "core.units" in command(p) and len(command(p)) > 5]


def shards(home):
    return list((home / "prepared" / "shards").glob("*.json"))


def test_two_workers_give_the_same_bytes_even_if_one_of_them_is_killed(digits, alone, tmp_path):
    home = tmp_path / "home"
    process = start(home, "image/tiny", digits, "compute.dask=local:2")
    wait_for(lambda: writers(process))
    open_at = [c.laddr.ip for p in [psutil.Process(process.pid), *family(process)] for c in p.net_connections("inet")
               if c.status == psutil.CONN_LISTEN]  # fmt: skip
    assert set(open_at) == {"127.0.0.1"}
    assert sum("prefect.server" in " ".join(command(p)) for p in family(process)) == 1  # None of the workers' own.
    wait_for(lambda: shards(home))
    writer = wait_for(lambda: writers(process))[0]
    worker = writer.parent()
    assert "spawn_main" in " ".join(worker.cmdline())
    before = len(shards(home))
    worker.kill()
    psutil.wait_procs([writer, worker], timeout=10)
    assert not writer.is_running() or writer.status() == psutil.STATUS_ZOMBIE
    assert before < UNITS
    folder = done(process)
    assert f"{UNITS} of {UNITS} shards written" in done.said  # Another worker did what was left.
    assert "note:" not in done.said
    count, differing = compare(alone, folder)
    assert (count, differing) == (UNITS + 6, [])
    assert not list((home / "runs" / "units").iterdir())


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nobody_outlives_the_flow(digits, alone, tmp_path, number):
    home = tmp_path / "home"
    process = start(home, "image/tiny", digits, "compute.dask=local:2")
    writer = wait_for(lambda: writers(process))[0]
    # After kill -9 Prefect's own server is the watchdog's to end, which this flow has not asked for.
    servers = [p for p in family(process) if "prefect.server" in " ".join(command(p))]
    everybody = [p for p in family(process) if p not in servers]
    assert writer in everybody
    process.send_signal(number)
    _, alive = psutil.wait_procs(everybody, timeout=30)
    assert [command(p) for p in alive] == []
    process.wait(30)
    for server in servers:
        with suppress(psutil.NoSuchProcess):
            server.kill()
    assert process.returncode != 0
    again = start(home, "image/tiny", digits)
    assert compare(alone, done(again))[1] == []


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and a worker that somebody else has started: (address, the worker's process)."""
    dask, file = str(Path(sys.executable).with_name("dask")), tmp_path / "scheduler.json"
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([dask, "scheduler", "--port", "0", *common], stderr=subprocess.DEVNULL)
    worker = subprocess.Popen([dask, "worker", "--nthreads", "2", *common], stderr=subprocess.DEVNULL, cwd=TESTS.parent)
    yield wait_for(lambda: file.exists() and file.read_text()) and json.loads(file.read_text())["address"], worker
    for process in (worker, scheduler):
        process.terminate()
        process.wait(30)


@pytest.mark.long
def test_somebody_elses_cluster_is_left_without_a_process_and_gives_the_same_bytes(cluster, digits, alone, tmp_path):
    address, worker = cluster
    process = start(tmp_path / "home", "image/tiny", digits, f"compute.dask={address}")
    units = wait_for(lambda: writers(worker))
    process.send_signal(signal.SIGINT)
    assert psutil.wait_procs(units, timeout=20)[1] == []
    process.wait(30)
    time.sleep(1)
    assert writers(worker) == []  # What was waiting there is not begun.
    assert worker.poll() is None
    process = start(tmp_path / "home", "image/tiny", digits, f"compute.dask={address}")
    assert compare(alone, done(process))[1] == []
    assert "shards written" in done.said
    assert "note:" not in done.said


@pytest.mark.long
def test_a_private_source_leaks_nothing(packages, tmp_path):  # noqa: F811 - the fixture
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    scratch.mkdir()
    source = folders(tmp_path / NEEDLES[0] / "much")
    variables = {"PYTHONPATH": str(packages), "TMPDIR": str(scratch)}
    process = start(home, "ward/demo", source, "compute.dask=local:2", "prepare.shard_items=8", **variables)
    wait_for(lambda: writers(process))
    said = "\n".join(" ".join(command(p)) for p in family(process)).encode()  # Others see command lines.
    (plan,) = (home / "private").glob("units-*")
    assert len(find(plan, NEEDLES)) > 0  # Names are there, and nowhere else.
    assert plan.stat().st_mode & 0o077 == 0
    assert [p for p in plan.iterdir() if p.stat().st_mode & 0o077] == []
    assert find(home, NEEDLES, extra=[said]) == []
    folder = done(process)
    assert "shards written" in done.said
    assert find(home, NEEDLES, extra=[said, done.said.encode()]) == []
    assert find(scratch, NEEDLES) == []
    assert not list((home / "private").glob("units-*"))
    assert [p for p in (home / "prepared" / "shards").iterdir() if p.stat().st_mode & 0o007] == []
    first = {p.name: p.read_bytes() for p in (home / "prepared" / "shards").iterdir()}
    # The same home, and so the same secret, without the cluster.
    for path in [*(home / "prepared" / "shards").iterdir()]:
        path.unlink()
    folder.rename(tmp_path / "first")
    again = done(start(home, "ward/demo", source, "prepare.shard_items=8", **variables))
    assert compare(tmp_path / "first", again)[1] == []
    assert {p.name: p.read_bytes() for p in (home / "prepared" / "shards").iterdir()} == first


def warm(root, source, address):
    """Let the part of a flow that writes shards meet ``address``."""
    home, request = preparation(root, source, f"compute.dask={address}")
    token = console.CURRENT.set(console.for_terminal())
    try:
        fanout.warm_shards(SimpleNamespace(home=home, recipe=recipes.resolve(request.recipe, "of the test")), request)
    finally:
        console.CURRENT.reset(token)


def test_a_scheduler_that_is_not_there_is_the_users_error(digits, tmp_path):
    message = "compute.dask: no scheduler with workers at tcp://127.0.0.1:9"
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(UserError, match=message):
        warm(tmp_path / "home", digits, "tcp://127.0.0.1:9")


def test_without_the_extra_its_name_and_the_command_are_told(digits, tmp_path, monkeypatch):
    """The package is not there for Python's own search, as where it is not installed."""
    search = importlib.machinery.PathFinder.find_spec

    def find(name, path=None, target=None):
        return None if name.partition(".")[0] == "prefect_dask" else search(name, path, target)

    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", find)
    for name in [name for name in sys.modules if name.partition(".")[0] == "prefect_dask"]:
        monkeypatch.delitem(sys.modules, name)
    message = "compute.dask: local:2 needs the package prefect_dask; install it by `pip install"
    with pytest.raises(UserError, match=message):
        warm(tmp_path / "home", digits, "local:2")
