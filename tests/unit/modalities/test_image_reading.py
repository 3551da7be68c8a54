"""Image files of every kind, good, odd and unusable."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from core.data.codecs import decode
from core.modality import Unreadable
from modalities.image.config import ImageSettings, StoreConfig
from modalities.image.plugin import ImageModality

sys.path.insert(0, str(Path(__file__).parents[2]))
from broken_images import build, photo

SMALL = ImageSettings(size=(16, 16), patch=(4, 4))


def pixels(folder, name, **settings):
    plugin = ImageModality(SMALL.model_copy(update={"store": StoreConfig(codec="raw"), **settings}))
    (item,) = [item for item in plugin.discover(str(folder)) if item.key == name]
    (record,) = plugin.read(item)
    return decode(record)


def test_the_twenty_unusable_files_are_told_apart_from_all_others(tmp_path):
    unusable, odd = build(tmp_path)
    plugin, refused, read = ImageModality(SMALL), {}, set()
    for item in plugin.discover(str(tmp_path)):
        try:
            plugin.read(item)
            read.add(item.key)
        except Unreadable as reason:
            refused[item.key] = str(reason)
    assert set(refused) == unusable
    assert odd <= read
    assert len(read) == 180
    expected = {
        "empty.jpg": "empty",
        "text.jpg": "text",
        "paper.jpg": "PDF",
        "page.png": "HTML",
        "archive.png": "zip",
        "bomb.png": "bomb.*3600000000",
        "dangling.jpg": "dangling",
        "folder.jpg": "folder",
        "pickled.npy": "pickle",
        "holes.npy": "finite",
        "truncated.jpg": "truncated",
        "flipped.png": "damaged",
    }
    for name, word in expected.items():
        assert re.search(word, refused[name]), (name, refused[name])
    assert not any(str(tmp_path) in reason for reason in refused.values())


def test_a_file_without_permission_is_listed_with_that_reason(tmp_path):
    """Run as a user who is not root, for whom permissions hold."""
    photo(0).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    code = (
        "import os, sys\n"
        "from core.data.files import content\n"
        "from pathlib import Path\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: content(Path(sys.argv[1]))\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "Unreadable permission denied", done.stderr


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_modes_become_grey_or_rgb(tmp_path, mode, channels):
    source = photo(1)
    source.convert(mode).save(tmp_path / "a.png")
    got = pixels(tmp_path, "a.png", channels=channels)
    assert got.shape == (32, 40, channels)
    if mode != "1" and channels == 1:
        assert np.abs(got[..., 0].astype(int) - np.asarray(source.convert("L")).astype(int)).mean() < 12


def test_sixteen_bit_png_keeps_its_range(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 40).reshape(32, 40).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    got = pixels(tmp_path, "a.png", channels=1)[..., 0]
    assert (got.min(), got.max()) == (0, 255)
    assert np.abs(got - ramp / 257.0).max() <= 0.5


def test_transparent_pixels_show_the_background(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (200, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = pixels(tmp_path, "a.png", background=(10, 20, 30))
    assert tuple(got[0, 0]) == (200, 0, 0)
    assert tuple(got[7, 0]) == (10, 20, 30)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(2).save(tmp_path / "a.jpg", exif=exif, quality=95)
    got = pixels(tmp_path, "a.jpg")
    assert got.shape == (40, 32, 3)
    expected = np.asarray(photo(2).transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(got.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_arrays_with_many_channels(tmp_path, kind, axis):
    data = np.random.default_rng(0).integers(0, 60000, (12, 14, 6)).astype(np.uint16)
    stored = np.moveaxis(data, 2, axis)
    if kind == "npy":
        np.save(tmp_path / "a.npy", stored)
    else:
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack")
    assert np.array_equal(pixels(tmp_path, f"a.{kind}", channels=6), data)


def test_a_tiff_without_pages_is_told_of_by_its_reason_alone(tmp_path, capfd, caplog):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(30))
    with pytest.raises(Unreadable, match="damaged TIFF"):
        pixels(tmp_path, "a.tif", channels=6)
    assert caplog.text + "".join(capfd.readouterr()) == ""


def test_an_array_with_other_channels_is_refused_with_its_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 6, 7), np.float32))
    with pytest.raises(Unreadable, match=r"\(5, 6, 7\).*3 channels"):
        pixels(tmp_path, "a.npy")


def test_large_images_are_shrunk_once(tmp_path):
    photo(3, (900, 600)).save(tmp_path / "a.jpg")
    got = pixels(tmp_path, "a.jpg", store=StoreConfig(short_side=100, codec="raw"))
    assert got.shape == (100, 150, 3)
    expected = np.asarray(photo(3, (900, 600)).resize((150, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(got.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("codec", ["auto", "jpeg", "webp", "raw"])
def test_every_codec_gives_the_picture_back(tmp_path, codec):
    photo(4, (100, 80)).save(tmp_path / "a.png")
    got = pixels(tmp_path, "a.png", store=StoreConfig(codec=codec, quality=95))
    assert np.abs(got.astype(int) - np.asarray(photo(4, (100, 80))).astype(int)).mean() < 4


def test_rows_of_a_saved_dataset(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageColumn

    def files(seeds):
        for seed in seeds:
            out = io.BytesIO()
            photo(seed).save(out, "PNG")
            yield {"bytes": out.getvalue(), "path": None}

    features = Features({"image": ImageColumn(), "label": ClassLabel(names=["cat", "dog"])})
    data = {"train": list(files(range(4))), "test": list(files(range(4, 6)))}
    splits = {
        name: Dataset.from_dict({"image": rows, "label": [i % 2 for i in range(len(rows))]}, features=features)
        for name, rows in data.items()
    }
    DatasetDict(splits).save_to_disk(tmp_path / "d")
    plugin = ImageModality(SMALL.model_copy(update={"store": StoreConfig(codec="raw")}))
    items = list(plugin.discover(str(tmp_path / "d")))
    assert [(i.split, i.target) for i in items] == [
        ("test", "cat"), ("test", "dog"), ("train", "cat"), ("train", "dog"), ("train", "cat"), ("train", "dog")
    ]  # fmt: skip
    (record,) = plugin.read(items[3])
    assert np.array_equal(decode(record), np.asarray(photo(1)))
