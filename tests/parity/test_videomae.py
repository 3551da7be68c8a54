"""The same numbers as transformers' VideoMAE, in and out, and the same number of tokens as both video systems."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from core.config import CountRule, MaskConfig, MaskKind, NormPix, PretrainConfig
from core.errors import NotThis
from core.interop import building
from core.interop.transformers_videomae import TransformersVideoMae
from core.modality import Batch, Stats
from core.model.masking import sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec, gather_tokens

sys.path.insert(0, str(Path(__file__).parent))
from references.comparing import agree, drawn, hidden_in, hint, logits, opened, predictions, read, shaken, tokens
from references.library import loaded, saved

SPEC = PatchSpec(3, (8, 32, 48), (2, 8, 8))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "image_size": (32, 48),
    "patch_size": 8,
    "num_frames": 8,
    "tubelet_size": 2,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 128,
}
LAYOUT = TransformersVideoMae()


def videomae(kind="ForPreTraining", **kwargs):
    import transformers

    config = transformers.VideoMAEConfig(**{**SIZES, "use_mean_pooling": False, **kwargs})
    return shaken(getattr(transformers, f"VideoMAE{kind}")(config))


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
@pytest.mark.parametrize("names", ["saved", "memory"])
def test_pretraining_before_and_after_export(tmp_path, eps, names):
    """Files have ``q_bias``, memory ``query.bias``; the last norm of the decoder adds 1e-5 whatever is configured."""
    theirs = videomae(layer_norm_eps=eps)
    checkpoint = saved(theirs, tmp_path / "theirs", names)
    assert any(name.endswith("q_bias" if names == "saved" else "query.bias") for name in checkpoint.state)
    foreign = read(checkpoint)
    assert (foreign.geometry, foreign.model.norm_eps, foreign.model.decoder.norm_eps) == (SPEC, eps, 1e-5)
    assert foreign.norm_pix is NormPix.CHANNEL_STD
    x, _, mask = drawn(SPEC)
    hidden = hidden_in(mask, SPEC.count)
    with torch.no_grad():
        agree("HF VideoMAE encoder", theirs.videomae(x.transpose(1, 2)).last_hidden_state, tokens(foreign, x))
        expected = theirs(x.transpose(1, 2), bool_masked_pos=hidden).logits
        agree("HF VideoMAE reconstruction", expected, predictions(foreign, x, mask, grid_order=True))
        fresh = loaded(type(theirs), tmp_path / "ours", LAYOUT, foreign)
        agree("HF VideoMAE exported", expected, fresh(x.transpose(1, 2), bool_masked_pos=hidden).logits)
    assert LAYOUT.remarks(foreign) == ()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_loss_and_predictions_equal_the_reference(tmp_path, dtype, tolerance):
    theirs = videomae(norm_pix_loss=True).to(dtype)
    ours = building.autoencoder(read(saved(theirs, tmp_path / "theirs")))
    config = PretrainConfig(
        mask=MaskConfig(kind=MaskKind.TUBE, ratio=0.75, count_rule=CountRule.FLOOR_MASK), norm_pix=NormPix.CHANNEL_STD
    )
    stats = Stats(torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype))
    generator = torch.Generator().manual_seed(2)
    mask = sampler(config.mask, SPEC.grid)(3, generator, None)
    x = stats.normalise(torch.rand(3, 3, 8, 32, 48, dtype=dtype))
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2), bool_masked_pos=hidden_in(mask, SPEC.count))
        order = mask.masked_BM.argsort(dim=1)
        predicted = gather_tokens(ours(SPEC.patchify(x), mask, mask.masked_BM), order)
        loss, _ = MaskedObjective(ours, config, lambda *_: mask, stats)(Batch(x), generator)
    assert (expected.logits - predicted).abs().max() <= tolerance
    assert (expected.loss - loss).abs() <= tolerance


def test_the_encoder_alone_before_and_after_export(tmp_path):
    theirs = videomae("Model")
    foreign = read(saved(theirs, tmp_path / "theirs"))
    x, *_ = drawn(SPEC)
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2)).last_hidden_state
        agree("VideoMAEModel", expected, tokens(foreign, x))
        fresh = loaded(type(theirs), tmp_path / "ours", LAYOUT, foreign)
        agree("VideoMAEModel exported", expected, fresh(x.transpose(1, 2)).last_hidden_state)
    with pytest.raises(NotThis, match="holds an encoder alone"):
        building.autoencoder(foreign)


@pytest.mark.parametrize("names", ["saved", "memory"])
def test_classifiers_before_and_after_export(tmp_path, names):
    theirs = videomae("ForVideoClassification", use_mean_pooling=True, num_labels=5)
    foreign = read(saved(theirs, tmp_path / "theirs", names))
    assert (foreign.outputs, foreign.classes, foreign.model.head_norm_eps) == (5, (), 1e-5)
    x, *_ = drawn(SPEC)
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2)).logits
        agree("HF VideoMAE logits", expected, logits(foreign, x))
        fresh = loaded(type(theirs), tmp_path / "ours", LAYOUT, foreign)
        agree("HF VideoMAE logits exported", expected, fresh(x.transpose(1, 2)).logits)


def test_biases_of_queries_and_values_are_not_lost(tmp_path):
    """A release of transformers set them to zero without a word when it read its own older files."""
    theirs = videomae()
    for names in ("saved", "memory"):
        foreign = read(saved(theirs, tmp_path / names, names))
        for number, layer in enumerate(theirs.videomae.encoder.layer):
            query, key, value = foreign.state[f"encoder.blocks.{number}.attn.qkv.bias"].chunk(3)
            assert torch.equal(query, layer.attention.attention.query.bias)
            assert torch.equal(value, layer.attention.attention.value.bias)
            assert query.std() > 0.01
            assert not key.any()
    state = load_file(tmp_path / "saved" / "model.safetensors")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    lost = {name: value for name, value in state.items() if not name.endswith(("q_bias", "v_bias"))}
    with pytest.raises(NotThis, match="they were lost when it was saved"):
        LAYOUT.read(opened(tmp_path / "lost", lost, config))
    some = {name: value for name, value in state.items() if "encoder.layer.1.attention.attention.v_bias" not in name}
    with pytest.raises(NotThis, match="lacks biases"):
        LAYOUT.read(opened(tmp_path / "some", some, config))


def test_a_decoder_of_tokens_without_a_norm_is_refused(tmp_path):
    """`VideoMAEConfig` leaves the encoder's last norm out by default, also of a model for pretraining."""
    with pytest.raises(NotThis, match="its encoder has no last norm"):
        LAYOUT.read(saved(videomae(use_mean_pooling=True), tmp_path / "theirs"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tubelet_size": 4}, "says tubelet_size 4 where its weights have 2"),
        ({"hidden_size": 64}, "says hidden_size 64"),
        ({"image_size": 30}, "no multiple of its patches"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, change, why):
    theirs = videomae()
    with pytest.raises(NotThis, match=why):
        LAYOUT.read(opened(tmp_path, theirs.state_dict(), theirs.config.to_dict() | change))


def test_a_target_of_plain_colours_is_noted(tmp_path):
    """It is not normalised input, as a target of ours without normalisation is."""
    foreign = read(saved(videomae(norm_pix_loss=False), tmp_path / "theirs"))
    assert foreign.norm_pix is None
    assert any("a target that none here has" in note for note in foreign.notes)


def test_weights_without_their_configuration(tmp_path):
    """The recipe then says the size of clips and the heads."""
    theirs = videomae()
    said = hint((3, SPEC.input_shape, SPEC.patch_shape), 48, 4, 32, 2)
    foreign = read(opened(tmp_path, theirs.state_dict(), wrapped=None), said)
    x, _, mask = drawn(SPEC)
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2), bool_masked_pos=hidden_in(mask, SPEC.count)).logits
    agree("HF VideoMAE bare", expected, predictions(foreign, x, mask, grid_order=True))


def test_what_differs_there_is_said(tmp_path):
    """Models with 1e-6 everywhere, as ours are, meet two norms there that add 1e-5."""
    foreign = read(saved(videomae(layer_norm_eps=1e-6), tmp_path / "theirs"))
    decoder = foreign.model.decoder.model_copy(update={"norm_eps": None})
    ours = replace(foreign, model=foreign.model.model_copy(update={"decoder": decoder}))
    assert LAYOUT.remarks(ours) == (
        "there, the decoder's last norm adds 1e-05 to the variance, and here 1e-06: outputs differ a little",
    )
    x, _, mask = drawn(SPEC)
    fresh = loaded(type(videomae()), tmp_path / "ours", LAYOUT, ours)
    with torch.no_grad():
        there = fresh(x.transpose(1, 2), bool_masked_pos=hidden_in(mask, SPEC.count)).logits
    gap = (there - predictions(ours, x, mask, grid_order=True)).abs().max()
    assert 1e-9 < gap < 1e-4


@pytest.mark.parametrize(
    ("kind", "rule", "kept"), [(MaskKind.TUBE, CountRule.FLOOR_MASK, 160), (MaskKind.RANDOM, CountRule.FLOOR_KEEP, 156)]
)
def test_kept_tokens_of_a_clip_are_those_of_the_two_systems(kind, rule, kept):
    """VideoMAE keeps 20 of 196 places in each of 8 tubelets; mae_st keeps int(1568 * (1 - 0.9))."""
    spec = PatchSpec(3, (16, 224, 224), (2, 16, 16))
    mask = sampler(MaskConfig(kind=kind, ratio=0.9, count_rule=rule), spec.grid)(2, torch.Generator(), None)
    assert spec.count == 1568
    assert mask.keep_BK.shape == (2, kept)
