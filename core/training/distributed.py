"""Processes that train together: who this one is, and what all of them have to agree on.

Results do not depend on how many there are, but for the order in which floats are added: the micro-batches of a step
are numbered over all processes, and their gradients are summed once a step. Gradients travel by NCCL between GPUs; what
is told on the side travels by gloo, so that nothing waits for a device.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.config import ComputeConfig
from core.errors import PeerLost, UserError
from core.training.devices import configure

PATIENCE = timedelta(hours=12)
"""How long processes wait for one that validates; one that died is noticed at once, by its closed connections."""
DEVICE_PATIENCE = timedelta(hours=1)
"""The same for gradients between GPUs, which wait no longer than one step differs from another."""


@dataclass(frozen=True)
class World:
    """The processes of one training; alone, it asks and tells nobody."""

    rank: int = 0
    """Number of this process; 0 leads: it saves, validates and reports."""
    size: int = 1
    """Number of processes."""
    local: int = 0
    """Number of this process on its machine, and of its GPU."""
    local_size: int = 1
    """Number of processes on this machine."""
    group: Any = None
    """By which gradients travel; None: the default."""

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def on(self, kind: str) -> "World":
        """This world with its gradients on devices of this ``kind``; called by all processes alike.

        Raises:
            UserError: if there are more processes than GPUs, or processes cannot share their gradients there.
        """
        if self.size == 1 or kind == "cpu":
            return self
        if kind != "cuda":
            raise UserError(f"compute.processes: several processes train on the CPU or on CUDA, not on {kind}")
        if self.local_size > torch.cuda.device_count():
            raise UserError(
                f"compute.processes is {self.local_size}, but this machine shows {torch.cuda.device_count()} GPUs; "
                "lower it, or leave it out"
            )
        torch.cuda.set_device(self.local)
        with _peers():
            group = dist.new_group(backend="nccl", timeout=DEVICE_PATIENCE)
        return World(self.rank, self.size, self.local, self.local_size, group)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        if self.size == 1:
            return flag
        told = torch.tensor(int(flag))
        with _peers():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.any(False)

    def told(self, number: int, by: int = 0) -> int:
        """The ``number`` of process ``by``."""
        return round(self.values([number], by)[0])

    def values(self, values: Sequence[float], by: int = 0) -> list[float]:
        """The ``values`` of process ``by``; as many in every process."""
        if self.size == 1 or not values:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        with _peers():
            dist.broadcast(shared, by)
        return [float(value) for value in shared]

    def alike(self, tensors: Sequence[Tensor]) -> None:
        """Give ``tensors`` the values that they have in process 0."""
        if self.size == 1:
            return
        with _peers(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0, group=self.group)

    def trained(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Those of ``parameters`` that have a gradient in any process."""
        has = torch.tensor([int(p.grad is not None) for p in parameters])
        with _peers():
            dist.all_reduce(has, dist.ReduceOp.MAX)
        return [p for p, found in zip(parameters, has.tolist(), strict=True) if found]

    def add(self, parameters: Sequence[nn.Parameter], beside: Tensor) -> Tensor:
        """Sum the gradients of ``parameters`` and the scalar ``beside`` over all processes; gives the latter's sum.

        One message, in one flat buffer of float32.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([beside.reshape(1).float(), *(grad.reshape(-1) for grad in grads)])
        with _peers():
            dist.all_reduce(flat, group=self.group)
        place = 1
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.copy_(flat[place : place + grad.numel()].view_as(grad))
            place += grad.numel()
        return flat[0].clone()


def join() -> World:
    """Meet the other processes that torchrun has started, by the addresses in the environment."""
    rank, size, local, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if size == 1:
        return World()
    with _peers():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return World(rank, size, local, local_size)


def place(compute: ComputeConfig, world: World) -> tuple[torch.device, World]:
    """The device of this process, and ``world`` with its gradients there; several processes have a GPU each.

    Raises:
        UserError: if the machine lacks the device, or has not enough of them.
    """
    device = configure(compute)
    if world.size == 1:
        return device, world
    there = world.on(device.type)
    return torch.device("cuda", world.local) if device.type == "cuda" else device, there


@contextmanager
def _peers() -> Iterator[None]:
    """Whatever fails between processes means that one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this training is gone") from error
