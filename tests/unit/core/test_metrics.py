"""Intervals of scores."""

import numpy as np

from core.evaluation.metrics import bootstrap_interval


def rng():
    return np.random.default_rng(0)


def test_the_interval_of_independent_items_is_the_binomial_one():
    values = np.repeat([1, 0], [320, 80])
    low, high = bootstrap_interval(values, rng(), 2000)
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert abs(low - (0.8 - half)) < 0.01
    assert abs(high - (0.8 + half)) < 0.01


def test_items_of_few_groups_say_less():
    """Four people of a hundred items each, one always wrong: the truth may well be one half."""
    values = np.repeat([1, 1, 1, 0], 100)
    groups = [f"person {number // 100}" for number in range(400)]
    low, high = bootstrap_interval(values, rng(), 2000, groups)
    assert (low, high) == (0.25, 1.0)
    alone = bootstrap_interval(values, rng(), 2000)
    assert alone[1] - alone[0] < 0.1


def test_items_without_a_group_stand_alone():
    values = np.arange(20) % 2
    assert bootstrap_interval(values, rng(), 200, [None] * 20) == bootstrap_interval(values, rng(), 200)
    mixed = bootstrap_interval(values, rng(), 200, ["a"] * 10 + [None] * 10)
    assert mixed[0] < mixed[1]
