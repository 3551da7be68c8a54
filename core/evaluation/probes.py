"""What a frozen representation is worth: neighbours, a linear layer, and the cheap baseline beside them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from core.config import TaskKind
from core.tasks import Task

CHUNK = 1024
"""Most queries that are compared with all training items at once."""
SIMILARITIES = 2**27
"""Most similarities held at once (512 MiB): with many training items fewer queries go together."""


def knn_predict(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, *, k: int, temperature: float, classes: int
) -> Tensor:
    """Scores (N, classes) of a k-NN vote weighted by exp(cosine / temperature) (Wu et al. 2018, section 3.4).

    ``train_y`` is (M,) classes or (M, classes) 0/1 votes. The scores of a query are shares of its weights.
    """
    train, scores = normalize(train_x, dim=1), []
    chunk = max(1, min(CHUNK, SIMILARITIES // len(train)))
    for query in torch.split(normalize(test_x, dim=1), chunk):
        near, index = (query @ train.T).topk(min(k, len(train)), dim=1)
        weights = ((near - near[:, :1]) / temperature).exp()  # The nearest weighs 1: no temperature overflows.
        scores.append(_vote(train_y[index], weights, classes) / weights.sum(dim=1, keepdim=True))
    return torch.cat(scores)


def _vote(labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Weights (N, k) summed by class, from labels (N, k) or 0/1 votes (N, k, classes)."""
    if labels.ndim == 2:
        return weights.new_zeros(len(weights), classes).scatter_add_(1, labels, weights)
    return (weights[..., None] * labels).sum(dim=1)


def linear_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test_x: Tensor, strengths: Sequence[float], task: Task
) -> Tensor:
    """Outputs (N, outputs) of a linear model on standardised features.

    The inverse regularisation strength is chosen on ``val``, the middle one where that is empty; the model is
    fitted on ``train`` alone.
    """
    mean, std = train[0].mean(0), train[0].std(0, correction=min(1, len(train[0]) - 1)).clamp_min(1e-6)
    x, y = ((train[0] - mean) / std).numpy(), train[1].numpy()
    chosen = strengths[len(strengths) // 2]
    if len(val[0]):
        val_x = ((val[0] - mean) / std).numpy()
        scores = [task.metrics(_fit(x, y, val_x, c, task), val[1])[task.headline] for c in strengths]
        chosen = strengths[int(np.argmax(scores))]
    return _fit(x, y, ((test_x - mean) / std).numpy(), chosen, task)


def _fit(x: NDArray[Any], y: NDArray[Any], test_x: NDArray[Any], strength: float, task: Task) -> Tensor:
    from sklearn.linear_model import Ridge

    if task.kind is TaskKind.REGRESSION:
        return torch.from_numpy(Ridge(1 / strength).fit(x, y).predict(test_x).reshape(len(test_x), -1)).float()
    if task.kind is TaskKind.SINGLE:
        return _scores(x, y, test_x, strength, task.outputs)
    columns = [_scores(x, y[:, c].astype(int), test_x, strength, 2) for c in range(task.outputs)]
    return torch.stack([column[:, 1] - column[:, 0] for column in columns], dim=1)


def _scores(x: NDArray[Any], y: NDArray[Any], test_x: NDArray[Any], strength: float, classes: int) -> Tensor:
    """Logits (N, classes) of logistic regression; they do not saturate as its probabilities do.

    Classes without a training item get the least.
    """
    from sklearn.linear_model import LogisticRegression

    scores = torch.full((len(test_x), classes), -1e9)
    present = np.unique(y)
    if len(present) == 1:
        scores[:, int(present[0])] = 0.0
        return scores
    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(x, y)
    logits = model.decision_function(test_x)
    if logits.ndim == 1:  # Two classes have one value, the second one's.
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    scores[:, torch.from_numpy(present.astype(np.int64))] = torch.from_numpy(logits).float()
    return scores


def pca_logreg(train_x: NDArray[Any], train_y: NDArray[Any], test_x: NDArray[Any], seed: int) -> NDArray[Any]:
    """Predicted classes of the cheap baseline: at most 50 principal components, then logistic regression.

    The components keep their own scales. To whiten them would blow up the noisy ones and weaken the baseline: with
    5 labels per class of the demo's digits from 69.3 % to 62.2 % (validation split, mean of seeds 2000 to 2009).
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(present := np.unique(train_y)) == 1:
        return np.full(len(test_x), present[0])
    components = min(50, len(train_x) - 1, train_x.shape[1])
    parts = PCA(components, random_state=seed), LogisticRegression(max_iter=1000)
    predicted: NDArray[Any] = make_pipeline(*parts).fit(train_x, train_y).predict(test_x)
    return predicted
