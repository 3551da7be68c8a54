"""A folder of 200 image files of which 20 are unusable, each in its own way, and 5 are odd but readable."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

TOTAL, UNUSABLE, ODD = 200, 20, 5


def build(folder: Path) -> tuple[set[str], set[str]]:
    """Make the folder; gives the names of the unusable files and of the odd ones."""
    folder.mkdir(parents=True, exist_ok=True)
    unusable, odd = _unusable(folder), _odd(folder)
    assert (len(unusable), len(odd)) == (UNUSABLE, ODD)
    for number in range(TOTAL - UNUSABLE - ODD):
        photo(number).save(folder / f"photo-{number:03d}.{('jpg', 'png', 'webp')[number % 3]}")
    return unusable, odd


def photo(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth coloured picture, different for each seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def _file(seed: int, kind: str) -> bytes:
    out = io.BytesIO()
    photo(seed, (120, 90)).save(out, kind)
    return out.getvalue()


def _unusable(folder: Path) -> set[str]:
    jpeg, png, webp, tiff = (_file(9000, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF"))
    flipped = bytearray(png)
    for place in range(len(png) // 2, len(png) // 2 + 40):
        flipped[place] ^= 0xFF
    contents = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "truncated.webp": webp[: len(webp) // 2],
        "truncated.tif": tiff[: len(tiff) // 2],
        "empty.jpg": b"",
        "one-byte.png": b"\x89",
        "text.jpg": b"This is a note that somebody called an image.\n",
        "paper.jpg": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "page.png": b"<!doctype html><title>404 Not Found</title>",
        "archive.png": _archive(),
        "flipped.png": bytes(flipped),
        "zeros.jpg": bytes(4096),
        "header-only.jpg": jpeg[:20],
        "bomb.png": _bomb(),
        "gif-garbage.gif": b"GIF89a" + bytes(range(256)),
        "pickled.npy": _npy(np.array([{"a": 1}], dtype=object)),
        "holes.npy": _npy(np.full((8, 8, 3), np.nan, np.float32)),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder.jpg").mkdir()
    return {*contents, "dangling.jpg", "loop.jpg", "folder.jpg"}


def _odd(folder: Path) -> set[str]:
    photo(9100).save(folder / "png-called-jpeg.jpg", "PNG")
    photo(9101, (1, 1)).save(folder / "one-pixel.png")
    photo(9102).convert("CMYK").save(folder / "four-inks.JPEG", "JPEG")
    palette = photo(9103).convert("P")
    palette.save(folder / "see-through.PNG", "PNG", transparency=0)
    photo(9104).save(folder / "no-suffix", "JPEG")
    return {"png-called-jpeg.jpg", "one-pixel.png", "four-inks.JPEG", "see-through.PNG", "no-suffix"}


def _archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("image.png", b"not really")
    return out.getvalue()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def _bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


if __name__ == "__main__":
    import sys

    unusable, odd = build(Path(sys.argv[1]))
    print(f"{TOTAL} files in {sys.argv[1]}: {len(unusable)} unusable, {len(odd)} odd")
