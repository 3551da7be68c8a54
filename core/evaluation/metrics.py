"""Scores with their uncertainty."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values: NDArray[Any],
    rng: np.random.Generator,
    resamples: int,
    groups: Sequence[str | None] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (N,), such as 0/1 for correct answers.

    Values of one group are drawn together: ten segments of a person are not ten people (Field and Welsh 2007).
    """
    values = np.asarray(values, dtype=np.float64)
    sums, counts = _by_group(values, groups)
    means = np.empty(resamples)
    for number in range(resamples):
        drawn = rng.integers(len(sums), size=len(sums))
        means[number] = sums[drawn].sum() / counts[drawn].sum()
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _by_group(values: NDArray[Any], groups: Sequence[str | None] | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sum and count of each group's values; what has no group stands alone."""
    if groups is None or all(group is None for group in groups):
        return values, np.ones(len(values))
    names = [f"alone {number}" if group is None else f"in {group}" for number, group in enumerate(groups)]
    _, place = np.unique(names, return_inverse=True)
    return np.bincount(place, weights=values), np.bincount(place).astype(np.float64)


def paired_interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired ``differences`` and its interval by Student's t; an infinite one for a single pair."""
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -np.inf, np.inf
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return mean, float(mean - half), float(mean + half)


def confusion_matrix(predicted: NDArray[Any], truth: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts; rows are the truth, columns the predictions."""
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class(confusion: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class; 0 where undefined."""
    hits = np.diag(confusion).astype(np.float64)
    given, said = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(said, 1), hits / np.maximum(given, 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    columns = zip(names, precision, recall, f1, given, strict=True)
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for name, p, r, f, n in columns
    ]
