"""Training in several processes gives what one gives, and saves and ends in good order however it is stopped."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from core import recipes
from core.config import ComputeConfig
from core.errors import StageLost, StagePreempted
from core.launch import run as run_here
from core.records import PreparedData, TunedModel, read_record, write_record
from core.request import StageRequest, WeightedInput
from core.stages import stage_function
from core.stages.work import Work
from core.tracking import NullTracker
from core.training import checkpoint
from core.workspace import Home
from infra.launchers import STOPPED, TorchrunLauncher, Watch, launcher_for

sys.path.insert(0, str(Path(__file__).parents[1]))
from broken_images import photo
from event_curves import curves

SETS = ["data.size=[16, 16]", "data.patch=[4, 4]", "data.channels=3", "model.width=24", "compute.device=cpu"]
SETS += ["pretrain.batch=16", "pretrain.micro_batch=4", "pretrain.drop_path=0.2", "pretrain.ema=0.9"]
SETS += ["finetune.batch=16", "finetune.micro_batch=8", "finetune.mixup=0.2", "compute.log_every=1"]
SHORT, ENDLESS = "pretrain.epochs=12", "pretrain.epochs=100000"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A home with prepared pictures in it."""
    root = tmp_path_factory.mktemp("together")
    for number in range(32):
        place = root / "photos" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        photo(number, (20, 20)).save(place / f"{number}.png")
    home = Home.create(root / "home")
    folder = home.stage("prepare", "d")
    folder.partial.mkdir(parents=True)
    recipe = recipes.load("image/tiny", SETS)
    record = stage_function("prepare")(recipe, str(root / "photos"), Work(home, "d", folder.partial, NullTracker()))
    write_record(record, folder.partial)
    folder.finish()
    return home, record


def pretraining(prepared, digest, *sets):
    home, data = prepared
    assert isinstance(data, PreparedData)
    recipe = recipes.load("image/tiny", [*SETS, *sets]).model_dump(mode="json")
    given = (WeightedInput(folder=data.folder),)
    return StageRequest(stage="pretrain", home=str(home.root), digest=digest, recipe=recipe, data=given)


def weights(home, digest, stage="pretrain", name="autoencoder.safetensors"):
    return load_file(home.stage(stage, digest).final / name)


def without_keys(name, value):
    """A parameter without the biases of keys: softmax ignores them, so their gradient is rounding errors alone."""
    if not name.endswith("qkv.bias"):
        return value
    query, _, values = value.chunk(3)
    return torch.cat([query, values])


def steps(home, digest):
    state = checkpoint.latest(home.stage("pretrain", digest).partial)
    return state["step"] if state else 0


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.003)


def alive(processes):
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def family(pid):
    """Torchrun, its ranks, and their loaders, as (torchrun, ranks, loaders)."""
    agent = psutil.Process(pid)
    ranks = agent.children()
    return agent, ranks, [child for rank in ranks for child in rank.children(recursive=True)]


class Started:
    """A stage that runs in a thread while the test does something to it."""

    def __init__(self, request, launcher=None):
        self.pids, self.lines, self.error = [], [], None
        self.home, self.digest = Home(Path(request.home)), request.digest
        self._watch = Watch(started=self.pids.append, line=self.lines.append)
        self._thread = threading.Thread(target=self._run, args=(launcher or TorchrunLauncher(2), request), daemon=True)
        self._thread.start()

    def _run(self, launcher, request):
        try:
            launcher.run(request, self._watch)
        except Exception as error:  # noqa: BLE001 - the test asks for it
            self.error = error

    @property
    def events(self):
        file = self.home.stage("pretrain", self.digest).partial / "events.jsonl"
        return file.read_text() if file.exists() else ""

    def trains(self, since=0):
        """Wait until there are new curves; gives the processes."""
        until(lambda: self.error or '"pretrain/loss"' in self.events[since:])
        assert self.error is None
        return family(self.pids[0])

    def ended(self):
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


def test_two_processes_train_what_one_trains_even_if_one_of_them_is_killed(prepared):
    home, _ = prepared
    run_here(pretraining(prepared, "one", SHORT), threading.Event(), lambda _: None)
    launcher_for("pretrain", ComputeConfig(processes=2), {}).run(pretraining(prepared, "two", SHORT), Watch())
    alone, together = weights(home, "one"), weights(home, "two")
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert torch.allclose(without_keys(name, value), without_keys(name, together[name]), rtol=0, atol=1e-6), name
    first, second = (curves(home.stage("pretrain", digest).final) for digest in ("one", "two"))
    assert first.keys() == second.keys()
    assert any(key == "pretrain/val_loss" for key, _ in first)
    assert first == pytest.approx(second, abs=1e-5)

    run = Started(pretraining(prepared, "killed", SHORT, "compute.checkpoint_seconds=1e-9"))
    until(lambda: steps(home, "killed") or run.error)
    _, ranks, _ = family(run.pids[0])
    ranks[1].kill()
    error = run.ended()
    assert isinstance(error, StageLost)
    assert "killed" in str(error)
    assert not isinstance(error, StagePreempted)
    assert not alive(ranks)
    assert 0 < steps(home, "killed") < 17
    again = pretraining(prepared, "killed", SHORT)
    TorchrunLauncher(2).run(again, Watch())
    resumed = weights(home, "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in together.items())
    assert curves(home.stage("pretrain", "killed").final) == second


@pytest.mark.long
def test_two_processes_tune_what_one_tunes(prepared):
    """Mixup and the weights that validate best included; only the first process writes."""
    home, data = prepared
    run_here(pretraining(prepared, "encoder", "pretrain.epochs=1"), threading.Event(), lambda _: None)
    for digest, run in (("one", run_here), ("two", lambda request, *_: TorchrunLauncher(2).run(request, Watch()))):
        request = pretraining(prepared, digest).model_copy(
            update={"stage": "finetune", "data": (), "encoder": "runs/pretrain/encoder", "labelled": data.folder}
        )
        run(request, threading.Event(), lambda _: None)
    one, two = (weights(home, digest, "finetune", "model.safetensors") for digest in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(without_keys(name, value), without_keys(name, two[name]), rtol=0, atol=1e-6), name
    first, second = (read_record(home.stage("finetune", digest).final, TunedModel) for digest in ("one", "two"))
    assert "finetune/val_top1" in first.metrics
    assert first.metrics == pytest.approx(second.metrics, abs=1e-5)


def test_signals_save_at_once_and_a_launcher_or_torchrun_that_dies_leaves_nobody(prepared):
    home, _ = prepared
    request = pretraining(prepared, "signals", ENDLESS, "compute.checkpoint_seconds=1e9", "compute.workers=1")

    def tell_torchrun(agent, ranks, loaders):
        agent.terminate()

    def tell_everybody(agent, ranks, loaders):
        for process in (*loaders, *ranks, agent):
            process.terminate()

    def kill_torchrun(agent, ranks, loaders):
        agent.kill()

    saved = 0
    for action, kind in ((tell_torchrun, StagePreempted), (tell_everybody, StagePreempted), (kill_torchrun, StageLost)):
        run = Started(request)
        since = len(run.events)
        agent, ranks, loaders = run.trains(since)
        assert len(ranks) == len(loaders) == 2
        assert not saved or f"continues after step {saved}" in run.events[since:]
        action(agent, ranks, loaders)
        error = run.ended()
        assert isinstance(error, kind), (action, error, run.lines)
        assert steps(home, "signals") > saved, action
        saved = steps(home, "signals")
        assert not alive([agent, *ranks])
        psutil.wait_procs(loaders, timeout=10)
        assert not alive(loaders)

    code = """
        import sys
        from core.request import StageRequest
        from infra.launchers import TorchrunLauncher, Watch
        request = StageRequest.model_validate_json(sys.stdin.read())
        TorchrunLauncher(2).run(request, Watch(started=lambda pid: print(pid, flush=True)))
    """
    since = len(run.events)
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    launcher.stdin.write(request.model_dump_json())
    launcher.stdin.close()
    pid = int(launcher.stdout.readline())
    until(lambda: '"pretrain/loss"' in run.events[since:])
    agent, ranks, loaders = family(pid)
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    psutil.wait_procs([agent, *ranks, *loaders], timeout=30)
    assert not alive([agent, *ranks, *loaders])
    assert steps(home, "signals") > saved


def machines(file):
    """Two on the loopback, each with its own launcher, that meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "infra.node", str(file), "--nodes", "2", "--processes", "1"]
    return [
        subprocess.Popen(
            [*command, "--rank", str(rank), "--rendezvous", f"127.0.0.1:{port}"],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (1, 0)
    ]


@pytest.mark.long
def test_two_machines_train_together_and_save_when_one_of_them_is_told_to_stop(prepared):
    home, _ = prepared
    file = home.root / "nodes.json"
    file.write_text(pretraining(prepared, "nodes", ENDLESS, "compute.checkpoint_seconds=1e9").model_dump_json())
    nodes = machines(file)
    events = home.stage("pretrain", "nodes").partial / "events.jsonl"
    until(lambda: events.exists() and '"pretrain/loss"' in events.read_text())
    nodes[0].terminate()
    said = [node.communicate(timeout=60)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [STOPPED, STOPPED], said
    assert steps(home, "nodes")

    file.write_text(pretraining(prepared, "short", SHORT).model_dump_json())
    nodes = machines(file)
    said = [node.communicate(timeout=90)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    run_here(pretraining(prepared, "whole", SHORT), threading.Event(), lambda _: None)
    whole, parts = weights(home, "whole"), weights(home, "short")
    for name, value in whole.items():
        assert torch.allclose(without_keys(name, value), without_keys(name, parts[name]), rtol=0, atol=1e-6), name


@pytest.mark.gpu
def test_gpus_give_what_one_gives(prepared):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    home, _ = prepared
    sets = (SHORT, "compute.device=cuda", "compute.deterministic=true")
    TorchrunLauncher(1).run(pretraining(prepared, "gpu", *sets), Watch())
    TorchrunLauncher(2).run(pretraining(prepared, "gpus", *sets), Watch())
    one, two = weights(home, "gpu"), weights(home, "gpus")
    assert all(torch.allclose(value, two[name], rtol=0, atol=1e-5) for name, value in one.items())
