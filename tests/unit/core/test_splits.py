"""Splits: nothing that belongs together is divided, classes are spread evenly, order does not matter."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import PrepareConfig
from core.data.splits import Member, assign
from core.errors import UserError


def member(number, target=None, group=None, split=None, content=None):
    return Member(f"k{number:04d}", target, group, split, content or f"h{number}")


def split(members, seed=0, **config):
    return assign(members, PrepareConfig(**config), seed)


members_strategy = st.lists(
    st.tuples(
        st.sampled_from([None, 0, 1, 2]),
        st.sampled_from([None, "g1", "g2", "g3", "g4"]),
        st.sampled_from([None, None, "train", "val", "test"]),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=80,
).map(lambda rows: [member(i, t, g, s, f"h{h}") for i, (t, g, s, h) in enumerate(rows)])


@settings(deadline=None, max_examples=150)
@given(members_strategy, st.integers(0, 5))
def test_groups_and_equal_contents_are_never_divided(members, seed):
    result = split(members, seed, divided_groups="regroup")
    where = {}
    for m, s in zip(members, result, strict=True):
        for name in (("content", m.content), ("group", m.group)):
            if name[1] is not None:
                assert where.setdefault(name, s) == s


@settings(deadline=None, max_examples=50)
@given(members_strategy, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(members, seed, shuffler):
    straight = dict(zip([m.key for m in members], split(members, seed, divided_groups="regroup"), strict=True))
    shuffled = list(members)
    shuffler.shuffle(shuffled)
    again = dict(zip([m.key for m in shuffled], split(shuffled, seed, divided_groups="regroup"), strict=True))
    assert straight == again


def test_fractions_hold_in_every_class():
    members = [member(i, i % 4) for i in range(400)]
    result = split(members, val_fraction=0.1, test_fraction=0.2)
    counts = Counter(zip([m.target for m in members], result, strict=True))
    for label in range(4):
        assert counts[label, "test"] == 20
        assert counts[label, "val"] == 8


def test_given_splits_are_kept_and_validation_comes_from_training():
    members = [member(i, i % 2, split="test" if i < 40 else "train") for i in range(100)]
    result = split(members, val_fraction=0.2)
    assert set(result[:40]) == {"test"}
    assert Counter(result[40:]) == {"train": 48, "val": 12}


def test_a_source_of_training_items_only_gets_all_three_splits():
    result = split([member(i, i % 2, split="train") for i in range(100)])
    assert Counter(result) == {"train": 72, "val": 8, "test": 20}


def test_a_given_validation_split_is_kept_where_test_items_are_taken():
    result = split([member(i, i % 2, split="val" if i < 20 else "train") for i in range(120)])
    assert set(result[:20]) == {"val"}
    assert Counter(result[20:]) == {"train": 80, "test": 20}


def test_classes_too_small_for_a_whole_item_still_give_their_share_together():
    members = [member(i, i % 20) for i in range(80)]
    result = split(members, val_fraction=0.1, test_fraction=0)
    assert Counter(result) == {"train": 72, "val": 8}
    assert max(Counter(m.target for m, s in zip(members, result, strict=True) if s == "val").values()) == 1


def test_groups_of_all_sizes_give_about_the_fraction():
    sizes = [1, 1, 1, 2, 3, 5, 8, 13, 21, 34]
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    members = [member(i, 0, f"g{group}") for i, group in enumerate(groups)]
    result = split(members, test_fraction=0.25, val_fraction=0)
    assert abs(Counter(result)["test"] - round(0.25 * len(members))) <= 1


def test_unlabelled_items_are_never_test_items():
    result = split([member(i) for i in range(100)])
    assert Counter(result) == {"train": 90, "val": 10}
    mixed = [member(i, 0 if i < 20 else None) for i in range(100)]
    assert "test" not in split(mixed)[20:]


def test_a_divided_group_is_refused_with_its_name():
    members = [member(0, 0, "patient-1", "train"), member(1, 0, "patient-1", "test"), member(2, 0, "patient-2", "test")]
    with pytest.raises(UserError, match=r"1 groups: patient-1.*regroup"):
        split(members)


def test_regrouping_moves_a_group_to_where_most_of_it_is():
    members = [member(i, 0, "p", "train" if i < 3 else "test") for i in range(4)] + [member(9, 0, "q", "test")]
    assert split(members, divided_groups="regroup", val_fraction=0)[:4] == ["train"] * 4


def test_allowing_keeps_the_given_splits():
    members = [member(0, 0, "p", "train"), member(1, 0, "p", "test")]
    assert split(members, divided_groups="allow") == ["train", "test"]


def test_equal_contents_in_train_and_test_are_tested_on_not_trained_on():
    members = [member(0, 0, split="train", content="same"), member(1, 0, split="test", content="same")]
    members += [member(i, 0, split="train") for i in range(2, 20)]
    assert split(members)[:2] == ["test", "test"]


def test_validation_is_never_empty_from_ten_training_items_on():
    assert "val" in split([member(i) for i in range(12)], val_fraction=0.01)
    assert split([member(i) for i in range(3)], val_fraction=0.01) == ["train"] * 3


def test_something_of_every_class_stays_for_training():
    members = [member(i, i // 2) for i in range(20)]
    result = split(members, test_fraction=0.5, val_fraction=0.5)
    assert {m.target for m, s in zip(members, result, strict=True) if s == "train"} == set(range(10))


def test_another_seed_gives_another_split():
    members = [member(i, 0) for i in range(200)]
    random.seed(0)
    assert split(members, 0) == split(members, 0)
    assert split(members, 0) != split(members, 1)
