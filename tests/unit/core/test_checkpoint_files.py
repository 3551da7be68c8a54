"""Files that are no usable weights: each refused in a sentence with its name and the reason; nothing in it is run."""

import argparse
import gzip
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.config import ModelConfig
from core.errors import NotThis, UserError
from core.interop import building, places
from core.interop.files import open_checkpoint
from core.interop.foreign import Foreign, Hint
from core.interop.layouts import recognise
from core.interop.places import fingerprint, located
from core.interop.transformers_vit import TransformersVit
from core.model.mae import Encoder
from core.model.patches import PatchSpec
from core.recipes import resolve
from core.request import Place
from core.stages.adopt import adopt
from core.stages.work import Work
from core.workspace import Home

SPEC = PatchSpec(3, (16, 16), (4, 4))
MODEL = ModelConfig(width=32, depth=2, heads=2)
HINT = Hint(MODEL, SPEC)
SETTINGS = {"size": SPEC.input_shape, "patch": SPEC.patch_shape}
RECIPE = {"modality": "image", "data": SETTINGS, "model": {"width": 32, "depth": 2, "heads": 2}}


def weights():
    torch.manual_seed(0)
    return Encoder(SPEC, MODEL).state_dict()


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def evil(file, folder):
    torch.save({"model": weights(), "extra": Evil(folder / "ran")}, file)


def evil_bare(file, folder):
    file.write_bytes(pickle.dumps({"model": Evil(folder / "ran")}))


def cut(file, folder, share=0.6):
    torch.save({"model": weights()}, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def cut_safetensors(file, folder):
    save_file(weights(), file)
    file.write_bytes(file.read_bytes()[:-100])


def renamed(file, folder):
    torch.save({f"stage1.{name}": value for name, value in weights().items()}, file)


def block_missing(file, folder):
    torch.save({k.replace("blocks.1.", "blocks.2."): v for k, v in weights().items()}, file)


def one_missing(file, folder):
    torch.save({k: v for k, v in weights().items() if k != "blocks.1.mlp.fc2.weight"}, file)


def other_shape(file, folder):
    torch.save(weights() | {"blocks.1.mlp.fc2.bias": torch.zeros(7)}, file)


def lora(file, folder):
    names = [f"base_model.model.blocks.{n}.attn.qkv.lora_{part}.weight" for n in range(2) for part in "AB"]
    save_file({name: torch.zeros(4, 32) for name in names}, file)


def resnet(file, folder):
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), file)


def script(file, folder):
    torch.jit.script(torch.nn.Linear(3, 3)).save(file)


def exported(file, folder):
    torch.export.save(torch.export.export(torch.nn.Linear(3, 3), (torch.zeros(2, 3),)), file)


def not_finite(file, folder):
    torch.save(weights() | {"norm.bias": torch.full((32,), float("nan"))}, file)


def quantised(file, folder):
    torch.save(weights() | {"head": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, file)


def module(file, folder):
    torch.save(torch.nn.Linear(3, 3), file)


def zipped(file, folder):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")


def arrays(file, folder):
    np.savez(file.open("wb"), a=np.zeros(3))


def zipped_again(file, folder, *, plan=None):
    """As archives that were unpacked and packed by something else; their plan can be made to grow."""
    torch.save(weights(), file.with_suffix(".whole"))
    with zipfile.ZipFile(file.with_suffix(".whole")) as given, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name in given.namelist():
            made.writestr(name, plan if plan and name.endswith("data.pkl") else given.read(name))


def large_plan(file, folder):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (33 << 20))
        archive.writestr("archive/version", "3")


def in_precision(file, dtype):
    save_file({name: (100 * value).to(dtype) for name, value in weights().items()}, file)


def buffer_on_nothing(file, folder):
    torch.save(weights() | {"norm.bias": torch.zeros(32, device="meta")}, file)


WRONG = {
    "random bytes": (
        lambda f, _: f.write_bytes(np.random.default_rng(0).bytes(5000)),
        "neither a safetensors file nor",
    ),
    "empty": (lambda f, _: f.write_bytes(b""), "it is empty"),
    "cut short": (cut, "cut short or damaged"),
    "cut in its head": (lambda f, d: cut(f, d, 0.01), "cut short or damaged"),
    "safetensors cut short": (cut_safetensors, "safetensors file that is cut short"),
    "a pickle with code": (evil, r"a pickle that asks for posix\.system"),
    "a bare pickle with code": (evil_bare, "a pickle that"),
    "a whole module": (module, "a pickle that asks for torch.nn.modules.linear.Linear"),
    "keys renamed": (renamed, "of no known layout"),
    "a block missing": (block_missing, "only the numbers"),
    "a weight missing": (one_missing, "lacks blocks.1.mlp.fc2.weight"),
    "a weight of another shape": (other_shape, r"fc2.bias is \(7,\)"),
    "LoRA": (lora, "LoRA"),
    "another architecture": (resnet, "ResNet"),
    "TorchScript": (script, "TorchScript"),
    "torch.export": (exported, "torch.export"),
    "not finite": (not_finite, "not finite"),
    "quantised": (quantised, "quantised"),
    "a zip archive": (zipped, "zip archive without weights"),
    "NumPy arrays": (arrays, "NumPy"),
    "a list": (lambda f, _: torch.save([torch.zeros(3)], f), "holds a list"),
    "no tensors": (lambda f, _: torch.save({"epoch": 3}, f), "no tensors by name, but epoch"),
    "a pointer": (
        lambda f, _: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
    "a web page": (lambda f, _: f.write_text("<!doctype html><title>404</title>"), "a web page"),
    "JSON": (lambda f, _: f.write_text('{"model_type": "vit_mae"}'), "JSON text"),
    "gzip": (lambda f, _: f.write_bytes(gzip.compress(b"x" * 100)), "gzip"),
    "zipped again": (zipped_again, "zipped again, and torch.save never compresses"),
    "a bomb": (lambda f, d: zipped_again(f, d, plan=b"\x80\x02" + b"N0" * (16 << 20) + b"N."), "zipped again"),
    "a plan without end": (large_plan, "has more than 64 MiB"),
    "weights of 8 bits": (lambda f, _: in_precision(f, torch.float8_e4m3fn), "of the kind float8_e4m3fn; weights of"),
    "whole numbers": (lambda f, _: in_precision(f, torch.int32), "of the kind int32; weights of 16, 32 or 64 bits"),
    "values that are repeated": (
        lambda f, _: torch.save(weights() | {"norm.bias": torch.zeros(1).expand(1 << 40)}, f),
        "norm.bias repeats the values it holds",
    ),
    "nothing behind a name": (buffer_on_nothing, "without values"),
    "a recipe without end": (lambda f, _: save_file(weights(), f, {"maeflow": "[" * 100_000}), "of itself is damaged"),
    "a list for a recipe": (lambda f, _: save_file(weights(), f, {"maeflow": "[1]"}), "of itself is damaged"),
    "a number for a recipe": (lambda f, _: save_file(weights(), f, {"maeflow": '{"recipe": 5}'}), "itself is damaged"),
    "no recipe": (lambda f, _: save_file(weights(), f, {"maeflow": '{"model": 5}'}), "no version of maeflow"),
    "HDF5": (lambda f, _: f.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100), "HDF5"),
    "GGUF": (lambda f, _: f.write_bytes(b"GGUF" + b"\0" * 100), "GGUF"),
}


def taken_over(file, folder):
    return adopt(
        resolve(RECIPE, "of the test"),
        None,
        Place(name=file.name, path=str(file)),
        Work(Home.create(folder / "home"), "0", folder),
    )


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_by_name_and_reason(kind, tmp_path):
    write, reason = WRONG[kind]
    file = tmp_path / "given.pth"
    write(file, tmp_path)
    with pytest.raises(UserError, match=rf"^checkpoint given\.pth: .*{reason}") as refused:
        taken_over(file, tmp_path)
    print(refused.value)
    assert "Traceback" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_weights_of_any_container_are_the_same(tmp_path):
    """Whatever training programs and wrappers put around them."""
    wanted = weights()
    kinds = {
        "plain": wanted,
        "mae": {"model": wanted, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "lightning": {"state_dict": {f"model.{k}": v for k, v in wanted.items()}, "global_step": 7},
        "parallel": {"model": {f"module.{k}": v for k, v in wanted.items()}},
        "compiled": {f"_orig_mod.{k}": v for k, v in wanted.items()},
        "both": {f"module._orig_mod.{k}": v for k, v in wanted.items()},
        "slowfast": {"model_state": wanted},
        "named": {"model": {"name": "vit"}, "state_dict": wanted},
    }
    for kind, content in kinds.items():
        for legacy in (False, True):
            file = tmp_path / f"{kind}-{legacy}.pth"
            torch.save(content, file, _use_new_zipfile_serialization=not legacy)
            read = open_checkpoint(file, kind)
            encoder = building.encoder(recognise(read).read(read, HINT))
            assert all(torch.equal(value, wanted[name]) for name, value in encoder.state_dict().items()), kind


def test_weights_in_parts_are_put_together(tmp_path):
    wanted = weights()
    names = sorted(wanted)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, of in parts.items():
        save_file({name: wanted[name] for name in of}, tmp_path / part)
    index = {"weight_map": {name: part for part, of in parts.items() for name in of}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_checkpoint(tmp_path, "parts").state) == set(wanted)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotThis, match=r"its part model-00002-of-00002.safetensors is missing \(1 of 2\)"):
        open_checkpoint(tmp_path, "parts")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(NotThis, match="index of parts is damaged"):
        open_checkpoint(tmp_path, "parts")


@pytest.mark.parametrize(
    "index", [{"weight_map": [1]}, {"weight_map": {"a": ["x"]}}, {"weight_map": {"a": 1, "b": "c"}}], ids=str
)
def test_an_index_of_other_types_is_damaged(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="checkpoint x: its index of parts is damaged"):
        fingerprint(Place(name="x", path=str(tmp_path)))


@pytest.mark.parametrize("record", [5, [], {}, {"stage": "pretrain"}, {"stage": "finetune", "geometry": 5}], ids=str)
def test_records_of_other_types_are_refused(tmp_path, record):
    save_file(weights(), tmp_path / "encoder.safetensors", {"maeflow": json.dumps({"recipe": {}, "record": record})})
    with pytest.raises(NotThis, match="the record beside its weights is of no version of maeflow"):
        read_whole(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps({"stage": 5}))
    save_file(weights(), tmp_path / "encoder.safetensors", {"maeflow": "[1]"})
    with pytest.raises(NotThis, match="what it says of itself is damaged"):
        read_whole(tmp_path)


def test_buffers_of_whole_numbers_that_nobody_uses_may_stay(tmp_path):
    others = {"position_ids": torch.arange(16), "num_batches_tracked": torch.tensor(3)}
    save_file(weights() | others, tmp_path / "encoder.safetensors")
    assert read_whole(tmp_path).leftover == ("num_batches_tracked", "position_ids")


VIT = {"model_type": "vit", "image_size": 16, "patch_size": 4, "hidden_size": 32}


@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"image_size": "abc"}, "config.json says image_size 'abc', which should be one size or two"),
        ({"image_size": [16, 16, 16]}, "one size or two"),
        ({"patch_size": ["a", 4]}, "says patch_size"),
        ({"num_attention_heads": "two"}, "which should be a whole number"),
        ({"layer_norm_eps": [1]}, "which should be a number"),
        ({"layer_norm_eps": 10**400}, "which should be a number"),
        ({"id2label": [1]}, "which should be an object"),
        ({"hidden_size": {}}, "do not belong together"),
        ({"processor": {"image_mean": "abc"}}, "preprocessor_config.json says image_mean 'abc'"),
        ({"processor": {"image_mean": [0.5, None, 0.5], "image_std": 0.5}}, "a list of numbers"),
        ({"processor": {"image_mean": 0.5, "image_std": 0}}, "not above 0"),
        ({"processor": {"rescale_factor": "a"}}, "which should be a number"),
    ],
    ids=str,
)
def test_a_configuration_of_other_types_is_refused_with_what_it_says(tmp_path, beside, why):
    model = Encoder(SPEC, MODEL).state_dict()
    state = {f"encoder.{name}": value for name, value in model.items()}
    save_file(TransformersVit().write(Foreign("", state, MODEL, SPEC)), tmp_path / "model.safetensors")
    config = VIT | {key: value for key, value in beside.items() if key != "processor"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(beside.get("processor", {})))
    with pytest.raises(NotThis, match=re.escape(why)):
        read_whole(tmp_path)


def read_whole(path):
    found = open_checkpoint(path, "given")
    return recognise(found).read(found, HINT)


def test_a_configuration_of_something_else_beside_a_file_is_left_alone(tmp_path):
    torch.save(weights(), tmp_path / "mae.pth")
    (tmp_path / "config.json").write_text('{"lr": 1}')
    read = open_checkpoint(tmp_path / "mae.pth", "mae.pth")
    assert read.config == {}
    assert recognise(read).name == "facebookresearch/mae"


def test_a_folder_with_several_files_asks_which(tmp_path):
    with pytest.raises(NotThis, match="a folder without a file of weights"):
        open_checkpoint(tmp_path, "folder")
    for name in ("one.pth", "two.pth"):
        torch.save(weights(), tmp_path / name)
    with pytest.raises(NotThis, match=r"one\.pth, two\.pth"):
        open_checkpoint(tmp_path, "folder")


def test_a_fingerprint_follows_every_byte_that_counts(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(weights(), file)
    first = fingerprint(located(str(tmp_path)))
    assert first == fingerprint(located(str(file)))
    (tmp_path / "config.json").write_text("{}")
    second = fingerprint(located(str(tmp_path)))
    save_file(weights() | {"norm.bias": torch.ones(32)}, file)
    assert len({first, second, fingerprint(located(str(tmp_path)))}) == 3


@pytest.mark.parametrize("name", ["no/such/file.pth", "nothing.safetensors", "a b/c", "../up"])
def test_what_is_neither_a_path_nor_a_name_says_what_it_could_be(name):
    with pytest.raises(UserError, match="no such file or folder, and it is no name on the Hugging Face hub"):
        located(name)


def test_what_was_fetched_in_part_is_asked_for_again(tmp_path):
    """Weights without their configuration look like another model's."""
    save_file(weights(), tmp_path / "model.safetensors")
    assert not places._whole(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit_mae"}')
    assert not places._whole(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert places._whole(tmp_path)


def test_a_path_that_is_not_there_is_never_looked_for_on_a_hub(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="checkpoint models/mine: there is no such file or folder, and it is no name"):
        located("models/mine")


def test_a_file_that_changes_meanwhile_is_not_taken_for_the_one_that_was_named(tmp_path):
    file = tmp_path / "best.pth"
    torch.save(weights(), file)
    place = located(str(file))
    torch.save(weights() | {"norm.bias": torch.ones(32)}, file)
    with pytest.raises(UserError, match=r"checkpoint best\.pth has changed since it was looked at"):
        adopt(resolve(RECIPE, "of the test"), None, place, Work(Home.create(tmp_path / "home"), "0", tmp_path))


def test_a_fetched_name_needs_no_network(tmp_path, monkeypatch):
    """The hub's cache as `hf download` leaves it."""
    repository, commit = tmp_path / "models--timm--vit_tiny.test", "a" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    save_file(weights(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text('{"architecture": "vit_tiny"}')
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spelled in ("vit_tiny.test", "timm/vit_tiny.test", f"timm/vit_tiny.test@{commit}"):
        place = located(spelled)
        assert place.path == str(snapshot)
        assert place.name.startswith("timm/vit_tiny.test")
        assert place.fingerprint == fingerprint(place)
    with pytest.raises(UserError, match=r"timm/other\.test: there is no such file .* it was not fetched before"):
        located("other.test")
