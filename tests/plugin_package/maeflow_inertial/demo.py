"""The demo's data: a smart watch at the wrist of ten people who exercise a shoulder, as a Python package ships it."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from core.data.packages import member_of
from core.workspace import made_once

PACKAGE = "seglearn==1.2.5"
MEMBER = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"


def fetch(home: Path) -> Path:
    """The manifest in ``demo/watch`` under ``home``: 140 recordings, 7 exercises, grouped by person; fetched once.

    Raises:
        UserError: if the package cannot be fetched, or is not what it was.
    """
    folder = made_once(
        home / "demo" / "watch", lambda folder: _write(_unpickled(member_of(PACKAGE, MEMBER, SHA256)), folder)
    )
    return folder / "manifest.csv"


def sample(folder: Path) -> Path:
    """A small source for the contract test: 24 made-up recordings of three gaits, three from each of eight people."""
    rng, lines = np.random.default_rng(0), ["path,label,group"]
    for number in range(24):
        gait, beats = (("stroll", 0.8), ("walk", 1.6), ("run", 3.2))[number % 3]
        # One recording is shorter than a window, so that padding is met.
        time = np.arange(200 if number == 5 else 600) / 50
        waves = np.sin(2 * np.pi * beats * np.outer(time, (1, 1, 2, 1, 2, 1)) + rng.uniform(0, 6, 6))
        signal = waves * rng.uniform(0.5, 1.5, 6) + (0, 0, 1, 0, 0, 0) + rng.normal(0, 0.02, waves.shape)
        name = f"{number:02d}.{('csv', 'npy')[number % 2]}"
        if number % 2:
            np.save(folder / name, signal.astype(np.float32))
        else:
            np.savetxt(folder / name, signal, "%.4f", ",", header="ax,ay,az,wx,wy,wz", comments="")
        lines.append(f"{name},{gait},person-{number // 3}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain containers, and calls nothing else."""

    _new_array = np.empty(0).__reduce__()[0]
    _known = {  # noqa: RUF012 - pickle wants an instance per file; the table is never changed
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return self._known[module, name]


def _unpickled(data: bytes) -> dict[str, Any]:
    """The dictionary in an .npy file of one object: ``X`` (list of (time, 6)), ``y``, ``subject``, ``side`` ..."""
    source = io.BytesIO(data)
    np.lib.format.read_magic(source)
    np.lib.format.read_array_header_1_0(source)
    found: dict[str, Any] = _ArraysOnly(source).load().item()
    return found


def _write(recordings: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    lines = ["path,label,group"]
    facts = zip(recordings["X"], recordings["y"], recordings["subject"], recordings["side"], strict=True)
    for signal, label, person, side in facts:
        exercise = recordings["y_labels"][label]
        name = f"person-{person:02d}-{exercise}-{('left', 'right')[int(side)]}.npy"
        np.save(folder / name, signal.astype(np.float32))
        lines.append(f"{name},{exercise},person-{person:02d}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
