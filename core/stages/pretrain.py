"""Stage 2: an encoder from prepared data, without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from core.config import ModelConfig, PretrainConfig, Recipe, TaskKind
from core.data.loading import FixedViews, Ids, Part, Stream, TrainViews
from core.data.seeds import seed_of, torch_rng
from core.data.store import PreparedStore
from core.errors import StageError, UserError
from core.evaluation.pictures import most_to_show, moving_sheet, reconstruct, rendered, sheet, sounds
from core.evaluation.probes import knn_predict
from core.modality import Modality, Stats
from core.model.mae import MaskedAutoencoder
from core.model.masking import MaskSampler, sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec
from core.model.regrid import geometry_of
from core.model.weights import metadata_of
from core.records import PreparedData, PretrainedEncoder, Statistics
from core.stages.beginning import MODEL_FILE, begin_from
from core.stages.work import (
    Work,
    extract,
    fixed_batch,
    live_plugin,
    open_store,
    stats_on,
)
from core.tasks import Task
from core.training import checkpoint
from core.training.distributed import place
from core.training.optim import parameter_groups, schedule
from core.training.trainer import Job, Trainer, weights
from core.workspace import write_bytes

ENCODER_FILE = "encoder.safetensors"
PICTURE_FILE = "reconstructions.png"
MOVING_FILE = "reconstructions.gif"
SOUND_FILE = "reconstruction-{name}{suffix}"
SHOWN, LOOKED_AT = 8, 32
"""Samples in a reconstruction picture, and how many they are chosen from."""
PROBE_LIMIT = 5000
"""Most training items the online k-NN probe looks at."""


def pretrain(
    recipe: Recipe,
    data: Sequence[tuple[PreparedData, float]],
    labelled: PreparedData | None,
    work: Work,
    *,
    start: PretrainedEncoder | None = None,
) -> PretrainedEncoder:
    """Pretrain a masked autoencoder on weighted prepared ``data``, from ``start`` or from random weights.

    Items whose content equals a test item of ``labelled`` are left out, and counted. Where several processes train
    together, the first alone writes files, and its record alone has the metrics of validation.

    Raises:
        UserError: if masks, windows or targets of the recipe do not fit the plugin's geometry, or the data were
            prepared with other settings.
        StageError: if nothing is left to train on or to hide, or the loss stays non-finite.
        Stopped: if asked to stop; calling again continues.
    """
    device, world = place(recipe.compute, work.world)
    plugin = live_plugin(recipe, "pretrain", recipe.pretrain.input_shape)
    spec = plugin.patches()
    stores = [open_store(work.home, prepared, recipe) for prepared, _ in data]
    beside = open_store(work.home, labelled, recipe) if labelled else None
    parts = _parts(stores, data, beside, work, people=plugin.info.private)
    statistics = start.statistics if start else combine([one for one, _ in data], [part.per_epoch for part in parts])
    stats = stats_on(statistics, device)
    objective = _objective(plugin, recipe, stats, start, work)
    stream = Stream(parts, recipe.seed, recipe.pretrain.repeats)
    probe = _Probe.of(labelled or data[0][0], stores[0] if beside is None else beside)
    look = _Look(recipe.pretrain, objective, plugin, stats, stores[0], probe, recipe.seed, work)
    job = Job(
        name="pretrain",
        config=recipe.pretrain,
        compute=recipe.compute,
        device=device,
        seed=recipe.seed,
        schedule=schedule(recipe.pretrain, stream.per_epoch),
        per_epoch=stream.per_epoch,
        plugin=plugin,
        stats=stats,
        tracker=work.tracker,
        workdir=work.folder,
        should_stop=work.should_stop,
        evaluate=look,
        evaluate_every=recipe.pretrain.validate_every,
        world=world,
    )
    filled = [(store, part.ids) for store, part in zip(stores, parts, strict=True) if len(part.ids)]
    _check_hidden([_hidden(store, ids, plugin, objective, recipe.seed) for store, ids in filled], work)
    trainer = Trainer(objective, parameter_groups(objective.named_parameters(), recipe.pretrain.weight_decay), job)
    loss = trainer.run(TrainViews(stores, stream, plugin, recipe.seed, None))
    if world.leads:
        _write(trainer, objective, recipe, work)
    return PretrainedEncoder(
        **work.origin("pretrain", recipe, device),
        weights=ENCODER_FILE,
        model=objective.model.encoder.config,
        geometry=geometry_of(spec),
        statistics=statistics,
        data_digest=data[0][0].data_digest,
        prepared=data[0][0].digest,
        metrics={"pretrain/loss": loss, **look.last},
        settings=data[0][0].settings,
        norm_pix=recipe.pretrain.norm_pix,
    )


def _write(trainer: Trainer, objective: MaskedObjective, recipe: Recipe, work: Work) -> None:
    """Write the weights, and remove what they were made by."""
    with trainer.averaged():
        encoder, whole = weights(objective.model.encoder), weights(objective.model)
    write_bytes(work.folder / ENCODER_FILE, to_safetensors(encoder, metadata_of(recipe)))
    write_bytes(work.folder / MODEL_FILE, to_safetensors(whole, metadata_of(recipe)))
    checkpoint.clear(work.folder)


def _objective(
    plugin: Modality[Any], recipe: Recipe, stats: Stats, start: PretrainedEncoder | None, work: Work
) -> MaskedObjective:
    """The objective with the plugin's own masks or the recipe's; only here do these meet the plugin's geometry."""
    spec = plugin.patches()
    try:
        masks = plugin.mask(recipe.pretrain.mask) or sampler(recipe.pretrain.mask, spec.grid)
        objective = build(spec, recipe, masks, stats, stats.mean.device, start.model if start else None)
    except ValueError as error:
        raise UserError(
            f"the recipe does not fit inputs of {spec.input_shape} in patches of {spec.patch_shape}: {error}"
        ) from error
    if start:
        begin_from(objective.model, start, recipe.pretrain.norm_pix, work)
    return objective


def build(
    spec: PatchSpec,
    recipe: Recipe,
    masks: MaskSampler,
    stats: Stats,
    device: torch.device,
    model_config: ModelConfig | None = None,
) -> MaskedObjective:
    """A freshly initialised autoencoder with its objective; weights depend on the recipe's seed alone.

    The architecture is the recipe's, unless ``model_config`` is another.
    """
    config = recipe.pretrain
    torch.manual_seed(seed_of(recipe.seed, "init"))
    values = spec.values // config.predict_stride
    model = MaskedAutoencoder(spec, model_config or recipe.model, config.drop_path, values).to(device)
    return MaskedObjective(model, config, masks, stats).to(device)


def combine(data: Sequence[PreparedData], counts: Sequence[int]) -> Statistics:
    """Statistics of several prepared sources together, weighted by their samples per epoch."""
    share = np.array(counts, dtype=np.float64)[:, None] / sum(counts)
    mean = np.array([d.statistics.mean for d in data])
    square = np.array([d.statistics.std for d in data]) ** 2 + mean**2
    whole = (share * mean).sum(0)
    std = np.sqrt(np.maximum((share * square).sum(0) - whole**2, 1e-12))
    if len(data) == 1:
        return data[0].statistics
    return Statistics(mean=tuple(whole.tolist()), std=tuple(std.tolist()))


def _parts(
    stores: Sequence[PreparedStore],
    data: Sequence[tuple[PreparedData, float]],
    beside: PreparedStore | None,
    work: Work,
    *,
    people: bool,
) -> list[Part]:
    """The training rows of each store, without the test items of the labelled one ``beside`` them.

    Groups that are ``people`` are called alike in all sources: everything else of a test patient is left out as well.
    """
    parts, left_out = [], 0
    test = beside.ids("test") if beside is not None else np.array([], dtype=np.int64)
    held = set(beside.hashes(test)) if beside is not None else set()
    held_groups = set(beside.groups(test)) - {None} if beside is not None and people else set()
    for store, (_, weight) in zip(stores, data, strict=True):
        ids = store.ids("train")
        if beside is not None and beside.folder != store.folder:
            # The other source's own test and validation items have no labels to spoil: all of it is raw data.
            pairs = zip(store.hashes(ids), store.groups(ids), strict=True)
            clear = np.array([digest not in held and group not in held_groups for digest, group in pairs], dtype=bool)
            left_out += int((~clear).sum())
            ids = ids[clear]
        parts.append(Part(ids, weight))
    if left_out:
        whose = ", or are of people who are tested on," if people else ""
        work.tracker.note(f"{left_out} training items equal labelled test items{whose} and are kept out of pretraining")
    work.tracker.metrics(0, {"pretrain/held_out": float(left_out)})
    if not any(len(part.ids) for part in parts):
        raise StageError("there is no training item to pretrain on; see the splits in the dataset card")
    return parts


def _check_hidden(hidden: Sequence[tuple[float, float]], work: Work) -> None:
    """Tell if masks hide little of what is real in padded samples, and refuse to train where they hide nothing.

    ``hidden`` are, for each source, the realised share and the one that samples without padding would have.
    """
    share, asked = max(hidden)
    what = (
        f"samples are so short that masks hide {share:.0%} of them where {asked:.0%} was asked for, since real patches "
        "are shown before padding; make the input shorter (the size in `data`, or pretrain.input_shape)"
    )
    if share == 0:
        raise StageError(f"there is nothing to learn: {what}, or raise pretrain.mask.ratio")
    if share < asked / 2:
        work.tracker.note(what)


def _hidden(
    store: PreparedStore, ids: Ids, plugin: Modality[Any], objective: MaskedObjective, seed: int
) -> tuple[float, float]:
    """Share of the real patches of some of the rows ``ids`` that is hidden, and of all their patches."""
    stats = objective.target.stats
    device = stats.mean.device
    views = FixedViews(store, _spread(ids, LOOKED_AT), plugin, LOOKED_AT)
    batch = fixed_batch(views, 0, plugin, stats, device, seed)
    mask = objective.draw(len(batch.x), torch_rng(device, seed, "hidden"), batch.valid)
    return float(mask.realised(batch.valid)), mask.ratio


def _spread(ids: Ids, count: int) -> Ids:
    """At most ``count`` of ``ids``, at even distances."""
    return ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)]


@dataclass(frozen=True)
class _Probe:
    """Labelled rows for the online k-NN probe."""

    store: PreparedStore
    task: Task
    train: Ids
    val: Ids

    @classmethod
    def of(cls, source: PreparedData, store: PreparedStore) -> "_Probe | None":
        """The probe on the labelled ``source``, or None where it has no labels on both sides."""
        if source.target is None or not source.target.classes or source.target.task.kind is TaskKind.SEGMENTATION:
            return None
        train, val = store.ids("train", labelled=True)[:PROBE_LIMIT], store.ids("val", labelled=True)
        return cls(store, Task.of(source.target), train, val) if len(train) and len(val) else None


class _Look:
    """What is measured every few epochs: validation loss, reconstruction pictures, k-NN."""

    def __init__(
        self,
        config: PretrainConfig,
        objective: MaskedObjective,
        plugin: Modality[Any],
        stats: Stats,
        store: PreparedStore,
        probe: _Probe | None,
        seed: int,
        work: Work,
    ) -> None:
        self._config, self._objective, self._plugin, self._stats = config, objective, plugin, stats
        self._probe, self._seed, self._work = probe, seed, work
        self._views = FixedViews(store, store.ids("val"), plugin, config.micro)
        self._store = store
        self.last: dict[str, float] = {}

    def __call__(self, step: int) -> Mapping[str, float]:
        """Metrics after ``step`` steps; the same masks every time, so that values compare."""
        self._objective.eval()
        values = {} if len(self._views) == 0 else {"pretrain/val_loss": self._val_loss()}
        if self._probe:
            values["pretrain/knn"] = self._knn(self._probe)
        self._picture(step)
        self._objective.train()
        self.last = values
        return values

    @torch.no_grad()
    def _val_loss(self) -> float:
        device, total, count = self._stats.mean.device, 0.0, 0
        for number in range(len(self._views)):
            batch = fixed_batch(self._views, number, self._plugin, self._stats, device, self._seed)
            loss, _ = self._objective(batch, torch_rng(device, self._seed, "val", number))
            total += float(loss) * batch.x.shape[0]
            count += batch.x.shape[0]
        return total / count

    def _knn(self, probe: _Probe) -> float:
        encoder = self._objective.model.encoder
        batch = min(256, self._config.batch)
        train, val = (self._features(encoder, probe, ids, batch) for ids in (probe.train, probe.val))
        truth = probe.task.tensor(probe.store.targets(probe.train))
        scores = knn_predict(train, truth, val, k=20, temperature=0.07, classes=probe.task.outputs)
        return probe.task.metrics(scores, probe.task.tensor(probe.store.targets(probe.val)))[probe.task.headline]

    def _features(self, encoder: Any, probe: _Probe, ids: Ids, batch: int) -> Tensor:
        return extract(encoder, probe.store, ids, self._plugin, self._stats, batch)

    def _picture(self, step: int) -> None:
        ids = self._store.ids("val") if len(self._store.ids("val")) else self._store.ids("train")
        some = _spread(ids, LOOKED_AT)
        # The first of them lie as far apart as all do.
        some = some[np.argsort(np.arange(len(some)) % (LOOKED_AT // SHOWN), kind="stable")]
        device = self._stats.mean.device
        views = FixedViews(self._store, some, self._plugin, LOOKED_AT)
        batch = most_to_show(fixed_batch(views, 0, self._plugin, self._stats, device, self._seed), SHOWN)
        columns = rendered(self._plugin, reconstruct(self._objective, batch, torch_rng(device, self._seed, "picture")))
        png = sheet(columns)
        write_bytes(self._work.folder / PICTURE_FILE, png)
        self._work.tracker.picture("reconstructions", step, png)
        moving = moving_sheet(columns)
        if moving is not None:
            write_bytes(self._work.folder / MOVING_FILE, moving)
            self._work.tracker.media("reconstructions", step, moving, ".gif")
        for name, sound in sounds(columns):
            write_bytes(self._work.folder / SOUND_FILE.format(name=name, suffix=sound.suffix), sound.data)
            self._work.tracker.media(f"reconstruction-{name}", step, sound.data, sound.suffix)
