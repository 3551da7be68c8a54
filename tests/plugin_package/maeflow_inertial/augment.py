"""Random changes of windows on the device: another seat of the sensor, another sensitivity, noise."""

import torch
from torch import Tensor

from maeflow_inertial.config import AugmentConfig


def augment(x: Tensor, std: Tensor, settings: AugmentConfig, rng: torch.Generator) -> Tensor:
    """(B, 6, W) in natural units, each window changed by its own draw from ``rng``; ``std`` (6,) is of the channels."""
    if settings.rotation:
        x = rotate(x, rotations(x.shape[0], settings.rotation, rng, x.device))
    if settings.scale:
        span = torch.rand(x.shape[0], 2, generator=rng, device=x.device) * 2 - 1
        x = x * (1 + settings.scale * span).repeat_interleave(3, dim=1).unsqueeze(-1)
    if settings.noise:
        noise = torch.randn(x.shape, generator=rng, device=x.device)
        x = x + settings.noise * std.view(1, -1, 1) * noise
    return x


def rotate(x: Tensor, turns_B33: Tensor) -> Tensor:
    """Acceleration and rotation of (B, 6, W) in a frame turned by ``turns_B33``: lengths stay, directions turn."""
    vectors = x.view(x.shape[0], 2, 3, -1)
    return torch.einsum("bij,bsjt->bsit", turns_B33, vectors).reshape(x.shape)


def rotations(count: int, degrees: float, rng: torch.Generator, device: torch.device) -> Tensor:
    """(count, 3, 3) rotations about axes of any direction, by up to ``degrees`` (Rodrigues' formula)."""
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng, device=device), dim=1)
    angle = torch.deg2rad(degrees * torch.rand(count, 1, 1, generator=rng, device=device))
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(count, 3, 3)
    return torch.eye(3, device=device) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
