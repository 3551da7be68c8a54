"""Notes of the 128 instruments of General MIDI, played from a sound font that a Python package ships.

    python -m modalities.audio.notes PACKAGES FOLDER

The synthesizer is not a dependency: it is put into a folder of its own for the one time it plays, in a process of its
own.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.packages import installed_in
from core.errors import UserError

PACKAGES = ("pretty_midi==0.2.11", "tinysoundfont==0.3.7")
FONT = "pretty_midi/TimGM6mb.sf2"
FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass",
    "reed", "pipe", "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects",
)  # fmt: skip
"""Labels: each eight instruments in a row are one."""
RATE = 8000
HELD, AFTER = 1.2, 0.4
"""Seconds for which a key is held, and for which its note then dies away."""
PITCHES = range(42, 82, 2)
TEST_EVERY, VALIDATE_EVERY = 4, 9
"""Every which pitch is held out: for the test, and of the others for validation."""


def write(folder: Path) -> None:
    """Notes as WAV files by family, and their manifest.

    Raises:
        UserError: if the packages cannot be fetched, or do not run here.
    """
    with tempfile.TemporaryDirectory() as scratch:
        installed_in(Path(scratch), PACKAGES)
        command = [sys.executable, "-P", "-m", "modalities.audio.notes", scratch, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"the notes of {' '.join(PACKAGES)} could not be played: {last}")


def play(packages: Path, folder: Path) -> None:
    """Write all notes."""
    import soundfile

    sys.path.insert(0, str(packages))
    import tinysoundfont  # type: ignore[import-not-found]

    synth = tinysoundfont.Synth(samplerate=RATE, gain=-3)
    font = synth.sfload(str(packages / FONT))
    lines = [("path", "label", "group", "split")]
    for program in range(128):
        family = FAMILIES[program // 8]
        (folder / family).mkdir(parents=True, exist_ok=True)
        for number, pitch in enumerate(PITCHES):
            synth.program_select(0, font, 0, program)
            synth.noteon(0, pitch, 100)
            sound = [_mono(synth, HELD)]
            synth.noteoff(0, pitch)
            sound.append(_mono(synth, AFTER))
            synth.sounds_off()
            name = f"{family}/{program:03d}-{pitch}.wav"
            soundfile.write(folder / name, np.concatenate(sound), RATE)
            lines.append((name, family, f"pitch {pitch}", _split(number)))
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows(lines)


def _split(number: int) -> str:
    if number % TEST_EVERY == 0:
        return "test"
    return "val" if number % VALIDATE_EVERY == 0 else "train"


def _mono(synth: object, seconds: float) -> NDArray[np.float32]:
    stereo: Any = np.frombuffer(bytes(synth.generate(int(RATE * seconds))), np.float32)  # type: ignore[attr-defined]
    mono: NDArray[np.float32] = stereo.reshape(-1, 2).mean(axis=1)
    return mono


if __name__ == "__main__":
    play(Path(sys.argv[1]), Path(sys.argv[2]))
