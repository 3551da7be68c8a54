"""The demo's data: recorded speech in five languages that Debian ships for telephone exchanges.

Prompts such as "please enter your password", one voice per language, 8 kHz. Where there is no apt, the fallback is
sampled notes of the 128 instruments of General MIDI, whose families are the labels.
"""

import csv
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from core.errors import UserError
from core.workspace import made_once
from modalities.audio import notes

LANGUAGES = ("en", "es", "fr", "it", "ru")
PACKAGE = "asterisk-core-sounds-{}-wav"
SOUNDS = PurePosixPath("./usr/share/asterisk/sounds")
NOT_SPEECH = "silence"
"""A folder of prompts that say nothing."""
HELD_OUT = {"test": range(3), "val": range(3, 4)}
"""Of ten equal parts of the prompts, which are not for training. A prompt is in one split, whoever speaks it."""
LICENCE = """Recordings of the Debian packages asterisk-core-sounds-*-wav, by Digium and the Asterisk community:
Creative Commons Attribution-ShareAlike 3.0. See copyright-*.txt.
"""


def fetch(home: Path) -> Path:
    """The manifest of ``demo/languages`` under ``home``, or of ``demo/notes`` where apt is not at hand; then offline.

    Raises:
        UserError: if neither can be fetched.
    """
    made = home / "demo" / "notes" / "manifest.csv"
    if made.exists():
        return made
    try:
        return made_once(home / "demo" / "languages", _write_languages) / "manifest.csv"
    except _NoSpeech as reason:
        print(f"spoken languages: {reason}\ninstead: notes of sampled instruments", flush=True)
    try:
        return made_once(home / "demo" / "notes", notes.write) / "manifest.csv"
    except UserError as reason:
        wanted = " ".join(PACKAGE.format(language) for language in LANGUAGES)
        raise UserError(f"{reason}\nor, on Debian and its kin, see why this fails: apt-get download {wanted}") from None


def sample(folder: Path) -> Path:
    """A small source for the check: 24 gliding tones of two kinds and many lengths, twelve singers with two each."""
    import soundfile

    lines = [("path", "label", "group")]
    rng = np.random.default_rng(0)
    for number in range(24):
        rate, seconds = (8000, 11025, 16000)[number % 3], 0.4 + 0.11 * number
        time = np.arange(int(rate * seconds)) / rate
        kind, pitch = ("rising", "falling")[number % 2], 200 + 40 * (number % 5)
        glide = (1 if kind == "rising" else -1) * 0.3 * (time / seconds - 0.5)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch * (1 + glide)) / rate) + 0.01 * rng.standard_normal(len(time))
        name = f"{number:02d}.wav"
        soundfile.write(folder / name, wave.astype(np.float32), rate)
        lines.append((name, kind, f"singer-{number // 2}"))
    return _manifest(folder, lines)


class _NoSpeech(Exception):  # noqa: N818 - a fact about this machine; the fallback follows.
    """Why the recordings cannot be had here."""


def _write_languages(folder: Path) -> None:
    lines = [("path", "label", "group", "split")]
    with tempfile.TemporaryDirectory() as scratch:
        for language, package in _downloaded(Path(scratch)):
            prompts = _unpack(package, language, folder)
            lines += [(f"{language}/{prompt}.wav", language, prompt, split_of(prompt)) for prompt in prompts]
    (folder / "LICENCE.txt").write_text(LICENCE)
    _manifest(folder, [lines[0], *sorted(lines[1:])])


def split_of(prompt: str) -> str:
    """The split of a prompt, the same on every machine and in every language."""
    part = zlib.crc32(prompt.encode()) % 10
    return next((split for split, parts in HELD_OUT.items() if part in parts), "train")


def _downloaded(folder: Path) -> Iterator[tuple[str, Path]]:
    """Language and package file, fetched by apt, which checks their signatures."""
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise _NoSpeech("this machine has no apt")
    names = [PACKAGE.format(language) for language in LANGUAGES]
    done = subprocess.run(
        ["apt-get", "download", "--quiet", *names], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise _NoSpeech((done.stderr.strip().splitlines() or ["apt-get download failed"])[-1])
    for language, name in zip(LANGUAGES, names, strict=True):
        yield language, next(folder.glob(f"{name}_*.deb"))


def _unpack(package: Path, language: str, folder: Path) -> list[str]:
    """Write the recordings of a package to ``folder/language``; the prompts they speak."""
    prompts = []
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                path, data = PurePosixPath(member.name), archive.extractfile(member) if member.isfile() else None
                if data and path.name == "copyright":
                    (folder / f"copyright-{language}.txt").write_bytes(data.read())
                if not data or path.suffix != ".wav" or not path.is_relative_to(SOUNDS):
                    continue
                prompt = PurePosixPath(*path.relative_to(SOUNDS).parts[1:]).with_suffix("")  # Without the voice.
                if prompt.parts[0] == NOT_SPEECH or ".." in prompt.parts:
                    continue
                target = folder / language / f"{prompt}.wav"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data.read())
                prompts.append(str(prompt))
    return prompts


def _manifest(folder: Path, lines: Sequence[tuple[str, ...]]) -> Path:
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows(lines)
    return folder / "manifest.csv"
