"""The task of giving every pixel or voxel a class: targets are masks that stand beside the data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from core.config import TaskKind
from core.errors import UserError
from core.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from core.modality import Mixed

IGNORE = 255
"""Value of a mask where nothing is labelled: it enters neither the loss nor a metric."""
DICE_EPS = 1e-5
"""Keeps the soft Dice of a class that is not there from 0 / 0, as nnU-Net does."""


class Segmentation(Task):
    """One class per pixel or voxel: soft Dice with cross-entropy, and the Dice coefficient."""

    kind = TaskKind.SEGMENTATION
    headline = "dice"

    def tensor(self, targets: Sequence[Any]) -> "Tensor":
        """(B, *input_shape) int64; `IGNORE` where nothing is labelled."""
        import torch

        return torch.from_numpy(np.stack(targets).astype(np.int64))

    def loss(self, logits: "Tensor", target: "Tensor", *, weights: "Tensor | None", smoothing: float) -> "Tensor":
        """Cross-entropy plus 1 - soft Dice (Isensee et al. 2021; Milletari et al. 2016) of logits (B, K, *shape).

        Dice is of the foreground classes, each over the whole batch: a small crop may lack a class.
        What is not labelled does not count. ``weights`` and ``smoothing`` shape the cross-entropy alone.
        """
        import torch
        from torch.nn.functional import cross_entropy

        known = target != IGNORE
        classes = torch.arange(self.outputs, device=target.device)
        truth = target[:, None] == classes.view(-1, *[1] * (target.ndim - 1))
        each = cross_entropy(
            logits, target, weight=weights, label_smoothing=smoothing, ignore_index=IGNORE, reduction="none"
        )
        share = known if weights is None else known * weights[target.where(known, 0)]
        entropy = each.sum() / share.sum().clamp_min(1e-6)
        axes = [0, *range(2, logits.ndim)]
        guess = logits.softmax(1) * known[:, None]
        both = (guess * truth).sum(axes)[1:]
        dice = (2 * both + DICE_EPS) / (guess.sum(axes)[1:] + truth.sum(axes)[1:] + DICE_EPS)
        return entropy + 1 - dice.mean()

    def mixed(self, target: "Tensor", how: "Mixed") -> "Tensor":
        """Masks of mixed samples do not exist.

        Raises:
            UserError: always.
        """
        raise UserError("samples with masks cannot be mixed; turn the plugin's mixing off")

    def frequencies(self, targets: Sequence[Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """Every item holds many classes.

        Raises:
            UserError: always.
        """
        raise UserError("finetune.sampling=balanced is not for segmentation, whose items have many classes")

    def predictions(self, logits: "Tensor") -> "Tensor":
        """The class of the largest logit, (N, *shape) int64."""
        return logits.argmax(dim=1)

    def counts(self, predicted: "Tensor", target: "Tensor") -> "Tensor":
        """(N, K, 3) int64 of predictions and targets (N, *shape): where both have a class, the one, and the other."""
        import torch

        given, known = predicted.flatten(1), target.flatten(1) != IGNORE
        truth = target.flatten(1)
        parts = []
        for number in range(self.outputs):  # Class by class: a volume times all classes may not fit.
            one, other = (given == number) & known, truth == number
            parts.append(torch.stack([(one & other).sum(1), one.sum(1), other.sum(1)], dim=1))
        return torch.stack(parts, dim=1)

    @staticmethod
    def dice(counts: "Tensor") -> "Tensor":
        """Dice coefficients (N, K) of `counts`; NaN where a class is neither there nor predicted (Dice 1945)."""
        both, one, other = counts.double().unbind(-1)
        return 2 * both / (one + other)  # 0 / 0 is NaN.

    def scores(self, counts: "Tensor") -> dict[str, float]:
        """Mean Dice over all pairs of a case and a foreground class with something of it, and that of each class."""
        each = self.dice(counts)
        values = {"dice": _known_mean(each[:, 1:])}
        for number, name in enumerate(self.classes):
            if not bool(each[:, number].isnan().all()):
                values[f"dice_{name}"] = _known_mean(each[:, number])
        return values

    def metrics(self, logits: "Tensor", target: "Tensor") -> dict[str, float]:
        """Dice of logits (N, K, *shape) against targets (N, *shape)."""
        return self.scores(self.counts(self.predictions(logits), target))

    def _balanced(self, targets: Sequence[Any]) -> "Tensor | None":
        """By the number of items that hold a class: how much of each it fills is not known."""
        import torch

        counts = np.bincount([index for inside in targets for index in inside], minlength=self.outputs)
        return torch.tensor(len(targets) / np.maximum(counts, 1), dtype=torch.float32)


def _known_mean(values: "Tensor") -> float:
    """Mean of what is not NaN; 0 of nothing."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else 0.0
