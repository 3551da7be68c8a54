"""Segmentation: heads of any number of axes, loss, Dice, where masks stand, and the whole way through the stages."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from core import recipes
from core.config import ModelConfig, SegmenterConfig, TaskConfig
from core.data import shards
from core.data.masks import mask_file, with_masks
from core.data.sources import discover, listing
from core.errors import UserError
from core.modality import Mixed, Unreadable
from core.model.mae import Encoder
from core.model.patches import PatchSpec
from core.model.segmentation import Segmenter, level_factors, read_depths
from core.records import write_record
from core.stages import stage_function
from core.stages.work import Work
from core.tasks import Task, encode_targets
from core.workspace import Home

CLASSES = ("nothing", "disc", "square")
TASK = TaskConfig(kind="segmentation", classes=CLASSES)
MODEL = ModelConfig(width=24, depth=4, heads=2)
GEOMETRIES = [
    PatchSpec(2, (60,), (12,)),
    PatchSpec(1, (24, 20), (6, 5)),
    PatchSpec(1, (8, 16, 12), (2, 8, 3)),
]


def task(**settings):
    target, _ = encode_targets([[0, 1, 2]], TASK.model_copy(update=settings))
    return Task.of(target)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "unetr"])
@pytest.mark.parametrize("spec", GEOMETRIES, ids=lambda spec: f"{len(spec.grid)} axes")
def test_a_head_learns_one_sample_by_heart_and_reaches_the_encoder(spec, kind):
    torch.manual_seed(0)
    model = Segmenter(spec, MODEL, 3, SegmenterConfig(kind=kind, width=4))
    x = torch.randn(1, spec.channels, *spec.input_shape)
    # Classes follow the patches, which the linear head can tell apart, and the values, which are in the input.
    number = torch.arange(spec.count).view(1, -1, 1).expand(-1, -1, math.prod(spec.patch_shape)) % 3
    mask = PatchSpec(1, spec.input_shape, spec.patch_shape).unpatchify(number)[:, 0]
    one = task()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(150):
        logits = model.classify(x)
        loss = one.loss(logits, mask, weights=None, smoothing=0.0)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert logits.shape == (1, 3, *spec.input_shape)
            assert logits.dtype == torch.float32
            still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
            assert [n for n in still if not n.endswith("attn.qkv.bias")] == []
        optimiser.step()
    model.eval()
    assert one.metrics(model.classify(x), mask)["dice"] > 0.9


def test_levels_multiply_to_the_patch_and_depths_are_even():
    assert level_factors((16, 12, 1)) == [(2, 1, 1), (2, 2, 1), (2, 2, 1), (2, 3, 1)]
    for extent in range(1, 65):
        factors = [level[0] for level in level_factors((extent,))]
        assert len(factors) == 4
        assert math.prod(factors) == extent
    assert read_depths(12) == (3, 6, 9, 12)
    assert read_depths(24) == (6, 12, 18, 24)
    assert read_depths(2) == (1, 1, 2, 2)


def test_the_last_tokens_are_the_encoders_own_and_padding_is_not_attended_to():
    spec = GEOMETRIES[1]
    torch.manual_seed(0)
    model = Segmenter(spec, MODEL, 3, SegmenterConfig(kind="linear")).eval()
    encoder = Encoder(spec, MODEL).eval()
    model.load_encoder(encoder.state_dict())
    x, valid = torch.randn(2, 1, *spec.input_shape), torch.ones(2, spec.count, dtype=torch.bool)
    valid[:, -4:] = False
    tokens = encoder(spec.patchify(x), valid_BN=valid)[:, 1:]
    expected = PatchSpec(3, spec.input_shape, spec.patch_shape).unpatchify(model.decoder.pred(tokens))
    assert torch.allclose(model.classify(x, valid), expected, atol=1e-6)
    assert not torch.allclose(model.classify(x), expected, atol=1e-3)


def test_encoder_weights_must_fit_and_four_axes_have_a_linear_head_only():
    spec = GEOMETRIES[1]
    model = Segmenter(spec, MODEL, 3, SegmenterConfig(width=2))
    weights = Encoder(spec, MODEL).state_dict()
    with pytest.raises(ValueError, match=r"lack \['norm.bias'\]"):
        model.load_encoder({name: value for name, value in weights.items() if name != "norm.bias"})
    with pytest.raises(ValueError, match="unknown"):
        model.load_encoder(weights | {"surprise": torch.zeros(1)})
    four = PatchSpec(1, (4, 4, 4, 4), (2, 2, 2, 2))
    with pytest.raises(ValueError, match="no convolutions over 4 axes"):
        Segmenter(four, MODEL, 3, SegmenterConfig())
    logits = Segmenter(four, MODEL, 3, SegmenterConfig(kind="linear")).classify(torch.randn(1, 1, 4, 4, 4, 4))
    assert logits.shape == (1, 3, 4, 4, 4, 4)


# --- loss and Dice ----------------------------------------------------------------------------------------------------


def test_what_is_not_labelled_changes_nothing():
    one, generator = task(), torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 3, 6, 6, generator=generator), torch.randint(3, (2, 6, 6), generator=generator)
    mask[:, :3] = 255
    other = logits.clone()
    other[:, :, :3] = 50 * torch.randn(2, 3, 3, 6, generator=generator)
    for weights in (None, torch.tensor([1.0, 2.0, 3.0])):
        one_loss, other_loss = (one.loss(x, mask, weights=weights, smoothing=0.1) for x in (logits, other))
        assert torch.allclose(one_loss, other_loss)
        assert torch.allclose(one_loss, one.loss(logits[:, :, 3:], mask[:, 3:], weights=weights, smoothing=0.1))
    assert one.metrics(logits, mask) == one.metrics(other, mask) == one.metrics(logits[:, :, 3:], mask[:, 3:])
    assert torch.isfinite(one.loss(logits, torch.full_like(mask, 255), weights=None, smoothing=0.0))


def test_cross_entropy_is_torchs_and_the_loss_of_a_perfect_mask_is_nothing():
    one, generator = task(), torch.Generator().manual_seed(0)
    logits, mask = torch.randn(2, 3, 6, generator=generator), torch.randint(3, (2, 6), generator=generator)
    weights = torch.tensor([1.0, 2.0, 3.0])
    plain, weighted = (one.loss(logits, mask, weights=w, smoothing=0.0) for w in (None, weights))
    entropy = torch.nn.functional.cross_entropy
    expected = entropy(logits, mask, weight=weights) - entropy(logits, mask)
    assert torch.allclose(weighted - plain, expected, atol=1e-6)
    perfect = torch.nn.functional.one_hot(mask, 3).movedim(-1, 1) * 100.0
    assert one.loss(perfect, mask, weights=None, smoothing=0.0) < 1e-5
    assert one.metrics(perfect, mask) == {f"dice{c}": 1.0 for c in ("", *(f"_{name}" for name in CLASSES))}


def test_no_loss_waits_for_the_device():
    from torch._subclasses.fake_tensor import FakeTensorMode

    one = task()
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = torch.randn(2, 3, 4, 4, requires_grad=True)
        loss = one.loss(logits, torch.zeros(2, 4, 4, dtype=torch.int64), weights=torch.ones(3), smoothing=0.1)
        loss.backward()
    assert loss.shape == ()


def test_classes_that_are_nowhere_do_not_count():
    one = task()
    predicted, mask = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    mask[0, :2], predicted[0, 1:3] = 1, 1
    scores = one.scores(one.counts(predicted, mask))
    assert scores["dice"] == scores["dice_disc"] == pytest.approx(0.5)
    assert "dice_square" not in scores


def test_targets_are_the_values_of_masks():
    target, encoded = encode_targets([[2, 0], None, [1]], TASK)
    assert (target.classes, target.outputs, encoded) == (CLASSES, 3, [[0, 2], None, [1]])
    with pytest.raises(UserError, match=r"item 'b': its mask holds the value 3, but task.classes names 3"):
        encode_targets([[0], [0, 3]], TASK, ["a", "b"])
    with pytest.raises(UserError, match=r"'masks/a\.png'"):
        encode_targets(["masks/a.png"], TASK)
    with pytest.raises(UserError, match="masks of 0 and 255 have to be written as 0 and 1"):
        encode_targets([[0], None, [0]], TASK)
    assert task().tensor([np.full((2, 2), 255, np.uint8)] * 2).dtype == torch.int64
    with pytest.raises(UserError, match="cannot be mixed"):
        task().mixed(torch.zeros(2, 2), Mixed(torch.tensor([1, 0]), torch.ones(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.classes=[]", "2 or more"),
        ("task.classes=[a, a]", "one name"),
        ("task={kind: single_label, classes: [a, b]}", "are for segmentation"),
        ("finetune.mixup=0.5", "set both to 0"),
        ("finetune.sampling=balanced", "set it to uniform"),
        ("task.classes=['a|b', c]", "task.classes"),
    ],
)
def test_recipes_that_cannot_work_are_refused_at_once(change, message):
    with pytest.raises(UserError, match=message):
        recipes.load("image/tiny", ["task={kind: segmentation, classes: [a, b]}", change])


# --- where masks stand ------------------------------------------------------------------------------------------------


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def found(folder, suffixes=(".png", ".gz")):
    items = with_masks(discover(str(folder), frozenset(suffixes), lambda _: False), str(folder))
    return {item.key: item.target and item.target.removeprefix(str(folder) + "/") for item in items}


def test_masks_stand_beside_images(tmp_path):
    touch(
        tmp_path, "images/a.png", "images/deep/b.png", "images/c.png", "masks/a.npy", "masks/deep/b.png", "extra/d.png"
    )
    assert found(tmp_path) == {
        "images/a.png": "masks/a.npy",
        "images/deep/b.png": "masks/deep/b.png",
        "images/c.png": None,
    }


def test_cases_of_nnunet(tmp_path):
    touch(tmp_path, "imagesTr/x_0000.nii.gz", "imagesTr/y_0000.nii.gz", "labelsTr/x.nii.gz", "imagesTs/z_0000.nii.gz")
    assert found(tmp_path) == {"imagesTr/x_0000.nii.gz": "labelsTr/x.nii.gz", "imagesTr/y_0000.nii.gz": None}
    touch(tmp_path, "imagesTr/x_0001.nii.gz")
    with pytest.raises(UserError, match="several channels"):
        found(tmp_path)


def test_two_masks_for_one_image_are_refused(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png", "masks/a.npy")
    with pytest.raises(UserError, match="two masks"):
        found(tmp_path)


def test_class_folders_are_no_masks(tmp_path):
    touch(tmp_path, "cat/a.png", "dog/b.png")
    assert found(tmp_path) == {"cat/a.png": None, "dog/b.png": None}


def test_a_manifest_names_masks_and_its_identity_changes_with_them(tmp_path):
    touch(tmp_path, "a.png", "b.png", "m/a.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\na.png,m/a.png\nb.png,m/b.png\n")
    items = with_masks(discover(str(table), frozenset({".png"}), lambda _: False), str(table))
    assert mask_file(items[0]) == tmp_path / "m/a.png"
    with pytest.raises(Unreadable, match="its mask is missing"):
        mask_file(items[1])
    before = listing(str(table))
    (tmp_path / "m/a.png").write_bytes(b"longer")
    assert listing(str(table)) != before


# --- all four stages --------------------------------------------------------------------------------------------------


def picture(number):
    """Noise with a bright disc and a dark square in it, and their mask."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:40, :40]
    mask = np.zeros((40, 40), np.uint8)
    row, column = rng.integers(8, 32, 2)
    mask[np.hypot(rows - row, columns - column) < 6] = 1
    top, left = rng.integers(2, 28, 2)
    mask[top : top + 9, left : left + 9] = 2
    values = 120 + np.array([0, 70, -70])[mask] + rng.normal(0, 20, mask.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


def run(home, stage, digest, *inputs):
    folder = home.stage(stage, digest)
    folder.partial.mkdir(parents=True)
    record = stage_function(stage)(*inputs, Work(home, digest, folder.partial))
    write_record(record, folder.partial)
    folder.finish()
    return record


RECIPE = [
    "task={kind: segmentation, classes: [nothing, disc, square]}",
    "data={size: [24, 24], patch: [6, 6], channels: 1, pretrain: {flip: 0.5}, finetune: {crop_scale: [0.5, 1.0]}}",
    "pretrain.epochs=1", "finetune={epochs: 45, batch: 16, base_lr: 0.1, layer_decay: 1, validate_every: 15}",
    "finetune.warmup_epochs=1", "finetune.segmenter.width=6", "evaluate.bootstrap=20", "compute.workers=0",
]  # fmt: skip


def test_the_four_stages_segment_pictures(tmp_path):
    source = tmp_path / "source"
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    for number in range(50):
        image, mask = picture(number)
        image.save(source / "images" / f"{number:02d}.png")
        mask.save(source / "masks" / f"{number:02d}.png")
    (source / "masks" / "49.png").write_bytes(b"no mask")
    recipe, home = recipes.load("image/tiny", RECIPE), Home.create(tmp_path / "home")
    data = run(home, "prepare", "d", recipe, str(source))
    assert (data.unreadable, data.target.classes) == (1, CLASSES)
    card = json.loads((home.resolve(data.folder) / "card.json").read_text())
    assert sum(card["classes"]["square"].values()) == 49
    assert card["unreadable"] == [{"file": "images/49.png", "reason": "its mask is damaged, or no image"}]
    encoder = run(home, "pretrain", "e", recipe, [(data, 1.0)], data)
    tuned = run(home, "finetune", "t", recipe, encoder, data)
    report = run(home, "evaluate", "v", recipe, encoder, tuned, data)
    results = json.loads((home.resolve(report.folder) / report.results).read_text())
    assert "finetune/val_dice" in tuned.metrics
    barely = recipes.load("image/tiny", [*RECIPE, "finetune.base_lr=1e-9", "finetune.epochs=1"])
    untuned = run(home, "finetune", "u", barely, encoder, data)
    before = run(home, "evaluate", "w", recipe, encoder, untuned, data)
    assert before.metrics["eval/dice"] < 0.4
    assert report.metrics["eval/dice"] > 0.85
    assert report.metrics["eval/hd95_square"] < before.metrics["eval/hd95_square"] / 2
    assert len(results["cases"]) == data.labelled["test"]
    assert results["cases"][0]["case"] == 1
    assert "images" not in json.dumps(results)
    low, high = results["intervals"]["dice"]
    assert low < results["test"]["dice"] < high
    assert results["probes"] == {}
    served(home, tuned)


def served(home, tuned):
    """What is logged to MLflow gives a mask's logits for natural units, in batches of any size."""
    from core.interop.serving import load_classifier

    model = load_classifier(home.resolve(tuned.folder))
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (torch.rand(2, 1, 24, 24),), dynamic_shapes=({0: batch},))
    x = torch.rand(3, 1, 24, 24)
    assert exported.module()(x).shape == (3, 3, 24, 24)
    assert torch.allclose(exported.module()(x), model(x), atol=1e-4)


# --- what prepared data are named by ----------------------------------------------------------------------------------


def masked_plugin(task):
    from modalities.image.config import ImageSettings
    from modalities.image.plugin import ImageModality

    live = ImageModality(ImageSettings(size=(24, 24), patch=(6, 6), channels=1))
    live.task = task
    return live


def two_pictures(folder):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(2):
        image, mask = picture(number)
        image.save(folder / "images" / f"{number}.png")
        mask.save(folder / "masks" / f"{number}.png")


def test_a_new_mask_is_read_anew_and_the_contents_are_the_images_alone(tmp_path):
    two_pictures(tmp_path)
    live = masked_plugin(TASK)
    items = live.discover(str(tmp_path))
    (before,) = shards.plan(items, live, 100)
    contents = [shards.read_item(item, live)[1] for item in items]
    bare = masked_plugin(TaskConfig())
    assert contents == [shards.read_item(item, bare)[1] for item in items]
    parts = [replace(item, parts=(item.path, item.path)) for item in items]
    assert len({shards.read_item(item, live)[1][0] for item in parts}) == 2
    unlabelled = [replace(item, target=None) for item in parts]
    assert [shards.read_item(i, live)[1] for i in parts] == [shards.read_item(i, live)[1] for i in unlabelled]
    picture(7)[1].resize((40, 40)).save(tmp_path / "masks/0.png", compress_level=0)
    (after,) = shards.plan(live.discover(str(tmp_path)), live, 100)
    assert before.digest != after.digest


def test_reasons_do_not_name_the_place_of_a_mask(tmp_path):
    two_pictures(tmp_path / "here")
    live = masked_plugin(TASK)
    item = live.discover(str(tmp_path / "here"))[0]

    def read(item):
        raise Unreadable(f"{item.target} is wrong")

    live.read = read
    (unit,) = shards.plan([item], live, 100)
    shards.run_unit(unit, live, tmp_path)
    ((key, reason),) = shards.read_result(tmp_path, unit.digest).unreadable
    assert (key, reason) == ("images/0.png", "images/0.png is wrong")
