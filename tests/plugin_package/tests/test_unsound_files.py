"""Files that are not sound, rows of datasets, and a pickle with a guest: each is met by a plain reason."""

import io
import pickle

import numpy as np
import pytest
from maeflow_inertial import demo
from maeflow_inertial.config import InertialSettings
from maeflow_inertial.plugin import InertialModality
from maeflow_inertial.reading import read

from core.modality import Item, Unreadable

HEADER = "ax,ay,az,wx,wy,wz\n"


def _npy(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


NAN = np.ones((9, 6))
NAN[3, 2] = np.nan
BAD = {
    "empty.npy": (b"", "empty file"),
    "empty.csv": (b"", "empty file"),
    "text.npy": (b"hello", "not a NumPy array"),
    "text.csv": (b"hello\nthere\n", "first line has 1 column;"),
    "binary.csv": (b"\xff\xfe\x00" * 9, "not text"),
    "header.csv": (HEADER.encode(), "holds no samples"),
    "no_header.csv": (b"1,2,3,4,5,6\n" * 9, "first line holds numbers"),
    "narrow.csv": (b"x,y\n1,2\n", "first line has 2 columns"),
    "ragged.csv": (HEADER.encode() + b"1,2,3,4,5,6\n1,2,3\n", "columns changed"),
    "word.csv": (HEADER.encode() + b"1,2,3,4,5,high\n", "'high'"),
    "nan.csv": (HEADER.encode() + b"1,2,3,4,5,nan\n", "not finite"),
    "narrow.npy": (_npy(np.ones((9, 3))), "has 3 columns, not 6"),
    "flat.npy": (_npy(np.ones(9)), "an array of shape (9,)"),
    "none.npy": (_npy(np.ones((0, 6))), "holds no samples"),
    "words.npy": (_npy(np.full((9, 6), "a")), "type <U1"),
    "nan.npy": (_npy(NAN), "not finite"),
    "large.npy": (_npy(np.full((9, 6), 1e6)), "beyond 65504"),
    "pickled.npy": (_npy(np.array([{}], dtype=object), allow_pickle=True), "pickled"),
    "cut.npy": (_npy(np.ones((9, 6)))[:200], "cut off"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_said_plainly_and_without_its_path(name, tmp_path):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable) as error:
        read(Item(name, str(tmp_path / name)), 512)
    assert reason in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert name not in str(error.value)


@pytest.mark.parametrize(("name", "reason"), [("missing.npy", "missing file"), ("folder.csv", "is a folder")])
def test_what_is_no_file_is_said_plainly(name, reason, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(Unreadable, match=reason):
        read(Item(name, str(tmp_path / name)), 512)


def test_rows_of_a_saved_dataset_are_read(tmp_path):
    from datasets import Dataset

    rows = {"signal": [np.ones((70, 6)).tolist(), [[1.0, 2.0]]], "label": ["walk", "run"], "group": ["ann", "bob"]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    live = InertialModality(InertialSettings())
    good, bad = live.discover(str(tmp_path / "saved"))
    (record,) = live.read(good)
    assert (record.shape, record.target, record.group) == ((6, 70), "walk", "ann")
    with pytest.raises(Unreadable, match="has 2 columns"):
        live.read(bad)


def test_the_unpickler_admits_arrays_and_nothing_else():
    whole = _npy(np.array({"X": [np.ones((3, 6))]}, dtype=object), allow_pickle=True)
    assert demo._unpickled(whole)["X"][0].shape == (3, 6)
    for guest in (print, np.save, type):
        with pytest.raises(pickle.UnpicklingError, match="not admitted"):
            demo._unpickled(_npy(np.array({"X": guest}, dtype=object), allow_pickle=True))
