"""Tasks: what a target looks like, the width of the head, the loss and the metrics. Chosen by the recipe."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from core.config import TaskConfig, TaskKind
from core.errors import UserError
from core.records import Target

if TYPE_CHECKING:
    from torch import Tensor

    from core.modality import Mixed

T = TypeVar("T")


def encode_targets(
    raw: Sequence[Any], config: TaskConfig, keys: Sequence[str] | None = None
) -> tuple[Target | None, list[Any]]:
    """What the items are labelled with, and their encoded targets: int, 0/1 list, list of floats, or None.

    Classes are sorted as people sort them, numbers by value; the order depends on nothing but the names. Those of masks
    are the recipe's, and what an item is labelled with are the indices found in its mask.
    Errors call an item by its entry in ``keys``, or by its place where there are none.

    Raises:
        UserError: if a label does not suit the task.
    """
    if all(label is None for label in raw):
        return None, [None] * len(raw)
    if config.kind is TaskKind.REGRESSION:
        numbers = _read(raw, _numbers, keys)
        return Target(task=config, outputs=_one_length(numbers, keys)), numbers
    if config.kind is TaskKind.SEGMENTATION:
        inside = _read(raw, lambda label: _indices(label, config.classes), keys)
        if not any(given and given[-1] for given in inside):
            raise UserError(
                f"no mask holds anything but {config.classes[0]!r}: its values are 0, 1, 2 ... as in task.classes, "
                "and 255 is what nobody has labelled; masks of 0 and 255 have to be written as 0 and 1"
            )
        return Target(task=config, classes=config.classes, outputs=len(config.classes)), inside
    several = config.kind is TaskKind.MULTI
    names = _read(raw, lambda label: _names(label, several=several), keys)
    classes = _sorted({name for given in names if given for name in given})
    if len(classes) < (1 if several else 2):
        least = "one class" if several else "two classes"
        raise UserError(f"a {config.kind} task needs at least {least}, the source has {classes}")
    place = {name: number for number, name in enumerate(classes)}
    target = Target(task=config, classes=tuple(classes), outputs=len(classes))
    if several:
        return target, [None if given is None else [int(c in given) for c in classes] for given in names]
    return target, [None if given is None else place[given[0]] for given in names]


def _read(raw: Sequence[Any], reader: Callable[[Any], T], keys: Sequence[str] | None) -> list[T | None]:
    """Each label through ``reader``, whose errors get the name of the item."""

    def one(number: int) -> T | None:
        try:
            return None if raw[number] is None else reader(raw[number])
        except UserError as error:
            raise UserError(f"{_item(number, keys)}: {error}") from None

    return [one(number) for number in range(len(raw))]


def _item(number: int, keys: Sequence[str] | None) -> str:
    return f"item {keys[number]!r}" if keys else f"item {number + 1}"


def _names(label: Any, *, several: bool) -> list[str]:
    given = label if isinstance(label, (list, tuple)) else str(label).split("|") if several else [label]
    if any(isinstance(name, float) and math.isnan(name) for name in given):
        raise UserError("its label is NaN; leave the label out where an item has none")
    names = [text for name in given if (text := str(name).strip())]
    if not several and not names:
        raise UserError("its label is blank; leave the label out where an item has none")
    if not several and len(names) > 1:
        raise UserError(f"a single_label task met the label {label!r}; set task.kind=multi_label for several classes")
    return names


def _numbers(label: Any) -> list[float]:
    given = label if isinstance(label, (list, tuple)) else str(label).split("|")
    try:
        numbers = [float(number) for number in given]
    except (TypeError, ValueError):
        raise UserError(f"a regression task met the label {label!r}, which is no number") from None
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise UserError(f"a regression task met the label {label!r}, which is no finite number; leave it out")
    return numbers


def _indices(label: Any, classes: Sequence[str]) -> list[int]:
    """Class indices in a mask."""
    if not isinstance(label, (list, tuple)) or not all(isinstance(index, int) and index >= 0 for index in label):
        raise UserError(f"a segmentation task met the label {label!r}; the plugin has to give the values of a mask")
    if over := [index for index in label if index >= len(classes)]:
        raise UserError(
            f"its mask holds the value {over[0]}, but task.classes names {len(classes)}: 0 to {len(classes) - 1}; "
            "name all values of the masks"
        )
    return sorted(label)


def _one_length(numbers: Sequence[list[float] | None], keys: Sequence[str] | None) -> int:
    """How many numbers every labelled item has."""
    lengths = {number: len(given) for number, given in enumerate(numbers) if given is not None}
    first, length = next(iter(lengths.items()))
    for number, other in lengths.items():
        if other != length:
            raise UserError(
                f"regression targets have different lengths: {_item(first, keys)} has {length}, "
                f"{_item(number, keys)} has {other}; give every labelled item as many"
            )
    return length


def _sorted(names: Iterable[str]) -> list[str]:
    """Names by value if all are numbers, else so that 2 comes before 10; ties ("1", "01") by spelling."""
    given = list(names)
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in given):
        return sorted(given, key=lambda name: (float(name), name))
    return sorted(given, key=lambda name: (_natural(name), name))


def _natural(name: str) -> list[tuple[int, float, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts if part]


class Task(ABC):
    """One kind of task."""

    kind: ClassVar[TaskKind]
    headline: ClassVar[str]
    """The metric that ranks models."""
    higher_is_better: ClassVar[bool] = True

    def __init__(self, target: Target) -> None:
        self.target = target
        self.outputs = target.outputs
        self.classes = list(target.classes)

    @staticmethod
    def of(target: Target) -> "Task":
        """The task that ``target`` is for."""
        if target.task.kind is TaskKind.SEGMENTATION:
            from core.segmentation import Segmentation  # Built upon this module.

            return Segmentation(target)
        return _TASKS[target.task.kind](target)

    @abstractmethod
    def tensor(self, targets: Sequence[Any]) -> "Tensor":
        """Encoded targets as a tensor: (B,) int64, or (B, outputs) float32."""

    @abstractmethod
    def loss(self, logits: "Tensor", target: "Tensor", *, weights: "Tensor | None", smoothing: float) -> "Tensor":
        """A scalar on the device, without waiting for it; ``weights`` (outputs,) weigh the classes."""

    def mixed(self, target: "Tensor", how: "Mixed") -> "Tensor":
        """Targets (B, ...) of samples that a plugin mixed, each with its partner's by its share."""
        soft = self._soft(target)
        share = how.share.view(-1, *[1] * (soft.ndim - 1)).to(soft.dtype)
        return soft * share + soft[how.partner] * (1 - share)

    def _soft(self, target: "Tensor") -> "Tensor":
        """Targets as float32, which can be mixed."""
        return target

    def frequencies(self, targets: Sequence[Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """How often each of the items is to be drawn, in the mean, so that classes come up alike; they sum to 1.

        Raises:
            UserError: if the task has no classes.
        """
        raise UserError(f"finetune.sampling=balanced needs classes; a {self.kind} task has none")

    @abstractmethod
    def predictions(self, logits: "Tensor") -> "Tensor":
        """What the model says: classes (N,), 0/1 (N, outputs), or numbers (N, outputs)."""

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """How likely each class is, (N, outputs, ...); the outputs themselves where there are no classes."""
        return logits.softmax(dim=1)

    @abstractmethod
    def metrics(self, logits: "Tensor", target: "Tensor") -> dict[str, float]:
        """Metrics of logits (N, outputs) against targets, the headline first."""

    def class_weights(self, targets: Sequence[Any]) -> "Tensor | None":
        """Weights (outputs,) for the loss, where the recipe wants the classes balanced."""
        if self.target.task.class_weights == "none":
            return None
        return self._balanced(targets)

    def _balanced(self, targets: Sequence[Any]) -> "Tensor | None":
        return None


class SingleLabel(Task):
    """One class per item: cross-entropy, accuracy."""

    kind = TaskKind.SINGLE
    headline = "top1"

    def tensor(self, targets: Sequence[Any]) -> "Tensor":
        """(B,) int64."""
        import torch

        return torch.tensor([int(t) for t in targets], dtype=torch.int64)

    def loss(self, logits: "Tensor", target: "Tensor", *, weights: "Tensor | None", smoothing: float) -> "Tensor":
        """Cross-entropy with (B,) classes, or (B, outputs) soft targets as mixing makes them."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, target, weight=weights, label_smoothing=smoothing)

    def _soft(self, target: "Tensor") -> "Tensor":
        from torch.nn.functional import one_hot

        return one_hot(target, self.outputs).float() if target.ndim == 1 else target

    def frequencies(self, targets: Sequence[Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """The inverse of the number of items of the class."""
        classes = np.array(targets, dtype=np.int64)
        weights: np.ndarray[Any, np.dtype[np.float64]] = 1.0 / np.bincount(classes, minlength=self.outputs)[classes]
        return weights / float(weights.sum())

    def predictions(self, logits: "Tensor") -> "Tensor":
        """The class of the largest logit, (N,) int64."""
        return logits.argmax(dim=1)

    def metrics(self, logits: "Tensor", target: "Tensor") -> dict[str, float]:
        """Top-1 and, with more than five classes, top-5 accuracy."""
        order = logits.topk(min(5, self.outputs), dim=1).indices
        hits = order == target[:, None]
        values = {"top1": float(hits[:, 0].float().mean())}
        if self.outputs > 5:
            values["top5"] = float(hits.any(dim=1).float().mean())
        return values

    def _balanced(self, targets: Sequence[Any]) -> "Tensor | None":
        import torch

        counts = np.bincount(np.array(targets, dtype=np.int64), minlength=self.outputs)
        weights = len(targets) / (self.outputs * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32)


class MultiLabel(Task):
    """Any number of classes per item: binary cross-entropy, mean average precision."""

    kind = TaskKind.MULTI
    headline = "map"

    def tensor(self, targets: Sequence[Any]) -> "Tensor":
        """(B, outputs) float32 of 0 and 1."""
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def loss(self, logits: "Tensor", target: "Tensor", *, weights: "Tensor | None", smoothing: float) -> "Tensor":
        """Binary cross-entropy; smoothing draws targets towards one half; ``weights`` weigh the positives."""
        from torch.nn.functional import binary_cross_entropy_with_logits as loss

        return loss(logits, target * (1 - smoothing) + 0.5 * smoothing, pos_weight=weights)

    def frequencies(self, targets: Sequence[Any]) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """The inverses of the numbers of items of its classes, added up (Kong et al. 2020); least where it has none."""
        given = np.array(targets, dtype=np.float64)
        rarity = 1.0 / np.maximum(given.sum(axis=0), 1)
        weights: np.ndarray[Any, np.dtype[np.float64]] = np.maximum(given @ rarity, rarity.min())
        return weights / float(weights.sum())

    def predictions(self, logits: "Tensor") -> "Tensor":
        """1 where a class is likelier than not, (N, outputs) int64."""
        return (logits > 0).long()

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """How likely each class is by itself, (N, outputs)."""
        return logits.sigmoid()

    def metrics(self, logits: "Tensor", target: "Tensor") -> dict[str, float]:
        """Mean average precision, AUROC, d-prime and F1 over the classes that have both kinds of items; their number.

        d-prime is that of the mean AUROC (Gong et al. 2021). F1 takes logits, whose threshold is 0; the others take any
        scores that rank.
        """
        import torch
        from torchmetrics.functional import classification as of

        scores, truth = logits.float(), target.long()
        defined = [c for c in range(self.outputs) if 0 < int(truth[:, c].sum()) < len(truth)]
        if not defined:
            return {"map": 0.0, "auroc": 0.5, "d_prime": 0.0, "f1": 0.0, "classes_scored": 0.0}
        scores, truth, count = scores[:, defined], truth[:, defined], len(defined)
        # Ranks stand for scores: the metrics would send logits through a sigmoid, at whose ends they become alike.
        ranks = torch.stack([column.unique(return_inverse=True)[1] for column in scores.T], dim=1)
        even = ranks.double() / max(len(truth), 1)
        area = float(of.multilabel_auroc(even, truth, count, average="macro"))
        values = {
            "map": float(of.multilabel_average_precision(even, truth, count, average="macro")),
            "auroc": area,
            "d_prime": _d_prime(area),
            "f1": float(of.multilabel_f1_score(self.predictions(scores), truth, count, average="macro")),
        }
        return values | {"classes_scored": float(count)}

    def _balanced(self, targets: Sequence[Any]) -> "Tensor | None":
        import torch

        positive = np.array(targets).sum(axis=0)
        return torch.tensor((len(targets) - positive) / np.maximum(positive, 1), dtype=torch.float32)


class Regression(Task):
    """Real numbers: mean squared error, R squared."""

    kind = TaskKind.REGRESSION
    headline = "r2"

    def tensor(self, targets: Sequence[Any]) -> "Tensor":
        """(B, outputs) float32."""
        import torch

        return torch.tensor(targets, dtype=torch.float32)

    def loss(self, logits: "Tensor", target: "Tensor", *, weights: "Tensor | None", smoothing: float) -> "Tensor":
        """Mean squared error."""
        from torch.nn.functional import mse_loss

        return mse_loss(logits, target)

    def predictions(self, logits: "Tensor") -> "Tensor":
        """The outputs themselves, (N, outputs)."""
        return logits

    def probabilities(self, logits: "Tensor") -> "Tensor":
        """The outputs themselves, (N, outputs): there are no classes."""
        return logits

    def metrics(self, logits: "Tensor", target: "Tensor") -> dict[str, float]:
        """R squared, mean absolute and root mean squared error, over all outputs."""
        error = logits - target
        spread = (target - target.mean(dim=0)).square().sum()
        r2 = 1.0 - float(error.square().sum() / spread) if float(spread) > 0 else 0.0
        return {"r2": r2, "mae": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}


def _d_prime(area: float) -> float:
    """How many deviations two normal distributions of scores lie apart that have this area under their ROC curve."""
    from scipy.stats import norm

    return float(math.sqrt(2) * norm.ppf(min(max(area, 1e-6), 1 - 1e-6)))


_TASKS: dict[TaskKind, type[Task]] = {task.kind: task for task in (SingleLabel, MultiLabel, Regression)}
