"""Label efficiency: the arms differ in nothing but where their weights come from."""

import json

import numpy as np

from core.config import LabelEfficiencyConfig
from core.stages.efficiency import ARMS, Cell, collect, draw_labels, plan, within


class Rows:
    """60 training rows of 4 classes, the last of them rare."""

    labels = np.array([i % 3 for i in range(57)] + [3] * 3)

    def ids(self, split, *, labelled):
        assert (split, labelled) == ("train", True)
        return np.arange(100, 160)

    def targets(self, ids):
        return [int(self.labels[i - 100]) for i in ids]


def test_labels_are_drawn_per_class_and_repeat_with_their_seed():
    store = Rows()
    first, again, other = (draw_labels(store, 5, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.bincount(store.targets(first)).tolist() == [5, 5, 5, 3]
    assert len(set(first.tolist())) == len(first)


def test_every_arm_has_a_cell_for_every_count_and_seed():
    config = LabelEfficiencyConfig(labels_per_class=(1, 5), seeds=(7, 8, 9))
    cells = plan(config)
    assert len(cells) == len({cell.name for cell in cells}) == len(ARMS) * 2 * 3


def test_counts_that_no_class_has_labels_for_are_left_out():
    config = LabelEfficiencyConfig(labels_per_class=(1, 5, 25))
    assert within(config, 25) == config
    assert within(config, 24).labels_per_class == (1, 5)
    assert within(config, 0) is None


def test_the_table_pairs_arms_by_seed(tmp_path):
    config = LabelEfficiencyConfig(labels_per_class=(5,), seeds=(1, 2, 3))
    scores = {"pretrained": (0.9, 0.8, 0.7), "random": (0.8, 0.6, 0.7), "baseline": (0.5, 0.5, 0.5)}
    for arm, values in scores.items():
        for seed, value in zip(config.seeds, values, strict=True):
            (tmp_path / f"{Cell(arm, 5, seed).name}.json").write_text(json.dumps({"top1": value}))
    table = collect(config, tmp_path)
    assert table["pretrained"] == [[0.9, 0.8, 0.7]]
    (gain,) = table["paired"]
    assert gain["labels"] == 5
    assert np.isclose(gain["mean"], 0.1)
    assert gain["low"] < 0.1 < gain["high"]
