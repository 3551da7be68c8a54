"""Does preparation over Dask end in the same bytes as in one process, also when a worker is killed on the way?

Makes 5,000 digits, all distinct, by small random shifts and noise of scikit-learn's 1,797, a file each, and prepares
them three times: in-process, on a Dask cluster of two workers on this machine, and on such a cluster of which one
worker is killed (`kill -9`) once some shards are there. All files of the finished folders must be the same bytes, save
those with times or with the home's path (events.jsonl, request.json).

    python benchmarks/dask_prepare.py [--count 5000] [--seed 0] [--shard-items 128]
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fanning import UNLIKE, compare

TESTS = Path(__file__).parents[1] / "tests"
SETS = ["data.size=[16,16]", "data.patch=[4,4]"]


@dataclass(frozen=True)
class Run:
    """One preparation."""

    name: str
    seconds: float
    before: float
    folder: Path
    said: str


def main() -> int:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="maeflow-dask-") as scratch:
        root = Path(scratch)
        size = make(root / "digits", options.count, options.seed)
        print(f"{options.count} distinct digits, {size / 2**20:.1f} MiB, seed {options.seed}, {machine()}", flush=True)
        sets = [*SETS, f"prepare.shard_items={options.shard_items}"]
        runs = [
            prepare("in-process", root, sets),
            prepare("Dask, 2 workers", root, [*sets, "compute.dask=local:2"]),
            prepare("Dask, 2 workers, one killed", root, [*sets, "compute.dask=local:2"], kill=True),
        ]
        return report(runs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-items", type=int, default=128)
    return parser.parse_args()


def machine() -> str:
    names = ("prefect", "prefect-dask", "distributed", "torch")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"


def make(folder: Path, count: int, seed: int) -> int:
    """Write ``count`` distinct pictures in a folder for each digit; gives their bytes."""
    rng, found, seen, size = np.random.default_rng(seed), load_digits(), set[str](), 0
    while len(seen) < count:
        number = len(seen) % len(found.images)
        picture = np.zeros((16, 16), np.uint8)
        row, column = rng.integers(0, 9, 2)
        picture[row : row + 8, column : column + 8] = found.images[number] * 15
        picture += rng.integers(0, 8, picture.shape, dtype=np.uint8)
        name = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
        if name in seen:
            continue
        place = folder / str(found.target[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{len(seen):05d}.png")
        size += (place / f"{len(seen):05d}.png").stat().st_size
        seen.add(name)
    return size


def prepare(name: str, root: Path, sets: list[str], *, kill: bool = False) -> Run:
    """Prepare the digits in a home of their own."""
    home = root / name.replace(" ", "-")
    command = [sys.executable, str(TESTS / "fanning.py"), str(home), "image/tiny", str(root / "digits"), *sets]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if kill:
        kill_a_worker(process, home)
    out, _ = process.communicate()
    if process.returncode:
        sys.exit(out)
    print(f"  {name}: {time.monotonic() - start:.0f} s", flush=True)
    told = {line.split(" after ")[0]: line.split(" after ")[1] for line in out.splitlines() if " after " in line}
    seconds = float(told["prepared"].split(" s")[0])
    folder = Path(told["prepared"].partition(": ")[2])
    shards = [line for line in out.splitlines() if "shards written" in line or "note:" in line]
    return Run(name, seconds, float(told["warm"].split(" s")[0]), folder, "; ".join(shards))


def kill_a_worker(process: "subprocess.Popen[str]", home: Path) -> None:
    """`kill -9` of a worker that has a process writing shards, once some are written."""
    while process.poll() is None:
        done = len(list((home / "prepared" / "shards").glob("*.json")))
        for child in psutil.Process(process.pid).children(recursive=True) if done else []:
            try:
                if "core.units" in child.cmdline() and (worker := child.parent()):
                    worker.kill()
                    print(f"  killed a worker with {done} shards written", flush=True)
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)


def report(runs: list[Run]) -> int:
    print(f"\n{'preparation':30s} {'seconds':>8s} {'files compared':>15s} {'files that differ':>18s}")
    wrong = 0
    for run in runs:
        count, differing = compare(runs[0].folder, run.folder)
        wrong += len(differing)
        print(f"{run.name:30s} {run.seconds:8.1f} {count:15d} {len(differing):18d}  {run.said}")
    print(f"\nnot compared: {', '.join(UNLIKE)}; seconds include the start of Prefect and of the cluster")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
