"""Stage 3: a model for the task from an encoder and a few labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from core.config import FinetuneConfig, Recipe
from core.data.loading import FixedViews, Ids, Part, Stream, TrainViews
from core.data.seeds import seed_of
from core.data.store import PreparedStore
from core.errors import StageError, UserError
from core.modality import Modality, Stats
from core.model.heads import Head
from core.model.patches import PatchSpec
from core.model.regrid import geometry_of
from core.model.segmentation import head_for
from core.model.weights import metadata_of
from core.records import PreparedData, PretrainedEncoder, Target, TunedModel
from core.segmentation import Segmentation
from core.stages.work import (
    Work,
    differences,
    encoder_weights,
    fixed_batch,
    live_plugin,
    open_store,
    stats_on,
)
from core.tasks import Task
from core.training import checkpoint
from core.training.classification import ClassifierObjective
from core.training.distributed import place
from core.training.optim import parameter_groups, schedule
from core.training.trainer import BEST_FILE, Best, Job, Trainer, weights
from core.workspace import write_bytes

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Labelled:
    """Labelled rows and what is done with them."""

    store: PreparedStore
    task: Task
    plugin: Modality[Any]
    stats: Stats

    def predict(self, model: Head, ids: Ids, batch: int) -> tuple[Tensor, Tensor]:
        """Logits (N, outputs) and targets (N, ...) of the fixed views of ``ids``, on the CPU."""
        views = FixedViews(self.store, ids, self.plugin, batch, self.task.tensor)
        return _predict(model, views, self.plugin, self.stats)


def finetune(recipe: Recipe, encoder: PretrainedEncoder, labelled: PreparedData, work: Work) -> TunedModel:
    """Fine-tune ``encoder`` on the labelled training split; the best weights on validation are kept.

    Where several processes train together, the first alone writes files, and its record alone has validation metrics.

    Raises:
        UserError: if nothing is labelled, or the data were prepared with other settings.
        StageError: if there is no labelled training item, or the loss stays non-finite.
        Stopped: if asked to stop; calling again continues.
    """
    target = require_target(labelled)
    device, world = place(recipe.compute, work.world)
    plugin = live_plugin(recipe, "finetune", recipe.finetune.input_shape)
    task, spec = Task.of(target), plugin.patches()
    stats = stats_on(encoder.statistics, device)
    on = Labelled(open_store(work.home, labelled, recipe), task, plugin, stats)
    train, val = on.store.ids("train", labelled=True), on.store.ids("val", labelled=True)
    if others := differences(encoder.settings, recipe):
        work.tracker.note(f"the encoder was pretrained with other settings of its data ({'; '.join(others)})")
    if len(train) == 0:
        raise StageError("no item of the training split is labelled; see the splits in the dataset card")
    model = build(recipe, encoder, spec, task, work, seed_of(recipe.seed, "head")).to(device)
    class_weights = task.class_weights(on.store.targets(train))
    objective = ClassifierObjective(model, task, recipe.finetune, class_weights).to(device)
    stream = Stream(
        [_part(recipe.finetune, task, on.store, train)], seed_of(recipe.seed, "finetune"), recipe.finetune.repeats
    )
    dense = isinstance(task, Segmentation)
    most = min(recipe.evaluate.batch, recipe.finetune.micro) if dense else recipe.evaluate.batch
    look = (_DenseLook if dense else _Look)(on, objective, val, most)
    job = Job(
        name="finetune",
        config=recipe.finetune,
        compute=recipe.compute,
        device=device,
        seed=recipe.seed,
        schedule=schedule(recipe.finetune, stream.per_epoch),
        per_epoch=stream.per_epoch,
        plugin=plugin,
        stats=stats,
        tracker=work.tracker,
        workdir=work.folder,
        should_stop=work.should_stop,
        evaluate=look,
        evaluate_every=recipe.finetune.validate_every,
        best=Best(f"finetune/val_{task.headline}", task.higher_is_better) if len(val) else None,
        world=world,
    )
    trainer = Trainer(objective, layer_groups(model, recipe.finetune), job)
    loss = trainer.run(TrainViews([on.store], stream, plugin, seed_of(recipe.seed, "finetune"), task.tensor))
    metrics = _write(trainer, look, recipe, work) if world.leads else {}
    return TunedModel(
        **work.origin("finetune", recipe, device),
        weights=MODEL_FILE,
        model=encoder.model,
        geometry=geometry_of(spec),
        statistics=encoder.statistics,
        target=target,
        pool=recipe.finetune.pool,
        segmenter=recipe.finetune.segmenter if dense else None,
        encoder=encoder.digest,
        prepared=labelled.digest,
        metrics={"finetune/loss": loss, **metrics},
    )


def require_target(labelled: PreparedData) -> Target:
    """What ``labelled`` is labelled with.

    Raises:
        UserError: if nothing is.
    """
    if labelled.target is None:
        raise UserError(
            "no item has a label; give a source with class folders or a label column as --labelled, or with masks for "
            "segmentation"
        )
    return labelled.target


def build(
    recipe: Recipe,
    encoder: PretrainedEncoder,
    spec: PatchSpec,
    task: Task,
    work: Work,
    seed: int,
    *,
    pretrained: bool = True,
) -> Head:
    """A model for the task around ``encoder``, or around random weights of the same shape drawn from ``seed``.

    Raises:
        UserError: if the recipe's head does not suit the model or the data's geometry.
    """
    torch.manual_seed(seed)
    config = recipe.finetune
    try:
        model = head_for(task.target, spec, encoder.model, config.pool, config.segmenter, config.drop_path)
    except ValueError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from None
    if pretrained:
        model.load_encoder(encoder_weights(work.home, encoder, spec))
    return model


def _part(config: FinetuneConfig, task: Task, store: PreparedStore, train: Ids) -> Part:
    """The labelled training rows, drawn as the recipe says."""
    balanced = config.sampling == "balanced"
    return Part(
        train,
        frequencies=task.frequencies(store.targets(train)) if balanced else None,
        samples=config.epoch_samples,
    )


def layer_groups(model: Head, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Optimiser groups with layer-wise learning-rate decay."""
    named = model.named_parameters()
    return parameter_groups(named, config.weight_decay, layer_decay=config.layer_decay, depth=model.config.depth)


@torch.no_grad()
def _predict(model: Head, views: FixedViews, plugin: Modality[Any], stats: Stats) -> tuple[Tensor, Tensor]:
    was_training = model.training
    model.eval()
    logits, targets = [], []
    for number in range(len(views)):
        batch = fixed_batch(views, number, plugin, stats, stats.mean.device, 0)
        logits.append(model.classify(batch.x, batch.valid).cpu())
        if batch.target is None:
            raise ValueError("a labelled row without a target")
        targets.append(batch.target.cpu())
    model.train(was_training)
    return torch.cat(logits), torch.cat(targets)


class _Look:
    """Validation of the model being tuned."""

    def __init__(self, on: Labelled, objective: ClassifierObjective, val: Ids, batch: int) -> None:
        self._on, self._objective, self._val, self._batch = on, objective, val, batch
        self.last: dict[str, float] = {}

    def __call__(self, step: int) -> Mapping[str, float]:
        """Validation metrics after ``step`` steps."""
        if len(self._val) == 0:
            return {}
        logits, targets = self._on.predict(self._objective.model, self._val, self._batch)
        loss = self._on.task.loss(logits, targets, weights=None, smoothing=0.0)
        metrics = self._on.task.metrics(logits, targets)
        self.last = {"finetune/val_loss": float(loss)} | {f"finetune/val_{k}": v for k, v in metrics.items()}
        return self.last


class _DenseLook(_Look):
    """Validation of a segmenter on the fixed views; a batch at a time, for masks are large."""

    @torch.no_grad()
    def __call__(self, step: int) -> Mapping[str, float]:
        """Validation metrics after ``step`` steps."""
        on, model = self._on, self._objective.model
        assert isinstance(on.task, Segmentation)
        views = FixedViews(on.store, self._val, on.plugin, self._batch, on.task.tensor)
        if len(views) == 0:
            return {}
        model.eval()
        loss, counts = 0.0, []
        for number in range(len(views)):
            batch = fixed_batch(views, number, on.plugin, on.stats, on.stats.mean.device, 0)
            assert batch.target is not None, "only labelled rows are asked for"
            logits = model.classify(batch.x, batch.valid)
            loss += float(on.task.loss(logits, batch.target, weights=None, smoothing=0.0)) * len(batch.x)
            counts.append(on.task.counts(on.task.predictions(logits), batch.target).cpu())
        model.train()
        scores = on.task.scores(torch.cat(counts))
        self.last = {"finetune/val_loss": loss / len(self._val)}
        self.last |= {f"finetune/val_{name}": value for name, value in scores.items()}
        return self.last


def _write(
    trainer: Trainer, look: Callable[[int], Mapping[str, float]], recipe: Recipe, work: Work
) -> dict[str, float]:
    """Write the weights to keep and remove what they were made by; gives their validation metrics."""
    kept, metrics = _best_weights(trainer, look, work)
    write_bytes(work.folder / MODEL_FILE, to_safetensors(kept, metadata_of(recipe)))
    checkpoint.clear(work.folder)
    return metrics


def _best_weights(
    trainer: Trainer, look: Callable[[int], Mapping[str, float]], work: Work
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights to keep, and their validation metrics."""
    best = work.folder / BEST_FILE
    if not best.exists():
        with trainer.averaged():
            return weights(trainer.objective.model), {}
    kept = load_file(best)
    trainer.objective.model.load_state_dict(kept)
    metrics = dict(look(trainer.steps_done))
    best.unlink()
    return kept, metrics
