"""What every stage needs beside its inputs, and the steps that stages share."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.config import Recipe, results_only
from core.data.loading import FixedViews, Ids, to_device
from core.data.seeds import torch_rng
from core.data.store import PreparedStore
from core.errors import UserError
from core.modality import Batch, Modality, Purpose, Stats
from core.model.patches import PatchSpec
from core.model.regrid import weights_at
from core.records import PreparedData, PretrainedEncoder, Statistics
from core.registry import plugin_for
from core.tracking import NullTracker, Tracker
from core.training.distributed import World
from core.workspace import Home

if TYPE_CHECKING:
    from core.model.mae import Encoder


@dataclass(frozen=True)
class Work:
    """Where a stage works and whom it tells."""

    home: Home
    digest: str
    """Name of the stage's folder."""
    folder: Path
    """The partial folder, held by this process alone."""
    tracker: Tracker = field(default_factory=NullTracker)
    should_stop: Callable[[], bool] = lambda: False
    world: World = field(default_factory=World)
    """The processes that do this work together; the first alone writes and reports."""

    def origin(self, stage: str, recipe: Recipe, device: torch.device) -> dict[str, Any]:
        """The fields with which the record of every stage begins."""
        return {
            "digest": self.digest,
            "folder": self.home.uri(self.home.stage(stage, self.digest).final),
            "modality": recipe.modality,
            "recipe": recipe.name,
            "versions": versions(device),
        }


def open_store(home: Home, prepared: PreparedData, recipe: Recipe) -> PreparedStore:
    """The rows behind a record, for a plugin with the recipe's settings.

    Raises:
        UserError: if they were prepared with other settings: a plugin could not tell, and would misread them.
    """
    if others := differences(prepared.settings, recipe):
        raise UserError(
            f"the data in {prepared.folder} were prepared with other settings ({'; '.join(others)}); prepare them with "
            "these, or give those by --set"
        )
    return PreparedStore.open(home.resolve(prepared.folder))


def differences(settings: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Where ``settings`` of earlier work are not the recipe's; what only one of them has is not compared."""
    then, now = _flat("data", settings), _flat("data", results_only(recipe.data, "affects_prepared"))
    keys = sorted(key for key in then.keys() & now.keys() if then[key] != now[key])
    return [f"{key}: {then[key]} there, {now[key]} in the recipe" for key in keys]


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Nested settings by dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {key: found for part in value for key, found in _flat(f"{name}.{part}", value[part]).items()}


def live_plugin(recipe: Recipe, purpose: Purpose, input_shape: tuple[int, ...] | None = None) -> Modality[Any]:
    """The recipe's plugin for a stage."""
    return plugin_for(recipe, purpose, input_shape)


def stats_on(statistics: Statistics, device: torch.device) -> Stats:
    """Input statistics as tensors."""
    return Stats(torch.tensor(statistics.mean, device=device), torch.tensor(statistics.std, device=device))


def versions(device: torch.device) -> dict[str, str]:
    """Versions, and the device, that stand beside every result."""
    names = ("maeflow", "torch", "timm", "numpy")
    threads = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    return {name: version(name) for name in names} | {"python": platform.python_version(), "device": hardware}


def encoder_weights(home: Home, record: PretrainedEncoder, spec: PatchSpec) -> dict[str, Tensor]:
    """The weights of an encoder, its positions brought to the grid of ``spec`` where that differs."""
    return weights_at(home.resolve(record.folder), record, spec)


def fixed_batch(
    views: FixedViews, number: int, plugin: Modality[Any], stats: Stats, device: torch.device, seed: int
) -> Batch:
    """Batch ``number`` of ``views`` on the device."""
    rng = torch_rng(device, seed, "fixed", number)
    return plugin.batch(to_device(views[number], device), stats, rng, train=False)


@torch.no_grad()
def extract(
    encoder: "Encoder", store: PreparedStore, ids: Ids, plugin: Modality[Any], stats: Stats, batch: int
) -> Tensor:
    """Features (N, D) of rows ``ids`` from a frozen encoder, on the CPU."""
    device = stats.mean.device
    views = FixedViews(store, ids, plugin, batch)
    was_training = encoder.training
    encoder.eval()
    parts = []
    for number in range(len(views)):
        inputs = fixed_batch(views, number, plugin, stats, device, 0)
        parts.append(encoder.features(inputs.x, inputs.valid).float().cpu())
    encoder.train(was_training)
    return torch.cat(parts) if parts else torch.empty(0, encoder.config.width)
