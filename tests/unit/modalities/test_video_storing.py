"""Stored clips: any frames come back, in any order, as what went in; random reading does not grow the process."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from core.data.codecs import decode, encode
from core.modality import Record
from modalities.video.config import StoreConfig
from modalities.video.storing import CODECS, decode_frames, encode_frames

sys.path.insert(0, str(Path(__file__).parents[2]))
from odd_videos import ramp

STORES = [StoreConfig(codec="h264", gop=gop, crf=12) for gop in (1, 4, 7, 100)] + [
    StoreConfig(codec="jpeg", quality=95)
]


def record(frames, store):
    return Record("a", encode_frames(frames, store), CODECS[store.codec], frames.shape, "uint8")


@pytest.mark.parametrize("store", STORES, ids=lambda s: f"{s.codec}-{s.gop}")
@pytest.mark.parametrize("size", [(64, 48), (33, 17)])
def test_any_frames_come_back_in_any_order(store, size):
    frames = ramp(30, size)
    stored = record(frames, store)
    rng = np.random.default_rng(0)
    for wanted in (range(30), [29], [0], [3, 3, 3], [], *(rng.integers(30, size=9).tolist() for _ in range(5))):
        got = decode_frames(stored, list(wanted)).astype(int)
        assert got.shape == (len(wanted), size[1], size[0], 3)
        assert np.abs(got - frames[list(wanted)]).sum() < 9 * max(1, got.size)
        for mine, number in zip(got, wanted, strict=True):
            assert abs(np.median(mine) - np.median(frames[number])) <= 2


@pytest.mark.parametrize("store", STORES[1:2] + STORES[-1:], ids=["h264", "jpeg"])
def test_colours_stay_themselves(store):
    for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250), (128, 128, 128)):
        frames = np.full((6, 32, 32, 3), colour, np.uint8)
        assert np.abs(decode_frames(record(frames, store), [4]).astype(int) - colour).max() <= 6


@pytest.mark.parametrize("wanted", [[-1], [30], [0, 99]])
def test_frames_that_are_not_there_are_an_error(wanted):
    with pytest.raises(IndexError, match="of 30"):
        decode_frames(record(ramp(30), STORES[1]), wanted)


def test_the_payloads_are_codecs_like_any_other():
    frames = ramp(5)
    for name, codec in CODECS.items():
        payload = encode(frames, codec)
        whole = decode(Record("a", payload, codec, frames.shape, "uint8"))
        assert whole.shape == frames.shape, name


@pytest.mark.parametrize("store", STORES[1:2] + STORES[-1:], ids=["h264", "jpeg"])
def test_random_reads_do_not_grow_the_process(store):
    stored = record(ramp(60, (160, 120)), store)
    rng, process, sizes = np.random.default_rng(0), psutil.Process(), []
    for number in range(600):
        decode_frames(stored, np.sort(rng.integers(60, size=16)).tolist())
        if number in (100, 599):
            sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 15 * 2**20
