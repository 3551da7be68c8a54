"""Probes at the edges: extreme temperatures, few items, several labels, and a baseline that is not held back."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from core.config import TaskConfig
from core.evaluation import probes
from core.evaluation.probes import knn_predict, linear_probe, pca_logreg
from core.tasks import Task, encode_targets


def random_features(count, seed):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [1e-4, 0.07, 10.0])
def test_neighbours_give_shares_at_any_temperature(temperature):
    train, test, truth = random_features(40, 0), random_features(9, 1), torch.arange(40) % 3
    scores = knn_predict(train, truth, test, k=7, temperature=temperature, classes=3)
    assert torch.allclose(scores.sum(1), torch.ones(9))


def test_a_cold_vote_is_the_nearest_neighbour():
    train, test, truth = random_features(40, 0), random_features(9, 1), torch.arange(40) % 3
    scores = knn_predict(train, truth, test, k=7, temperature=1e-5, classes=3)
    unit = torch.nn.functional.normalize
    assert torch.equal(scores.argmax(1), truth[(unit(test) @ unit(train).T).argmax(1)])


def test_one_hot_votes_are_the_classes():
    train, test, truth = random_features(40, 0), random_features(9, 1), torch.arange(40) % 3
    settings = {"k": 5, "temperature": 0.1, "classes": 3}
    votes = torch.nn.functional.one_hot(truth, 3)
    assert torch.allclose(knn_predict(train, truth, test, **settings), knn_predict(train, votes, test, **settings))


def test_several_labels_are_voted_on_one_by_one():
    train, test = random_features(40, 0), random_features(9, 1)
    votes = (random_features(40, 2)[:, :2] > 0).long()
    both = knn_predict(train, votes, test, k=5, temperature=0.1, classes=2)
    for label in range(2):
        alone = knn_predict(train, votes[:, label], test, k=5, temperature=0.1, classes=2)
        assert torch.allclose(both[:, label], alone[:, 1])


def test_scores_do_not_depend_on_how_queries_are_divided(monkeypatch):
    train, test, truth = random_features(40, 0), random_features(9, 1), torch.arange(40) % 3
    settings = {"k": 5, "temperature": 0.1, "classes": 3}
    whole = knn_predict(train, truth, test, **settings)
    monkeypatch.setattr(probes, "SIMILARITIES", 80)
    assert torch.allclose(whole, knn_predict(train, truth, test, **settings), atol=1e-6)


def test_more_neighbours_than_items_are_all_items():
    scores = knn_predict(
        torch.eye(2), torch.tensor([0, 1]), torch.tensor([[1.0, 0.1]]), k=20, temperature=1.0, classes=2
    )
    assert 0.5 < scores[0, 0] < 1


@pytest.mark.filterwarnings("error")
def test_a_linear_probe_of_one_item_says_its_class():
    task = Task.of(encode_targets(["a", "b"], TaskConfig())[0])
    scores = linear_probe(
        (torch.ones(1, 4), torch.tensor([1])), (torch.empty(0, 4), torch.empty(0)), random_features(3, 0)[:, :4],
        (1.0,), task,
    )  # fmt: skip
    assert task.predictions(scores).tolist() == [1, 1, 1]


def test_the_strength_is_chosen_on_the_validation_split():
    """Many noisy features and few items: only strong regularisation survives, and only validation can tell."""
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(330, 80, generator=rng)
    truth = (x[:, 0] + 2.0 * torch.randn(330, generator=rng) > 0).long()
    task = Task.of(encode_targets(["a", "b"], TaskConfig())[0])
    train, val, test = (x[:60], truth[:60]), (x[60:180], truth[60:180]), x[180:]
    alone = {c: linear_probe(train, val, test, (c,), task) for c in (1e-4, 1e3)}
    best = max(alone, key=lambda c: task.metrics(linear_probe(train, val, val[0], (c,), task), val[1])["top1"])
    chosen = linear_probe(train, val, test, (1e-4, 1e3), task)
    assert torch.equal(chosen, alone[best])
    assert not torch.equal(alone[1e-4], alone[1e3])


def test_the_baseline_is_no_weaker_than_one_of_whitened_components():
    digits = load_digits()
    ours, whitened = [], []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(digits.data))
        few = np.concatenate([[i for i in order if digits.target[i] == c][:5] for c in range(10)])
        rest = np.setdiff1d(order, few)
        x, y, test_x, test_y = digits.data[few], digits.target[few], digits.data[rest], digits.target[rest]
        x, test_x = x / 16, test_x / 16
        ours.append((pca_logreg(x, y, test_x, seed) == test_y).mean())
        pca = PCA(49, random_state=seed).fit(x)
        scaler = StandardScaler().fit(pca.transform(x))
        model = LogisticRegression(max_iter=1000).fit(scaler.transform(pca.transform(x)), y)
        whitened.append((model.predict(scaler.transform(pca.transform(test_x))) == test_y).mean())
    assert np.mean(ours) > np.mean(whitened) + 0.02


def test_the_baseline_repeats_itself_and_bears_a_single_class():
    rng = np.random.default_rng(0)
    x, y, test = rng.standard_normal((30, 100)), np.arange(30) % 3, rng.standard_normal((8, 100))
    assert np.array_equal(pca_logreg(x, y, test, 5), pca_logreg(x, y, test, 5))
    assert pca_logreg(x, np.full(30, 2), test, 5).tolist() == [2] * 8
