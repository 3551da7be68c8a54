"""Tasks, metrics and probes against independent implementations."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from core.config import TaskConfig
from core.errors import UserError
from core.evaluation.metrics import bootstrap_interval, confusion_matrix, paired_interval, per_class
from core.evaluation.probes import knn_predict, linear_probe, pca_logreg
from core.modality import Mixed
from core.tasks import Task, _sorted, encode_targets

RNG = np.random.default_rng(0)


def task(kind, raw, **settings):
    target, encoded = encode_targets(raw, TaskConfig(kind=kind, **settings))
    return Task.of(target), encoded


def test_classes_are_sorted_as_people_sort():
    target, encoded = encode_targets(["10", "9", "a2", None, "a10"], TaskConfig())
    assert target.classes == ("9", "10", "a2", "a10")
    assert encoded == [1, 0, 2, None, 3]


@pytest.mark.parametrize(
    "names",
    [
        ("001", "01", "1", "2"),
        ("-2", "-1", "0.25", "0.5", "10"),
        ("5", "5²", "x5", "²"),
        ("1a", "01a", "a"),
    ],
)
def test_the_order_of_classes_depends_on_their_names_alone(names):
    """A set gives its names in an order that differs between processes."""
    assert len({tuple(_sorted(given)) for given in permutations(names)}) == 1


def test_numbers_are_sorted_by_value():
    names = ["10", "0.5", "-1", "0.25", "-2"]
    assert encode_targets(names, TaskConfig())[0].classes == ("-2", "-1", "0.25", "0.5", "10")


def test_several_labels_per_item():
    target, encoded = encode_targets(["b|a", ["c"], None, "a"], TaskConfig(kind="multi_label"))
    assert target.classes == ("a", "b", "c")
    assert encoded == [[1, 1, 0], [0, 0, 1], None, [1, 0, 0]]


def test_numbers():
    target, encoded = encode_targets(["1.5", 2, None], TaskConfig(kind="regression"))
    assert (target.outputs, encoded) == (1, [[1.5], [2.0], None])


@pytest.mark.parametrize(
    ("kind", "raw", "message"),
    [
        ("single_label", [["a", "b"], "a"], "multi_label"),
        ("single_label", ["a", "a"], "at least two classes"),
        ("regression", ["tall"], "'tall', which is no number"),
        ("regression", ["1|2", "1"], "different lengths: item 1 has 2, item 2 has 1"),
        ("regression", ["1", "nan"], "item 2: .*no finite number"),
        ("regression", ["1", []], "item 2: .*no finite number"),
        ("single_label", ["a", None, " "], "item 3: its label is blank"),
        ("single_label", ["a", "b", float("nan")], "item 3: its label is NaN"),
        ("multi_label", [[], ""], "at least one class"),
    ],
)
def test_unsuitable_labels_are_refused(kind, raw, message):
    with pytest.raises(UserError, match=message):
        encode_targets(raw, TaskConfig(kind=kind))


def test_a_bad_label_is_named_by_the_key_of_its_item():
    with pytest.raises(UserError, match=r"item 'scans/b\.png'.*'tall'"):
        encode_targets(["1", "tall"], TaskConfig(kind="regression"), ["scans/a.png", "scans/b.png"])


def test_no_labels_at_all():
    assert encode_targets([None, None], TaskConfig()) == (None, [None, None])


def test_accuracies():
    kind, _ = task("single_label", [str(i) for i in range(8)])
    logits = torch.from_numpy(RNG.standard_normal((300, 8)))
    truth = torch.from_numpy(RNG.integers(0, 8, 300))
    got = kind.metrics(logits, truth)
    assert got["top1"] == pytest.approx(reference.accuracy_score(truth, logits.argmax(1)))
    assert got["top5"] == pytest.approx(reference.top_k_accuracy_score(truth, logits.numpy(), k=5))


def test_multi_label_metrics_leave_out_undefined_classes():
    kind, _ = task("multi_label", ["a|b", "c|d"])
    scores, truth = RNG.standard_normal((200, 4)), RNG.integers(0, 2, (200, 4))
    truth[:, 3] = 0
    got = kind.metrics(torch.from_numpy(scores), torch.from_numpy(truth))
    assert got["map"] == pytest.approx(reference.average_precision_score(truth[:, :3], scores[:, :3]))
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(truth[:, :3], scores[:, :3]))
    f1 = reference.f1_score(truth[:, :3], scores[:, :3] > 0, average="macro")
    assert got["f1"] == pytest.approx(f1)
    assert got["d_prime"] == pytest.approx(2**0.5 * stats.norm.ppf(got["auroc"]))
    assert got["classes_scored"] == 3


def test_ties_and_large_logits_are_ranked_as_scikit_learn_ranks_them():
    """A sigmoid would make logits above 17 alike; equal scores are one step of the curve."""
    kind, _ = task("multi_label", ["a|b", "c"])
    truth = RNG.integers(0, 2, (120, 3))
    scores = (30 + 20 * (truth + RNG.standard_normal(truth.shape))).round(-1)
    got = kind.metrics(torch.from_numpy(scores), torch.from_numpy(truth))
    assert got["map"] == pytest.approx(reference.average_precision_score(truth, scores), abs=1e-6)
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(truth, scores), abs=1e-6)


def test_targets_of_mixed_samples_are_mixed_alike():
    how = Mixed(torch.tensor([1, 0, 2]), torch.tensor([0.7, 1.0, 0.25]))
    single, _ = task("single_label", ["a", "b", "c"])
    assert torch.allclose(
        single.mixed(torch.tensor([0, 2, 1]), how), torch.tensor([[0.7, 0, 0.3], [0, 0, 1.0], [0, 1.0, 0]])
    )
    several, _ = task("multi_label", ["a|b", "b"])
    given = torch.tensor([[1.0, 0], [1, 1], [0, 1]])
    assert torch.allclose(several.mixed(given, how), torch.tensor([[1, 0.3], [1, 1.0], [0, 1.0]]))
    number, _ = task("regression", [1.0, 2.0])
    assert torch.allclose(number.mixed(torch.tensor([[1.0], [2], [8]]), how), torch.tensor([[1.3], [2], [8]]))


def test_items_of_rare_classes_are_drawn_more_often():
    single, encoded = task("single_label", ["a"] * 6 + ["b"] * 2)
    assert single.frequencies(encoded) == pytest.approx([1 / 12] * 6 + [1 / 4] * 2)
    several, encoded = task("multi_label", ["a"] * 6 + ["a|b", "", ""])
    drawn = several.frequencies(encoded)
    assert drawn[6] == pytest.approx(drawn[0] * 8)
    assert drawn[7] == drawn[0]
    assert drawn.sum() == pytest.approx(1)
    number, encoded = task("regression", [1.0, 2.0])
    with pytest.raises(UserError, match="sampling=balanced needs classes"):
        number.frequencies(encoded)


def test_regression_metrics():
    kind, _ = task("regression", [1.0, 2.0])
    truth = RNG.standard_normal((100, 1))
    guess = truth + 0.1 * RNG.standard_normal((100, 1))
    got = kind.metrics(torch.from_numpy(guess), torch.from_numpy(truth))
    assert got["r2"] == pytest.approx(reference.r2_score(truth, guess))
    assert got["mae"] == pytest.approx(reference.mean_absolute_error(truth, guess))


def test_balanced_weights_make_rare_classes_count_as_much():
    kind, encoded = task("single_label", ["a"] * 9 + ["b"], class_weights="balanced")
    weights = kind.class_weights(encoded)
    assert weights[1] / weights[0] == pytest.approx(9)
    assert task("single_label", ["a", "b"])[0].class_weights([0, 1]) is None


def test_soft_targets_of_mixing_are_taken():
    kind, _ = task("single_label", ["a", "b"])
    logits = torch.randn(4, 2)
    hard = kind.loss(logits, torch.tensor([0, 1, 1, 0]), weights=None, smoothing=0.0)
    soft = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0]), 2).float()
    assert torch.allclose(hard, kind.loss(logits, soft, weights=None, smoothing=0.0))


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_the_headline_comes_first_and_the_loss_falls_towards_the_truth(kind):
    labels = {"single_label": ["a", "b", "a"], "multi_label": ["a", "b", "a|b"], "regression": [1.0, 2.0, 4.0]}[kind]
    one, encoded = task(kind, labels)
    target = one.tensor(encoded)
    votes = torch.nn.functional.one_hot(target, 2) if target.ndim == 1 else target
    logits = target if kind == "regression" else votes * 8.0 - 4
    assert next(iter(one.metrics(logits, target))) == one.headline
    assert one.metrics(logits, target)[one.headline] == pytest.approx(1.0)
    loss = one.loss(logits, target, weights=None, smoothing=0.0)
    assert loss < one.loss(-logits, target, weights=None, smoothing=0.0)
    assert torch.equal(one.predictions(logits).to(target.dtype), target)


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_no_loss_waits_for_the_device(kind):
    """A fake tensor has no values, so that any look at one raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    one, encoded = task(kind, {"regression": [1.0, 2.0]}.get(kind, ["a", "b"]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.randn(2, one.outputs, requires_grad=True)
        loss = one.loss(logits, one.tensor(encoded), weights=torch.ones(one.outputs), smoothing=0.1)
        loss.backward()
    assert loss.shape == ()


def test_confusion_and_per_class():
    truth, guess = RNG.integers(0, 3, 200), RNG.integers(0, 3, 200)
    counts = confusion_matrix(guess, truth, 3)
    assert np.array_equal(counts, reference.confusion_matrix(truth, guess))
    precision, recall, f1, support = reference.precision_recall_fscore_support(truth, guess)
    for number, row in enumerate(per_class(counts, ["a", "b", "c"])):
        expected = (precision[number], recall[number], f1[number], support[number])
        assert (row["precision"], row["recall"], row["f1"], row["support"]) == pytest.approx(expected)


def test_a_class_nobody_names_has_no_division_by_zero():
    assert per_class(np.array([[2, 0], [1, 0]]), ["a", "b"])[1] == {
        "class": "b", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1
    }  # fmt: skip


def test_bootstrap_interval_covers_the_binomial_one():
    low, high = bootstrap_interval(np.array([1] * 80 + [0] * 20), np.random.default_rng(0), 4000)
    assert low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.01)
    assert high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.01)


def test_paired_interval_is_the_t_test():
    from scipy import stats

    values = RNG.normal(1, 1, 8)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired_interval(values.tolist())[1:] == pytest.approx((expected.low, expected.high))


def blobs(count, spread=0.3):
    truth = torch.arange(count) % 3
    centres = torch.eye(3, 8)
    return centres[truth] + spread * torch.randn(count, 8, generator=torch.Generator().manual_seed(count)), truth


def test_neighbours_equal_a_plain_loop():
    (train, train_y), (test, _) = blobs(60), blobs(20)
    got = knn_predict(train, train_y, test, k=5, temperature=0.1, classes=3)
    unit = torch.nn.functional.normalize
    for query, scores in zip(unit(test), got, strict=True):
        similarity = unit(train) @ query
        best = similarity.argsort(descending=True)[:5]
        votes = torch.zeros(3)
        for index in best:
            votes[train_y[index]] += (similarity[index] / 0.1).exp()
        assert torch.allclose(scores, votes / votes.sum(), atol=1e-5)


def test_linear_probe_and_baseline_separate_blobs():
    kind, _ = task("single_label", ["a", "b", "c"])
    train, val, (test, truth) = blobs(90), blobs(30), blobs(60)
    scores = linear_probe(train, val, test, (0.01, 1.0, 100.0), kind)
    assert kind.metrics(scores, truth)["top1"] > 0.9
    guess = pca_logreg(train[0].numpy(), train[1].numpy(), test.numpy(), 0)
    assert (guess == truth.numpy()).mean() > 0.9


def test_linear_probe_for_other_tasks():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    many, _ = task("multi_label", ["a|b"])
    labels = (x[:, :2] > 0).float()
    parts = (x[:100], labels[:100]), (x[100:150], labels[100:150])
    assert many.metrics(linear_probe(*parts, x[150:], (1.0,), many), labels[150:])["map"] > 0.95
    number, _ = task("regression", [0.0])
    values = x[:, :1] * 2 + 1
    parts = (x[:100], values[:100]), (x[100:150], values[100:150])
    assert number.metrics(linear_probe(*parts, x[150:], (1.0, 100.0), number), values[150:])["r2"] > 0.99
