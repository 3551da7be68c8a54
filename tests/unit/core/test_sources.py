"""Kinds of source and what is found in them."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from core.data.sources import check_kind, discover, kind_of, listing
from core.errors import UserError

SUFFIXES = frozenset({".dat"})


def sniff(path):
    return Path(path).read_bytes()[:3] == b"DAT"


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"DAT" + name.encode())


def found(source):
    return [(i.key, i.target, i.split) for i in discover(str(source), SUFFIXES, sniff)]


def test_class_folders_and_splits(tmp_path):
    write(tmp_path, "train/cat/1.dat", "train/dog/2.dat", "valid/cat/3.dat", "test/dog/4.dat")
    assert found(tmp_path) == [
        ("test/dog/4.dat", "dog", "test"),
        ("train/cat/1.dat", "cat", "train"),
        ("train/dog/2.dat", "dog", "train"),
        ("valid/cat/3.dat", "cat", "val"),
    ]


def test_a_class_that_is_called_train_is_a_class_where_others_are_not_splits(tmp_path):
    write(tmp_path, "train/1.dat", "plane/2.dat")
    assert found(tmp_path) == [("plane/2.dat", "plane", None), ("train/1.dat", "train", None)]


def test_a_flat_folder_has_no_labels(tmp_path):
    write(tmp_path, "1.dat", "2.DAT", ".hidden.dat")
    assert found(tmp_path) == [("1.dat", None, None), ("2.DAT", None, None)]


def test_other_files_are_items_only_where_they_look_like_data(tmp_path):
    write(tmp_path, "a.dat", "odd-name")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.dat").write_text("not data, but called so")
    assert [key for key, _, _ in found(tmp_path)] == ["a.dat", "fake.dat", "odd-name"]


def test_linked_folders_are_followed_but_never_in_circles(tmp_path):
    write(tmp_path / "elsewhere", "x/1.dat")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "here").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "source" / "round").symlink_to(tmp_path / "source")
    assert [key for key, _, _ in found(tmp_path / "source")] == ["here/1.dat"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifests(tmp_path, kind):
    write(tmp_path, "a/1.dat", "a/2.dat")
    columns = {
        "path": ["a/1.dat", "a/2.dat", "a/3.dat"],
        "label": ["07", None, "x|y"],
        "split": ["train", "test", None],
    }
    table = pa.table(columns | {"group": ["p1", "p1", "p2"], "camera": ["k", "k", "k"]})
    file = tmp_path / f"m.{kind}"
    if kind == "csv":
        from pyarrow import csv

        csv.write_csv(table, file)
    else:
        parquet.write_table(table, file)
    items = discover(str(file), SUFFIXES, sniff)
    assert [(i.key, i.target, i.split, i.group) for i in items] == [
        ("a/1.dat", "07", "train", "p1"),
        ("a/2.dat", None, "test", "p1"),
        ("a/3.dat", "x|y", None, "p2"),
    ]
    assert [i.size for i in items] == [10, 10, -1]
    assert ("a/3.dat", -1, 0) in listing(str(file))


def test_the_listing_is_the_identity_of_a_source(tmp_path):
    write(tmp_path, "b/1.dat", "a.dat")
    before = listing(str(tmp_path))
    assert [row[0] for row in before] == ["a.dat", "b/1.dat"]
    write(tmp_path, "c.dat")
    assert set(before) < set(listing(str(tmp_path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\n1.dat,x\n", "no column 'path'"),
        ("path,split\n1.dat,trian\n", "line 2: split 'trian'"),
        ("path\n1.dat\n1.dat\n", "line 3: '1.dat' is listed twice"),
        ("", "cannot be read"),
        ("path,label\n1.dat\n", "cannot be read"),
    ],
)
def test_bad_manifests_name_the_file_and_the_line(tmp_path, content, message):
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        discover(str(tmp_path / "m.csv"), SUFFIXES, sniff)
    assert "m.csv" in str(caught.value)


def test_missing_and_unknown_sources_tell_the_next_step(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="did you mean 'photos'"):
        kind_of(str(tmp_path / "photo"))
    (tmp_path / "data.xlsx").write_text("")
    with pytest.raises(UserError, match="is a single file, which 'depth' does not read; it reads a folder of files"):
        check_kind(str(tmp_path / "data.xlsx"), "depth", ["folder"])
    (tmp_path / "m.csv").write_text("paths,label\n1.dat,x\n")
    with pytest.raises(UserError, match=r"no column 'path'.*is 'paths' meant"):
        check_kind(str(tmp_path / "m.csv"), "depth", ["folder", "manifest"])
    with pytest.raises(UserError, match="holds no item"):
        discover(str(tmp_path / "photos"), SUFFIXES, sniff)


def test_a_single_file_may_hold_everything(tmp_path):
    """Also a table of measurements: it is a manifest only if it has a column `path`."""
    write(tmp_path, "all.dat")
    (tmp_path / "spectra.csv").write_text("400nm,401nm\n0.1,0.2\n")
    for name in ("all.dat", "spectra.csv"):
        file = str(tmp_path / name)
        assert kind_of(file) == "file"
        check_kind(file, "spectra", ["file"])
        assert [(i.key, i.path, i.target) for i in discover(file, frozenset({".dat", ".csv"}), sniff)] == [
            (name, file, None)
        ]
        assert [key for key, _, _ in listing(file)] == [name]


def test_a_manifest_beside_its_files_is_no_item_where_tables_are_data(tmp_path):
    (tmp_path / "one.csv").write_text("x,y\n1,2\n")
    (tmp_path / "manifest.csv").write_text("path,label\none.csv,a\n")
    assert [i.key for i in discover(str(tmp_path), frozenset({".csv"}), sniff)] == ["one.csv"]


def test_a_saved_dataset_is_known_by_its_files(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({}))
    assert kind_of(str(tmp_path)) == "huggingface"
