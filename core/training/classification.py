"""The fine-tuning objective: the loss of a classifier or segmenter, with mixup and cutmix where asked for."""

from typing import Any

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from core.config import FinetuneConfig, TaskKind
from core.errors import UserError
from core.modality import Batch
from core.model.heads import Head
from core.model.objective import Facts, Objective
from core.tasks import Task


class ClassifierObjective(Objective):
    """One fine-tuning forward pass. Never waits for the device."""

    model: Head

    def __init__(self, model: Head, task: Task, config: FinetuneConfig, class_weights: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self._task = task
        self._smoothing = config.label_smoothing
        self._mix = _mixing(config, task)
        self.register_buffer("_weights", class_weights, persistent=False)

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Facts]:
        """Loss of a micro-batch (a scalar on the device)."""
        if batch.target is None:
            raise ValueError("fine-tuning met a sample without a label")
        x, target, valid, smoothing = batch.x, batch.target, batch.valid, self._smoothing
        if batch.mixed is not None:
            if self._mix is not None:
                raise UserError(
                    "samples would be mixed twice: set finetune.mixup and finetune.cutmix to 0, or the plugin's mixing"
                )
            target = self._task.mixed(target, batch.mixed)
        if self._mix is not None:
            x, target = self._mix(x, target)  # Smooths the labels as well.
            smoothing = 0.0
            # A sample is mixed with the one as far from the other end of the batch.
            valid = None if valid is None else valid | valid.flip(0)
        logits = self.model.classify(x, valid)
        weights: Tensor | None = self._weights  # type: ignore[assignment]
        return self._task.loss(logits, target, weights=weights, smoothing=smoothing), {}


def _mixing(config: FinetuneConfig, task: Task) -> Any:
    """Timm's mixup and cutmix, or None; timm draws from NumPy's global generator, which the trainer seeds per step."""
    if config.mixup == 0 and config.cutmix == 0:
        return None
    assert task.kind is TaskKind.SINGLE, "other recipes are refused"
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=task.outputs,
    )
