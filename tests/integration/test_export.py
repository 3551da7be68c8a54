"""Finished models leave in the forms of other tools: these load them, and what they compute is what we compute."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from core import recipes
from core.config import ModelConfig, NormPix
from core.errors import NotThis, StageError, UserError
from core.interop import agreement, formats, graphs, outgoing
from core.interop.building import autoencoder, classifier, encoder
from core.interop.export import export, scratch_beside, tidy, writers
from core.interop.facebook_mae import FacebookMae
from core.interop.files import open_checkpoint
from core.interop.foreign import Checkpoint, Foreign, Hint
from core.interop.layouts import recognise, targets
from core.interop.own import Own, foreign_of
from core.interop.serving import load_classifier, load_encoder
from core.interop.subject import Subject
from core.interop.timm import Timm
from core.interop.transformers_videomae import TransformersVideoMae
from core.modality import Item
from core.model.mae import MaskedAutoencoder
from core.model.patches import PatchSpec
from core.records import read_model, write_record
from core.request import ExportRequest, Place
from core.stages.adopt import adopt
from core.stages.ready import ready
from core.stages.work import Work
from core.tracking import NullTracker
from core.workspace import Home, write_text

sys.path.insert(0, str(Path(__file__).parents[1]))
from broken_images import photo
from finished import QUICK, trained, untrained
from finished import drawn as drawn_weights

ROOT = Path(__file__).parents[2]
IMAGE = ["data.size=[32, 32]", "data.patch=[8, 8]", "data.channels=3", "data.eval_crop=0.875"]
VIDEO = ("video/videomae_base_k400", "data.size=[4, 32, 32]", "data.patch=[2, 8, 8]")
AUDIO = ("audio/audiomae_base_as2m", "data.size=[64, 32]", "data.patch=[16, 16]", "model.decoder.attention=global",
         "model.decoder.window=null", "model.decoder.shift=null")  # fmt: skip
SCANS = ("medical/ct_vit_base_96", "data.size=[16, 16, 16]", "data.patch=[8, 8, 8]", "finetune.segmenter.width=4")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Home, encoder and tuned model of photographs."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(48):
        place = root / "source" / ("blue", "red")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        photo(number, (50, 40)).save(place / f"{number}.jpg", quality=95)
    (root / "source" / "red" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return trained(root / "home", root / "source", *IMAGE, "compute.dask=null")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Home, encoder and tuned model of each other kind of data, by its name."""
    made = {}
    for name, (recipe, *overrides) in {"video": VIDEO, "audio": AUDIO, "scans": SCANS}.items():
        home = Home.create(tmp_path_factory.mktemp(name))
        classes = ("background", "organ") if name == "scans" else ("a", "b", "c")
        made[name] = (home, *untrained(home, recipe, *overrides, classes=classes))
    return made


def given(home, folder, to, out, **options):
    """What was written, and where."""
    return export(Subject.at(folder, home, **options), to, out), out


@pytest.fixture(scope="module")
def program(pictures, others, tmp_path_factory):
    """Where a program lies that is made once: by kind of data, model and format."""
    root = tmp_path_factory.mktemp("programs")

    def made(kind, model, to):
        out = root / f"{kind}-{model}-{to}"
        if not out.exists():
            home, *folders = pictures if kind == "pictures" else others[kind]
            given(home, folders[model == "tuned"], to, out)
        return out

    return made


def ours(folder, x):
    """What the model says of normalised inputs."""
    tuned = "finetune" in folder.parts
    served = load_classifier(folder) if tuned else load_encoder(folder)
    with torch.no_grad():
        return served.model.classify(x) if tuned else served.model.features(x)


def natural(folder, x):
    """The same inputs before they are normalised."""
    served = load_classifier(folder) if "finetune" in folder.parts else load_encoder(folder)
    return x * served.std + served.mean


def drawn(folder, batch=3):
    geometry = json.loads((folder / "record.json").read_text())["geometry"]
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, geometry["channels"], *geometry["input_shape"], generator=rng)


def code_of(out):
    """The code of a card."""
    return re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]


def fresh(code, cwd, **environment):
    """Run ``code`` in an interpreter that has imported nothing of ours, offline."""
    code += "\nimport sys\nassert not {'core', 'modalities', 'flows'} & set(sys.modules)"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", **environment}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", ["encoder", "tuned"])
@pytest.mark.parametrize("to", ["safetensors", "timm", "hf", "mae", "onnx", "torch-export"])
def test_a_picture_model_leaves_in_every_form_with_a_card_whose_code_runs(program, monkeypatch, to, model):
    out = program("pictures", model, to)
    monkeypatch.chdir(out.parent)
    scope = {}
    exec(code_of(out), scope)
    outputs = scope.get("logits" if model == "tuned" else "features")
    assert (outputs is None) is (to in ("safetensors", "mae"))
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] is None
    assert "maeflow" in head["tags"]
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])["modality"] == "image"
    assert "| eval/linear | " in text
    assert "1 files could not be read (1: " in text
    assert "torn.jpg" not in text
    said = json.loads((out / "preprocessing.json").read_text())
    assert (said["units"], said["size"], said["resize"]["share"]) == ("unit", [32, 32], 0.875)
    assert not [left for left in out.parent.iterdir() if left.name.startswith(".")]


PROGRAMS = [("pictures", "encoder"), ("pictures", "tuned"), ("audio", "encoder"), ("scans", "tuned")]


def test_programs_give_our_outputs_in_a_process_without_our_code(pictures, others, program, tmp_path):
    """Of pictures, of sound, and of a segmenter of scans."""
    folders = {}
    for kind, model in PROGRAMS:
        _, *pair = pictures if kind == "pictures" else others[kind]
        folder = folders[f"{kind}-{model}"] = pair[model == "tuned"]
        np.save(tmp_path / f"{kind}-{model}.npy", natural(folder, drawn(folder, 5)).numpy())
        for to in ("onnx", "torch-export"):
            assert program(kind, model, to).parent == program("pictures", "encoder", "onnx").parent
    fresh(
        "import numpy as np, onnxruntime, torch\n"
        f"root, names = {str(program('pictures', 'encoder', 'onnx').parent)!r}, {list(folders)!r}\n"
        "for name in names:\n"
        "    x = np.load(f'{name}.npy')\n"
        "    session = onnxruntime.InferenceSession(f'{root}/{name}-onnx/model.onnx')\n"
        "    program = torch.export.load(f'{root}/{name}-torch-export/model.pt2').module()\n"
        "    for n in (1, 2, 5):\n"
        "        np.save(f'{name}-onnx-{n}.npy', session.run(None, {'x': x[:n]})[0])\n"
        "        found = program(torch.from_numpy(x[:n]))\n"
        "        found = found[0] if isinstance(found, (tuple, list)) else found\n"
        "        np.save(f'{name}-torch-{n}.npy', found.detach().numpy())",
        tmp_path,
    )
    for name, folder in folders.items():
        expected = ours(folder, drawn(folder, 5)).numpy()
        assert np.abs(expected).max() > 0.01
        for n in (1, 2, 5):
            for tool in ("onnx", "torch"):
                assert np.abs(np.load(tmp_path / f"{name}-{tool}-{n}.npy") - expected[:n]).max() <= 1e-4


def test_transformers_loads_pictures_offline_with_nothing_missing(pictures, tmp_path):
    home, *folders = pictures
    for name, folder in zip(("encoder", "tuned"), folders, strict=True):
        given(home, folder, "hf", tmp_path / name)
    given(home, folders[0], "hf", tmp_path / "whole", with_decoder=True)
    x = drawn(folders[0])
    np.save(tmp_path / "x.npy", x.numpy())
    photo(7, (120, 90)).save(tmp_path / "photo.jpg", quality=95)
    said = fresh(
        "import numpy as np, torch\n"
        "from PIL import Image\n"
        "from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification\n"
        "from transformers import AutoModelForPreTraining\n"
        "x = torch.from_numpy(np.load('x.npy'))\n"
        "def load(kind, name):\n"
        "    model, info = kind.from_pretrained(name, output_loading_info=True)\n"
        "    print(type(model).__name__, {k: list(v) for k, v in info.items() if v})\n"
        "    return model.eval()\n"
        "with torch.no_grad():\n"
        "    model = load(AutoModel, 'encoder')\n"
        "    found = model(pixel_values=x)\n"
        "    np.save('features.npy', found.last_hidden_state[:, 1:].mean(1).numpy())\n"
        "    assert (found.pooler_output - found.last_hidden_state[:, 0]).abs().max() < 1e-6\n"
        "    processor = AutoImageProcessor.from_pretrained('encoder')\n"
        "    pixels = processor(Image.open('photo.jpg'), return_tensors='pt')\n"
        "    np.save('pixels.npy', pixels['pixel_values'].numpy())\n"
        "    np.save('photo.npy', model(**pixels).last_hidden_state[:, 1:].mean(1).numpy())\n"
        "    model = load(AutoModelForImageClassification, 'tuned')\n"
        "    np.save('logits.npy', model(pixel_values=x).logits.numpy())\n"
        "    print(model.config.id2label)\n"
        "    load(AutoModelForPreTraining, 'whole')",
        tmp_path,
    ).splitlines()
    assert said == [
        "ViTModel {}", "BeitForImageClassification {}", "{0: 'blue', 1: 'red'}", "ViTMAEForPreTraining {}"
    ]  # fmt: skip
    assert np.abs(np.load(tmp_path / "features.npy") - ours(folders[0], x).numpy()).max() <= 1e-5
    assert np.abs(np.load(tmp_path / "logits.npy") - ours(folders[1], x).numpy()).max() <= 1e-5
    # The photograph: the library scales, then cuts; we cut, then scale.
    pixels, features = seen(folders[0], tmp_path / "photo.jpg")
    assert np.abs(np.load(tmp_path / "pixels.npy") - pixels).mean() < 0.1  # In deviations of the data.
    theirs = np.load(tmp_path / "photo.npy")
    assert (theirs * features).sum() / np.linalg.norm(theirs) / np.linalg.norm(features) > 0.99


def seen(folder, path):
    """A picture as our own evaluation sees it (1, C, H, W), and what the encoder makes of it (1, D)."""
    model = ready(folder, torch.device("cpu"))
    records = model.plugin.read(Item(key="photo", path=str(path)))
    batch = model._batch([model.plugin.view(records[0], np.random.default_rng(0), train=False)])
    return batch.x.numpy(), model.features(records).numpy()


def test_a_picture_that_is_squeezed_is_to_the_bit_what_transformers_makes_of_it(tmp_path):
    from PIL import Image
    from transformers import AutoImageProcessor

    home = Home.create(tmp_path / "home")
    (folder,) = untrained(home, "image/tiny", *IMAGE[:3], "data.eval_crop=1", "data.store.codec=raw")
    given(home, folder, "hf", tmp_path / "out")
    photo(3, (120, 90)).save(tmp_path / "photo.png")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True)
    theirs = processor(Image.open(tmp_path / "photo.png"), return_tensors="pt")["pixel_values"].numpy()
    assert np.abs(theirs - seen(folder, tmp_path / "photo.png")[0]).max() < 1e-6


def test_transformers_loads_videos(others, tmp_path):
    from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor, VideoMAEImageProcessor

    home, *folders = others["video"]
    x = drawn(folders[0])
    for number, kind in enumerate((AutoModel, AutoModelForVideoClassification)):
        out = tmp_path / str(number)
        written, _ = given(home, folders[number], "hf", out)
        model, info = kind.from_pretrained(out, output_loading_info=True, local_files_only=True)
        assert not any(info.values())
        found = model.eval()(pixel_values=x.transpose(1, 2))
        outputs = found.logits if number else found.last_hidden_state.mean(1)
        assert (outputs - ours(folders[number], x)).abs().max() <= (1e-5, 1e-4)[number]
        assert any("1e-05" in note for note in written.notes) is bool(number)  # Its head's norm is another.
        clip = np.random.default_rng(0).integers(0, 255, (4, 40, 50, 3)).astype(np.uint8)
        made = VideoMAEImageProcessor.from_pretrained(out)(list(clip), return_tensors="pt")["pixel_values"]
        again = AutoVideoProcessor.from_pretrained(out)(clip, return_tensors="pt")["pixel_values"]
        assert made.shape == again.shape == (1, 4, 3, 32, 32)
        assert (made - again).abs().max() < 1e-5


def test_timm_loads_strictly_by_folder_and_by_file(pictures, tmp_path):
    import timm

    home, *folders = pictures
    for name, folder in zip(("encoder", "tuned"), folders, strict=True):
        _, out = given(home, folder, "timm", tmp_path / name)
        x = drawn(folder)
        for how in ({"pretrained": True}, {"checkpoint_path": str(out / "model.safetensors")}):
            model = timm.create_model(f"local-dir:{out}", **how).eval()
            assert (model(x) - ours(folder, x)).abs().max() <= 1e-5
        model.load_state_dict(load_file(out / "model.safetensors"), strict=True)
        data = timm.data.resolve_model_data_config(model)
        assert (data["input_size"], data["crop_pct"], data["crop_mode"]) == ((3, 32, 32), 0.875, "center")
        assert list(data["mean"]) == list(json.loads((out / "preprocessing.json").read_text())["mean"])
        assert data["interpolation"] == "bicubic"
    assert model.pretrained_cfg["label_names"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("kind", "to", "decoder"),
    [("audio", "audiomae", True), ("audio", "timm", False), ("audio", "hf", False), ("scans", "monai", True),
     ("video", "videomae", False), ("video", "mae_st", False), ("video", "monai", False)],
)  # fmt: skip
def test_other_kinds_of_data_leave_in_the_layouts_that_have_room_for_them(others, tmp_path, kind, to, decoder):
    home, folder, _ = others[kind]
    _, out = given(home, folder, to, tmp_path / "out", with_decoder=decoder)
    weights = load_file(out / "model.safetensors")
    if (out / f"{to}.pth").exists():
        state = torch.load(out / f"{to}.pth", weights_only=True)["model"]
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in state)
    back, mine = recognise(open_checkpoint(out / "model.safetensors", "out")), foreign_of(folder)
    assert back.target == ("hf-vit" if to == "hf" else to)
    hint = Hint(mine.model, mine.geometry)
    same, mine = back.read(open_checkpoint(out / "model.safetensors", "out"), hint).state, mine.state
    for name in ("encoder.blocks.1.mlp.fc2.weight", "encoder.patch_embed.proj.weight", "encoder.norm.bias"):
        assert torch.equal(same[name], mine[name])
    assert ("decoder.pred.weight" in same) is decoder


def test_what_leaves_as_safetensors_comes_back_whole(pictures, tmp_path):
    home, *folders = pictures
    x = drawn(folders[0])
    for name, folder, options in (
        ("encoder", folders[0], {}), ("whole", folders[0], {"with_decoder": True}), ("tuned", folders[1], {})
    ):  # fmt: skip
        _, out = given(home, folder, "safetensors", tmp_path / name, **options)
        found = open_checkpoint(out / "model.safetensors", name)
        assert isinstance(recognise(found), Own)
        assert "compute" not in found.config["maeflow"]["recipe"]
        back = Own().read(found)
        direct = foreign_of(folder) if name != "encoder" else foreign_of(folder).without_decoder()
        assert (back.model, back.geometry, back.preprocessing) == (direct.model, direct.geometry, direct.preprocessing)
        assert back.preprocessing.units == "unit"
        assert (back.classes, back.norm_pix, back.leftover) == (direct.classes, direct.norm_pix, ())
        assert back.state.keys() == direct.state.keys()
        assert all(torch.equal(back.state[key], value) for key, value in direct.state.items())
        if name == "tuned":
            assert back.classes == ("blue", "red")
            assert torch.equal(classifier(back).classify(x), ours(folder, x))
        else:
            assert torch.equal(encoder(back).features(x), ours(folder, x))
            assert back.has_decoder is (name == "whole")
            assert Own().write(back).keys() == found.state.keys()


@pytest.mark.parametrize("to", ["hf", "timm", "mae", "safetensors"])
def test_what_left_is_taken_over_again_and_leaves_as_taken_over(pictures, program, tmp_path, to):
    _, folder, _ = pictures
    home = Home.create(tmp_path / "home")
    recipe = recipes.load("image/tiny", [*QUICK, *IMAGE])
    at = home.stage("pretrain", "0123456789abcdef")
    at.partial.mkdir(parents=True)
    place = Place(name="ours", path=str(program("pictures", "encoder", to) / "model.safetensors"))
    if to != "mae":
        place = Place(name="ours", path=str(program("pictures", "encoder", to)))
    record = adopt(recipe, None, place, Work(home, "0123456789abcdef", at.partial, NullTracker()))
    write_record(record, at.partial)
    at.finish()
    assert record.geometry == read_model(folder).geometry
    x = drawn(folder)
    assert (ours(at.final, x) - ours(folder, x)).abs().max() <= 1e-6
    _, out = given(home, at.final, "safetensors", tmp_path / "again")
    text = (out / "README.md").read_text()
    assert "taken over from the checkpoint ours" in text
    assert "its publisher has to say" in text


@pytest.fixture(params=["stretch", "keep"])
def larger(request, tmp_path):
    """Home and folder of an autoencoder for larger pictures, and with learned positions, that was taken over."""
    config = ModelConfig(width=48, depth=2, heads=4, positions="learned", decoder={"width": 32, "depth": 1, "heads": 2})
    spec = PatchSpec(3, (64, 64), (8, 8))
    state = drawn_weights(MaskedAutoencoder(spec, config)).state_dict()
    torch.save({"model": FacebookMae().write(Foreign("", state, config, spec))}, tmp_path / "mae.pth")
    home = Home.create(tmp_path / "home")
    recipe = recipes.load("image/tiny", [*QUICK, *IMAGE, f"model.other_size={request.param}"])
    at = home.stage("pretrain", "0123456789abcdef")
    at.partial.mkdir(parents=True)
    place = Place(name="mae.pth", path=str(tmp_path / "mae.pth"))
    record = adopt(recipe, None, place, Work(home, "0123456789abcdef", at.partial, NullTracker()))
    write_record(record, at.partial)
    at.finish()
    assert record.geometry.input_shape == (64, 64)  # From which each stage resamples once.
    return home, at.final


@pytest.mark.parametrize("to", ["timm", "mae", "safetensors"])
def test_what_was_taken_over_at_another_size_leaves_as_evaluation_sees_it(larger, tmp_path, to):
    home, folder = larger
    seen = ready(folder, torch.device("cpu"))
    x = torch.randn(2, 3, *seen.spec.input_shape, generator=torch.Generator().manual_seed(0))
    for decoder in (False,) if to == "timm" else (False, True):
        out = tmp_path / f"{to}-{decoder}"
        given(home, folder, to, out, with_decoder=decoder)
        assert json.loads((out / "preprocessing.json").read_text())["size"] == [32, 32] == list(seen.spec.input_shape)
        found = open_checkpoint(out / "model.safetensors", "out")
        back = Timm() if to == "timm" else recognise(found)
        again = back.read(found, Hint(seen.record.model, seen.spec))
        assert again.geometry == seen.spec
        with torch.no_grad():
            assert (encoder(again).features(x) - seen.model.features(x)).abs().max() <= 1e-5
        if decoder:
            assert autoencoder(again).decoder.pos_embed.shape == (1, 17, 32)
    if to == "timm":
        import timm

        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert (model(x) - seen.model.features(x)).abs().max() <= 1e-5


def test_a_card_says_where_a_model_was_tuned_and_what_a_decoder_predicts(pictures, larger, tmp_path):
    home, _, folder = pictures
    here = Subject.at(folder, home)
    for changes, purpose in (({"metrics": {}}, "fine-tuning"), ({"checkpoint": "x"}, "the order of classes")):
        found = replace(here, record=here.record.model_copy(update=changes))
        assert [what for what, *_ in found.data][-1].endswith(purpose)
        assert found.checkpoint == changes.get("checkpoint", "")
    home, folder = larger
    record = read_model(folder)
    for target, said in ((NormPix.NONE, "(`norm_pix`: none)"), (None, "nobody says how the pixels")):
        write_record(record.model_copy(update={"norm_pix": target}), folder)
        _, out = given(home, folder, "safetensors", tmp_path / str(target), with_decoder=True)
        assert said in (out / "README.md").read_text()
        assert Own().read(open_checkpoint(out / "model.safetensors", "out")).norm_pix == target


def test_requests_of_private_sources_stand_with_the_owners_files():
    common = {"home": "/h", "model": "/m", "to": "onnx", "out": "/patients/meyer"}
    for modality, folder in (("medical", "private"), ("image", "runs")):
        assert ExportRequest(modality=modality, **common).file == f"{folder}/requests/export"


def test_a_file_out_of_its_folder_says_what_it_can(pictures, tmp_path):
    _, folder, _ = pictures
    alone = tmp_path / "encoder.safetensors"
    alone.write_bytes((folder / "encoder.safetensors").read_bytes())
    found = Own().read(open_checkpoint(alone, "alone"))
    assert found.preprocessing is None
    assert found.geometry == foreign_of(folder).geometry
    assert "record.json is not beside it" in found.notes[0]


def test_of_a_segmenter_the_encoder_comes_back(others, tmp_path):
    home, folder, tuned = others["scans"]
    _, out = given(home, tuned, "safetensors", tmp_path / "out")
    found = Own().read(open_checkpoint(out / "model.safetensors", "masks"))
    assert not found.head
    assert not found.has_decoder
    assert all(name.startswith("decoder.") for name in found.leftover)
    assert encoder(found).features(drawn(folder)).shape == (3, 48)


def test_an_export_is_the_same_bytes_each_time(pictures, program, tmp_path):
    home, folder, _ = pictures
    for to in ("safetensors", "timm", "hf", "mae", "onnx", "torch-export"):
        before = program("pictures", "encoder", to)
        _, now = given(home, folder, to, tmp_path / before.name)
        names = sorted(file.name for file in before.iterdir())
        assert names == sorted(file.name for file in now.iterdir())
        assert [name for name in names if (before / name).read_bytes() != (now / name).read_bytes()] == []


def test_programs_tell_nothing_of_this_machine(pictures, program, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "INLINE", 1000)  # Weights of more than two gigabytes lie beside the program.
    home, folder, _ = pictures
    _, out = given(home, folder, "onnx", tmp_path / "onnx")
    assert (out / "model.onnx.data").stat().st_size > (out / "model.onnx").stat().st_size
    for file in (*out.iterdir(), *program("pictures", "encoder", "torch-export").iterdir()):
        for secret in (str(ROOT), str(Path.home()) + "/", str(tmp_path)):
            assert secret.encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("kind", "model", "to", "options", "reason"),
    [
        ("video", 0, "timm", {}, "two axes"),
        ("scans", 0, "hf", {}, "hf-videomae"),
        ("scans", 1, "timm", {}, "gives masks"),
        ("scans", 1, "hf", {}, "gives masks"),
        ("video", 1, "safetensors", {"with_decoder": True}, "this model has no decoder"),
        ("video", 0, "onnx", {"with_decoder": True}, "leave --with-decoder away"),
        ("audio", 0, "timm", {"with_decoder": True}, "timm has no decoders"),
        ("audio", 0, "tim", {}, "did you mean 'timm'"),
    ],
)
def test_what_has_no_place_is_refused_with_the_reason(others, tmp_path, kind, model, to, options, reason):
    home, *folders = others[kind]
    with pytest.raises(UserError, match=re.escape(reason)):
        given(home, folders[model], to, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_stays(others, tmp_path):
    home, folder, _ = others["audio"]
    out = tmp_path / "out"
    given(home, folder, "safetensors", out)
    with pytest.raises(UserError, match="--overwrite to replace it"):
        given(home, folder, "mae", out)
    export(Subject.at(folder, home), "timm", out, overwrite=True)
    assert (out / "config.json").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is no export"):
        export(Subject.at(folder, home), "timm", tmp_path / "mine", overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mine", "out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from core.interop.export import CARD_FILE, CONTRACT_FILE, put, scratch_beside
out, rename = Path(sys.argv[1]), Path.rename
def kill(self, to):
    if sys.argv[2] == "between" and self.suffix == ".tmp":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(self, to)
    if sys.argv[2] == "after" and self.suffix == ".tmp":
        os.kill(os.getpid(), signal.SIGKILL)
Path.rename = kill
with scratch_beside(out) as scratch:
    for name in (CARD_FILE, CONTRACT_FILE):
        (scratch / name).write_text("new")
    if sys.argv[2] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    put(scratch, out)
"""


@pytest.mark.parametrize(("when", "text"), [("before", "old"), ("between", "old"), ("after", "new")])
def test_an_export_that_was_killed_while_it_replaced_another_leaves_one_whole(tmp_path, when, text):
    out = tmp_path / "out"
    out.mkdir()
    for name in (outgoing.CARD_FILE, outgoing.CONTRACT_FILE):
        (out / name).write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, out, when], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert out.exists() is (when != "between")
    with scratch_beside(out) as held:  # Another one, which is at work, keeps what it has.
        tidy(out)
        assert sorted(tmp_path.iterdir()) == sorted([out, held])
    assert list(tmp_path.iterdir()) == [out]
    assert {(out / name).read_text() for name in (outgoing.CARD_FILE, outgoing.CONTRACT_FILE)} == {text}


def test_a_killed_export_comes_back_and_is_then_in_the_way(others, tmp_path):
    home, folder, _ = others["audio"]
    out, old = tmp_path / "out", tmp_path / ".out.12-0123abcd.old"
    given(home, folder, "safetensors", out)
    before = sorted(file.name for file in out.iterdir())
    out.rename(old)
    old.with_suffix(".tmp").mkdir()
    with pytest.raises(UserError, match="--overwrite to replace it"):
        given(home, folder, "timm", out)
    assert list(tmp_path.iterdir()) == [out]
    assert sorted(file.name for file in out.iterdir()) == before


def test_an_export_that_disagrees_with_its_model_is_not_handed_out(others, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "TOLERANCE", -1.0)
    monkeypatch.setattr(agreement, "TOLERANCE", -1.0)
    monkeypatch.setattr(agreement, "OTHER_NORMS", -1.0)
    for kind, several in {"audio": ("torch-export", "timm", "hf", "mae", "audiomae", "safetensors"),
                          "video": ("mae_st", "videomae"), "scans": ("monai",)}.items():  # fmt: skip
        home, folder, _ = others[kind]
        for to in several:
            with pytest.raises(StageError, match="gives other outputs than the model"):
                given(home, folder, to, tmp_path / "out", with_decoder=to == "monai")
    assert not list(tmp_path.iterdir())


def turned(state, name):
    """The weights with one matrix on its side: all names and shapes stay as they are."""
    return {key: value.T.contiguous() if key == name else value for key, value in state.items()}


@pytest.mark.parametrize(
    ("kind", "model", "to", "decoder"),
    [("pictures", 0, "mae", True), ("pictures", 1, "mae", False), ("pictures", 0, "hf", True),
     ("pictures", 0, "safetensors", True), ("audio", 0, "audiomae", True), ("audio", 1, "audiomae", False),
     ("scans", 0, "monai", True), ("scans", 1, "safetensors", False), ("video", 0, "videomae", False),
     ("video", 1, "videomae", False), ("video", 0, "mae_st", True), ("video", 0, "hf", False)],
)  # fmt: skip
def test_a_writer_that_errs_is_found_out(pictures, others, tmp_path, monkeypatch, kind, model, to, decoder):
    home, *folders = pictures if kind == "pictures" else others[kind]
    _, out = given(home, folders[model], to, tmp_path / "right", with_decoder=decoder)
    assert re.search(r"differed by \d\.\de[-+]\d+ at most", (out / "README.md").read_text())
    matrix = "blocks.0.attn.proj.weight"
    if to == "safetensors":
        name, read = f"decoder.{matrix}" if decoder else matrix, formats.weights_in
        monkeypatch.setattr(formats, "weights_in", lambda *inputs: turned(read(*inputs), name))
    else:
        name, layout = f"{'decoder' if decoder else 'encoder'}.{matrix}", targets()["hf-vit" if to == "hf" else to]
        if kind == "video" and to == "hf":
            layout = targets()["hf-videomae"]
        write = layout.write
        layout = type(layout)
        monkeypatch.setattr(layout, "write", lambda _, m: write(replace(m, state=turned(m.state, name))))
    with pytest.raises(StageError, match="gives other outputs than the model"):
        given(home, folders[model], to, tmp_path / "wrong", with_decoder=decoder)
    assert [file.name for file in tmp_path.iterdir()] == ["right"]


def test_a_whole_videomae_is_compared_where_it_leaves_for_transformers(tmp_path, monkeypatch):
    home = Home.create(tmp_path / "home")
    (folder,) = untrained(home, *VIDEO, "data.channels=1")
    state = load_file(folder / "autoencoder.safetensors")
    save_file(state | {"decoder.embed.bias": torch.zeros(32)}, folder / "autoencoder.safetensors")
    given(home, folder, "hf", tmp_path / "out", with_decoder=True)
    write, matrix = TransformersVideoMae.write, "decoder.blocks.0.attn.proj.weight"
    monkeypatch.setattr(
        TransformersVideoMae, "write", lambda self, m: write(self, replace(m, state=turned(m.state, matrix)))
    )
    with pytest.raises(StageError, match="transformers gives other outputs than the model"):
        given(home, folder, "hf", tmp_path / "wrong", with_decoder=True)


def test_a_missing_package_is_named_with_what_installs_it(others, tmp_path, monkeypatch):
    home, folder, _ = others["audio"]
    monkeypatch.setattr(outgoing, "find_spec", lambda name: None if name == "onnxruntime" else name)
    said = f"needs onnxruntime: run {sys.executable} -m pip install 'maeflow[export]'"
    with pytest.raises(UserError, match=re.escape(said)):
        given(home, folder, "onnx", tmp_path / "out")


def test_folders_that_hold_no_model_are_refused(pictures, tmp_path):
    home, folder, _ = pictures
    with pytest.raises(UserError, match="no encoder and no tuned model"):
        Subject.at(home.root / "runs" / "evaluate" / "0000000000000000", home)
    state = open_checkpoint(folder, "folder").state
    torn = Checkpoint("torn", state, {"maeflow": {"recipe": {}, "record": {"stage": "pretrain"}}})
    with pytest.raises(NotThis, match="record beside its weights"):
        Own().read(torn)


def test_cards_of_private_sources_name_nobody(others, tmp_path):
    home, folder, _ = others["scans"]
    record = {
        "digest": "a" * 16, "folder": "prepared/" + "a" * 16, "modality": "medical", "recipe": "r", "versions": {},
        "data_digest": "c" * 16, "counts": {"train": 5, "val": 1, "test": 0}, "labelled": {"train": 0}, "target": None,
        "statistics": {"mean": [0.4], "std": [0.2]}, "unreadable": 1, "duplicates": 0, "bytes": 1,
        "geometry": {"channels": 1, "input_shape": [16, 16, 16], "patch_shape": [8, 8, 8]},
    }  # fmt: skip
    bad = [{"file": "MEYER", "reason": "slices of MEYER are missing"}]
    card = {"groups": 3, "noticed": {"scans that tell no patient": 2}, "unreadable": bad, "classes": {}}
    prepared = home.root / "prepared" / ("a" * 16)
    prepared.mkdir()
    write_text(prepared / "record.json", json.dumps(record))
    write_text(prepared / "card.json", json.dumps(card))
    _, out = given(home, folder, "safetensors", tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "1 files could not be read." in text
    assert "2 scans that tell no patient" in text
    assert "MEYER" not in text
    assert "no medical device" in text


def test_the_command_exports_and_says_what_to_do_next(pictures, tmp_path):
    home, folder, _ = pictures
    command = [Path(sys.executable).with_name("maeflow"), "export", folder.name, "--home", home.root, "--out", "out"]

    def run(to):
        return subprocess.run([*command, "--to", to], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("timm")
    assert done.returncode == 0, done.stderr
    *_, checked, _, last = done.stdout.splitlines()
    assert "timm" in checked
    assert str(tmp_path / "out" / "README.md") in last
    for to, reason in (("timm", "--overwrite"), ("onix", "did you mean 'onnx'")):
        again = run(to)
        assert again.returncode == 2
        assert again.stderr.startswith("error: ")
        assert reason in again.stderr


def test_what_is_announced_is_what_there_is():
    assert set(writers()) == {*outgoing.FORMATS, *outgoing.LAYOUTS}
