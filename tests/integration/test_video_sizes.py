"""One checkpoint of 16 frames of 224 pixels goes on at other lengths, sizes and shapes: pretraining and fine-tuning."""

import csv
import os
import sys
from pathlib import Path

import pytest
import torch

from core import recipes
from core.data.loading import FixedViews
from core.data.store import PreparedStore
from core.model.mae import MaskedAutoencoder
from core.model.masking import sampler
from core.model.objective import MaskedObjective
from core.records import PreparedData, PretrainedEncoder, read_record
from core.stages.work import encoder_weights, fixed_batch, live_plugin, stats_on
from core.workspace import made_once
from modalities.video import demo

sys.path.insert(0, str(Path(__file__).parent))
from test_stages import Home4

SMALL = [
    "model.width=32", "model.depth=1", "model.heads=2", "model.decoder.width=32", "model.decoder.depth=1",
    "model.decoder.heads=2", "pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch=2",
    "pretrain.micro_batch=1", "pretrain.validate_every=1", "pretrain.precision=float32", "data.clip.stride=1",
    "data.finetune.rand_augment=null", "finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.batch=2",
    "finetune.micro_batch=2", "finetune.precision=float32", "finetune.validate_every=1", "compute.workers=0",
    "prepare.val_fraction=0.25", "prepare.test_fraction=0",
]  # fmt: skip
CLIPS = 2
"""Of two labels. Pretraining ends with moving pictures of all of them, which takes longer than all the rest."""
SHAPES = [(8, 224, 224), (16, 224, 224), (32, 224, 224), (16, 112, 112), (16, 160, 288), (8, 160, 288), (32, 112, 112)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One for all test processes of a run, with a few clips prepared in it."""
    own = tmp_path_factory.getbasetemp()
    at = Home4((own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "video-sizes")
    source = made_once(at.home.root / "clips", few_clips) / "few.csv"
    recipe = recipes.load("video/videomae_base_k400", SMALL)
    return at, once(at, PreparedData, "prepare", "d", recipe, str(source))


def few_clips(folder):
    demo.sample(folder)
    rows = list(csv.reader((folder / "manifest.csv").open()))
    with (folder / "few.csv").open("w", newline="") as out:
        csv.writer(out).writerows([row[:3] for row in rows[: CLIPS + 1]])


def once(at, kind, stage, digest, *inputs):
    """The record of a stage that one process runs while the others wait for it."""
    folder = at.home.stage(stage, digest)
    with folder.exclusive(print):
        if not folder.done:
            at.run(stage, digest, *inputs)
    return read_record(folder.final, kind)


@pytest.fixture(scope="module", params=["sincos_joint", "sincos"])
def checkpoint(request, home):
    """Pretrained at 16x224x224, with each kind of positions."""
    at, data = home
    recipe = recipes.load("video/videomae_base_k400", [*SMALL, f"model.positions={request.param}"])
    encoder = once(at, PretrainedEncoder, "pretrain", request.param, recipe, [(data, 1.0)], data)
    assert encoder.geometry.input_shape == (16, 224, 224)
    return at, recipe, data, encoder


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_fine_tuned_and_pretrained_further_at_another_size(checkpoint, shape):
    at, recipe, data, encoder = checkpoint
    sized = recipes.resolve(
        recipe.model_dump(mode="json") | {"finetune": recipe.finetune.model_dump(mode="json") | {"input_shape": shape}},
        "of the test",
    )
    tuned = at.run("finetune", f"{recipe.model.positions}-{'x'.join(map(str, shape))}", sized, encoder, data)
    assert tuned.geometry.input_shape == shape
    assert losses(at, recipe, data, encoder, shape)[-1] < 1.05


def losses(at, recipe, data, encoder, shape):
    """Masked-autoencoder losses of a few more steps at ``shape``, from the checkpoint's weights."""
    plugin = live_plugin(recipe, "pretrain", shape)
    spec = plugin.patches()
    torch.manual_seed(0)
    model = MaskedAutoencoder(spec, recipe.model)
    model.encoder.load_state_dict(encoder_weights(at.home, encoder, spec))
    stats = stats_on(data.statistics, torch.device("cpu"))
    objective = MaskedObjective(model, recipe.pretrain, sampler(recipe.pretrain.mask, spec.grid), stats)
    store = PreparedStore.open(at.home.resolve(data.folder))
    views = FixedViews(store, store.ids("train")[:2], plugin, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng, seen = torch.Generator().manual_seed(0), []
    for _ in range(4):
        loss, _ = objective(fixed_batch(views, 0, plugin, stats, torch.device("cpu"), 0), rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0]
    return seen
