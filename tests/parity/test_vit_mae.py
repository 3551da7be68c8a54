"""The same numbers as transformers' image models, in and out: ViTMAE, ViT, and BEiT as far as it is a plain one."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.config import NormPix, PretrainConfig
from core.errors import NotThis
from core.interop import building
from core.interop.transformers_vit import TransformersVit
from core.modality import Batch, Stats
from core.model.masking import keep_count, split_by_score
from core.model.objective import MaskedObjective, reconstruction_loss
from core.model.patches import PatchSpec, gather_tokens

sys.path.insert(0, str(Path(__file__).parent))
from references.comparing import agree, drawn, logits, opened, predictions, read, shaken, tokens
from references.library import as_4x, loaded, saved

SPEC = PatchSpec(3, (32, 32), (4, 4))
WIDE = PatchSpec(3, (16, 40), (8, 8))
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144}
DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 128,
}
LAYOUT = TransformersVit()


def sizes(spec):
    return SIZES | {"image_size": spec.input_shape, "patch_size": spec.patch_shape[0], "num_channels": spec.channels}


def vit_mae(eps=1e-12, **kwargs):
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    return shaken(ViTMAEForPreTraining(ViTMAEConfig(**sizes(SPEC), **DECODER, layer_norm_eps=eps, **kwargs)))


def encoded(model, x):
    """Tokens of all patches in their places, from a model that always masks."""
    model.config.mask_ratio = 0.0
    noise = torch.arange(SPEC.count, dtype=x.dtype).expand(len(x), -1)
    with torch.no_grad():
        return model(x, noise=noise).last_hidden_state


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
@pytest.mark.parametrize("names", ["saved", "memory", "4.x"])
def test_vit_mae_before_and_after_export(tmp_path, eps, names):
    from transformers import ViTMAEForPreTraining

    theirs = vit_mae(eps, norm_pix_loss=True)
    foreign = read(saved(theirs, tmp_path / "theirs", names))
    assert (foreign.geometry, foreign.model.norm_eps, foreign.model.heads) == (SPEC, eps, 4)
    assert (foreign.model.mlp_ratio, foreign.model.decoder.mlp_ratio) == (3.0, 4.0)
    assert foreign.norm_pix is NormPix.PATCH
    x, noise, _ = drawn(SPEC)
    mask = split_by_score(noise, keep_count(SPEC.count, 0.75, PretrainConfig().mask.count_rule))
    with torch.no_grad():
        expected = gather_tokens(theirs(x, noise=noise).logits, mask.masked_BM)
    agree("ViTMAE reconstruction", expected, predictions(foreign, x, mask))
    fresh = loaded(ViTMAEForPreTraining, tmp_path / "ours", LAYOUT, foreign)
    with torch.no_grad():
        agree("ViTMAE exported", expected, gather_tokens(fresh(x, noise=noise).logits, mask.masked_BM))
    assert fresh.config.norm_pix_loss
    agree("ViTMAE encoder", encoded(theirs.vit, x), tokens(foreign, x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_loss_predictions_and_masks_equal_the_reference(tmp_path, dtype, tolerance):
    theirs = vit_mae(1e-6, norm_pix_loss=True).to(dtype)
    ours = building.autoencoder(read(saved(theirs, tmp_path / "theirs")))
    x, noise = torch.randn(4, 3, 32, 32, dtype=dtype), torch.rand(4, SPEC.count, dtype=dtype)
    with torch.no_grad():
        expected = theirs(x, noise=noise)
        mask = split_by_score(noise, keep_count(SPEC.count, 0.75, PretrainConfig().mask.count_rule))
        patches = SPEC.patchify(x)
        predicted = ours(patches, mask, mask.masked_BM)
        stats = Stats(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
        objective = MaskedObjective(ours, PretrainConfig(), lambda *_: mask, stats)
        target, _ = objective.target(gather_tokens(patches, mask.masked_BM))
        loss = reconstruction_loss(predicted, target)
        from_objective, _ = objective(Batch(x), torch.Generator())
    hidden = torch.zeros(4, SPEC.count, dtype=dtype).scatter(1, mask.masked_BM, 1.0)
    assert torch.equal(hidden, expected.mask)
    assert (gather_tokens(expected.logits, mask.masked_BM) - predicted).abs().max() <= tolerance
    assert (expected.loss - loss).abs() <= tolerance
    assert (expected.loss - from_objective).abs() <= tolerance


@pytest.mark.parametrize("names", ["saved", "memory"])
@pytest.mark.parametrize("kind", ["vit_mae", "vit"])
def test_encoders_before_and_after_export(tmp_path, kind, names):
    from transformers import ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

    spec = SPEC if kind == "vit_mae" else WIDE
    theirs = ViTMAEModel(ViTMAEConfig(**sizes(spec))) if kind == "vit_mae" else ViTModel(ViTConfig(**sizes(spec)))
    theirs = shaken(theirs)
    pooler = {name for name in theirs.state_dict() if name.startswith("pooler.")}
    foreign = read(saved(theirs, tmp_path / "theirs", names), leftover=pooler)
    assert foreign.geometry == spec
    x, *_ = drawn(spec)
    with torch.no_grad():
        expected = encoded(theirs, x) if kind == "vit_mae" else theirs(x).last_hidden_state
        agree(f"{kind} encoder", expected, tokens(foreign, x))
        fresh = loaded(ViTModel, tmp_path / "ours", LAYOUT, foreign, add_pooling_layer=False)
        agree(f"{kind} encoder exported", expected, fresh(x).last_hidden_state)
    with pytest.raises(NotThis, match="holds an encoder alone and cannot reconstruct"):
        building.autoencoder(foreign)


@pytest.mark.parametrize("names", ["saved", "memory"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_classifiers_before_and_after_export(tmp_path, pool, names):
    """ViT reads the class token; a head on the mean is BEiT's, without relative positions and layer scale."""
    from transformers import BeitConfig, BeitForImageClassification, ViTConfig, ViTForImageClassification

    words = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    if pool == "cls":
        theirs = ViTForImageClassification(ViTConfig(**sizes(WIDE), **words))
    else:
        plain = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}
        theirs = BeitForImageClassification(BeitConfig(**sizes(SPEC), **plain, **words))
    spec, theirs = WIDE if pool == "cls" else SPEC, shaken(theirs)
    foreign = read(saved(theirs, tmp_path / "theirs", names))
    assert foreign.classes == ("cat", "dog", "owl")
    x, *_ = drawn(spec)
    with torch.no_grad():
        expected = theirs(x).logits
        agree(f"{pool} logits", expected, logits(foreign, x))
        fresh = loaded(type(theirs), tmp_path / "ours", LAYOUT, foreign)
        agree(f"{pool} logits exported", expected, fresh(x).logits)
    assert fresh.config.id2label == words["id2label"]


def test_a_key_bias_that_beit_has_no_place_for_changes_nothing(tmp_path):
    """It adds one number to all scores of a query."""
    from transformers import BeitForImageClassification, ViTConfig, ViTForImageClassification

    foreign = read(saved(shaken(ViTForImageClassification(ViTConfig(**sizes(SPEC)))), tmp_path / "theirs"))
    state = dict(foreign.state)
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = state.pop(f"encoder.norm.{kind}")
    tuned = replace(foreign, state=state)
    assert state["encoder.blocks.0.attn.qkv.bias"].chunk(3)[1].std() > 0.01
    x, *_ = drawn(SPEC)
    fresh = loaded(BeitForImageClassification, tmp_path / "ours", LAYOUT, tuned)
    with torch.no_grad():
        agree("key bias dropped", logits(tuned, x), fresh(x).logits)


def test_weights_without_their_configuration(tmp_path):
    """The names of 4.x alone: heads by their width of 64, and the release's own default of 1e-12."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    more = {"hidden_size": 128, "num_attention_heads": 2, "decoder_hidden_size": 64}
    theirs = shaken(ViTMAEForPreTraining(ViTMAEConfig(**sizes(SPEC) | DECODER | more)))
    foreign = read(opened(tmp_path, as_4x(theirs.state_dict()), wrapped=None))
    x, noise, mask = drawn(SPEC, ratio=0.25)
    with torch.no_grad():
        expected = gather_tokens(theirs(x, noise=noise).logits, mask.masked_BM)
    agree("ViTMAE bare", expected, predictions(foreign, x, mask))
    assert foreign.norm_pix is NormPix.NONE


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ({"image_mean": [51, 102, 0], "image_std": [51, 51, 51], "do_rescale": False}, (0.2, 0.4, 0), (0.2,) * 3),
        ({"do_normalize": False, "rescale_factor": 1 / 255}, (0,) * 3, (1,) * 3),
        ({}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_inputs_go_through_what_the_processor_says(tmp_path, processor, mean, std):
    theirs = vit_mae()
    state, config = theirs.state_dict(), theirs.config.to_dict()
    inputs = read(opened(tmp_path, state, config, processor)).preprocessing
    assert inputs.units == "unit"
    assert inputs.mean == pytest.approx(mean)
    assert inputs.std == pytest.approx(std)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": 64}, "says hidden_size 64 where its weights have 48"),
        ({"num_hidden_layers": 12}, "says num_hidden_layers 12"),
        ({"decoder_intermediate_size": 2048}, "decoder_intermediate_size"),
        ({"image_size": 224}, "says a grid of 56 x 56, and its weights have 64 positions"),
        ({"hidden_act": "relu"}, "nonlinearity relu"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, change, why):
    theirs = vit_mae()
    with pytest.raises(NotThis, match=why):
        LAYOUT.read(opened(tmp_path, theirs.state_dict(), theirs.config.to_dict() | change))


def test_biases_that_were_lost_are_missed(tmp_path):
    theirs = vit_mae()
    state = {name: value for name, value in as_4x(theirs.state_dict()).items() if not name.endswith("query.bias")}
    with pytest.raises(NotThis, match="lacks biases"):
        LAYOUT.read(opened(tmp_path / "some", state, theirs.config.to_dict()))
    state = {name: value for name, value in state.items() if not name.endswith(("key.bias", "value.bias"))}
    with pytest.raises(NotThis, match="they were lost when it was saved"):
        LAYOUT.read(opened(tmp_path / "all", state, theirs.config.to_dict()))
    foreign = LAYOUT.read(opened(tmp_path / "none", state, theirs.config.to_dict() | {"qkv_bias": False}))
    assert not foreign.state["encoder.blocks.0.attn.qkv.bias"].any()


def test_parts_without_a_place_are_refused(tmp_path):
    from transformers import BeitConfig, BeitForImageClassification

    theirs = BeitForImageClassification(BeitConfig(**sizes(SPEC), use_absolute_position_embeddings=True))
    with pytest.raises(NotThis, match="it has layer scale"):
        LAYOUT.read(saved(theirs, tmp_path / "scale"))
    plain = {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}
    theirs = BeitForImageClassification(BeitConfig(**sizes(SPEC), **plain, use_relative_position_bias=True))
    with pytest.raises(NotThis, match="it has relative positions"):
        LAYOUT.read(saved(theirs, tmp_path / "relative"))


def test_what_does_not_fit_is_said(tmp_path):
    foreign = read(saved(vit_mae(), tmp_path / "theirs"))
    wide = replace(foreign, geometry=PatchSpec(3, (16, 64), (4, 4)))
    with pytest.raises(NotThis, match="takes square inputs"):
        LAYOUT.write(wide)
    bare = foreign.without_decoder()
    state = {name: value for name, value in bare.state.items() if name != "encoder.cls_token"}
    model = foreign.model.model_copy(update={"cls_token": False})
    with pytest.raises(NotThis, match="has a class token, and this model has none"):
        LAYOUT.write(replace(bare, state=state, model=model))
