"""What a server and a worker add: the same stages by `maeflow run` and through a deployment, in turns.

Every round gets a fresh copy of the data and a seed of its own, so that nothing is reused; both ways run in one home
whose databases exist. Phases are read from the clocks of runs: MLflow's for stages, Prefect's for the end.
Then the last pipeline is triggered again, finished as it is: a run in which nothing is left to do.

    python benchmarks/orchestration_cost.py --home FOLDER [--rounds 5]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from walking import digits

RECIPE, STAGES = "image/tiny", ("prepare", "pretrain", "finetune", "evaluate")
COMMAND = [sys.executable, "-P", "-m", "flows.cli"]
PHASES = ("until the first stage", *STAGES, "after the last stage", "whole")


def maeflow(home: Path, *words: str) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run([*COMMAND, *words, "--home", str(home)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stdout}{done.stderr}")
    return done.stdout


def settings(number: int) -> list[str]:
    return ["--set", f"seed={number}", "--set", "compute.threads=1"]


def stage_times(home: Path, since: float) -> dict[str, tuple[float, float]]:
    """Begin and end of the newest run of each stage, seconds since the epoch."""
    from mlflow import MlflowClient

    client, times = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db"), {}
    for stage in STAGES:
        place = client.get_experiment_by_name(f"maeflow/{stage}").experiment_id
        run = client.search_runs([place], order_by=["attributes.start_time DESC"], max_results=1)[0]
        times[stage] = (run.info.start_time / 1000, run.info.end_time / 1000)
        assert times[stage][0] > since
    return times


def phases(start: float, end: float, times: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Seconds of each phase of a pipeline."""
    # A tuned model is logged to its run while the next stage works: where a stage ends, the next begins.
    begins = [*(times[stage][0] for stage in STAGES), times["evaluate"][1]]
    spent = {stage: after - before for stage, (before, after) in zip(STAGES, pairwise(begins), strict=True)}
    return {
        "until the first stage": begins[0] - start,
        **spent,
        "after the last stage": end - begins[-1],
        "whole": end - start,
    }


def by_command(home: Path, source: Path, number: int) -> dict[str, float]:
    start = time.time()
    maeflow(home, "run", RECIPE, "--data", str(source), *settings(number))
    end = time.time()
    return phases(start, end, stage_times(home, start))


def by_deployment(home: Path, source: Path, number: int) -> dict[str, float]:
    start = time.time()
    maeflow(home, "trigger", f"{RECIPE}", "--data", str(source), *settings(number), "--watch")
    return phases(start, completed_at(), stage_times(home, start))


def completed_at() -> float:
    """When the newest flow run reached its final state."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        state = client.read_flow_run(UUID(str(run.id))).state
    assert state.is_completed()
    return float(state.timestamp.timestamp())


def table(command: list[dict[str, float]], deployment: list[dict[str, float]]) -> str:
    """Medians, and the range of the differences of the pairs."""
    lines = [f"{'seconds, median':24s} {'maeflow run':>12s} {'deployment':>12s} {'difference (range)':>26s}"]
    for phase in PHASES:
        a, b = [one[phase] for one in command], [one[phase] for one in deployment]
        apart = sorted(y - x for x, y in zip(a, b, strict=True))
        spread = f"{statistics.median(apart):+.1f} ({apart[0]:+.1f} to {apart[-1]:+.1f})"
        lines.append(f"{phase:24s} {statistics.median(a):12.1f} {statistics.median(b):12.1f} {spread:>26s}")
    return "\n".join(lines)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--ports", type=int, nargs=2, default=(4240, 5240))
    options = parser.parse_args()
    home, ports = options.home.absolute(), options.ports
    os.environ |= {"PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    api = os.environ.pop("PREFECT_API_URL")
    maeflow(home, "run", RECIPE, "--data", str(digits(home / "warm", options.items)), *settings(0))
    maeflow(home, "up", "--background", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    try:
        maeflow(home, "deploy", RECIPE)
        command, deployment, again = [], [], []
        for number in range(1, options.rounds + 1):
            source = digits(home / f"source-{number}", options.items)
            command.append(by_command(home, source, number))
            print(f"run {command[-1]}", file=sys.stderr)
            source = digits(home / f"source-{number}b", options.items)
            os.environ["PREFECT_API_URL"] = api
            deployment.append(by_deployment(home, source, number))
            start = time.time()
            maeflow(home, "trigger", RECIPE, "--data", str(source), *settings(number), "--watch")
            again.append(completed_at() - start)
            del os.environ["PREFECT_API_URL"]
            print(f"deployment {deployment[-1]} again {again[-1]:.1f}", file=sys.stderr)
    finally:
        maeflow(home, "down")
    print(
        f"{RECIPE}, {options.items} digits, {options.rounds} rounds, one thread; {platform.machine()}, "
        f"{os.cpu_count()} cores, prefect {version('prefect')}, mlflow {version('mlflow')}\n"
    )
    print(table(command, deployment))
    print(
        f"\nfinished pipeline triggered again: {statistics.median(again):.1f} s ({min(again):.1f} to {max(again):.1f})"
    )


if __name__ == "__main__":
    main()
