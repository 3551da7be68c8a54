"""Finished folders of small models in a home: trained on photographs, or as they are before training."""

import torch
from safetensors.torch import save_file

from core import digests, recipes
from core.config import TaskConfig
from core.data.sources import listing
from core.model.mae import MaskedAutoencoder
from core.model.regrid import geometry_of
from core.model.segmentation import head_for
from core.model.weights import metadata_of
from core.records import PretrainedEncoder, Statistics, Target, TunedModel, write_record
from core.registry import plugin_for
from core.stages import stage_function
from core.stages.work import Work, versions
from core.tracking import NullTracker
from core.workspace import Home

SMALL = [
    "model.width=48", "model.depth=2", "model.heads=4", "model.decoder.width=32", "model.decoder.depth=1",
    "model.decoder.heads=2",
]  # fmt: skip
QUICK = [
    *SMALL, "pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch=16", "finetune.epochs=2",
    "finetune.warmup_epochs=0", "finetune.batch=16", "finetune.base_lr=0.05", "evaluate.label_efficiency=null",
    "evaluate.bootstrap=20", "compute.workers=0",
]  # fmt: skip


def trained(root, source, *overrides, evaluate=True):
    """Home, encoder and tuned model of a pipeline over the pictures in ``source``."""
    recipe = recipes.load("image/tiny", [*QUICK, *overrides])
    home = Home.create(root)
    data = _run(home, "prepare", digests.prepare_digest(recipe, listing(str(source))), recipe, str(source))
    encoder = _run(home, "pretrain", "e" * 16, recipe, [(data, 1.0)], data)
    tuned = _run(home, "finetune", "f" * 16, recipe, encoder, data)
    if evaluate:
        _run(home, "evaluate", "0" * 16, recipe, encoder, tuned, data)
    return home, home.resolve(encoder.folder), home.resolve(tuned.folder)


def _run(home, stage, digest, *inputs):
    folder = home.stage(stage, digest)
    folder.partial.mkdir(parents=True)
    record = stage_function(stage)(*inputs, Work(home, digest, folder.partial, NullTracker()))
    write_record(record, folder.partial)
    folder.finish()
    return record


def untrained(home, reference, *overrides, classes=()):
    """Folders of an encoder and, where there are ``classes``, of a tuned model, with random weights that all matter."""
    recipe = recipes.load(reference, [*SMALL, *overrides])
    spec = plugin_for(recipe, "pretrain").patches()
    common = {"modality": recipe.modality, "recipe": recipe.name, "versions": versions(torch.device("cpu"))}
    common |= {"model": recipe.model, "geometry": geometry_of(spec), "prepared": "a" * 16}
    common["statistics"] = Statistics(mean=(0.4,) * spec.channels, std=(0.2,) * spec.channels)
    model = drawn(MaskedAutoencoder(spec, recipe.model, values=spec.values // recipe.pretrain.predict_stride))
    encoder = PretrainedEncoder(
        digest="e" * 16, folder=f"runs/pretrain/{'e' * 16}", weights="encoder.safetensors", data_digest="b" * 16,
        metrics={"pretrain/loss": 1.0}, **common,
    )  # fmt: skip
    files = {"encoder.safetensors": model.encoder, "autoencoder.safetensors": model}
    folders = [_keep(home, encoder, files, recipe)]
    if classes:
        task = TaskConfig(kind=recipe.task.kind, classes=recipe.task.classes)
        target = Target(task=task, classes=classes, outputs=len(classes))
        dense = recipe.finetune.segmenter if recipe.task.kind == "segmentation" else None
        head = drawn(head_for(target, spec, recipe.model, recipe.finetune.pool, recipe.finetune.segmenter))
        tuned = TunedModel(
            digest="f" * 16, folder=f"runs/finetune/{'f' * 16}", weights="model.safetensors", target=target,
            pool=recipe.finetune.pool, segmenter=dense, encoder=encoder.digest, metrics={"finetune/loss": 1.0},
            **common,
        )  # fmt: skip
        folders.append(_keep(home, tuned, {"model.safetensors": head}, recipe))
    return folders


def drawn(model):
    """``model`` with numbers in all of its weights, none of them a start value that hides an error."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.5 if weight.ndim == 1 and "norm" not in name else 0.2)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return model.eval()


def _keep(home, record, files, recipe):
    folder = home.resolve(record.folder)
    folder.mkdir(parents=True)
    for name, module in files.items():
        save_file(module.state_dict(), folder / name, metadata_of(recipe))
    write_record(record, folder)
    return folder
