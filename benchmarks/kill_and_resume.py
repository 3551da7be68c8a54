"""Does a run that is killed again and again end in the same bits as one that is not?

Runs the whole pipeline once without interruption, then several times with `kill -9` at random moments, at least one
in each stage, each followed by the same command again. The command alone is killed in one round, the command
with all its children in the next. At the end all weights, records and results must be the same bytes.

    python benchmarks/kill_and_resume.py --data FOLDER [--recipe image/tiny] [--rounds 3] [--seed 0]
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

STAGES = ("prepare", "pretrain", "finetune", "evaluate")
SAME = ("record.json", "results.json", "card.json", "index.parquet", "*.safetensors", "*.arrow")
"""Files of a stage's folder that must not differ; events, pictures of timings and requests may."""


@dataclass(frozen=True)
class Kill:
    """One kill, as it happened."""

    round: int
    aimed: str
    found: str
    after: float
    whole_tree: bool


def main() -> int:
    options = arguments()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="maeflow-kill-") as folder:
        root = Path(folder)
        print("reference run, uninterrupted", flush=True)
        start = time.monotonic()
        run_to_end(options, root / "reference")
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
        durations = stage_seconds(root / "reference")
        kills, differences = [], []
        for number in range(options.rounds):
            home = root / f"round-{number}"
            kills += interrupted(options, home, number, durations, rng)
            differences += compare(root / "reference", home)
            shutil.rmtree(home)
    return report(kills, differences)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="image/tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    return parser.parse_args()


def command(options: argparse.Namespace, home: Path) -> list[str]:
    maeflow = str(Path(sys.executable).with_name("maeflow"))
    sets = ["compute.checkpoint_seconds=0.5", *options.overrides]
    chosen = [part for override in sets for part in ("--set", override)]
    return [maeflow, "run", options.recipe, "--data", options.data, "--home", str(home), *chosen]


def start(options: argparse.Namespace, home: Path) -> subprocess.Popen[bytes]:
    home.mkdir(parents=True, exist_ok=True)
    log = (home / "console.log").open("ab")
    return subprocess.Popen(command(options, home), stdout=log, stderr=log, start_new_session=True)


def run_to_end(options: argparse.Namespace, home: Path) -> None:
    process = start(options, home)
    if process.wait() != 0:
        sys.exit(f"the command failed:\n{(home / 'console.log').read_text()[-2000:]}")


def stage_folders(home: Path, stage: str) -> list[Path]:
    parent = home / "prepared" if stage == "prepare" else home / "runs" / stage
    return [p for p in parent.glob("*") if p.is_dir() and p.name != "shards"]


def stage_seconds(home: Path) -> dict[str, float]:
    """How long each stage took, from its first to its last event."""
    seconds = {}
    for stage in STAGES:
        events = (stage_folders(home, stage)[0] / "events.jsonl").read_text().splitlines()
        times = [json.loads(line)["t"] for line in events]
        seconds[stage] = max(0.5, times[-1] - times[0])
    return seconds


def working_on(home: Path) -> str:
    """The stage with a partial folder, the latest one."""
    for stage in reversed(STAGES):
        if any(p.suffix == ".partial" for p in stage_folders(home, stage)):
            return stage
    return "between stages"


def interrupted(
    options: argparse.Namespace, home: Path, number: int, durations: dict[str, float], rng: random.Random
) -> list[Kill]:
    """One run to its end, killed once in each stage on the way."""
    kills: list[Kill] = []
    for stage in STAGES:
        process = start(options, home)
        reached = wait_for(process, home, stage)
        delay = rng.uniform(0.05, 0.8) * durations[stage]
        time.sleep(delay)
        if not reached or process.poll() is not None:
            print(f"  round {number}: {stage} ended before its kill", flush=True)
            continue
        found = working_on(home)
        kill(process, whole_tree=number % 2 == 1)
        kills.append(Kill(number, stage, found, delay, number % 2 == 1))
        print(f"  round {number}: killed {delay:5.2f} s into {stage}, found in {found}", flush=True)
    run_to_end(options, home)
    return kills


def wait_for(process: subprocess.Popen[bytes], home: Path, stage: str) -> bool:
    """Wait until ``stage`` has its partial folder; False if the command ended first."""
    while process.poll() is None:
        if any(p.suffix == ".partial" and (p / "events.jsonl").exists() for p in stage_folders(home, stage)):
            return True
        time.sleep(0.02)
    return False


def kill(process: subprocess.Popen[bytes], *, whole_tree: bool) -> None:
    """`kill -9`, of the command alone or of all its descendants with it."""
    victims = psutil.Process(process.pid).children(recursive=True) if whole_tree else []
    process.kill()
    for victim in victims:
        if victim.is_running():
            victim.kill()
    process.wait()


def compare(reference: Path, home: Path) -> list[str]:
    """Files that differ or are missing, over all stages."""
    wrong = []
    for stage in STAGES:
        ours, theirs = stage_folders(reference, stage), stage_folders(home, stage)
        if [p.name for p in ours] != [p.name for p in theirs]:
            wrong.append(f"{home.name}: folders of {stage} differ: {[p.name for p in theirs]}")
            continue
        for pattern in SAME:
            for file in ours[0].glob(pattern):
                other = theirs[0] / file.name
                if not other.exists() or other.read_bytes() != file.read_bytes():
                    wrong.append(f"{home.name}: {stage}/{file.name}")
    return wrong


def report(kills: list[Kill], differences: list[str]) -> int:
    print(f"\n{'round':>5s} {'aimed at':10s} {'found in':15s} {'after s':>8s} {'killed':20s}")
    for k in kills:
        victims = "whole tree" if k.whole_tree else "command only"
        print(f"{k.round:5d} {k.aimed:10s} {k.found:15s} {k.after:8.2f} {victims:20s}")
    print(f"\n{len(kills)} kills; files that differ from the uninterrupted run: {len(differences)}")
    for line in differences:
        print(f"  {line}")
    return 1 if differences or not kills else 0


if __name__ == "__main__":
    sys.exit(main())
