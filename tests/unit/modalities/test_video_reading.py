"""Videos of all kinds: each is read right, or quarantined with its reason; none hangs or ends anything."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from core import recipes
from core.data.prepare import prepare
from core.data.store import PreparedStore
from core.modality import Item, Unreadable
from core.tracking import NullTracker
from core.workspace import Home
from modalities.video.config import StoreConfig, VideoSettings
from modalities.video.decoding import timeline
from modalities.video.plugin import VideoModality
from modalities.video.reading import read, sniff
from modalities.video.storing import decode_frames

sys.path.insert(0, str(Path(__file__).parents[2]))
from odd_videos import number, ramp, write, write_broken, write_odd

SETTINGS = VideoSettings(size=(8, 32, 32), patch=(2, 8, 8), store=StoreConfig(crf=12))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    return folder, write_odd(folder), write_broken(folder)


@pytest.fixture(scope="module")
def prepared(odd, tmp_path_factory):
    """The whole folder, good and bad, prepared in one go."""
    folder, *_ = odd
    home = tmp_path_factory.mktemp("home")
    recipe = recipes.load(
        "video/demo",
        ["prepare.max_unreadable=0.9", "prepare.test_fraction=0", "compute.workers=2", "data.store.crf=12",
         "data.store.short_side=null", "prepare.seconds_per_item=60"],
    )  # fmt: skip
    work = home / "prepared" / "d.partial"
    place = Home.create(home)
    work.mkdir()
    prepare(
        recipe, str(folder), plugin=VideoModality(recipe.data, "evaluate"), home=place, workdir=work, digest="d",
        tracker=NullTracker(), should_stop=lambda: False,
    )  # fmt: skip
    store = PreparedStore.open(work)
    card = json.loads((work / "card.json").read_text())
    reasons = {bad["file"]: bad["reason"] for bad in card["unreadable"]}
    return {record.key: record for record in store.rows(np.arange(len(store)))}, reasons


def test_every_file_is_either_read_or_listed(odd, prepared):
    _, right, broken = odd
    read_ones, reasons = prepared
    assert len(right) + len(broken) >= 30
    assert set(read_ones) == set(right)
    assert set(reasons) == set(broken)


def test_every_reason_is_the_right_one_and_holds_no_path(odd, prepared):
    folder, _, broken = odd
    _, reasons = prepared
    for name, words in broken.items():
        assert re.search(words, reasons[name]), (name, reasons[name])
        assert str(folder) not in reasons[name]
        assert "unforeseen" not in reasons[name]


def test_odd_videos_have_all_their_frames_in_order_and_upright(odd, prepared):
    _, right, _ = odd
    read_ones, _ = prepared
    for name, (count, size) in right.items():
        record = read_ones[name]
        frames = decode_frames(record, range(record.shape[0]))
        assert frames.shape == (count, size[1], size[0], 3), name
        red, blue = frames[:, 2:4, 2:4].mean((0, 1, 2)), frames[:, -4:-2, -4:-2].mean((0, 1, 2))
        assert red[0] - red[2] > 100, (name, red)
        assert blue[2] - blue[0] > 100, (name, blue)
        if name != "variable.mkv" and min(size) > 20:
            off = np.array([number(frame) for frame in frames]) - np.arange(count)
            # Brightness is coded with some loss; frames that are out of place would all be off by the same.
            assert np.abs(off).max() <= 1, name
            assert abs(off.mean()) < 0.5, name


def test_a_variable_frame_rate_becomes_time(prepared):
    """24 frames over 2.8 s: ticks of 8.2 a second, in which the fast half passes quickly and the slow one stands."""
    record = prepared[0]["variable.mkv"]
    found = [number(frame) for frame in decode_frames(record, range(record.shape[0]))]
    shown = np.array([5 * i for i in range(12)] + [60 + 20 * i for i in range(12)]) / 100
    ticks = np.arange(24) / record.meta["fps"]
    assert found == [int(np.searchsorted(shown, t + 1e-3, side="right")) - 1 for t in ticks]
    assert record.meta["fps"] == pytest.approx(23 / 2.8, rel=0.01)


def test_frame_rates_and_sizes_are_told(prepared):
    assert prepared[0]["hevc.mp4"].meta["fps"] == pytest.approx(20, rel=0.01)
    assert prepared[0]["turned-90.mp4"].meta["source"] == [64, 48]


def test_long_videos_are_cut_into_segments_of_one_group(tmp_path):
    write(tmp_path / "a.mp4", ramp(100))
    settings = SETTINGS.model_copy(update={"store": StoreConfig(segment_frames=30, short_side=24, crf=12)})
    records = read(Item("a.mp4", str(tmp_path / "a.mp4"), target="x", group="g"), settings)
    assert [r.key for r in records] == ["a.mp4#000", "a.mp4#001", "a.mp4#002"]
    assert [r.shape for r in records] == [(33, 24, 32, 3), (33, 24, 32, 3), (34, 24, 32, 3)]
    assert [r.meta["start"] for r in records] == pytest.approx([0, 33 / 20, 66 / 20], abs=0.01)
    assert {(r.target, r.group) for r in records} == {("x", "g")}
    found = [number(f) for r in records for f in decode_frames(r, range(r.shape[0]))]
    assert found == [i % 32 for i in range(100)]


def test_frames_that_claim_too_much_are_refused(tmp_path):
    write(tmp_path / "a.mp4", ramp(2))
    with pytest.raises(Unreadable, match="64x48 pixels, the limit is 1000"):
        read(Item("a", str(tmp_path / "a.mp4")), SETTINGS.model_copy(update={"max_pixels": 1000}))


def test_videos_in_a_dataset_are_read_like_files(tmp_path):
    from datasets import Dataset, DatasetDict

    write(tmp_path / "a.mp4", ramp(10))
    rows = {"video": [{"bytes": (tmp_path / "a.mp4").read_bytes(), "path": None}], "label": ["x"]}
    DatasetDict({"train": Dataset.from_dict(rows)}).save_to_disk(tmp_path / "saved")
    plugin = VideoModality(SETTINGS)
    (item,) = plugin.discover(str(tmp_path / "saved"))
    (record,) = plugin.read(item)
    assert record.shape == (10, 48, 64, 3)


def test_what_begins_like_a_video_is_taken_for_one(tmp_path):
    write(tmp_path / "a", ramp(2), form="mp4")
    write(tmp_path / "b", ramp(2), "libvpx-vp9", form="webm")
    write(tmp_path / "c", ramp(2), "mpeg4", form="avi")
    (tmp_path / "d").write_text("notes")
    assert [sniff(str(tmp_path / name)) for name in "abcde"] == [True, True, True, False, False]


@pytest.mark.parametrize("times", [[], [1.0], [np.nan] * 5, [0.0, 0.0]])
def test_times_without_meaning_leave_the_declared_rate(times):
    rate, shown = timeline(np.array(times), 30.0)
    assert rate == 30.0
    assert shown.tolist() == list(range(len(times)))
