"""The search for planted strings finds them however they are packed, and finds nothing where there is nothing."""

import base64
import gzip
import io
import json
import sqlite3
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin
from pyarrow import feather, parquet

sys.path.insert(0, str(Path(__file__).parents[1]))
from leaks import find

NAME = "Grünwald^Ada"
PADDING = b"of no interest " * 40
TEXT = PADDING + NAME.encode() + PADDING
TABLE = pa.table(
    {"key": [chr(97 + n % 7) * 20 + NAME[n % 13 :] + NAME[: n % 13] for n in range(1, 120)] + ["x" + NAME]}
)


def gzipped():
    return gzip.compress(TEXT)


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("inner.txt.gz", gzip.compress(TEXT))
    return out.getvalue()


def png_text():
    about, out = PngImagePlugin.PngInfo(), io.BytesIO()
    about.add_itxt("Comment", NAME, zip=True)
    Image.new("L", (8, 8)).save(out, "PNG", pnginfo=about)
    return out.getvalue()


def png_old_text():
    about, out = PngImagePlugin.PngInfo(), io.BytesIO()
    about.add_text("Comment", "nobody Lovelace", zip=True)
    Image.new("L", (8, 8)).save(out, "PNG", pnginfo=about)
    return out.getvalue()


def png_pixels():
    row = np.frombuffer(TEXT, np.uint8)[None].repeat(2, 0)
    out = io.BytesIO()
    Image.fromarray(row).save(out, "PNG", compress_level=9)
    return out.getvalue()


def parquet_file():
    out = io.BytesIO()
    parquet.write_table(TABLE, out, compression="zstd", write_statistics=False)
    return out.getvalue()


def parquet_bytes():
    """A payload that is compressed by itself, in a column that is compressed as well."""
    out = io.BytesIO()
    parquet.write_table(pa.table({"payload": [[zlib.compress(TEXT)]]}), out, compression="gzip")
    return out.getvalue()


def arrow_file():
    out = io.BytesIO()
    feather.write_feather(TABLE, out, compression="zstd")
    return out.getvalue()


def arrow_stream():
    out = io.BytesIO()
    with pa.ipc.new_stream(out, TABLE.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
        stream.write_table(TABLE)
    return out.getvalue()


def gif():
    out = io.BytesIO()
    Image.fromarray(np.frombuffer(TEXT, np.uint8)[None].repeat(2, 0)).save(out, "GIF", optimize=False)
    return out.getvalue()


def page():
    return b'<img src="data:image/png;base64,' + base64.b64encode(png_pixels()) + b'">'


def packed_json():
    return json.dumps({"who": NAME}).encode()


def wide():
    return "x".encode("utf-16-le") + NAME.encode("utf-16-le")


PACKED = [gzipped, zipped, png_text, png_pixels, parquet_file, parquet_bytes, arrow_file, arrow_stream, gif, page]
PLAIN = [packed_json, wide, lambda: TEXT]


@pytest.mark.parametrize("make", PACKED, ids=lambda make: make.__name__)
def test_what_is_packed_is_found_though_its_bytes_do_not_hold_it(make, tmp_path):
    data = make()
    assert NAME.encode() not in data
    (tmp_path / "file").write_bytes(data)
    assert [hit.rpartition(": ")[2] for hit in find(tmp_path, ["nowhere-at-all", NAME])] == [NAME]
    assert find(tmp_path, ["nowhere-at-all"]) == []


@pytest.mark.parametrize("make", PLAIN)
def test_other_spellings_are_found(make, tmp_path):
    (tmp_path / "file").write_bytes(make())
    assert find(tmp_path, [NAME]) == [f"file: {NAME}"]


def test_old_compressed_texts_of_pictures_are_found(tmp_path):
    (tmp_path / "file").write_bytes(png_old_text())
    assert find(tmp_path, ["nobody Lovelace"]) == ["file (png): nobody Lovelace"]


@pytest.mark.parametrize("before", [b"", b"a", b"ab"])
def test_base64_is_found_at_every_alignment(before, tmp_path):
    (tmp_path / "file").write_bytes(base64.b64encode(before + TEXT + before))
    assert find(tmp_path, [NAME]) == [f"file: {NAME}"]


def test_rows_of_a_database_are_found_while_they_stand_in_its_log_alone(tmp_path):
    opened = sqlite3.connect(tmp_path / "base.db")
    opened.execute("PRAGMA journal_mode=WAL")
    opened.execute("CREATE TABLE people (name TEXT, packed BLOB)")
    opened.commit()
    opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    opened.execute("INSERT INTO people VALUES ('nobody', ?)", [gzip.compress(TEXT)])
    opened.commit()
    try:
        assert find(tmp_path, [NAME]) == [f"base.db (people) (gzip): {NAME}"]
        opened.execute("INSERT INTO people VALUES (?, NULL)", [NAME])
        opened.commit()
        assert f"base.db-wal: {NAME}" in find(tmp_path, [NAME])
        assert f"base.db (people): {NAME}" in find(tmp_path, [NAME])
    finally:
        opened.close()


def test_names_links_and_texts_beside_the_folder_are_searched_and_the_owners_folder_is_not(tmp_path):
    for folder in ("private", "public"):
        (tmp_path / folder).mkdir()
    (tmp_path / "private" / "known.json").write_text(NAME)
    assert find(tmp_path, [NAME], extra=[b"nothing"]) == []
    (tmp_path / "public" / f"{NAME}.txt").touch()
    (tmp_path / "link").symlink_to(f"/nowhere/{NAME}")
    assert find(tmp_path, [NAME], extra=[b"", TEXT]) == [
        f"extra 1: {NAME}",
        f"link (a link): {NAME}",
        f"public/{NAME}.txt (its name): {NAME}",
    ]
