"""The same numbers as timm's Vision Transformers, in and out."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from core.config import ModelConfig
from core.errors import NotThis
from core.interop import building
from core.interop.facebook_mae import FacebookMae
from core.interop.foreign import Checkpoint, Foreign, Preprocessing
from core.interop.timm import Timm
from core.model.mae import Encoder, MaskedAutoencoder
from core.model.patches import PatchSpec
from core.model.positions import resample

sys.path.insert(0, str(Path(__file__).parent))
from references.comparing import agree, drawn, fixed, hint, logits, opened, read, shaken, tokens

SPEC = PatchSpec(3, (16, 40), (8, 8))
ARCHITECTURE = "vit_tiny_patch16_224"
SIZES = {"img_size": (16, 40), "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
LAYOUT = Timm()


def model_of(**kwargs):
    import timm

    return shaken(timm.create_model(ARCHITECTURE, **{**SIZES, "num_classes": 0, **kwargs}))


def on_a_hub(model, folder, **kwargs):
    """What `timm` itself writes beside its weights."""
    from timm.models import _hub

    _hub.save_for_hf(model, str(folder), safe_serialization=True)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {**SIZES, **config.get("model_args", {}), **kwargs}
    return config, opened(folder, model.state_dict(), config)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"no_embed_class": True},
        {"qkv_bias": False},
        {"num_classes": 5},
        {"num_classes": 5, "global_pool": "avg"},
    ],
    ids=str,
)
def test_models_before_and_after_export(tmp_path, arguments):
    import timm

    theirs = model_of(**arguments)
    _, checkpoint = on_a_hub(theirs, tmp_path / "theirs", **arguments)
    foreign = read(checkpoint)
    assert (foreign.geometry, foreign.model.heads) == (SPEC, 4)
    assert foreign.preprocessing == Preprocessing("unit", (0.5,) * 3, (0.5,) * 3, "its config.json")
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(LAYOUT.write(foreign), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LAYOUT.config(foreign)))
    fresh = timm.create_model(f"local-dir:{folder}", pretrained=True).double().eval()
    written = LAYOUT.write(foreign)  # timm makes them float32, which is asked here, and then undone.
    assert all((value - written[name]).abs().max() < 1e-6 for name, value in fresh.state_dict().items())
    fresh.load_state_dict(written, strict=True)
    x, *_ = drawn(SPEC)
    with torch.no_grad():
        if "num_classes" in arguments:
            agree("timm logits", theirs(x), logits(foreign, x))
            agree("timm logits exported", theirs(x), fresh(x))
        else:
            agree("timm encoder", theirs.forward_features(x), tokens(foreign, x))
            agree("timm encoder exported", theirs.forward_features(x), fresh.forward_features(x))


def test_heads_are_the_architectures_own(tmp_path):
    """Those of the models of 400 million parameters are 72 wide."""
    config = {"architecture": "vit_so400m_patch14_siglip_224", "num_classes": 0}
    arguments = {
        "global_pool": "avg",
        "fc_norm": False,
        "depth": 1,
        "img_size": 28,
        "mlp_ratio": 1,
        "act_layer": "gelu",
    }
    import timm

    theirs = shaken(timm.create_model(config["architecture"], num_classes=0, **arguments))
    foreign = read(opened(tmp_path, theirs.state_dict(), config | {"model_args": arguments}))
    assert (foreign.model.width, foreign.model.heads, foreign.model.cls_token) == (1152, 16, False)


def test_a_bare_state_dict_without_a_class_token(tmp_path):
    theirs = model_of(class_token=False, global_pool="avg", fc_norm=False)
    foreign = read(opened(tmp_path, theirs.state_dict(), wrapped=None), hint((3, (16, 40), (8, 8)), 48, 4))
    assert foreign.layout == "timm"
    x, *_ = drawn(SPEC)
    with torch.no_grad():
        agree("timm bare", theirs.forward_features(x), tokens(foreign, x))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"reg_tokens": 4}, "register tokens"),
        ({"init_values": 1e-5}, "layer scale"),
        ({"qk_norm": True}, "norms of queries and keys"),
        ({"pre_norm": True}, "a norm before its blocks"),
        ({"global_pool": "map", "num_classes": 5}, "attention pooling"),
    ],
)
@pytest.mark.parametrize("configured", [True, False])
def test_parts_without_a_place_are_refused_by_name(tmp_path, arguments, why, configured):
    theirs = model_of(**arguments)
    config = {"architecture": ARCHITECTURE, "model_args": SIZES | arguments} if configured else None
    checkpoint = opened(tmp_path, theirs.state_dict(), config)
    with pytest.raises(NotThis, match=why):
        read(checkpoint, hint((3, (16, 40), (8, 8)), 48, 4))


def test_gated_mlps_and_dinov2s_are_refused_by_name(tmp_path):
    state = model_of().state_dict()
    gated = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for name, value in state.items()}
    with pytest.raises(NotThis, match=r"lacks blocks\.0\.mlp\.fc1\.weight"):
        read(opened(tmp_path / "gated", gated))
    dino = state | {"blocks.0.ls1.gamma": torch.ones(48), "mask_token": torch.zeros(1, 48)}
    with pytest.raises(NotThis, match="layer scale"):
        read(opened(tmp_path / "dino", dino))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architecture": "resnet18"}, "a ResNet of timm"),
        ({"architecture": "swin_tiny_patch4_window7_224"}, "not a plain Vision Transformer"),
        ({"architecture": "vit_never_was"}, "timm cannot build"),
        ({"architecture": ARCHITECTURE}, "do not belong together"),
        ({"architecture": ARCHITECTURE, "model_args": {**SIZES, "act_layer": "relu"}}, "nonlinearity ReLU"),
        (
            {"architecture": ARCHITECTURE, "model_args": {**SIZES, "global_pool": "avg", "fc_norm": False}},
            "with the norm elsewhere",
        ),
        ({"architecture": "vit_base_patch16_rpn_224", "model_args": SIZES}, r"blocks\.0 is timm's ResPostBlock"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES | {"attn_layer": "diff"}}, "is timm's DiffAttention"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES | {"pos_embed": "none"}}, "a model without pos_embed"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES | {"qk_norm": True}}, "which it lacks"),
        ({"architecture": 5}, "architecture 5, which should be text"),
        ({"architecture": "hf-hub:someone/some"}, "no such architecture"),
        ({"architecture": "local-dir:/etc"}, "no such architecture"),
        ({"architecture": ARCHITECTURE, "model_args": [1]}, "model_args .1., which should be an object"),
        ({"architecture": ARCHITECTURE, "model_args": {"features_only": True}}, "no file is allowed to give"),
        ({"architecture": ARCHITECTURE, "model_args": {"depth": "x"}}, "depth 'x', which should be a size"),
        ({"architecture": ARCHITECTURE, "model_args": {"depth": 10**6}}, "depth 1000000, which should be a size"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES | {"embed_dim": 47}}, "timm cannot build"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES | {"norm_layer": "evil"}}, "timm cannot build"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES, "pretrained_cfg": [1]}, "pretrained_cfg .1., which"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES, "mean": "abc"}, "mean 'abc', which should be a list"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES, "mean": 5}, "mean 5, which should be a list"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES, "std": [1, 0, 1], "mean": [1, 1, 1]}, "numbers above 0"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES, "label_names": 5}, "which should be a list of names"),
        ({"architecture": ARCHITECTURE, "model_args": SIZES, "num_classes": []}, "which should be a whole number"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(tmp_path, config, why):
    state = model_of(num_classes=5).state_dict()
    with pytest.raises(NotThis, match=why):
        LAYOUT.read(opened(tmp_path, state, {"num_classes": 5, **config}))


def test_a_configuration_opens_no_other_file(tmp_path, monkeypatch):
    """timm's own loader would read it: by ``torch.load``, and not for weights alone."""
    torch.save(model_of().state_dict(), tmp_path / "other.pth")
    opens = []
    monkeypatch.setattr(torch, "load", lambda *a, **k: opens.append(a))
    arguments = SIZES | {"checkpoint_path": str(tmp_path / "other.pth")}
    with pytest.raises(NotThis, match="argument 'checkpoint_path', which no file is allowed to give"):
        LAYOUT.read(Checkpoint("x", model_of().state_dict(), {"architecture": ARCHITECTURE, "model_args": arguments}))
    assert not opens


def test_what_counts_in_training_alone_is_left_away():
    arguments = SIZES | {"drop_path_rate": 0.1, "weight_init": "skip", "class_token": None}
    config = {"architecture": ARCHITECTURE, "num_classes": 0, "model_args": arguments}
    assert LAYOUT.read(Checkpoint("x", model_of().state_dict(), config)).geometry == SPEC


def test_a_decoder_never_reaches_timm():
    """timm takes any state dict with a mask token for DINOv2."""
    config = ModelConfig(width=48, depth=2, heads=4)
    state = MaskedAutoencoder(SPEC, config).state_dict()
    written = LAYOUT.write(Foreign("maeflow", state, config, SPEC))
    assert not [name for name in written if name.startswith(("mask_token", "decoder"))]
    assert set(written) == set(model_of().state_dict())


@pytest.mark.parametrize("cls_token", [True, False])
def test_timm_loads_our_own_encoders_strictly(tmp_path, cls_token):
    config = ModelConfig(width=48, depth=2, heads=4, cls_token=cls_token)
    own = Encoder(SPEC, config)
    state = {f"encoder.{name}": value for name, value in own.state_dict().items()}
    save_file(LAYOUT.write(Foreign("maeflow", state, config, SPEC)), tmp_path / "encoder.safetensors")
    import timm

    theirs = timm.create_model(
        ARCHITECTURE,
        **SIZES,
        class_token=cls_token,
        global_pool="token" if cls_token else "avg",
        fc_norm=False,
        num_classes=0,
        checkpoint_path=str(tmp_path / "encoder.safetensors"),
    )
    x, *_ = drawn(SPEC)
    with torch.no_grad():
        agree("own encoder in timm", theirs.double().eval().forward_features(x), own.double()(SPEC.patchify(x)))


def test_timm_reads_what_mae_wrote_and_the_other_way_round(tmp_path):
    """The encoder's names are the same."""
    theirs = fixed(model_of(), ["pos_embed"], SPEC.grid)
    foreign = read(opened(tmp_path, theirs.state_dict()), hint((3, (16, 40), (8, 8)), 48, 4))
    assert foreign.layout == FacebookMae.name
    x, *_ = drawn(SPEC)
    with torch.no_grad():
        agree("timm as MAE", theirs.forward_features(x), tokens(foreign, x))
    fresh = model_of()
    fresh.load_state_dict(FacebookMae().write(foreign), strict=True)


def test_a_ratio_survives_the_cutting_off_of_fractions(tmp_path):
    """88 * (120 / 88) is a little less than 120, and timm cuts off."""
    theirs = model_of(embed_dim=88, num_heads=4, mlp_ratio=120.5 / 88)
    assert theirs.blocks[0].mlp.fc1.out_features == 120
    state = theirs.state_dict()
    foreign = read(opened(tmp_path, state, wrapped=None), hint((3, (16, 40), (8, 8)), 88, 4))
    assert building.encoder(foreign).blocks[0].mlp.fc1.out_features == 120


def test_norms_of_another_kind_are_remarked():
    config = ModelConfig(width=48, depth=2, heads=4, norm_eps=1e-5)
    foreign = Foreign("maeflow", MaskedAutoencoder(SPEC, config).state_dict(), config, SPEC)
    assert LAYOUT.remarks(foreign.without_decoder()) == (
        "there, layer norms add 1e-06 to the variance, and here 1e-05: outputs differ a little",
    )
    three = replace(foreign, geometry=PatchSpec(3, (2, 16, 40), (1, 8, 8)))
    with pytest.raises(NotThis, match="for two axes; this model has three axes"):
        LAYOUT.write(three)


def test_positions_of_another_input_size_are_resampled_for_timm_and_us_alike():
    """A wider input: ours resampled by `resample`, timm's by its own loader."""
    from timm.layers import resample_abs_pos_embed

    small = Encoder(SPEC, ModelConfig(width=48, depth=1, heads=4))
    table = resample(small.pos_embed[:, 1:], SPEC.grid, (4, 6))
    theirs = resample_abs_pos_embed(small.pos_embed, new_size=[4, 6], old_size=list(SPEC.grid), num_prefix_tokens=1)
    assert torch.allclose(table, theirs[:, 1:], atol=1e-5)
    assert isinstance(small.norm, nn.LayerNorm)
