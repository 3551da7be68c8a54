"""The audio demo's data: what is taken out of a Debian package, and what happens where there is no apt."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from core.errors import UserError
from modalities.audio import demo, notes

sys.path.insert(0, str(Path(__file__).parents[2]))
from odd_audio import tone


def package(folder, language, prompts):
    """A Debian package with recordings, made by dpkg-deb itself."""
    root = folder / f"root-{language}"
    sounds = root / "usr/share/asterisk/sounds" / f"{language}_XX_f_Somebody"
    name = demo.PACKAGE.format(language)
    for prompt in prompts:
        path = sounds / f"{prompt}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(8000, 0.5), 8000)
    (root / "usr/share/doc" / name).mkdir(parents=True)
    (root / "usr/share/doc" / name / "copyright").write_text("CC-BY-SA")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "--build", root, folder / f"{name}_1_all.deb"], check=True, capture_output=True)


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    """An apt-get that gives packages made here."""
    store = tmp_path / "packages"
    store.mkdir()
    for language in demo.LANGUAGES:
        package(store, language, ["hello", "digits/1", "silence/1", *(f"prompt-{n}" for n in range(20))])
    tools = tmp_path / "bin"
    tools.mkdir()
    script = tools / "apt-get"
    script.write_text(f'#!/bin/sh\n[ "$1" = download ] && cp {store}/*.deb .\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return script


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@needs_dpkg
def test_speech_comes_out_of_debian_packages_and_no_prompt_crosses_the_splits(fake_apt, tmp_path):
    manifest = demo.fetch(tmp_path / "home")
    rows = list(csv.DictReader(manifest.open()))
    assert {row["label"] for row in rows} == set(demo.LANGUAGES)
    assert not [row for row in rows if "silence" in row["path"]]
    assert len(rows) == 22 * len(demo.LANGUAGES)
    assert all((manifest.parent / row["path"]).exists() for row in rows)
    splits = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {"train", "test"} <= {split for found in splits.values() for split in found}
    assert (manifest.parent / "copyright-it.txt").read_text() == "CC-BY-SA"
    assert "Attribution-ShareAlike" in (manifest.parent / "LICENCE.txt").read_text()
    fake_apt.write_text("#!/bin/sh\nexit 1\n")
    assert demo.fetch(tmp_path / "home") == manifest


@needs_dpkg
def test_without_apt_it_falls_back_and_says_why(fake_apt, tmp_path, monkeypatch, capsys):
    fake_apt.write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")

    def play(folder):
        (folder / "manifest.csv").write_text("path,label\n")

    monkeypatch.setattr(notes, "write", play)
    assert demo.fetch(tmp_path / "home") == tmp_path / "home" / "demo" / "notes" / "manifest.csv"
    assert "Unable to locate package" in capsys.readouterr().out


@needs_dpkg
def test_where_neither_can_be_had_both_ways_are_named(fake_apt, tmp_path, monkeypatch):
    fake_apt.write_text("#!/bin/sh\nexit 100\n")

    def fail(folder):
        raise UserError("the data in pretty_midi could not be fetched: no network")

    monkeypatch.setattr(notes, "write", fail)
    with pytest.raises(UserError, match=r"no network\n.*apt-get download asterisk-core-sounds-en-wav"):
        demo.fetch(tmp_path / "home")


@pytest.mark.network
@pytest.mark.skipif(
    os.environ.get("MAEFLOW_TEST_NETWORK") != "1", reason="set MAEFLOW_TEST_NETWORK=1 to fetch packages"
)
def test_the_fallback_plays_every_family_of_instruments(tmp_path):
    notes.write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "manifest.csv").open()))
    assert len(rows) == 128 * len(notes.PITCHES)
    assert {row["label"] for row in rows} == set(notes.FAMILIES)
    wave, rate = soundfile.read(io.BytesIO((tmp_path / rows[5]["path"]).read_bytes()))
    assert rate == notes.RATE
    assert abs(wave).max() > 0.01
