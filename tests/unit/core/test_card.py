"""The dataset card: counts by class and split, and tables that survive odd names."""

import json

from core.data.card import class_counts, read_card, write_card

SPLITS = ["train", "train", "val", "test", "train"]


def card(**more):
    return {
        "source": "folder",
        "counts": {"train": 3, "val": 1, "test": 1},
        "labelled": {"train": 2, "val": 1, "test": 1},
        "classes": class_counts(["cat", "dog"], [0, 1, 1, 0, None], SPLITS),
        "duplicates": {"count": 2, "files": ["a.png", "b.png"]},
        "unreadable": [],
    } | more


def test_single_labels_are_counted_by_split():
    counts = class_counts(["cat", "dog"], [0, 1, 1, 0, None], SPLITS)
    assert counts == {"cat": {"train": 1, "val": 0, "test": 1}, "dog": {"train": 1, "val": 1, "test": 0}}


def test_every_class_of_an_item_with_several_counts():
    counts = class_counts(["a", "b", "c"], [[1, 0, 1], [0, 0, 0], [1, 1, 0], None, [0, 0, 1]], SPLITS)
    assert counts["a"] == {"train": 1, "val": 1, "test": 0}
    assert counts["b"] == {"train": 0, "val": 1, "test": 0}
    assert counts["c"] == {"train": 2, "val": 0, "test": 0}


def test_a_card_is_read_as_it_was_written(tmp_path):
    written = card(unreadable=[{"file": "käse.jpg", "reason": "empty file"}])
    write_card(tmp_path, written)
    assert read_card(tmp_path) == written
    first = (tmp_path / "card.json").read_bytes()
    write_card(tmp_path, json.loads(json.dumps(written)))
    assert (tmp_path / "card.json").read_bytes() == first


def test_people_read_the_same_numbers(tmp_path):
    write_card(tmp_path, card(unreadable=[{"file": "a|b.jpg", "reason": "damaged:\nline"}]))
    lines = (tmp_path / "card.md").read_text().splitlines()
    assert "| train | 3 | 2 |" in lines
    assert "| dog | 1 | 1 | 0 |" in lines
    assert "2 items equal an earlier one and stand on its side of the splits." in lines
    assert "1 files could not be read." in lines
    assert r"| a\|b.jpg | damaged: line |" in lines


def test_a_card_without_labels_has_no_table_of_classes(tmp_path):
    write_card(tmp_path, card(classes={}))
    assert "class" not in (tmp_path / "card.md").read_text()
