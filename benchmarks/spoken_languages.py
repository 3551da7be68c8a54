"""How far does a simple method get on the audio demo, and what does it go by?

Means and deviations of MFCCs over a clip with logistic regression, on the demo's own clips and splits: with all labels,
with 5 per class (the demo's seeds), and with the deviations alone, which leave out the mean spectrum that a voice and
its microphone have. Prints test accuracies in percent; the majority is 21 %.

    python benchmarks/spoken_languages.py HOME [--out FILE]

HOME is where `maeflow demo audio` has put its clips.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchaudio.transforms import MFCC

Array = NDArray[Any]
RATE, SHORTEST = 8000, 800
SEEDS = (1000, 1001, 1002, 1003, 1004)
LABELS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home")
    parser.add_argument("--out", default=None)
    options = parser.parse_args()
    folder = Path(options.home) / "demo" / "languages"
    x, rows = features(folder)
    labels, splits = (np.array([row[name] for row in rows]) for name in ("label", "split"))
    train, test = np.flatnonzero(splits != "test"), np.flatnonzero(splits == "test")
    half = x.shape[1] // 2
    few = [score(x, labels, drawn(labels, train, seed), test) for seed in SEEDS]
    result = {
        "clips": len(rows),
        "majority": share(labels[test] == max(set(labels[train]), key=list(labels[train]).count)),
        "mfcc means and deviations, all labels": score(x, labels, train, test),
        "mfcc deviations alone, all labels": score(x[:, half:], labels, train, test),
        f"mfcc means and deviations, {LABELS} per class": round(float(np.mean(few)), 1),
        "of which by seed": few,
    }
    for name, value in result.items():
        print(f"{name:42s} {value}")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def features(folder: Path) -> tuple[Array, list[dict[str, str]]]:
    """Means and deviations of 20 MFCCs, (clips, 40), and the manifest's rows of those clips that hold anything."""
    mfcc = MFCC(RATE, 20, melkwargs={"n_fft": 256, "hop_length": 80, "n_mels": 40})
    found, rows = [], []
    for row in csv.DictReader((folder / "manifest.csv").open()):
        wave, _ = soundfile.read(folder / row["path"], dtype="float32")
        if len(wave) >= SHORTEST:
            values = mfcc(torch.from_numpy(wave))
            found.append(torch.cat([values.mean(1), values.std(1)]).numpy())
            rows.append(row)
    return np.stack(found), rows


def drawn(labels: Array, train: Array, seed: int) -> Array:
    """``LABELS`` training clips of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(train[labels[train] == c])[:LABELS] for c in np.unique(labels)])


def score(x: Array, labels: Array, train: Array, test: Array) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x[train], labels[train])
    return share(model.predict(x[test]) == labels[test])


def share(right: Array) -> float:
    return round(100 * float(np.mean(right)), 1)


if __name__ == "__main__":
    main()
