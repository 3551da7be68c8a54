"""A finished encoder or tuned model out of its folder, ready for records that no stage has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import Recipe, TaskKind
from core.data.loading import collate, to_device
from core.data.seeds import torch_rng
from core.errors import UserError
from core.evaluation.sliding import Blend, predict_whole
from core.modality import Batch, Modality, Record, Sample, Stats
from core.model.heads import Head
from core.model.mae import Encoder
from core.model.patches import PatchSpec
from core.model.regrid import weights_at
from core.model.segmentation import tuned_from
from core.model.weights import recipe_of
from core.records import PretrainedEncoder, TunedModel, read_model
from core.stages.work import live_plugin, stats_on
from core.tasks import Task


@dataclass(frozen=True)
class Ready:
    """An encoder or a tuned model in evaluation mode, with what turns records into its input."""

    record: PretrainedEncoder | TunedModel
    """What is known of it."""
    recipe: Recipe
    """What it was made by."""
    plugin: Modality[Any]
    """Reads files and makes inputs, as in evaluation."""
    stats: Stats
    """Input statistics, on the device that the model is on."""
    model: Encoder
    """The model; a `Head` where it is a tuned one."""

    @property
    def spec(self) -> PatchSpec:
        """Geometry of the inputs."""
        return self.model.spec

    @property
    def task(self) -> Task | None:
        """What is predicted; None for an encoder."""
        return Task.of(self.record.target) if isinstance(self.record, TunedModel) else None

    @torch.no_grad()
    def features(self, records: Sequence[Record], *, patches: bool = False) -> Tensor:
        """Features (B, D) of the records' fixed views, float32 on the CPU; with ``patches`` (B, N, D), of each patch.

        The former are what the frozen probes of `evaluate` see: the mean of the normalised tokens of real patches.
        Among the latter, patches of padding are NaN: nothing is there.

        Raises:
            UserError: of a tuned model, whose pooled tokens are its head's business.
        """
        if isinstance(self.model, Head):
            raise UserError("features are an encoder's; name the encoder that the model was tuned from, or predict")
        batch = self._batch([self.plugin.view(record, np.random.default_rng(0), train=False) for record in records])
        if not patches:
            return self.model.features(batch.x, batch.valid).float().cpu()
        tokens: Tensor = self.model(self.spec.patchify(batch.x), valid_BN=batch.valid)
        found = tokens[:, self.model.prefix :].float()
        found = found if batch.valid is None else found.masked_fill(~batch.valid[:, :, None], torch.nan)
        return found.cpu()

    @torch.no_grad()
    def logits(self, records: Sequence[Record]) -> Tensor:
        """Logits (B, outputs) in float32 on the CPU, averaged over each record's views as in evaluation.

        Raises:
            UserError: of an encoder, which predicts nothing.
        """
        if not isinstance(self.model, Head):
            raise UserError("an encoder predicts nothing; name a tuned model, or ask for features")
        views = [self.plugin.views(record) for record in records]
        batch = self._batch([view for several in views for view in several])
        scores = self.model.classify(batch.x, batch.valid).float().cpu()
        return torch.stack([part.mean(0) for part in torch.split(scores, [len(several) for several in views])])

    def mask(self, record: Record, batch: int, blend: Blend) -> Tensor:
        """The class (*whole) int64 of every pixel or voxel of one record, from windows, ``batch`` at a time.

        Raises:
            UserError: of a model that gives no masks.
        """
        model, task = self.model, self.task
        if not isinstance(model, Head) or task is None or task.kind is not TaskKind.SEGMENTATION:
            raise UserError("masks are given by a model that was tuned for segmentation")
        logits, _ = predict_whole(
            lambda inputs: model.classify(inputs.x, inputs.valid),
            record,
            self.plugin,
            self.stats,
            outputs=task.outputs,
            batch=batch,
            blend=blend,
        )
        return logits.argmax(0)

    def probabilities(self, records: Sequence[Record]) -> Tensor:
        """What `logits` say (B, outputs): probabilities of classes, or the numbers of a regression."""
        scores = self.logits(records)
        assert self.task is not None, "logits have refused an encoder"
        return self.task.probabilities(scores)

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        """The model's input of ``samples``."""
        device = self.stats.mean.device
        return self.plugin.batch(
            to_device(collate(samples, None), device), self.stats, torch_rng(device, 0, "ready"), train=False
        )


def ready(folder: Path, device: torch.device) -> Ready:
    """The encoder or tuned model in the ``folder`` of a finished stage, on ``device``.

    Raises:
        UserError: if there is none, or its plugin is not installed.
    """
    record = read_model(folder)
    recipe = recipe_of(folder / record.weights)
    tuned = isinstance(record, TunedModel)
    plugin = live_plugin(recipe, "evaluate", (recipe.finetune if tuned else recipe.pretrain).input_shape)
    if isinstance(record, TunedModel):
        model: Encoder = tuned_from(folder, record)
    else:
        model = Encoder(plugin.patches(), record.model)
        model.load_state_dict(weights_at(folder, record, plugin.patches()))
    return Ready(record, recipe, plugin, stats_on(record.statistics, device), model.to(device).eval())
