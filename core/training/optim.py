"""Optimiser groups and the learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then half a cosine, by optimiser step (He et al. 2021, table 8)."""

    peak: float
    floor: float
    warmup: int
    """Steps of warm-up."""
    total: int
    """Steps in all."""

    def lr(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0; the first step of a warm-up is not wasted on 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def schedule(config: TrainConfig, samples_per_epoch: int) -> Schedule:
    """The schedule of ``config`` for data of this size."""
    per_epoch = samples_per_epoch / config.batch
    total = max(1, round(config.epochs * per_epoch))
    return Schedule(config.lr, config.min_lr, min(round(config.warmup_epochs * per_epoch), total), total)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, tokens and positions."""
    return parameter.ndim > 1 and not name.endswith(("cls_token", "pos_embed", "mask_token"))


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter for layer-wise decay: 0 for the embedding, ``depth + 1`` for what follows the blocks."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    *,
    layer_decay: float = 1.0,
    depth: int = 0,
) -> list[dict[str, Any]]:
    """Optimiser groups by weight decay and layer; each carries ``lr_scale``, its factor on the schedule.

    Layer-wise decay as in BEiT (Bao et al. 2021) and MAE fine-tuning: the scale falls by ``layer_decay`` per layer
    from the head downwards.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (depth + 1 - layer_of(name, depth)) if layer_decay < 1 else 1.0
        decay = decays(name, parameter)
        fresh = {"params": [], "lr_scale": scale, "weight_decay": weight_decay if decay else 0.0}
        groups.setdefault((scale, decay), fresh)["params"].append(parameter)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Apply the scheduled rate to every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
