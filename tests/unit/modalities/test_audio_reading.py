"""Recordings of all kinds: each is read right, or quarantined with its reason."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from core import recipes
from core.data.prepare import prepare
from core.data.store import PreparedStore
from core.modality import Item, Record, Unreadable
from core.tracking import NullTracker
from core.workspace import Home
from modalities.audio.config import AudioSettings, StoreConfig
from modalities.audio.plugin import AudioModality
from modalities.audio.reading import read, resample, sniff
from modalities.audio.storing import SCALE, decode_pcm, encode_pcm, to_pcm

sys.path.insert(0, str(Path(__file__).parents[2]))
from odd_audio import HZ, tone, write_broken, write_odd

RATE = 16_000


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    return folder, write_odd(folder), write_broken(folder)


@pytest.fixture(scope="module")
def prepared(odd, tmp_path_factory):
    """The whole folder, good and bad, prepared in one go."""
    folder, *_ = odd
    home = Home.create(tmp_path_factory.mktemp("home"))
    recipe = recipes.load(
        "audio/demo",
        [f"data.rate={RATE}", "prepare.max_unreadable=0.9", "prepare.test_fraction=0", "compute.workers=2"],
    )
    work = home.root / "prepared" / "d.partial"
    work.mkdir()
    prepare(
        recipe, str(folder), plugin=AudioModality(recipe.data, "evaluate"), home=home, workdir=work, digest="d",
        tracker=NullTracker(), should_stop=lambda: False,
    )  # fmt: skip
    store = PreparedStore.open(work)
    card = json.loads((work / "card.json").read_text())
    reasons = {bad["file"]: bad["reason"] for bad in card["unreadable"]}
    records: dict[str, list[Record]] = {}
    for record in store.rows(np.arange(len(store))):
        records.setdefault(record.key.partition("#")[0], []).append(record)
    return records, reasons


def test_every_file_is_either_read_or_listed(odd, prepared):
    _, right, broken = odd
    records, reasons = prepared
    assert set(records) == set(right)
    assert set(reasons) == set(broken)
    assert len(broken) >= 12


def test_every_reason_says_what_is_wrong_and_names_no_place(odd, prepared):
    folder, _, broken = odd
    for name, reason in prepared[1].items():
        assert re.search(broken[name], reason), (name, reason)
        assert str(folder) not in reason


def test_what_is_read_lasts_as_long_and_sounds_as_high_as_the_file(odd, prepared):
    for name, (_, _, seconds) in odd[1].items():
        records = prepared[0][name]
        assert sum(r.shape[0] for r in records) / RATE == pytest.approx(seconds, abs=0.03), name
        wave = decode_pcm(records[0])[:RATE] / SCALE
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**16))
        assert spectrum.argmax() * RATE / 2**16 == pytest.approx(HZ, abs=2), name
        level = {"loud.wav": 1.0, "soft.wav": 0.002}.get(name, 0.5)
        assert np.abs(wave).max() == pytest.approx(level, rel=0.07), name


def test_a_long_recording_is_cut_into_stretches_that_stay_together(prepared):
    records = prepared[0]["long.flac"]
    assert [r.key for r in records] == [f"long.flac#{n:03d}" for n in range(20)]
    assert len({r.group for r in records}) == 1
    assert [r.meta["start"] for r in records] == [30.0 * n for n in range(20)]


def test_a_stretch_in_which_nothing_sounds_is_left_out(tmp_path):
    import soundfile

    wave = np.concatenate([tone(RATE, 2), np.zeros((2 * RATE, 1)), tone(RATE, 2)])
    soundfile.write(tmp_path / "pause.wav", wave, RATE)
    records = read(Item("pause.wav", str(tmp_path / "pause.wav")), AudioSettings(store=StoreConfig(seconds=2)))
    assert [r.meta["start"] for r in records] == [0.0, 4.0]


@pytest.mark.parametrize("rate", [8000, 11_127, 44_100, 128_000])
def test_resampling_keeps_a_tone_and_takes_out_what_the_rate_cannot_hold(rate):
    seconds, inside = 1.0, slice(500, -500)
    kept = resample(tone(rate, seconds)[:, 0], rate, RATE)
    expected = tone(RATE, seconds)[:, 0]
    assert len(kept) == pytest.approx(RATE, abs=1)
    assert np.abs(kept[: len(expected)][inside] - expected[: len(kept)][inside]).max() < 0.01
    if rate > 2 * 12_000:
        high = np.sin(2 * np.pi * 12_000 * np.arange(rate) / rate).astype(np.float32)
        assert np.abs(resample(high, rate, RATE)[inside]).max() < 0.02


@pytest.mark.parametrize(("rate", "wanted"), [(768_000, 1000), (705_600, 1000), (47_962, 16_000), (8000, 47_962)])
def test_no_pair_of_rates_changes_the_pitch(rate, wanted):
    changed = resample(tone(rate, 2.0)[:, 0], rate, wanted)
    assert len(changed) / wanted == pytest.approx(2.0, rel=6e-4)
    spectrum = np.abs(np.fft.rfft(changed * np.hanning(len(changed)), 2**18))
    assert spectrum.argmax() * wanted / 2**18 == pytest.approx(HZ, rel=1e-3)


@pytest.mark.parametrize("rate", [8000, 11_127, 44_100, 128_000])
def test_stretches_together_are_the_recording_resampled_whole(tmp_path, rate):
    import soundfile

    wave = 0.4 * tone(rate, 9.7)[:, 0] + 0.1 * np.random.default_rng(0).standard_normal(round(9.7 * rate))
    wave = np.clip(wave, -1, 1).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", wave, rate, subtype="FLOAT")
    cut = AudioSettings(store=StoreConfig(seconds=1, codec="pcm16"))
    records = read(Item("long.wav", str(tmp_path / "long.wav")), cut)
    assert len(records) >= 9
    joined = np.concatenate([decode_pcm(r) for r in records])
    whole = to_pcm(resample(wave, rate, RATE))
    assert len(joined) == len(whole)
    assert np.abs(joined.astype(int) - whole).max() <= 1
    starts = np.cumsum([0, *(r.shape[0] for r in records[:-1])]) / RATE
    assert np.allclose([r.meta["start"] for r in records], starts, atol=2e-3)


def test_what_is_louder_than_full_scale_is_made_less_loud_as_a_whole(tmp_path):
    import soundfile

    wave = np.concatenate([tone(RATE, 2, level=0.5), tone(RATE, 2, level=8.0)])
    soundfile.write(tmp_path / "loud.wav", wave, RATE, subtype="FLOAT")
    records = read(Item("loud.wav", str(tmp_path / "loud.wav")), AudioSettings(store=StoreConfig(seconds=2)))
    levels = [np.abs(decode_pcm(r)).max() / SCALE for r in records]
    assert levels == pytest.approx([0.5 / 8, 1.0], rel=0.01)


def test_bare_samples_are_told_apart(tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    with pytest.raises(Unreadable, match="without a header"):
        read(Item("x.raw", str(tmp_path / "x.raw")), AudioSettings())


@pytest.mark.parametrize("codec", ["flac", "pcm16"])
def test_any_stretch_of_what_is_stored_can_be_read_and_every_bit_is_kept(codec):
    pcm = to_pcm(np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32))
    record = Record("x", encode_pcm(pcm, codec, RATE), codec, pcm.shape, "int16")
    assert np.array_equal(decode_pcm(record), pcm)
    for start, count in ((0, 10), (12_345, 7_000), (49_999, 1)):
        assert np.array_equal(decode_pcm(record, start, count), pcm[start : start + count])


def test_sound_is_recognised_by_its_first_bytes(odd):
    folder, *_ = odd
    assert sniff(str(folder / "no-suffix"))
    assert not sniff(str(folder / "page.wav"))
    assert not sniff(str(folder / "nowhere"))


@pytest.mark.parametrize("kind", ["bytes", "path", "array", "channels first"])
def test_rows_of_a_hugging_face_dataset_are_read(tmp_path, kind):
    import datasets
    import soundfile

    path = tmp_path / "a.wav"
    soundfile.write(path, tone(8000, 1.0), 8000)
    value = {
        "bytes": {"bytes": path.read_bytes(), "path": None},
        "path": {"bytes": None, "path": str(path)},
        "array": {"array": tone(8000, 1.0)[:, 0].tolist(), "sampling_rate": 8000},
        "channels first": {"array": tone(8000, 1.0, 2).T.tolist(), "sampling_rate": 8000},
    }[kind]
    datasets.Dataset.from_dict({"audio": [value] * 2, "label": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    plugin = AudioModality(AudioSettings())
    records = [plugin.read(item)[0] for item in plugin.discover(str(tmp_path / "saved"))]
    assert [r.target for r in records] == ["a", "b"]
    assert records[0].shape == (RATE,)
    assert np.abs(decode_pcm(records[0])).max() / SCALE == pytest.approx(0.5, rel=0.02)
