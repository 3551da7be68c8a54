"""Checkpoints of others begin stages: on other sizes, lengths, channels and patches, and on other kinds of data."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

from core import recipes
from core.config import TaskKind
from core.data.sources import listing
from core.digests import prepare_digest
from core.errors import UserError
from core.interop.account import Account
from core.records import write_record
from core.request import Place
from core.stages.adopt import adopt, adopt_tuned
from core.stages.pretrain import pretrain
from core.stages.work import Work
from core.tracking import NullTracker

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from test_stages import Home4

WIDTH = 48
COMMON = [
    "model.width=48", "model.depth=2", "model.heads=3", "model.decoder.width=32", "model.decoder.depth=1",
    "model.decoder.heads=2", "pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch=4",
    "pretrain.validate_every=1", "pretrain.precision=float32", "finetune.epochs=1", "finetune.warmup_epochs=0",
    "finetune.batch=4", "finetune.precision=float32", "finetune.validate_every=1", "compute.workers=0",
    "pretrain.micro_batch=null", "finetune.micro_batch=null",
    "evaluate.label_efficiency=null", "evaluate.bootstrap=20", "evaluate.batch=4", "prepare.test_fraction=0.25",
]  # fmt: skip


class Kept(NullTracker):
    """Keeps what people would be told."""

    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)


def vit_mae(folder, size=224, patch=16):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=3, intermediate_size=4 * WIDTH, image_size=size,
        patch_size=patch, decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
    )  # fmt: skip
    ViTMAEForPreTraining(config).save_pretrained(folder)
    return folder


def videomae(folder):
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(0)
    config = VideoMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=3, intermediate_size=4 * WIDTH, image_size=96,
        patch_size=16, num_frames=16, tubelet_size=2, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2, decoder_intermediate_size=128, use_mean_pooling=False,
    )  # fmt: skip
    VideoMAEForPreTraining(config).save_pretrained(folder)
    return folder


def audiomae(folder):
    """Names and shapes of ten seconds: 1024 frames of 128 bands."""
    from core.config import DecoderConfig, ModelConfig
    from core.interop.foreign import Foreign
    from core.interop.layouts import targets
    from core.model.mae import MaskedAutoencoder
    from core.model.patches import PatchSpec

    torch.manual_seed(0)
    decoder = DecoderConfig(width=32, depth=1, heads=2)
    config = ModelConfig(width=WIDTH, depth=2, heads=3, decoder=decoder)
    spec = PatchSpec(1, (1024, 128), (16, 16))
    model = Foreign("ours", MaskedAutoencoder(spec, config).state_dict(), config, spec)
    folder.mkdir()
    torch.save({"model": targets()["audiomae"].write(model)}, folder / "pretrained.pth")
    return folder


def pictures(folder, size, channels=3):
    rng = np.random.default_rng(0)
    for number in range(12):
        place = folder / ("dark", "light")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (*size, channels), dtype=np.uint8) + 120 * (number % 2)
        if channels == 3:
            Image.fromarray(pixels).save(place / f"{number}.png")
        else:
            np.save(place / f"{number}.npy", pixels.transpose(2, 0, 1))
    return folder


def clips(folder):
    from odd_videos import ramp, write

    for number in range(6):
        place = folder / ("a", "b")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        write(place / f"{number}.mp4", ramp(40, start=number))
    return folder


def sounds(folder, seconds):
    rng = np.random.default_rng(0)
    for number in range(12):
        place = folder / ("low", "high")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        time = np.arange(16000 * seconds) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (300 + 900 * (number % 2)) * time) + 0.05 * rng.standard_normal(len(time))
        soundfile.write(place / f"{number}.wav", wave, 16000)
    return folder


def scans(folder):
    import nibabel

    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["path,label"]
    for number in range(12):
        nibabel.save(nibabel.Nifti1Image(rng.normal(0, 1, (24, 24, 24)), np.eye(4)), folder / f"{number}.nii.gz")
        lines.append(f"{number}.nii.gz,{'ab'[number % 2]}")
    (folder / "scans.csv").write_text("\n".join(lines))
    return folder / "scans.csv"


IMAGE = ["image/vit_small", "data.store.short_side=null"]
VIDEO = [
    "video/videomae_small_ssv2", "data.size=[32,96,96]", "data.finetune.rand_augment=null", "pretrain.micro_batch=1",
    "pretrain.batch=2", "finetune.micro_batch=2", "finetune.batch=2", "model.decoder.heads=2", "evaluate.batch=1",
    "pretrain.repeats=1", "finetune.repeats=1",
]  # fmt: skip
AUDIO = [
    "audio/audiomae_base_as20k", "pretrain.mask.kind=random", "task.kind=single_label", "finetune.sampling=uniform",
    "finetune.epoch_samples=null", "task.class_weights=none", "model.decoder.attention=global",
]  # fmt: skip
SCANS = ["medical/brain_mr_96", "data.size=[24,24,24]", "data.patch=[8,8,8]", "task.kind=single_label",
         "task.classes=[]", "prepare.test_fraction=0.25"]  # fmt: skip
CASES = {
    "224 to 160 x 288": (vit_mae, lambda f: pictures(f, (160, 288)), [*IMAGE, "data.size=[160,288]"],
                         ["positions of 14 x 14 patches -> 10 x 18"]),
    "patch 16 to 8": (vit_mae, lambda f: pictures(f, (112, 112)), [*IMAGE, "data.size=[112,112]", "data.patch=[8,8]"],
                      ["patches 16 x 16 -> 8 x 8"]),
    "RGB to grey": (vit_mae, lambda f: pictures(f, (64, 64)), [*IMAGE, "data.size=[64,64]", "data.channels=1"],
                    ["input channels 3 -> 1: kernels summed", "positions of 14 x 14 patches -> 4 x 4"]),
    "RGB to 8 channels": (vit_mae, lambda f: pictures(f, (64, 64), 8),
                          [*IMAGE, "data.size=[64,64]", "data.channels=8", "data.finetune.rand_augment=null"],
                          ["input channels 3 -> 8: kernels repeated in turn, times 0.375"]),
    "16 to 32 frames": (videomae, clips, VIDEO, ["positions of 8 x 6 x 6 patches -> 16 x 6 x 6"]),
    "10 s to 5 s": (audiomae, lambda f: sounds(f, 5), [*AUDIO, "data.size=[512,128]"],
                    ["positions of 64 x 8 patches -> 32 x 8"]),
    "images to videos": (vit_mae, clips, [*VIDEO, "data.size=[8,96,96]"],
                         ["axes 2 -> 3", "positions of 14 x 14 patches -> 4 x 6 x 6"]),
    "images to sound": (vit_mae, lambda f: sounds(f, 2), [*AUDIO, "data.size=[192,128]"],
                        ["input channels 3 -> 1", "positions of 14 x 14 patches -> 12 x 8"]),
    "images to scans": (vit_mae, scans, SCANS, ["axes 2 -> 3", "patches 8 x 16 x 16 -> 8 x 8 x 8"]),
}  # fmt: skip


def finished(at, stage, digest, work, tracker=None):
    """What ``work`` makes of a folder of ``stage``."""
    folder = at.home.stage(stage, digest)
    folder.partial.mkdir(parents=True)
    record = work(Work(at.home, digest, folder.partial, tracker or NullTracker()))
    write_record(record, folder.partial)
    folder.finish()
    return record


def prepared(root, source, name, *overrides):
    recipe = recipes.load(name, [*COMMON, *overrides])
    at = Home4(root)
    return at, recipe, at.run("prepare", prepare_digest(recipe, listing(str(source))), recipe, str(source))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_loads_with_its_account_and_trains(case, tmp_path, record_property):
    make, source, settings, expected = CASES[case]
    checkpoint, told = make(tmp_path / "given"), Kept()
    at, recipe, data = prepared(tmp_path / "home", source(tmp_path / "source"), *settings)
    place = Place(name="given", path=str(checkpoint))
    encoder = finished(at, "pretrain", "a", lambda work: adopt(recipe, data, place, work), told)
    account = Account.model_validate_json((at.home.resolve(encoder.folder) / "account.json").read_bytes())
    print("\n".join(account.lines))
    assert told.told == account.lines
    for phrase in expected:
        assert any(change.startswith(phrase) for change in account.changed), account.changed
    assert not account.leftover
    assert account.decoder.startswith("taken over")
    crossing = "images to" in case and "videos" not in case
    assert ("statistics of your own" in account.inputs) == crossing
    assert (encoder.statistics == data.statistics) == crossing
    further = finished(at, "pretrain", "p", lambda work: pretrain(recipe, [(data, 1.0)], data, work, start=encoder))
    assert math.isfinite(further.metrics["pretrain/loss"])
    before, after = (load_file(at.home.resolve(r.folder) / r.weights) for r in (encoder, further))
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after if name != "pos_embed"}
    assert all(0 < distance < 0.1 for distance in moved.values()), "trained on, and not from elsewhere"
    tuned = at.run("finetune", "t", recipe, encoder, data)
    assert math.isfinite(tuned.metrics["finetune/loss"])
    report = at.run("evaluate", "v", recipe, encoder, tuned, data)
    assert "eval/top1" in report.metrics


@pytest.fixture(scope="module")
def tuned_by_others(tmp_path_factory):
    """A classifier of transformers', its folder, and prepared pictures."""
    from transformers import ViTConfig, ViTForImageClassification

    root = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=3, intermediate_size=4 * WIDTH, image_size=64,
        patch_size=16, id2label={0: "light", 1: "dark"}, label2id={"light": 0, "dark": 1},
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(root / "given")
    at, recipe, data = prepared(root / "home", pictures(root / "source", (64, 64)), *IMAGE, "data.size=[64,64]")
    return model, Place(name="given", path=str(root / "given")), at, recipe, data


def test_a_tuned_checkpoint_predicts_what_it_did_with_its_classes_in_the_order_of_the_data(tuned_by_others):
    from core.data.store import PreparedStore
    from core.stages.ready import ready

    model, place, at, recipe, data = tuned_by_others
    assert data.target.classes == ("dark", "light")
    encoder = finished(at, "pretrain", "a", lambda work: adopt(recipe, data, place, work))
    assert encoder.head == 2
    tuned = finished(at, "finetune", "b", lambda work: adopt_tuned(recipe, encoder, data, place, work))
    assert (tuned.pool, tuned.checkpoint) == ("cls", place.name)
    store = PreparedStore.open(at.home.resolve(data.folder))
    records = store.rows(store.ids("test"))
    model_here = ready(at.home.resolve(tuned.folder), torch.device("cpu"))
    views = torch.stack([torch.from_numpy(model_here.plugin.views(record)[0].data) for record in records])
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.statistics.mean, encoder.statistics.std))
    with torch.no_grad():
        theirs = model((views.float() / 255 - mean) / std).logits
    torch.testing.assert_close(model_here.logits(records), theirs[:, [1, 0]], atol=1e-5, rtol=0)
    report = at.run("evaluate", "c", recipe, encoder, tuned, data)
    right = theirs[:, [1, 0]].argmax(1) == torch.tensor([record.target for record in records])
    assert report.metrics["eval/top1"] == pytest.approx(float(right.float().mean()))


def test_an_encoder_alone_is_evaluated_by_its_frozen_features(tuned_by_others):
    _, place, at, recipe, data = tuned_by_others
    encoder = finished(at, "pretrain", "d", lambda work: adopt(recipe, data, place, work))
    report = at.run("evaluate", "e", recipe, encoder, None, data)
    assert {"eval/knn", "eval/linear"} <= set(report.metrics)
    assert "eval/top1" not in report.metrics
    assert report.model == ""


def test_a_head_for_other_classes_is_refused(tuned_by_others, tmp_path):
    from transformers import ViTForImageClassification

    model, _, at, recipe, data = tuned_by_others
    place = Place(name="other", path=str(tmp_path))
    encoder = finished(at, "pretrain", "f", lambda work: adopt(recipe, data, tuned_by_others[1], work))
    for labels, reason in (
        ({0: "light", 1: "grey"}, "does not know the class 'dark'"),
        ({0: "a", 1: "b", 2: "c"}, "has 3 outputs and the data have 2 classes"),
    ):
        config = model.config.__class__(**model.config.to_dict() | {"id2label": labels, "label2id": None})
        ViTForImageClassification(config).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=reason):
            adopt_tuned(recipe, encoder, data, place, Work(at.home, "g", tmp_path))


def test_a_head_gives_no_masks(tuned_by_others, tmp_path):
    _, place, at, recipe, data = tuned_by_others
    encoder = finished(at, "pretrain", "h", lambda work: adopt(recipe, data, place, work))
    masks = data.target.task.model_copy(update={"kind": TaskKind.SEGMENTATION})
    dense = data.model_copy(update={"target": data.target.model_copy(update={"task": masks})})
    with pytest.raises(UserError, match="a head from elsewhere gives no masks here"):
        adopt_tuned(recipe, encoder, dense, place, Work(at.home, "i", tmp_path))


def test_a_decoder_that_has_to_learn_another_target_is_told_of(tmp_path):
    at, recipe, data = prepared(tmp_path / "home", pictures(tmp_path / "source", (64, 64)), *IMAGE, "data.size=[64,64]")
    place, told = Place(name="given", path=str(vit_mae(tmp_path / "given", 64))), Kept()
    encoder = finished(at, "pretrain", "a", lambda work: adopt(recipe, data, place, work))
    assert encoder.norm_pix == "none"
    finished(at, "pretrain", "b", lambda work: pretrain(recipe, [(data, 1.0)], data, work, start=encoder), told)
    assert any("learns to predict them normalised by patch" in note for note in told.told)
