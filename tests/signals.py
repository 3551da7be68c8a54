"""A modality for tests: two-channel signals of 16 samples in .npy files, named by their class."""

import os
import time
from dataclasses import replace

import numpy as np

from core.config import PluginInfo, PluginSettings
from core.data.sources import discover
from core.modality import Modality, Record, Sample, Unreadable
from core.model.patches import PatchSpec


class SignalSettings(PluginSettings):
    """Nothing to set."""


INFO = PluginInfo("signals", SignalSettings, "signals:Signals", 1)


class Signals(Modality):
    """Reads what `write` wrote; a file named killer ends its process, one named slow takes its time, and
    one named hanging for ever."""

    info = INFO

    def discover(self, source):
        return [replace(i, group=None) for i in discover(source, frozenset({".npy"}), lambda _: False)]

    def read(self, item):
        if "killer" in item.key:
            os._exit(9)
        if "hanging" in item.key:
            sum(range(10**15))  # In C, holding the interpreter's lock.
        if "slow" in item.key:
            time.sleep(0.05)
        try:
            data = np.load(item.path, allow_pickle=False)
        except ValueError as error:
            raise Unreadable("not an array") from error
        if data.ndim == 1:
            return []
        return [Record(item.key, data.tobytes(), "raw", data.shape, str(data.dtype), item.target, item.group)]

    def patches(self):
        return PatchSpec(2, (16,), (2,))

    def view(self, record, rng, train):
        return Sample(np.frombuffer(record.payload, record.dtype).reshape(record.shape), record.target)

    def features(self, samples):
        return samples.data.float()

    def render(self, x):
        return []


def write(folder, count, *, classes=2, prefix="s"):
    """``count`` signals in class folders."""
    for number in range(count):
        place = folder / f"c{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        np.save(place / f"{prefix}{number:04d}.npy", rng.normal(number % classes, 1, (2, 16)).astype(np.float32))
