"""Random 96-cubed crops of a CT-sized series: from the prepared store, beside reading the series again for each.

Both sides run in one process on one thread, in turns; ratios are of times, medians of the rounds with 95 % intervals.
Memory is what a fresh process needs beyond its imports (anonymous pages) while it takes crops.

    python benchmarks/scan_loading.py --home FOLDER
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pydicom
import torch

from core import recipes
from core.data.prepare import prepare
from core.data.store import PreparedStore
from core.tracking import NullTracker
from core.workspace import Home
from modalities.medical import demo
from modalities.medical.plugin import MedicalModality

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import scans

SIZE = (96, 96, 96)
VALUES = {
    "modality": "medical",
    "data": {"size": list(SIZE), "patch": [16, 16, 16], "intensity": {"windows": [[-175, 250]]}},
    "prepare": {"val_fraction": 0, "test_fraction": 0},
}
SOURCES = {"brain MR, 197x233x189": 1, "the same brain, 394x466x378": 2}
"""How many times each voxel of the brain is repeated along every axis."""


def series(folder: Path, factor: int) -> Path:
    """The demo's brain as axial slices of 16 bits, noise added so that repeated voxels do not compress for nothing."""
    if not folder.is_dir():
        brain, _ = demo.volumes()
        values = np.kron(brain, np.ones((factor,) * 3, np.uint8)).astype(np.int16) * 8 - 1024
        values += np.random.default_rng(0).integers(-8, 9, values.shape, dtype=np.int16)
        scans.write_series(folder, np.clip(values, -1024, None), scans.affine((1 / factor,) * 3))
    return folder


def prepared(folder: Path, home: Home, name: str) -> PreparedStore:
    """The store of a series."""
    recipe = recipes.resolve(VALUES, "of the benchmark")
    work = home.root / "work" / name
    if not (work / "card.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        plugin = MedicalModality(recipe.data, "pretrain")
        plugin.secret = b"benchmark"
        prepare(
            recipe,
            str(folder),
            plugin=plugin,
            home=home,
            workdir=work,
            digest=name,
            tracker=NullTracker(),
            should_stop=lambda: False,
        )
    return PreparedStore.open(work)


def reread(files: list[Path], rng: np.random.Generator) -> np.ndarray:
    """What people do without a store: read all slices, sort them by place, stack, rescale, cut."""
    slices = sorted((pydicom.dcmread(file) for file in files), key=lambda s: float(s.ImagePositionPatient[2]))
    volume = np.stack([s.pixel_array for s in slices], axis=-1).astype(np.int16)
    volume = volume * np.int16(slices[0].RescaleSlope) + np.int16(slices[0].RescaleIntercept)
    corner = [int(rng.integers(n - size + 1)) for n, size in zip(volume.shape, SIZE, strict=True)]
    return volume[tuple(slice(c, c + size) for c, size in zip(corner, SIZE, strict=True))].copy()


def memory(work: Path) -> float:
    """MiB of anonymous memory that a fresh process needs for crops, beyond what it has with the store open."""
    done = subprocess.run([sys.executable, __file__, "--child", str(work)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def child(work: Path) -> None:
    """Print the growth."""

    def anonymous() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

    recipe = recipes.resolve(VALUES, "of the benchmark")
    plugin, store = MedicalModality(recipe.data, "pretrain"), PreparedStore.open(work)
    rng, most = np.random.default_rng(0), 0.0
    before = anonymous()
    for _ in range(30):
        plugin.view(store.rows([0])[0], rng, train=True)
        most = max(most, anonymous())
    print(most - before)


def measure(name: str, files: list[Path], store: PreparedStore, rounds: int) -> dict[str, object]:
    """Seconds of both sides, in turns."""
    recipe = recipes.resolve(VALUES, "of the benchmark")
    plugin, rng = MedicalModality(recipe.data, "pretrain"), np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        reread(files, rng)
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(10):
            plugin.view(store.rows([0])[0], rng, train=True)
        ours.append((time.perf_counter() - start) / 10)
    ratios = np.array(theirs) / np.array(ours)
    draws = np.random.default_rng(0).choice(ratios, (2000, rounds))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    source = sum(file.stat().st_size for file in files)
    kept = sum(file.stat().st_size for file in store.folder.glob("data-*.arrow"))
    return {
        "series": name,
        "slices": len(files),
        "source, MiB": round(source / 2**20, 1),
        "store, MiB": round(kept / 2**20, 1),
        "store over source": round(kept / source, 2),
        "reread, crops/s": round(1 / float(np.median(theirs)), 2),
        "store, crops/s": round(1 / float(np.median(ours)), 1),
        "ratio": round(float(np.median(ratios)), 1),
        "low": round(float(low), 1),
        "high": round(float(high), 1),
        "memory per worker, MiB": round(memory(store.folder), 1),
        "volume, MiB": round(np.prod(store.rows([0])[0].shape) * 2 / 2**20, 1),
        "crop, MiB": round(np.prod(SIZE) * 2 / 2**20, 1),
    }


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--home", type=Path, default=Path(".maeflow"))
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--child", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.child:
        child(options.child)
        return
    home = Home.create(options.home.absolute() / "scan-loading")
    rows = []
    for name, factor in SOURCES.items():
        folder = series(home.root / f"series-{factor}", factor)
        store = prepared(folder, home, f"store-{factor}")
        rows.append(measure(name, sorted(folder.iterdir()), store, options.rounds if factor == 1 else 5))
    versions = ", ".join(f"{name} {version(name)}" for name in ("pydicom", "numpy", "pyarrow"))
    print(f"{SIZE} crops, one process, one thread; {platform.machine()}, {versions}\n")
    for key in rows[0]:
        print(f"{key:28s}" + "".join(f"{row[key]!s:>32s}" for row in rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
