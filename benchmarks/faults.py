"""What becomes of a run when something dies under it, and how much work that costs.

Starts a stack (`maeflow up`) that hands out one pretended GPU, deploys a small recipe, breaks one thing in each row
while a real run is at work, and lets Prefect's own retry, or the next trigger, go on with it. Five times a second it
looks at all stage processes: no two may ever work at one digest. Rows of full disks mount a tmpfs and need root.

    python benchmarks/faults.py [--rows WORD ...] [--list] [--folder FOLDER] [--prefect-port N --mlflow-port N]
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from faulting import CHECKPOINT_SECONDS, STAGES, Run, Stack, Watchman, kill_tree, until, write_images

LIMIT_SECONDS = 120.0
"""In which every state has to be right and every slot free."""
CANCEL_SECONDS = 30.0
"""In which a cancelled stage has to be saved and gone."""
SLACK_SECONDS = 1.0
"""What the clock of the curves, five steps apart, and one write of a checkpoint may add to the work lost."""
OUTAGE_SECONDS = 30.0
END_SECONDS = 480.0
"""In which a run that goes on has to complete, on a machine that others use as well."""
SHORT, LONG = 20.0, 75.0
"""Seconds that training lasts in a run to kill, and in one to outlast an outage, by the speed of the run before."""
STEPS_PER_EPOCH = 6
ON_GPU = ("pretrain", "finetune", "evaluate")
"""Stages that take the slot."""


@dataclass
class Row:
    """What was seen; ``faults`` is what should not have been."""

    fault: str
    states: str = ""
    seconds: float | None = None
    free: float | None = None
    lost: str = ""
    continued: str = ""
    faults: list[str] = field(default_factory=list)

    def expect(self, right: object, what: str) -> None:
        if not right:
            self.faults.append(what)


@dataclass
class Bench:
    """The stack and what rows begin with."""

    stack: Stack
    folders: dict[str, str] = field(default_factory=dict)
    seed: int = 100
    speed: float = 60.0
    """Steps a second."""

    row: Row | None = None
    """The one at work, for what it has seen when it cannot be finished."""

    def begin(self, name: str) -> Row:
        self.row = Row(name)
        return self.row

    def epochs(self, seconds: float) -> int:
        return max(10, round(seconds * self.speed / STEPS_PER_EPOCH))

    def learn(self, run: Run) -> None:
        """Note how fast a run that has ended was: other work on this machine comes and goes."""
        if rates := [e["per_second"] for e in run.events("progress") if e["per_second"]]:
            self.speed = min(100.0, max(30.0, rates[-1] / 32))

    def run(self, stage: str, seconds: float = SHORT, **sets: object) -> Run:
        """A run of one stage whose work nobody has done yet, and which trains for about ``seconds``."""
        self.seed += 1
        given: dict[str, object] = {"seed": self.seed}
        before = {"pretrain": "prepare", "finetune": "pretrain", "evaluate": "finetune"}[stage]
        if stage in ("pretrain", "finetune"):
            given[f"{stage}.epochs"] = self.epochs(seconds)
        run: Run = self.stack.start(stage, before=self.folders[before], **{**given, **sets})
        return run


Break = Callable[[Bench, Run], None]


def main() -> int:
    options = arguments()
    chosen = list(dict.fromkeys(row for word in options.rows or [""] for row in ROWS if word in row))
    if options.list:
        print("\n".join(chosen))
        return 0
    root = Path(options.folder or tempfile.mkdtemp(prefix="maeflow-faults-"))
    stack = Stack(root / "home", (options.prefect_port, options.mlflow_port))
    rows: list[Row] = []
    watchman = Watchman(stack.home)
    with mounted(stack.home, keep=options.keep):
        try:
            bench = Bench(stack, seed=options.seed)
            prepare_bench(bench, root)
            watchman.start()
            for name in chosen:
                rows.append(guarded(name, bench))
                print(line(rows[-1]), flush=True)
        finally:
            if not options.keep:
                stack.down()
    twice = watchman.stop()
    return report(rows, twice, watchman, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=[], help="rows whose names hold one of these words; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument("--folder", help="where the home is made; default: a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the stack running, for the next call with --folder")
    parser.add_argument("--seed", type=int, default=100, help="the first run has the seed after this one")
    parser.add_argument("--prefect-port", type=int, default=4410)
    parser.add_argument("--mlflow-port", type=int, default=5410)
    return parser.parse_args()


class mounted:  # noqa: N801 - used as a context manager, like a function
    """Inside, the home is a file system of its own that can be filled, where this user may mount one."""

    def __init__(self, home: Path, *, keep: bool) -> None:
        self.home, self.keep = home, keep
        self.done = False

    def __enter__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if os.path.ismount(self.home):
            return
        command = ["mount", "-t", "tmpfs", "-o", "size=1500m", "maeflow-faults", str(self.home)]
        self.done = os.getuid() == 0 and not subprocess.run(command, check=False, capture_output=True).returncode

    def __exit__(self, *_: object) -> None:
        if self.done and not self.keep:
            subprocess.run(["umount", "-l", str(self.home)], check=False)


def prepare_bench(bench: Bench, root: Path) -> None:
    """Start the stack and run the pipeline once, for the folders that other rows begin with."""
    start = time.monotonic()
    known = bench.stack.home / "bench.json"
    bench.stack.up()
    if not known.exists():
        bench.stack.deploy(write_images(root / "images"))
    bench.stack.connect()
    if not known.exists():
        run = bench.stack.start()
        run.reaches("Completed", seconds=END_SECONDS)
        known.write_text(json.dumps({stage: folder_of(bench, stage) for stage in STAGES}))
    bench.folders |= json.loads(known.read_text())
    print(f"stack, deployment and one pipeline: {time.monotonic() - start:.0f} s", flush=True)


def folder_of(bench: Bench, stage: str) -> str:
    parent = bench.stack.home / ("prepared" if stage == "prepare" else f"runs/{stage}")
    return str(next(p for p in parent.iterdir() if p.is_dir() and len(p.name) == 16))


def guarded(name: str, bench: Bench) -> Row:
    """A row; what breaks it is its fault, and the next begins with a whole stack."""
    bench.row = None
    try:
        row = ROWS[name](bench, name)
    except Exception as error:  # noqa: BLE001 - a row that cannot be finished is a finding
        traceback.print_exc()
        row = bench.row or Row(name)
        row.faults.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    settle(bench, row)
    return row


def settle(bench: Bench, row: Row) -> None:
    """Nothing may be left running."""
    from infra.orchestrator import unfinished

    def quiet() -> bool:
        with suppress(Exception):
            return not unfinished() and bool(bench.stack.slot_free())
        return False

    found, _ = until(quiet, LIMIT_SECONDS, every=0.5)
    row.expect(found, f"left behind: {unfinished()}")


# Faults that end a run, which is then retried.


def ended(
    bench: Bench, name: str, hurt: Break, states: tuple[str, str], *, stage: str = "pretrain", **sets: Any
) -> Row:
    """Hurt a run so that it ends in ``states`` (Prefect, MLflow), then retry it."""
    row, run = bench.begin(name), bench.run(stage, **sets)
    run.underway(seconds=END_SECONDS)
    hurt(bench, run)
    start = time.monotonic()
    watch_end(bench, run, row, start, states)
    retried(run, row)
    bench.learn(run)
    return row


def watch_end(bench: Bench, run: Run, row: Row, start: float, states: tuple[str, str]) -> None:
    """When the states were right and the slot free."""
    seen = ("", "")
    while time.monotonic() - start < LIMIT_SECONDS and (row.seconds is None or row.free is None):
        if row.seconds is None:
            found = run.mlflow_run()
            seen = (run.state.name, found.info.status if found else "none")
            row.seconds = time.monotonic() - start if seen == states else None
        if row.free is None and bench.stack.slot_free() and not Watchman(bench.stack.home).working(run.digest):
            row.free = time.monotonic() - start
        time.sleep(0.3)
    row.states = " / ".join(seen)
    row.expect(row.seconds is not None, f"is {seen}, not {states}, after {LIMIT_SECONDS:.0f} s")
    row.expect(row.free is not None, f"slot not free after {LIMIT_SECONDS:.0f} s")
    row.expect(not (state := run.state).is_final() or state.name == "Cancelled" or state.message, "no message")


def retried(run: Run, row: Row) -> None:
    """Prefect's own retry goes on in the same flow run, the same MLflow run and the same curves."""
    before = run.mlflow_run()
    run.retry()
    run.reaches("Completed", seconds=END_SECONDS)
    after = run.mlflow_run()
    row.expect(before and after and before.info.run_id == after.info.run_id, "the retry has another MLflow run")
    completed(run, row, "retry, same flow run and MLflow run")


def completed(run: Run, row: Row, how: str) -> None:
    """What holds of every run that has come to its end: little lost, curves whole."""
    steps, seconds = run.lost()
    row.lost = f"{steps} steps, {seconds:.1f} s"
    row.expect(seconds <= CHECKPOINT_SECONDS + SLACK_SECONDS, f"lost {seconds:.1f} s")
    resumed = run.resumed_at()
    row.continued = f"{how}: from step {', '.join(map(str, resumed[1:]))}" if len(resumed) > 1 else f"{how}: unhurt"
    row.expect(all(resumed[1:]), "started over")
    found, took = until(lambda: status_of(run) == "FINISHED", LIMIT_SECONDS)
    row.expect(found, f"MLflow has {status_of(run)} at the end")
    row.continued += f"; MLflow {took:.0f} s later" if took > 1 else ""
    row.faults += run.curve_faults()


def kill_flow(bench: Bench, run: Run) -> None:
    os.kill(run.flow_pid, signal.SIGKILL)


def stop_worker(bench: Bench, run: Run) -> None:
    os.kill(bench.stack.pid("worker"), signal.SIGTERM)


def cancel(bench: Bench, run: Run) -> None:
    run.cancel()


def cancel_orphan(bench: Bench, run: Run) -> None:
    """Its worker is killed first; the next one knows nothing of the run."""
    kill_worker(bench, run)
    time.sleep(3)
    run.cancel()


# Faults that a run survives.


def survived(bench: Bench, name: str, hurt: Break, *, seconds: float = SHORT, **sets: Any) -> Row:
    """Hurt a run that has to complete by itself; right is it when it trains again."""
    row, run = bench.begin(name), bench.run("pretrain", seconds, **sets)
    run.underway(seconds=END_SECONDS)
    hurt(bench, run)
    last = time.time()
    found, row.seconds = until(lambda: over(run) or any(e["t"] > last for e in run.events("metrics")), LIMIT_SECONDS)
    row.expect(found, "does not train again")
    row.states = f"{state_of(run)} / {status_of(run)}, then "
    run.reaches("Completed", seconds=END_SECONDS)
    row.states += f"Completed / {status_of(run)}"
    freed, row.free = until(bench.stack.slot_free, LIMIT_SECONDS)
    row.expect(freed, "slot not free")
    completed(run, row, "by itself")
    bench.learn(run)
    return row


def over(run: Run) -> bool:
    return state_of(run) == "Completed"


def state_of(run: Run) -> str:
    with suppress(Exception):
        return str(run.state.name)
    return "no answer"


def status_of(run: Run) -> str:
    with suppress(Exception):
        return str(run.mlflow_run().info.status)
    return "no answer"


def kill_worker(bench: Bench, run: Run) -> None:
    os.kill(bench.stack.pid("worker"), signal.SIGKILL)


def kill_training(bench: Bench, run: Run) -> None:
    os.kill(run.stage_pid(), signal.SIGKILL)


def preempt(bench: Bench, run: Run) -> None:
    """As a cluster ends a job: SIGTERM to every process of it, loader workers among them."""
    kill_tree(run.stage_pid(), signal.SIGTERM)


def outage(service: str) -> Break:
    """A server is killed and stays away; its supervisor, which would start it at once, is held."""

    def hurt(bench: Bench, run: Run) -> None:
        supervisor, server = bench.stack.pid("supervisor"), bench.stack.pid(service)
        os.kill(supervisor, signal.SIGSTOP)
        kill_tree(server)
        time.sleep(OUTAGE_SECONDS)
        os.kill(supervisor, signal.SIGCONT)

    return hurt


def full(bench: Bench, run: Run) -> None:
    """Fill the home's disk, databases of both servers and all, until the stage has noticed; then make room."""
    ballast = bench.stack.home / "ballast"
    with ballast.open("wb") as out, suppress(OSError):
        while True:
            out.write(bytes(1 << 20))
    with ballast.open("ab", buffering=0) as out, suppress(OSError):
        while True:
            out.write(b"0")
    pid = run.stage_pid()
    until(lambda: pid is None or not psutil.pid_exists(pid), 30)
    time.sleep(8)
    ballast.unlink()


def supervisor_killed(bench: Bench, name: str) -> Row:
    """`maeflow up` killed; the next one takes over what runs, and the run sees nothing of it."""
    before = {service: bench.stack.pid(service) for service in ("prefect", "mlflow", "worker")}

    def hurt(bench: Bench, run: Run) -> None:
        os.kill(bench.stack.pid("supervisor"), signal.SIGKILL)
        bench.stack.up()

    row = survived(bench, name, hurt)
    after = {service: bench.stack.pid(service) for service in before}
    row.expect(before == after, "the next `maeflow up` did not take over the processes")
    return row


# The others.


def cancelled(stage: str) -> Callable[[Bench, str], Row]:
    def row(bench: Bench, name: str) -> Row:
        sets: dict[str, Any] = {"compute.workers": 1} if stage in ("pretrain", "finetune") else {}
        made = ended(bench, name, cancel, ("Cancelled", "KILLED"), stage=stage, **sets)
        made.expect(made.free is not None and made.free <= CANCEL_SECONDS, f"gone after {made.free} s")
        return made

    return row


def in_units(stage: str) -> Callable[[Bench, str], Row]:
    """Cancelled in a stage that works in units, each kept in a file: shards, cells."""

    def row(bench: Bench, name: str) -> Row:
        made, run = bench.begin(name), start_units(bench, stage)
        files = units_of(bench, run, stage)
        known = set(files()) if stage == "prepare" else set()
        found, _ = until(lambda: run.stage_pid() and len(set(files()) - known) >= 2, END_SECONDS)
        made.expect(found, f"{stage} did not come under way: {run.state}")
        run.cancel()
        start = time.monotonic()
        watch_end(bench, run, made, start, ("Cancelled", "KILLED"))
        made.expect(made.free is not None and made.free <= CANCEL_SECONDS, f"gone after {made.free} s")
        kept = {file.name: file.stat().st_mtime_ns for file in set(files()) - known}
        run.retry()
        run.reaches("Completed", seconds=END_SECONDS)
        whole = {file.name: file.stat().st_mtime_ns for file in set(files()) - known}
        same = [name for name, written in kept.items() if whole.get(name) == written]
        made.expect(len(same) == len(kept), "work was done again")
        made.expect(len(whole) > len(kept), "it was over before it was cancelled")
        made.lost = f"{len(kept) - len(same)} {'shards' if stage == 'prepare' else 'cells'}, the one in hand aside"
        made.continued = f"retry, same flow run: kept {len(same)} of {len(whole)}"
        made.expect(status_of(run) == "FINISHED", f"MLflow has {status_of(run)} at the end")
        return made

    return row


def start_units(bench: Bench, stage: str) -> Run:
    if stage == "evaluate":
        cells = "evaluate.label_efficiency"
        return bench.run(stage, **{f"{cells}.steps": 150, f"{cells}.seeds": "[1,2,3,4,5]"})
    bench.seed += 1
    source = write_images(bench.stack.home.parent / f"many-{bench.seed}", 6000, seed=bench.seed)
    run: Run = bench.stack.start(stage, data=[str(source)], **{"prepare.shard_items": 200})
    return run


def units_of(bench: Bench, run: Run, stage: str) -> Callable[[], list[Path]]:
    """Lists the files of finished units."""
    if stage == "prepare":
        return lambda: list((bench.stack.home / "prepared/shards").glob("*.json"))
    return lambda: list(run.folder.glob("cells/*.json")) if run.digest else []


def one_slot(bench: Bench, name: str) -> Row:
    """Two whole pipelines want the one GPU; when each of their stages worked, its log tells."""
    row, runs = bench.begin(name), list[Run]()
    for _ in range(2):
        bench.seed += 1
        epochs = {"pretrain.epochs": bench.epochs(SHORT / 2), "finetune.epochs": bench.epochs(SHORT / 4)}
        runs.append(bench.stack.start(**{"seed": bench.seed, **epochs}))
    start = time.monotonic()
    for run in runs:
        run.reaches("Completed", seconds=END_SECONDS)
    row.seconds = time.monotonic() - start
    row.expect(any("waiting for a GPU" in run.log() for run in runs), "nobody was seen to wait")
    stages = [stage_of(bench, run, stage) for run in runs for stage in ON_GPU]
    spans = sorted((min(times), max(times)) for one in stages if (times := [event["t"] for event in one.events()]))
    row.expect(len(spans) == len(stages), "a stage has no log")
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    row.expect(min(gaps) >= 0, f"two stages worked at once: {spans}")
    row.states = f"Completed / {status_of(stages[0])}, twice"
    row.lost = "nothing"
    row.continued = f"{len(spans)} stages one after the other, {min(gaps):.1f} s apart or more; logs say who waits"
    freed, row.free = until(bench.stack.slot_free, LIMIT_SECONDS)
    row.expect(freed, "slot not free")
    row.faults += [fault for one in stages if one.stage != "evaluate" for fault in one.curve_faults()]
    return row


def stage_of(bench: Bench, run: Run, stage: str) -> Run:
    """A finished stage of a pipeline's run."""
    one = Run(bench.stack, run.id, stage)
    one.digest = newest(bench, run, stage).data.tags["maeflow.digest"]
    return one


def missed(bench: Bench, name: str) -> Row:
    """A schedule falls due while the stack is down."""
    from prefect.client.schemas.schedules import IntervalSchedule

    row, stack = bench.begin(name), bench.stack
    due = datetime.now(UTC) + timedelta(seconds=90)  # The scheduler looks once a minute.
    found = stack.prefect.read_deployment_by_name("image/faults")
    schedule = IntervalSchedule(interval=timedelta(days=1), anchor_date=due)
    made = stack.prefect.create_deployment_schedules(found.id, [(schedule, True)])
    waiting, _ = until(lambda: scheduled(bench), 75, every=0.5)
    row.expect(waiting, "Prefect has not scheduled a run")
    stack.down()
    row.expect(datetime.now(UTC) < due, "the stack went down too late")
    time.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds() + 5))
    start = time.monotonic()
    stack.up()
    stack.connect()
    run = Run(stack, waiting, "pretrain")
    run.reaches("Completed", seconds=END_SECONDS)
    row.seconds = time.monotonic() - start
    row.states = f"Completed / {run.mlflow_run('pipeline', 'pipeline').info.status}"
    stack.prefect.delete_deployment_schedule(found.id, made[0].id)
    late = time.time() - due.timestamp()
    row.lost, row.continued = "nothing", f"run {late:.0f} s late, when the stack was up again"
    freed, row.free = until(stack.slot_free, LIMIT_SECONDS)
    row.expect(freed, "slot not free")
    return row


def scheduled(bench: Bench) -> str | None:
    """The next run that a schedule has made."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    kind = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    runs = bench.stack.prefect.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=kind), sort=FlowRunSort.EXPECTED_START_TIME_ASC
    )
    return str(runs[0].id) if runs else None


def whole_pipeline(bench: Bench, name: str) -> Row:
    """A whole pipeline whose flow is killed while it fine-tunes, then retried: finished stages are left alone."""
    bench.seed += 1
    sets = {"seed": bench.seed, "finetune.epochs": bench.epochs(SHORT)}
    row, run = bench.begin(name), bench.stack.start(**sets)
    run.stage = "finetune"
    run.underway(seconds=END_SECONDS)
    kill_flow(bench, run)
    watch_end(bench, run, row, time.monotonic(), ("Crashed", "KILLED"))
    ids = {stage: one.info.run_id for stage in STAGES if (one := newest(bench, run, stage))}
    retried(run, row)
    flow = bench.stack.prefect.read_flow_run(UUID(run.id))
    row.expect(flow.run_count == 2, f"run count is {flow.run_count}")
    for stage, identity in ids.items():
        one = newest(bench, run, stage)
        row.expect(one.info.run_id == identity, f"{stage} has another MLflow run")
        row.expect(one.info.status == "FINISHED", f"{stage} is {one.info.status}")
    row.faults += stage_of(bench, run, "pretrain").curve_faults()
    return row


def newest(bench: Bench, run: Run, stage: str) -> Any:
    from infra.mlflow_runs import experiment

    place = experiment(bench.stack.mlflow, bench.stack.home, stage)
    query = f"tags.`prefect.flow_run_id` = '{run.id}'"
    return next(iter(bench.stack.mlflow.search_runs([place], filter_string=query, max_results=1)), None)


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "kill -9 worker": lambda b, n: survived(b, n, kill_worker),
    "kill -9 flow process": lambda b, n: ended(b, n, kill_flow, ("Crashed", "KILLED")),
    "kill -9 training process": lambda b, n: survived(b, n, kill_training),
    "SIGTERM training, whole tree, 1 loader worker": lambda b, n: survived(b, n, preempt, **{"compute.workers": 1}),
    "SIGTERM worker": lambda b, n: ended(b, n, stop_worker, ("Crashed", "KILLED")),
    "cancel in prepare": in_units("prepare"),
    "cancel in pretrain": cancelled("pretrain"),
    "cancel in finetune": cancelled("finetune"),
    "cancel after kill -9 of its worker": lambda b, n: ended(b, n, cancel_orphan, ("Cancelled", "KILLED")),
    "cancel in evaluate": in_units("evaluate"),
    "Prefect server down for 30 s": lambda b, n: survived(b, n, outage("prefect"), seconds=LONG),
    "MLflow server down for 30 s": lambda b, n: survived(b, n, outage("mlflow"), seconds=LONG),
    "home's disk full": lambda b, n: survived(b, n, full, seconds=LONG),
    "two pipelines, one GPU slot": one_slot,
    "kill -9 flow of a whole pipeline, retry": whole_pipeline,
    "kill -9 supervisor, up again": supervisor_killed,
    "schedule missed while down": missed,
}


def line(row: Row) -> str:
    seconds, free = (f"{value:.1f}" if value is not None else "-" for value in (row.seconds, row.free))
    verdict = "ok" if not row.faults else "WRONG: " + "; ".join(row.faults)
    where = f"{row.fault:45s} {row.states:42s} {seconds:>6s} {free:>6s}"
    return f"{where}  {row.lost:34s} {row.continued}  [{verdict}]"


def report(rows: list[Row], twice: dict[str, int], watchman: Watchman, options: argparse.Namespace) -> int:
    packages = ", ".join(f"{name} {version(name)}" for name in ("prefect", "mlflow", "torch"))
    print(f"\npython {' '.join(['benchmarks/faults.py', *sys.argv[1:]])}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores with a load of {os.getloadavg()[2]:.0f}"
    print(f"{machine}, Python {platform.python_version()}, {packages}, {time.strftime('%Y-%m-%d')}")
    print(f"seeds from {options.seed + 1}")
    print(f"checkpoint_seconds={CHECKPOINT_SECONDS:.0f}; seconds count from the fault, an outage aside\n")
    columns = f"{'fault':45s} {'Prefect flow run / MLflow stage run':42s} {'right':>6s} {'free':>6s}"
    print("\n".join([f"{columns}  {'work lost':34s} continued", *map(line, rows)]))
    wrong = sum(bool(row.faults) for row in rows)
    print(f"\n{len(rows)} faults, {wrong} of them wrong")
    print(f"digests that two processes worked at: {len(twice)}, in {watchman.samples} looks at all processes")
    return 1 if wrong or twice else 0


if __name__ == "__main__":
    sys.exit(main())
