"""Checks what has to be right before anything can run, and says what to do about what is not."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra import settings

OURS = ("core", "modalities", "flows", "infra")
PACKAGES = ("torch", "torchvision", "timm", "prefect", "mlflow", "fastapi", "datasets", "pydantic")
LOW_DISK_GIB = 5.0


@dataclass(frozen=True)
class Check:
    """One finding."""

    ok: bool
    name: str
    text: str


def report(home: Path) -> bool:
    """Print all findings; whether all is well."""
    findings = [check for part in (_python, _packages, _shadows, _torch, _home, _tracking) for check in part(home)]
    for check in findings:
        print(f"{'ok  ' if check.ok else 'BAD '} {check.name:14s} {check.text}")
    return all(check.ok for check in findings)


def _python(_: Path) -> Iterator[Check]:
    cores = os.cpu_count() or 1
    yield Check(
        True, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores"
    )


def _packages(_: Path) -> Iterator[Check]:
    for name in PACKAGES:
        try:
            yield Check(True, name, version(name))
        except PackageNotFoundError:
            yield Check(False, name, "is not installed; install maeflow again with its constraints")
    pair = tuple(version(name).split("+")[0].rsplit(".", 1)[0] for name in ("torch", "torchvision"))
    if pair != ("2.11", "0.26"):
        yield Check(False, "torch", f"torch {pair[0]} with torchvision {pair[1]} is not the tested pair 2.11 / 0.26")
    if tuple(int(n) for n in version("fastapi").split(".")[:2]) >= (0, 151):
        yield Check(False, "fastapi", "Prefect 3.8's server does not start with it; install 'fastapi<0.151'")


def _shadows(_: Path) -> Iterator[Check]:
    """Unrelated packages are called `modalities` and `flows`, too."""
    here = Path(__file__).resolve().parent.parent
    for name in OURS:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        ok = origin == here
        yield Check(
            ok,
            name,
            "ours" if ok else f"is another package, in {origin}; uninstall it or use an environment of our own",
        )


def _torch(_: Path) -> Iterator[Check]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Check(True, "devices", ", ".join(devices) or f"no GPU; CPU with {torch.get_num_threads()} threads")


def _home(home: Path) -> Iterator[Check]:
    free = shutil.disk_usage(home).free / 2**30
    yield Check(os.access(home, os.W_OK), "home", f"{home}")
    hint = "" if free > LOW_DISK_GIB else "; make room or set MAEFLOW_HOME"
    yield Check(free > LOW_DISK_GIB, "disk", f"{free:.0f} GiB free{hint}")


def _tracking(home: Path) -> Iterator[Check]:
    from infra.mlflow_runs import connect

    yield _try(
        "mlflow", lambda: f"{len(connect(home).search_experiments())} experiments at {settings.tracking_uri(home)}"
    )


def _try(name: str, action: Callable[[], str]) -> Check:
    try:
        return Check(True, name, action())
    except Exception as error:  # noqa: BLE001 - every failure is a finding
        return Check(False, name, f"{type(error).__name__}: {error}")
