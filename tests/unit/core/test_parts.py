"""Tables made part by part: whole or not there, of one request, and the same bytes however their rows came."""

import json
import threading

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from core.data import parts
from core.data.parts import ABOUT, Output, Table, about_of
from core.errors import UserError

REQUEST = {"kind": "embed", "model": "abc", "batch": 4}


def schema(request=REQUEST, width=3):
    columns = [("key", pa.string()), ("features", pa.list_(pa.float32(), width))]
    return pa.schema(columns, {ABOUT: json.dumps({"request": request})})


def rows(first, count, width=3):
    values = pa.array(np.arange(first * width, (first + count) * width, dtype=np.float32))
    columns = [
        pa.array([f"k{n}" for n in range(first, first + count)]),
        pa.FixedSizeListArray.from_arrays(values, width),
    ]
    return pa.Table.from_arrays(columns, schema=schema(width=width))


def write(output, number, *tables, unreadable=()):
    with Table(output.part(number), schema(), lambda: unreadable) as table:
        for some in tables:
            table.add(some)


def free():
    return False


def make(output, *sizes):
    """A finished table of parts of these sizes, each written three rows at a time."""
    with output.exclusive(print, free):
        assert output.begin(REQUEST, overwrite=False)
        first = 0
        for number, size in enumerate(sizes):
            some = [rows(first + start, min(3, size - start)) for start in range(0, size, 3)]
            write(output, number, *some, unreadable=[(f"bad{number}", 'torn, "really"\n')] if number else [])
            first += size
        output.finish(output.merge(len(sizes)))


def test_rows_come_out_in_order_with_what_the_table_says_of_itself(tmp_path):
    output = Output(tmp_path / "t.parquet")
    make(output, 5, 0, 7)
    table = parquet.read_table(output.final)
    assert table["key"].to_pylist() == [f"k{n}" for n in range(12)]
    assert table["features"].to_pylist()[11] == [33.0, 34.0, 35.0]
    assert about_of(output.final)["request"] == REQUEST
    assert set(table.schema.metadata) == {ABOUT.encode()}
    assert output.unreadable.read_bytes() == b'key,reason\r\nbad1,"torn, ""really""\n"\r\nbad2,"torn, ""really""\n"\r\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet", "t.parquet.unreadable.csv"]


def test_groups_are_bounded_and_bytes_do_not_depend_on_how_rows_came(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "GROUP_ROWS", 4)
    for name, sizes in (("a", (5, 7)), ("b", (12,)), ("c", (1, 1, 10))):
        make(Output(tmp_path / name), *sizes)
    data = {(tmp_path / name).read_bytes() for name in "abc"}
    assert len(data) == 1
    about = parquet.read_metadata(tmp_path / "a")
    assert [about.row_group(n).num_rows for n in range(about.num_row_groups)] == [4, 4, 4]


def test_wide_rows_make_small_groups():
    wide = Table(parts.Path("nowhere"), schema(width=2**20))
    assert wide._rows == 3


def test_a_part_whose_writer_fails_is_not_there(tmp_path):
    output = Output(tmp_path / "t.parquet")
    with output.exclusive(print, free):
        output.begin(REQUEST, overwrite=False)
        with pytest.raises(AttributeError), Table(output.part(0), schema()) as table:
            table.add("no rows")
        assert not list(output.part(0).parent.iterdir())


def test_what_is_done_is_known_again_and_what_is_another_requests_is_kept(tmp_path):
    output, other = Output(tmp_path / "t.parquet"), REQUEST | {"batch": 8}
    make(output, 3)
    before = output.final.read_bytes()
    with output.exclusive(print, free):
        assert not output.begin(REQUEST, overwrite=False)
    assert not output.partial.exists()
    with output.exclusive(print, free), pytest.raises(UserError, match="batch: 4 there, 8 asked for"):
        output.begin(other, overwrite=False)
    assert not output.partial.exists()
    with output.exclusive(print, free):
        assert output.begin(other, overwrite=True)
        assert output.final.read_bytes() == before  # Until there is something to replace it.
        write(output, 0, rows(0, 2))
        output.finish(output.merge(1))
    assert parquet.read_metadata(output.final).num_rows == 2


def test_unfinished_work_of_another_request_is_told_and_dropped_only_when_asked(tmp_path):
    output = Output(tmp_path / "t.parquet")
    with output.exclusive(print, free):
        output.begin(REQUEST, overwrite=False)
        write(output, 0, rows(0, 2))
        (output.partial / ".x.tmp").touch()
    with output.exclusive(print, free), pytest.raises(UserError, match="unfinished work of another request"):
        output.begin(REQUEST | {"model": "d"}, overwrite=False)
    with output.exclusive(print, free):
        output.begin(REQUEST, overwrite=False)
        assert output.part(0).exists()
        assert not (output.partial / ".x.tmp").exists()
    with output.exclusive(print, free):
        output.begin(REQUEST | {"model": "d"}, overwrite=True)
        assert not output.part(0).exists()


def test_files_of_others_are_replaced_only_when_asked_and_folders_never(tmp_path):
    (tmp_path / "t.parquet").write_text("notes")
    output = Output(tmp_path / "t.parquet")
    with output.exclusive(print, free), pytest.raises(UserError, match="not made by maeflow"):
        output.begin(REQUEST, overwrite=False)
    with output.exclusive(print, free):
        assert output.begin(REQUEST, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").touch()
    for kind in (False, True):
        output = Output(tmp_path / "photos", folder=kind)
        with output.exclusive(print, free), pytest.raises(UserError, match="never overwritten"):
            output.begin(REQUEST, overwrite=True)


def test_a_folder_is_replaced_whole(tmp_path):
    output = Output(tmp_path / "masks", folder=True)
    output.final.mkdir()  # An empty one is nothing.
    for request, name in ((REQUEST, "old"), (REQUEST | {"model": "d"}, "new")):
        with output.exclusive(print, free):
            assert output.begin(request, overwrite=name == "new")
            output.result.mkdir()
            (output.result / name).touch()
            with Table(output.part(0), schema(request)) as table:
                table.add(rows(0, 1))
            output.finish(output.merge(1))
    assert sorted(path.name for path in output.final.iterdir()) == ["index.parquet", "new"]
    assert about_of(output.table)["request"]["model"] == "d"


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), Output(tmp_path / "file" / "t").exclusive(print, free):
        pass


def test_who_waits_for_a_place_finds_the_work_done_and_holds_the_place_alone(tmp_path):
    output, told, order = Output(tmp_path / "t.parquet"), threading.Event(), []

    def second():
        with output.exclusive(lambda _: told.set(), free):
            order.append(output.begin(REQUEST, overwrite=False))

    with output.exclusive(print, free):
        output.begin(REQUEST, overwrite=False)
        waiting = threading.Thread(target=second)
        waiting.start()
        assert told.wait(10)
        write(output, 0, rows(0, 2))
        output.finish(output.merge(1))
        order.append("first")
    waiting.join(10)
    assert order == ["first", False]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
