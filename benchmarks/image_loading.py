"""How fast does one worker make training samples, beside torchvision's ImageFolder on the same photographs?

Both give random resized crops (bicubic, 224 pixels, scale 0.2 to 1) and flips from photographs stored as JPEG of
quality 90: torchvision decodes and crops the source files, maeflow its prepared data. One thread, rounds interleaved.

    python benchmarks/image_loading.py [--copies 8] [--rounds 9] [--out FILE]

Prints samples per second of both, the paired ratio with a 95 % interval, and the bytes of source and prepared data.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import torch
from loaders import interval, prepared
from PIL import Image

from core import recipes
from core.data.loading import MicroBatch, Part, Stream, TrainViews
from core.registry import plugin

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "china",
    "clock_motion",
    "coffee",
    "coins",
    "flower",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "moon",
    "motorcycle_left",
    "motorcycle_right",
    "retina",
    "rocket",
)
"""Real photographs of at least 300 pixels that scikit-image and scikit-learn ship."""
BATCH = 32


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "photos"
        count = write_photographs(source, options.copies)
        ours, prepared_bytes = maeflow_worker(source, Path(scratch) / "home")
        theirs = torchvision_worker(source)
        size = sum(f.stat().st_size for f in source.rglob("*.jpg"))
        ratios, ours_s, theirs_s = compare(ours, theirs, options.rounds)
    low, high = interval(ratios)
    result = {
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}, torchvision {version('torchvision')}, "
        f"pillow {version('pillow')}",
        "photographs": count,
        "maeflow_samples_per_s": statistics.median(ours_s),
        "torchvision_samples_per_s": statistics.median(theirs_s),
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "source_bytes": size,
        "prepared_bytes": prepared_bytes,
    }
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def write_photographs(folder: Path, copies: int) -> int:
    """The photographs of scikit-image and scikit-learn as JPEG files, each several times with other pixels."""
    place = folder / "photo"
    place.mkdir(parents=True)
    shipped = [f for part in ("skimage.data", "sklearn.datasets.images") for f in files(part).iterdir()]
    photographs = [f for f in shipped if f.name.partition(".")[0] in PHOTOGRAPHS]
    for count, file in enumerate(sorted(photographs, key=lambda f: f.name)):
        with Image.open(str(file)) as picture:
            pixels = picture.convert("RGB")
        for copy in range(copies):
            # Quarter turns: the same kind of picture, other bytes, so that nothing counts as a duplicate.
            turned = pixels.rotate(90 * (copy % 4), expand=True)
            turned = turned if copy < 4 else turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            turned.save(place / f"{count:03d}-{copy}.jpg", quality=90)
    return len(photographs)


def maeflow_worker(source: Path, root: Path) -> tuple[Callable[[], int], int]:
    """One pass over prepared data by what a loader worker runs; and the bytes of the prepared data."""
    recipe = recipes.load("image/vit_base", ["prepare.val_fraction=0", "prepare.test_fraction=0", "compute.workers=1"])
    store, size = prepared(recipe, source / "photo", root)
    stream = Stream([Part(store.ids("train"))], 0)
    views = TrainViews([store], stream, plugin("image", recipe.data, "pretrain"), 0, None)
    position = 0

    def one_pass() -> int:
        nonlocal position
        for start in range(position, position + stream.per_epoch, BATCH):
            views[MicroBatch(0, 0, start, BATCH)]
        position += stream.per_epoch
        return -(-stream.per_epoch // BATCH) * BATCH

    return one_pass, size


def torchvision_worker(source: Path) -> Callable[[], int]:
    """One pass of torchvision's ImageFolder with the transforms of the MAE paper."""
    from torchvision import datasets, transforms
    from torchvision.transforms import InterpolationMode

    crop = transforms.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    data = datasets.ImageFolder(str(source), transforms.Compose(steps))

    def one_pass() -> int:
        order = torch.randperm(len(data)).tolist()
        for start in range(0, len(order), BATCH):
            torch.stack([data[i][0] for i in order[start : start + BATCH]])
        return len(order)

    return one_pass


def compare(
    ours: Callable[[], int], theirs: Callable[[], int], rounds: int
) -> tuple[list[float], list[float], list[float]]:
    """Ratios of samples per second, round by round, and both series."""
    ours(), theirs()
    first, second = [], []
    for number in range(rounds):
        pair = [(ours, first), (theirs, second)]
        for one_pass, series in pair if number % 2 else reversed(pair):
            start = time.perf_counter()
            count = one_pass()
            series.append(count / (time.perf_counter() - start))
    return [a / b for a, b in zip(first, second, strict=True)], first, second


def show(result: dict[str, float]) -> None:
    print(f"{result['machine']}\n{result['photographs']} photographs at 224 pixels, random resized crop and flip")
    print(f"maeflow, prepared data     {result['maeflow_samples_per_s']:8.0f} samples/s per worker")
    print(f"torchvision ImageFolder    {result['torchvision_samples_per_s']:8.0f} samples/s per worker")
    print(f"ratio                      {result['ratio']:8.2f} ({result['low']:.2f} to {result['high']:.2f})")
    share = result["prepared_bytes"] / result["source_bytes"]
    print(f"bytes prepared / source    {result['prepared_bytes']:,} / {result['source_bytes']:,} ({share:.2f})")


if __name__ == "__main__":
    main()
