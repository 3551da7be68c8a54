"""The one training loop. A stage gives it an objective and a stream of samples; it knows nothing of either's kind.

Inside a step nothing waits for the device: the loss is summed there and read only when the curves are written.
All randomness of a step comes from (seed, step, micro-batch), so a resumed run repeats an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from core.config import ComputeConfig, Precision, TrainConfig
from core.data.loading import MicroBatches, TrainViews, signals_held, to_device, train_loader, worker_count
from core.data.seeds import seed_of, torch_rng
from core.errors import PeerLost, StageError, Stopped, UserError
from core.modality import Modality, SampleBatch, Stats
from core.model.objective import Facts, Objective
from core.tracking import NullTracker, Tracker
from core.training import checkpoint
from core.training.devices import choose_attention
from core.training.distributed import World
from core.training.optim import Schedule, adamw, set_lr
from core.training.throughput import Work, measure_peak
from core.workspace import write_bytes

BEST_FILE = "best.safetensors"
"""Weights of the best validation result so far, in a stage's partial folder."""

Evaluate = Callable[[int], Mapping[str, float]]
"""Called with the number of steps done; gives metrics to record."""


@dataclass(frozen=True)
class Best:
    """Which validation metric decides which weights are kept."""

    metric: str
    higher: bool


@dataclass(frozen=True)
class Job:
    """All that one training run is given."""

    name: Literal["pretrain", "finetune"]
    config: TrainConfig
    compute: ComputeConfig
    device: torch.device
    seed: int
    schedule: Schedule
    per_epoch: int
    """Samples in an epoch."""
    plugin: Modality[Any]
    stats: Stats
    tracker: Tracker
    workdir: Path
    should_stop: Callable[[], bool] = lambda: False
    evaluate: Evaluate = lambda _: {}
    evaluate_every: int = 1
    """Epochs between two evaluations; there is always one at the end."""
    best: Best | None = None
    world: World = field(default_factory=World)
    """The processes that train together; the first alone evaluates, reports and saves."""


@dataclass
class _Meter:
    """Sums on the device, read seldom."""

    total: Tensor
    count: int = 0

    def mean(self) -> float:
        """The mean; this waits for the device."""
        return float(self.total) / max(1, self.count)

    def reset(self) -> None:
        """Start anew."""
        self.total, self.count = torch.zeros_like(self.total), 0


@dataclass
class _Clock:
    """Where the time of the current interval went."""

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    samples: int = 0

    def rates(self, flops_per_sample: float, peak: float) -> dict[str, float]:
        """Samples per second, the share of the time spent waiting for data, and of the arithmetic peak reached."""
        spent = max(1e-9, time.perf_counter() - self.start)
        rate = self.samples / spent
        return {
            "perf/samples_per_s": rate,
            "perf/data_wait": self.waited / spent,
            "perf/peak_fraction": flops_per_sample * rate / peak,
        }


class Trainer:
    """Trains ``objective`` and keeps its state so that `run` can be called again after any interruption."""

    def __init__(self, objective: Objective, groups: list[dict[str, Any]], job: Job) -> None:
        self.objective, self.job = objective, job
        _check_share(job)
        self._tracker: Tracker = job.tracker if job.world.leads else NullTracker()
        self.optimizer = adamw(groups, job.config)
        self.steps_done = 0
        self.best_value: float | None = None
        self.facts: Facts = {}
        """What the objective last told of its batch."""
        self._loss = _Meter(torch.zeros((), device=job.device))
        self._epoch_loss = _Meter(torch.zeros((), device=job.device))
        self._bad = torch.zeros((), device=job.device)
        self._norm = torch.zeros((), device=job.device)
        self._work, self._peak = Work(), math.inf
        self._clip = job.config.clip_grad or math.inf
        self._parameters = [p for group in groups for p in group["params"]]
        self._trained: list[nn.Parameter] = []
        """Those that gradients are summed for; known after the first backward pass of several processes."""
        ema = job.config.ema
        self._average = [p.detach().clone() for p in self._parameters] if ema else None
        choose_attention(objective.model, job.device, job.config.precision)
        if job.compute.compile:
            _compile_blocks(objective.model)

    # --- one step -------------------------------------------------------------------------------------------

    def train_step(self, step: int, micros: Iterable[tuple[int, SampleBatch]], accumulate: int) -> None:
        """One optimiser step on ``accumulate`` micro-batches; never waits for the device.

        This process is given those that are its own, with their indices among all.
        """
        set_lr(self.optimizer, self.job.schedule.lr(step))
        losses = []
        for index, samples in micros:
            loss, self.facts = self._forward(step, index, samples)
            (loss / accumulate).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        for one in self._over_all(losses):
            self._loss.total += one
            self._epoch_loss.total += one
        self._loss.count += accumulate
        self._epoch_loss.count += accumulate
        self._update()

    def _over_all(self, losses: list[Tensor]) -> list[Tensor]:
        """Sum gradients over all processes; gives the step's losses, those of several processes as one sum."""
        world = self.job.world
        if world.size == 1:
            return losses
        self._trained = self._trained or world.trained(self._parameters)
        return [world.add(self._trained, torch.stack(losses).sum())]

    def _forward(self, step: int, index: int, samples: SampleBatch) -> tuple[Tensor, Facts]:
        job = self.job
        torch.manual_seed(seed_of(job.seed, "step", step, index))  # Stochastic depth draws from torch's own generator,
        np.random.seed(seed_of(job.seed, "mix", step, index) % 2**32)  # noqa: NPY002 - and timm's mixup from NumPy's.
        rng = torch_rng(job.device, job.seed, job.name, step, index)
        batch = job.plugin.batch(samples, job.stats, rng, train=True)
        half = job.config.precision is Precision.BF16
        with torch.autocast(job.device.type, torch.bfloat16, enabled=half):
            loss, facts = self.objective(batch, rng)
        return loss, facts

    def _update(self) -> None:
        """Clip, step, average. A step with non-finite gradients changes nothing, and is counted."""
        self._norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        bad = (~self._norm.isfinite()).float()
        self._bad += bad
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # how GradScaler makes fused AdamW skip a step
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self._average is not None:
            weight = 1.0 - (self.job.config.ema or 0.0)
            torch._foreach_lerp_(self._average, self._parameters, weight)

    # --- the run --------------------------------------------------------------------------------------------

    def run(self, views: TrainViews) -> float:
        """Train to the end, from the newest checkpoint if there is one; gives the mean loss of the last epoch.

        Raises:
            Stopped: if asked to; the state is saved.
            StageError: if the loss stays non-finite.
        """
        job, config, world = self.job, self.job.config, self.job.world
        self._resume()
        world.alike([*self.objective.model.parameters(), *self.objective.model.buffers()])
        total, accumulate = job.schedule.total, config.batch // config.micro
        loader = self._loader(views)
        self._peak = measure_peak(job.device, config.precision)
        clock, saved = _Clock(), time.monotonic()
        while self.steps_done < total:
            with nullcontext() if self._work.flops else self._work.counting():
                self.train_step(self.steps_done, self._micros(loader, accumulate // world.size, clock), accumulate)
            self.steps_done += 1
            clock.samples += config.batch
            clock = self._report(clock)
            evaluated = self._maybe_evaluate()
            clock = _Clock() if evaluated else clock
            stop = world.any(job.should_stop())
            if stop or time.monotonic() - saved > job.compute.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
            if stop and self.steps_done < total:
                with suppress(PeerLost):  # Whoever ends first would have the others ended before they have saved.
                    world.wait()
                raise Stopped(f"{job.name} saved after {self.steps_done} of {total} steps")
        self._evaluate()
        return self._epoch_loss.mean()

    def _loader(self, views: TrainViews) -> Iterator[Any]:
        job, config, world = self.job, self.job.config, self.job.world
        last = job.schedule.total
        wanted = MicroBatches(self.steps_done, last, config.batch, config.micro, world.rank, world.size)
        workers = worker_count(job.compute.workers, job.device, world.local_size)
        with signals_held():
            return iter(train_loader(views, wanted, workers, pin=job.device.type == "cuda"))

    def _micros(self, loader: Iterator[Any], count: int, clock: _Clock) -> Iterator[tuple[int, SampleBatch]]:
        for _ in range(count):
            start = time.perf_counter()
            wanted, samples = next(loader)
            clock.waited += time.perf_counter() - start
            yield wanted.index, to_device(samples, self.job.device)

    def _report(self, clock: _Clock) -> _Clock:
        """Write the curves when it is time to; gives the clock of the next interval."""
        job, done = self.job, self.steps_done
        self._tracker.progress(job.name, done * job.config.batch, job.schedule.total * job.config.batch, "samples")
        if done % job.compute.log_every and done != job.schedule.total:
            return clock
        loss = self._loss.mean()
        if self._bad.item() >= self._loss.count // max(1, job.config.batch // job.config.micro):
            raise StageError(
                f"{job.name}: the gradients of all steps up to {done} since the last report were not finite; "
                f"lower {job.name}.base_lr, set {job.name}.clip_grad, or use precision float32"
            )
        values = {"loss": loss, "lr": job.schedule.lr(done - 1), "grad_norm": float(self._norm)}
        # Those of the step's last micro-batch, as one process would have them.
        facts = job.world.values([float(value) for value in self.facts.values()], job.world.size - 1)
        values |= dict(zip(self.facts, facts, strict=True))
        if skipped := self._bad.item():
            self._tracker.note(f"{job.name}: {skipped:.0f} steps up to {done} skipped for non-finite gradients")
        self._tracker.metrics(
            done,
            {f"{job.name}/{key}": value for key, value in values.items()}
            | clock.rates(self._work.flops / job.config.batch, self._peak),
        )
        self._loss.reset()
        self._bad.zero_()
        return _Clock()

    def _maybe_evaluate(self) -> bool:
        job, done = self.job, self.steps_done
        every = max(1, round(job.evaluate_every * job.per_epoch / job.config.batch))
        end_of_epoch = (done * job.config.batch) // job.per_epoch > ((done - 1) * job.config.batch) // job.per_epoch
        last = done == job.schedule.total
        due = done % every == 0 and not last  # The last evaluation comes after the loop, resumed or not.
        if due:
            self._evaluate()
            job.world.wait()
        if end_of_epoch and not last:
            self._epoch_loss.reset()
        return due

    def _evaluate(self) -> None:
        if self.job.world.leads:
            with self.averaged():
                self._record(self.job.evaluate(self.steps_done))

    def _record(self, values: Mapping[str, float]) -> None:
        job = self.job
        if values:
            self._tracker.metrics(self.steps_done, values)
        if job.best and job.best.metric in values:
            value = values[job.best.metric]
            better = self.best_value is None or (
                (value > self.best_value) == job.best.higher and value != self.best_value
            )
            if better:
                self.best_value = value
                write_bytes(job.workdir / BEST_FILE, to_safetensors(weights(self.objective.model)))

    # --- state ----------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters are their moving averages, where the recipe keeps them."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        if self._average is None:
            return
        for parameter, average in zip(self._parameters, self._average, strict=True):
            parameter.data, average.data = average.data, parameter.data

    def save(self) -> None:
        """Write a checkpoint of everything the next step depends on; it is the same in all processes."""
        if not self.job.world.leads:
            return
        state = {
            "model": self.objective.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self._average,
            "best": self.best_value,
            "meters": [[m.total, m.count] for m in (self._loss, self._epoch_loss)],
            "bad": self._bad,
        }
        checkpoint.save(self.job.workdir, self.steps_done, state, self.job.compute.keep)

    def _resume(self) -> None:
        world = self.job.world
        state = checkpoint.latest(self.job.workdir) if world.leads else None
        step = world.told(state["step"] if state else -1)
        if step < 0:
            self._tracker.rewind(0)
            return
        state = state or checkpoint.at(self.job.workdir, step)
        self.objective.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            for mine, saved in zip(self._average, state["average"], strict=True):
                mine.copy_(saved)
        self.best_value, self.steps_done = state["best"], state["step"]
        for meter, (total, count) in zip((self._loss, self._epoch_loss), state["meters"], strict=True):
            meter.total, meter.count = total.to(self.job.device), count
        self._bad = state["bad"].to(self.job.device)
        self._tracker.rewind(self.steps_done)
        self._tracker.note(f"{self.job.name} continues after step {self.steps_done}")


def _check_share(job: Job) -> None:
    """Refuse a step that the processes cannot share evenly."""
    config, size = job.config, job.world.size
    count = config.batch // config.micro
    if count % size:
        example = f" ({config.batch // size}, say)" if config.batch % size == 0 else ""
        raise UserError(
            f"{size} processes cannot share the {count} micro-batches of a step evenly; set {job.name}.micro_batch so "
            f"that {job.name}.batch, {config.batch}, holds a multiple of {size} of them{example}, or compute.processes"
        )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights as contiguous CPU tensors under their names."""
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def _compile_blocks(model: nn.Module) -> None:
    """Compile each transformer block by itself: quick to start, and nothing outside needs to be traceable."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.compile()
