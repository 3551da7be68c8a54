"""Does the video demo's label need time, and how far do simple features get?

Two answers on the demo's own clips and splits. First, phase correlation between frames, the classical measure of
motion, with a random forest. Second, what a single frame tells: the same forest on one frame, and the demo's whole
pipeline on copies of all clips in which every frame is the middle one.

    python benchmarks/camera_motion.py HOME [--recipe video/demo] [--out FILE]

HOME is where `maeflow demo video` has put its clips. Prints test accuracies in percent; chance is 12.5.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier

from modalities.video import demo

Array = NDArray[Any]
STEPS = (1, 4, 12)
"""Frames between the two whose shift is measured."""
LAGS = 6
"""Largest shift in pixels that a feature looks at."""


def main() -> None:
    options = arguments()
    clips = Path(options.home) / "demo" / "camera"
    rows = list(csv.DictReader((clips / "manifest.csv").open()))
    frames = [grey(clips / row["path"]) for row in rows]
    result = {
        "clips": len(rows),
        "phase_correlation_forest": forest(rows, [motion(clip) for clip in frames]),
        "one_frame_forest": forest(rows, [look(clip[len(clip) // 2]) for clip in frames]),
        "one_frame_pipeline": still_pipeline(clips, rows, options.recipe),
    }
    for name, value in result.items():
        print(f"{name:26s} {value}")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("--recipe", default="video/demo")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def pictures(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as video:
        return [frame.to_image() for frame in video.decode(video=0)]


def grey(path: Path) -> Array:
    """(T, H, W) brightness."""
    return np.stack([np.asarray(picture.convert("L"), dtype=np.float32) for picture in pictures(path)])


def forest(rows: list[dict[str, str]], features: list[Array]) -> float:
    """Accuracy of a random forest on the test clips, in percent."""
    x, y = np.stack(features), np.array([row["label"] for row in rows])
    train, test = (np.array([row["split"] == split for row in rows]) for split in ("train", "test"))
    model = RandomForestClassifier(500, random_state=0, n_jobs=-1).fit(x[train], y[train])
    return round(100 * float(model.score(x[test], y[test])), 1)


def motion(clip: Array) -> Array:
    """Phase correlations of four quadrants and the whole, some frames apart: where their middles peak."""
    half = clip.shape[1] // 2
    parts = [clip, clip[:, :half, :half], clip[:, :half, half:], clip[:, half:, :half], clip[:, half:, half:]]
    return np.concatenate([peak(part, step) for part in parts for step in STEPS])


def peak(clip: Array, step: int) -> Array:
    """Shift in both directions, and its sharpness, of the mean phase correlation of frames ``step`` apart."""
    window = np.hanning(clip.shape[1])[:, None] * np.hanning(clip.shape[2])
    spectra = np.fft.fft2((clip - clip.mean(axis=(1, 2), keepdims=True)) * window)
    cross = spectra[step:] * np.conj(spectra[:-step])
    surface = np.fft.ifft2(cross / (np.abs(cross) + 1e-6)).real.mean(axis=0)
    middle = np.roll(surface, (LAGS, LAGS), axis=(0, 1))[: 2 * LAGS + 1, : 2 * LAGS + 1]
    row, column = np.unravel_index(np.argmax(middle), middle.shape)
    weight = np.clip(middle, 0, None) / np.clip(middle, 1e-9, None).sum()
    lags = np.arange(-LAGS, LAGS + 1)
    centre = [float((weight.sum(axis=1) * lags).sum()), float((weight.sum(axis=0) * lags).sum())]
    return np.array([row - LAGS, column - LAGS, middle.max(), *centre])


def look(frame: Array) -> Array:
    """What one frame shows: directions and sizes of its gradients by place, its spectrum, a small copy of it."""
    down, across = np.gradient(frame)
    strength, angle = np.hypot(down, across), np.arctan2(down, across)
    cells = [slice(i * 14, i * 14 + 14) for i in range(4)]
    bins = np.linspace(-np.pi, np.pi, 9)
    gradients = [np.histogram(angle[r, c], bins, weights=strength[r, c])[0] for r in cells for c in cells]
    spectrum = np.log1p(np.abs(np.fft.rfft2(frame - frame.mean())))[:28:4, :28:4]
    small = frame.reshape(8, 7, 8, 7).mean(axis=(1, 3))
    return np.concatenate([*gradients, spectrum.ravel(), small.ravel()])


def still_pipeline(clips: Path, rows: list[dict[str, str]], recipe: str) -> dict[str, float]:
    """Test metrics of the whole pipeline where all frames of a clip are its middle one."""
    with tempfile.TemporaryDirectory() as scratch:
        frozen = Path(scratch) / "clips"
        for row in rows:
            (frozen / row["path"]).parent.mkdir(parents=True, exist_ok=True)
            frames = pictures(clips / row["path"])
            demo.save(frozen / row["path"], [frames[len(frames) // 2]] * len(frames))
        shutil.copy(clips / "manifest.csv", frozen)
        home = Path(scratch) / "home"
        command = ["run", recipe, "--data", str(frozen / "manifest.csv"), "--home", str(home)]
        command += ["--set", "evaluate.label_efficiency=null"]
        subprocess.run([sys.executable, "-m", "flows.cli", *command], check=True, stdout=sys.stderr)
        (record,) = (home / "runs" / "evaluate").glob("*/record.json")
        metrics = json.loads(record.read_text())["metrics"]
    return {name: round(100 * metrics[f"eval/{name}"], 1) for name in ("top1", "knn", "linear")}


if __name__ == "__main__":
    main()
