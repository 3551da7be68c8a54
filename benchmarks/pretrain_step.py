"""How long does one pretraining step take, beside the reference implementation on the same batch?

Whole optimiser steps (forward, backward, fused AdamW) of ViT-B/16 at 224, all variants in turn in one process:

    python benchmarks/pretrain_step.py [--device cuda] [--batch 8] [--rounds 12] [--out FILE]

Prints a table with the median ratio to the reference step and a 95 % interval over paired rounds, and the share of
this machine's own measured matrix-product peak that each variant reaches.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.config import ModelConfig, Precision, PretrainConfig
from core.modality import Batch, Stats
from core.model.mae import MaskedAutoencoder
from core.model.masking import sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec
from core.training.devices import choose_attention
from core.training.optim import adamw, parameter_groups

SPEC = PatchSpec(3, (224, 224), (16, 16))
Step = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    variant: str
    seconds: float
    samples_per_s: float
    ratio: float
    low: float
    high: float
    peak_fraction: float
    peak_memory_gib: float | None


def main() -> None:
    options = arguments()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x = torch.randn(options.batch, 3, 224, 224, device=device)
    peaks = {"float32": peak(device, torch.float32), "bf16": peak(device, torch.bfloat16)}
    print(header(device, options, peaks))
    variants = build_variants(x, device, compiled=device.type == "cuda")
    rows = table(variants, peaks, options, device)
    show(rows)
    if options.out:
        record = {"machine": machine(device), "batch": options.batch, "peaks": peaks, "rows": [asdict(r) for r in rows]}
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default=None)
    return parser.parse_args()


def build_variants(x: torch.Tensor, device: torch.device, *, compiled: bool) -> dict[str, tuple[Step, str]]:
    """Name to (step, precision); the reference first."""
    variants = {
        "transformers ViTMAE, float32": (reference_step(x, device), "float32"),
        "maeflow, float32": (our_step(x, device), "float32"),
        "maeflow, bf16": (our_step(x, device, bf16=True), "bf16"),
        "maeflow, bf16, a third decoded": (our_step(x, device, bf16=True, fraction=1 / 3), "bf16"),
    }
    if compiled:
        variants["maeflow, bf16, compiled"] = (our_step(x, device, bf16=True, compiled=True), "bf16")
        step = our_step(x, device, bf16=True, fraction=1 / 3, compiled=True)
        variants["maeflow, bf16, a third decoded, compiled"] = (step, "bf16")
    return variants


def reference_step(x: torch.Tensor, device: torch.device) -> Step:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(ViTMAEConfig(norm_pix_loss=True, layer_norm_eps=1e-6)).to(device).train()
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), PretrainConfig())

    def step() -> None:
        model(x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(
    x: torch.Tensor, device: torch.device, *, bf16: bool = False, fraction: float = 1.0, compiled: bool = False
) -> Step:
    config = PretrainConfig(decode_fraction=fraction)
    stats = Stats(torch.zeros(3, device=device), torch.ones(3, device=device))
    model = MaskedAutoencoder(SPEC, ModelConfig()).to(device).train()
    objective = MaskedObjective(model, config, sampler(config.mask, SPEC.grid), stats)
    choose_attention(model, device, Precision.BF16 if bf16 else Precision.FLOAT32)
    if compiled:
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            block.compile()
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), config)
    rng = torch.Generator(device=device).manual_seed(0)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss, _ = objective(Batch(x), rng)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def table(
    variants: dict[str, tuple[Step, str]], peaks: dict[str, float], options: argparse.Namespace, device: torch.device
) -> list[Row]:
    """Time all variants in turn, round by round, and compare each with the reference of its own round."""
    flops, memory = {}, {}
    for name, (step, _) in variants.items():
        flops[name], memory[name] = measure(step, device)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds):
        order = list(variants)
        if number % 2:
            order.reverse()
        for name in order:
            times[name].append(timed(variants[name][0], device))
    reference = times[next(iter(variants))]
    rows = []
    for name, (_, precision) in variants.items():
        ratios = [a / b for a, b in zip(times[name], reference, strict=True)]
        low, high = bootstrap_median(ratios)
        seconds = statistics.median(times[name])
        share = flops[name] / seconds / peaks[precision]
        median = statistics.median(ratios)
        rows.append(Row(name, seconds, options.batch / seconds, median, low, high, share, memory[name]))
    return rows


def measure(step: Step, device: torch.device) -> tuple[float, float | None]:
    """Floating-point operations of a step, and its peak memory in GiB on a GPU; also warms up."""
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    if device.type != "cuda":
        return counter.get_total_flops(), None
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return counter.get_total_flops(), torch.cuda.max_memory_allocated() / 2**30


def timed(step: Step, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of the machine's own large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    product = lambda: a @ b  # noqa: E731
    timed(product, device)
    return 2 * n**3 / min(timed(product, device) for _ in range(5))


def bootstrap_median(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (4000, len(values))), axis=1)
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers {version('transformers')}"
    )


def header(device: torch.device, options: argparse.Namespace, peaks: dict[str, float]) -> str:
    gflops = {name: value / 1e9 for name, value in peaks.items()}
    ratio = peaks["bf16"] / peaks["float32"]
    return (
        f"ViT-B/16 at 224, batch {options.batch}, {options.rounds} rounds interleaved, seed 0\n{machine(device)}\n"
        f"matrix product: float32 {gflops['float32']:.0f} GFLOP/s, bf16 {gflops['bf16']:.0f} GFLOP/s ({ratio:.2f}x)\n"
    )


def show(rows: list[Row]) -> None:
    head = f"{'variant':42s} {'s/step':>8s} {'samples/s':>10s} {'ratio':>6s} {'95 % interval':>15s}"
    print(f"{head} {'of peak':>8s} {'GiB':>6s}")
    for row in rows:
        memory = "" if row.peak_memory_gib is None else f"{row.peak_memory_gib:6.2f}"
        interval = f"{row.low:.3f} - {row.high:.3f}"
        print(
            f"{row.variant:42s} {row.seconds:8.4f} {row.samples_per_s:10.1f} {row.ratio:6.3f} {interval:>15s} "
            f"{row.peak_fraction:8.1%} {memory}"
        )


if __name__ == "__main__":
    main()
