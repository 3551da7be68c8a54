"""A real stack to break: `maeflow up` on ports of its own, small runs of one stage, and who carries them.

Used by `tests/integration/test_faults.py` and `benchmarks/faults.py`.
"""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import httpx
import numpy as np
import psutil
from PIL import Image

MAEFLOW = str(Path(sys.executable).with_name("maeflow"))
STAGES = ("prepare", "pretrain", "finetune", "evaluate")
CHECKPOINT_SECONDS = 3.0
RECIPE = """# A small run that lasts, for faults
modality: image
seed: 0
data: {size: [16, 16], patch: [4, 4], channels: 1, eval_crop: 1}
model: {width: 48, depth: 2, heads: 3, decoder: {width: 32, depth: 1, heads: 2}}
pretrain: {epochs: 2, warmup_epochs: 1, batch: 32, validate_every: 1000, base_lr: 1.0e-3}
finetune: {epochs: 2, warmup_epochs: 1, batch: 32}
evaluate: {bootstrap: 100, label_efficiency: {labels_per_class: [5], seeds: [1], steps: 2, batch: 32}}
compute: {threads: 1, workers: 0, log_every: 5, checkpoint_seconds: 3, registry: false}
"""
CANCELLING = "prefect.flow-run.Cancelling"
BATCH = 32
IMAGES = 256


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_images(folder, count=IMAGES, seed=0):
    """Noise with a bright half, in class folders by the half."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(0, 120, (20, 20), dtype=np.uint8)
        half = number % 2
        pixels[:, 10 * half : 10 * half + 10] += 100
        place = folder / f"half{half}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:05d}.png", compress_level=1)
    return folder


def until(what, seconds, every=0.1):
    """The first true value of ``what``, and the seconds it took; (None, seconds) if there is none in time."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if found := what():
            return found, time.monotonic() - start
        time.sleep(every)
    return None, time.monotonic() - start


def kill_tree(pid, number=signal.SIGKILL):
    """Signal a process and all its descendants."""
    family = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    for member in family:
        try:
            member.send_signal(number)
        except psutil.NoSuchProcess:
            continue
    return family


class Stack:
    """`maeflow up` for one home, which hands out one pretended GPU unless told otherwise."""

    def __init__(self, home, ports=None, devices="0"):
        self.home = home
        self.ports = ports or (free_port(), free_port())
        own = {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}
        self.environment = own | {"MAEFLOW_DEVICES": devices, "OMP_NUM_THREADS": "1"}
        self.entered = ExitStack()

    def command(self, *words, check=True, timeout=240, **changes):
        """Run a command of maeflow's; gives its output."""
        done = subprocess.run(
            [*words, *(("--home", str(self.home)) if words[0] == MAEFLOW else ())],
            env=self.environment | changes,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        return done.stdout

    def up(self):
        prefect, mlflow = map(str, self.ports)
        self.command(MAEFLOW, "up", "--background", "--prefect-port", prefect, "--mlflow-port", mlflow)

    def down(self):
        self.command(MAEFLOW, "down", check=False)

    def connect(self):
        """Point this process at the stack, once it is up."""
        from infra import settings, stack

        settings.apply(self.home)
        assert stack.join(self.home)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        from infra.mlflow_runs import connect
        from infra.orchestrator import client

        # Prefect may have been imported, with another server, before.
        self.entered.enter_context(temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}))
        self.prefect = self.entered.enter_context(client())
        self.mlflow = connect(self.home)

    @property
    def state(self):
        return json.loads((self.home / "stack/stack.json").read_text())

    def pid(self, name):
        """Process of the supervisor or of one of its services."""
        state = self.state
        return state["supervisor"]["pid"] if name == "supervisor" else state["processes"][name]["pid"]

    def deploy(self, source):
        recipe = self.home.parent / "faults.yaml"
        recipe.write_text(RECIPE)
        self.command(MAEFLOW, "deploy", str(recipe), "--data", str(source))

    def start(self, stage=None, data=(), labelled=None, before=None, **sets):
        """Start a run of ``stage`` alone or, without one, of the whole pipeline, as `maeflow trigger` does."""
        from flows.triggering import changed

        name = f"image{f'-{stage}' if stage else ''}/faults"
        found = self.prefect.read_deployment_by_name(name)
        overrides = [f"{key}={value}" for key, value in sets.items()]
        parameters = changed(self.home, name, found, list(data), labelled, before, overrides)
        run = self.prefect.create_flow_run_from_deployment(found.id, parameters=parameters)
        return Run(self, str(run.id), stage or "pretrain")

    def slot_free(self):
        """Whether no stage holds the one GPU, by the lock in the home and by Prefect's count."""
        from infra.orchestrator import slot_name

        lock = self.home / "devices" / socket.gethostname() / "0.lock"
        if lock.exists():
            with lock.open("a") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
        return self.prefect.read_global_concurrency_limit_by_name(slot_name()).active_slots == 0


class Run:
    """A flow run and the stage of it that is looked at."""

    def __init__(self, stack, identity, stage):
        self.stack, self.id, self.stage = stack, identity, stage
        self.digest = None

    @property
    def state(self):
        return self.stack.prefect.read_flow_run(UUID(self.id)).state

    @property
    def flow_pid(self):
        return json.loads((self.stack.home / f"runs/flows/{self.id}.json").read_text())["pid"]

    def stage_pid(self):
        """The process of the stage, None while there is none."""
        try:
            family = psutil.Process(self.flow_pid).children(recursive=True)
        except (psutil.NoSuchProcess, FileNotFoundError, json.JSONDecodeError):
            return None
        for process in family:
            try:
                words = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if found := re.search(rf"core\.launch .*/{self.stage}-([0-9a-f]{{16}})-", words):
                self.digest = found[1]
                return process.pid
        return None

    @property
    def folder(self):
        from core.workspace import Home

        return Home(self.stack.home).stage(self.stage, self.digest).current

    def events(self, kind=None):
        try:
            lines = (self.folder / "events.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:  # Half written.
                continue
        return [e for e in events if kind is None or e["kind"] == kind]

    def underway(self, after=1.0, seconds=120):
        """Wait until the stage has a checkpoint and has worked ``after`` seconds beyond it; gives its process."""

        def reached():
            if self.stage_pid() is None:
                assert not self.state.is_final(), f"it ended too soon: {self.state}"
                return False
            saved = sorted((self.folder / "checkpoints").glob("step-*.pt"))
            return saved and time.time() - saved[-1].stat().st_mtime > after

        found, _ = until(reached, seconds)
        assert found, f"{self.stage} of {self.id} did not come under way: {self.state}\n{self.log()[-2000:]}"
        return self.stage_pid()

    def log(self):
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
        from prefect.client.schemas.sorting import LogSort

        about = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(self.id)]))
        return "\n".join(x.message for x in self.stack.prefect.read_logs(about, limit=200, sort=LogSort.TIMESTAMP_ASC))

    def reaches(self, *names, seconds=120):
        """Wait for a state; gives the seconds that took.

        A server that does not answer is asked again.
        """

        def there():
            try:
                return self.state.name in names
            except Exception:  # noqa: BLE001 - whatever a server that is away makes of it
                return False

        found, took = until(there, seconds, every=0.3)
        assert found, f"{self.id} is {self.state!r} and not {names} after {seconds} s:\n{self.log()[-3000:]}"
        return took

    def retry(self):
        self.stack.command(str(Path(MAEFLOW).with_name("prefect")), "flow-run", "retry", self.id, **self._address())

    def cancel(self):
        from prefect.states import Cancelling

        self.stack.prefect.set_flow_run_state(UUID(self.id), Cancelling(), force=True)

    def cancellations(self):
        """How many wishes to cancel it the server has kept as events, which takes it up to five seconds."""
        wanted = {"event": {"name": [CANCELLING]}, "resource": {"id": [f"prefect.flow-run.{self.id}"]}}
        answer = httpx.post(f"{os.environ['PREFECT_API_URL']}/events/filter", json={"filter": wanted}, timeout=30)
        return answer.raise_for_status().json()["total"]

    def hears(self, seconds, then=lambda: None):
        """How many wishes to cancel it somebody is told of who begins to listen now, as a new attempt does.

        ``then`` is called a second later.
        """
        from prefect.events.clients import get_events_subscriber
        from prefect.events.filters import EventFilter, EventNameFilter

        async def listen():
            heard = 0
            async with get_events_subscriber(filter=EventFilter(event=EventNameFilter(name=[CANCELLING]))) as events:
                asyncio.get_running_loop().call_later(1, then)
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        async for event in events:
                            heard += event.resource.id.endswith(self.id)
            return heard

        return asyncio.run(listen())

    def _address(self):
        return {k: os.environ[k] for k in ("PREFECT_API_URL", "PREFECT_HOME")}

    def mlflow_run(self, stage=None, what=None):
        """The MLflow run of the stage, or of the pipeline."""
        from infra.mlflow_runs import find_run

        return find_run(self.stack.mlflow, self.stack.home, stage or self.stage, f"{self.id}/{what or self.digest}")

    def lost(self):
        """(steps, seconds) done more than once, summed over all rewinds; seconds by the clock of the log."""
        lost, seen = [], {}
        for event in self.events():
            if event["kind"] == "rewind":
                back = event["step"]
                last, kept = max(seen, default=0), [step for step in seen if step <= back]
                if last > back:
                    lost.append((last - back, seen[last] - (seen[max(kept)] if kept else min(seen.values()))))
                seen = {step: seen[step] for step in kept}
            elif event["kind"] == "metrics":
                seen[event["step"]] = event["t"]
            elif event["kind"] == "progress" and event["unit"] == "samples":
                seen[event["done"] // BATCH] = event["t"]
        return sum(steps for steps, _ in lost), sum(seconds for _, seconds in lost)

    def resumed_at(self):
        """Steps after which the stage went on, each time that it began anew."""
        return [event["step"] for event in self.events("rewind")]

    def curve_faults(self):
        """What is wrong with the curves in MLflow, compared with the log of the stage after all its rewinds."""
        run = self.mlflow_run()
        if run is None:
            return ["no MLflow run"]
        wanted = {}
        for event in self.events("metrics"):
            for key, value in event["values"].items():
                wanted.setdefault(key, {})[event["step"]] = value
        wrong = []
        for key, points in wanted.items():
            steps = [point.step for point in self.stack.mlflow.get_metric_history(run.info.run_id, key)]
            if len(set(steps)) != len(steps):
                wrong.append(f"{key} has {len(steps) - len(set(steps))} steps twice")
            if missing := sorted(points.keys() - set(steps)):
                wrong.append(f"{key} lacks steps {missing[:5]}")
            if extra := sorted(set(steps) - points.keys()):
                wrong.append(f"{key} has steps {extra[:5]} that were never taken")
        loss = sorted(wanted.get(f"{self.stage}/loss") or wanted.get("train/loss") or next(iter(wanted.values()), {}))
        gaps = {b - a for a, b in pairwise(loss)}
        if len(gaps) > 2:
            wrong.append(f"uneven steps {sorted(gaps)}")
        return wrong if wanted else ["no curve at all"]


class Watchman(threading.Thread):
    """Looks at all stage processes of a home five times a second."""

    def __init__(self, home, every=0.2):
        super().__init__(daemon=True)
        self.home, self.every = str(home), every
        self.samples = 0
        self.together = {}
        """By digest, the most processes that worked at it at once; those that wait for its lock do not count."""
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(self.every):
            self.look()

    def look(self):
        holders = _lock_holders()
        found = {}
        for pid, (parent, digest) in _stage_processes(self.home).items():
            found.setdefault(digest, {})[pid] = parent
        self.samples += 1
        for digest, members in found.items():
            roots = [pid for pid, parent in members.items() if parent not in members]
            working = [pid for pid in roots if pid in holders or len(roots) == 1]
            self.together[digest] = max(self.together.get(digest, 0), len(working))

    def working(self, digest):
        """Processes that are there for ``digest`` now."""
        return [pid for pid, (_, found) in _stage_processes(self.home).items() if found == digest]

    def stop(self):
        self.ended.set()
        self.join()
        return {digest: count for digest, count in self.together.items() if count > 1}


def _stage_processes(home):
    """By number, (parent, digest) of each process that runs `core.launch` for ``home``."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "core.launch" not in words or not words[-2].startswith(home):
                continue
            parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            if Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
        except (OSError, IndexError):
            continue
        if digest := re.search(r"-([0-9a-f]{16})-", Path(words[-2]).name):
            found[int(entry.name)] = (parent, digest[1])
    return found


def _lock_holders():
    """Processes that hold a file lock which they did not have to wait for."""
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(row[4]) for row in rows if row[1] == "FLOCK"}
