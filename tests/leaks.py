"""A search for planted strings in everything below a folder, compressed and packed contents included."""

import base64
import binascii
import gzip
import io
import json
import re
import shutil
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from PIL import Image, ImageSequence, UnidentifiedImageError
from pyarrow import parquet

DEEPEST = 6
"""Containers within containers that are opened."""
OWNER = "private"
"""The folder below a home that may hold names; what lies in it is not searched."""
EMBEDDED = re.compile(rb"data:[\w/+.-]*;base64,([A-Za-z0-9+/=]+)")


def find(home: Path, needles: Sequence[str], *, extra: Iterable[bytes] = ()) -> list[str]:
    """Where ``needles`` stand below ``home``, or in one of the texts ``extra``: "file (how packed): needle"."""
    forms = {form: needle for needle in needles for form in _forms(needle)}
    pattern = re.compile(b"|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
    found = set()
    for name, data in [*_files(home), *((f"extra {number}", text) for number, text in enumerate(extra))]:
        for how, content in _contents(data, 0):
            found |= {f"{name}{how}: {forms[hit]}" for hit in pattern.findall(content)}
    return sorted(found)


def _forms(needle: str) -> Iterator[bytes]:
    """The needle as files may hold it."""
    plain = needle.encode()
    yield from (plain, needle.encode("utf-16-le"), json.dumps(needle)[1:-1].encode(), quote(needle).encode())
    for shift in range(3):
        # The characters that do not depend on what stands before and behind.
        text = base64.b64encode(bytes(shift) + plain)
        inner = text[-(-shift * 8 // 6) : (shift + len(plain)) * 8 // 6]
        if len(inner) >= 6:
            yield from (inner, inner.replace(b"+", b"-").replace(b"/", b"_"))


def _files(home: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file, and the rows of each database with what stands in its log."""
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if name.partition("/")[0] == OWNER:
            continue
        yield f"{name} (its name)", name.encode(errors="surrogateescape")
        if path.is_symlink():
            yield f"{name} (a link)", str(path.readlink()).encode(errors="surrogateescape")
        elif path.is_file():
            data = path.read_bytes()
            yield name, data
            if data.startswith(b"SQLite format 3\0"):
                yield from ((f"{name} ({table})", value) for table, value in _rows(path))


def _rows(database: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of a database, read from a copy: opening it would change the log beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{database}{suffix}", f"{folder}/copy{suffix}")
        with closing(sqlite3.connect(f"{folder}/copy")) as opened:
            opened.text_factory = bytes
            for (table,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in opened.execute(f'SELECT * FROM "{table.decode()}"'):
                    yield from ((table.decode(), value) for value in row if isinstance(value, bytes))


def _contents(data: bytes, depth: int) -> Iterator[tuple[str, bytes]]:
    """(how it was unpacked, bytes) of ``data`` itself and of all that is packed into it."""
    yield "", data
    if depth == DEEPEST:
        return
    for how, inner in _unpacked(data):
        for more, content in _contents(inner, depth + 1):
            yield f" ({how}){more}", content


def _unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    with suppress(OSError, EOFError, zlib.error):
        if data.startswith(b"\x1f\x8b"):
            yield "gzip", gzip.decompress(data)
    with suppress(zlib.error):
        if data[:1] == b"\x78":
            yield "zlib", zlib.decompress(data)
    if data.startswith(b"PK"):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as packed:
            for member in packed.infolist():
                yield "zip", member.filename.encode() + b"\n" + member.comment
                yield "zip", packed.read(member)
    if data.startswith(b"\x89PNG"):
        yield from (("png", text) for text in _texts(data))
    if data.startswith((b"\x89PNG", b"GIF8", b"RIFF")):
        with suppress(UnidentifiedImageError):
            yield from (("pixels", frame.tobytes()) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data))))
    if data.startswith(b"PAR1"):
        yield from (("parquet", value) for value in _cells(parquet.read_table(io.BytesIO(data))))
    if data.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        with suppress(pa.ArrowInvalid):
            opened = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
            yield from (("arrow", value) for value in _cells(opened(data).read_all()))
    for embedded in EMBEDDED.findall(data):
        with suppress(binascii.Error):
            yield "base64", base64.b64decode(embedded)


def _texts(png: bytes) -> Iterator[bytes]:
    """The compressed texts of a PNG."""
    place = 8
    while place + 8 <= len(png):
        size, kind = struct.unpack(">I4s", png[place : place + 8])
        body = png[place + 8 : place + 8 + size]
        place += size + 12
        if kind == b"zTXt":
            yield zlib.decompress(body.split(b"\0", 1)[1][1:])
        elif kind == b"iTXt" and body.split(b"\0", 1)[1][:1] == b"\1":
            yield zlib.decompress(body.split(b"\0", 1)[1][2:].split(b"\0", 2)[2])


def _cells(table: pa.Table) -> Iterator[bytes]:
    """Every text and every piece of bytes in a table, and what its schema says beside."""
    yield str(table.schema.metadata).encode()
    for column in table.columns:
        for value in column.to_pylist():
            yield from _leaves(value)


def _leaves(value: object) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode(errors="surrogatepass")
    elif isinstance(value, dict):
        yield from (leaf for pair in value.items() for part in pair for leaf in _leaves(part))
    elif isinstance(value, list):
        yield from (leaf for part in value for leaf in _leaves(part))
