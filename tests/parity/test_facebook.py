"""MAE and AudioMAE, which are in no library: the same numbers as small models of their own with the official names."""

import sys
from pathlib import Path

import pytest
import torch

from core.config import NormPix
from core.errors import NotThis
from core.interop import building
from core.interop.audiomae import AudioMae
from core.interop.facebook_mae import FacebookMae
from core.model.patches import PatchSpec, gather_tokens

sys.path.insert(0, str(Path(__file__).parent))
from references.comparing import agree, drawn, fixed, hint, logits, opened, order_of, predictions, read, shaken, tokens
from references.facebook import MaskedAutoencoderViT, SwinDecoder, VisionTransformer

SIZES = {"width": 128, "depth": 2, "heads": 2}
DECODER = {"inner": 64, "inner_depth": 1, "inner_heads": 2}
TABLES = ("pos_embed", "decoder_pos_embed")


def pretrained(spec, tables="fixed"):
    model = shaken(MaskedAutoencoderViT(spec.channels, spec.grid, spec.patch_shape, **SIZES, **DECODER))
    return fixed(model, TABLES, spec.grid) if tables == "fixed" else model


@pytest.mark.parametrize(
    ("spec", "tables", "layout"),
    [
        (PatchSpec(3, (32, 32), (8, 8)), "fixed", FacebookMae),
        (PatchSpec(1, (32, 32), (8, 8)), "learned", FacebookMae),
        (PatchSpec(3, (16, 40), (8, 8)), "fixed", FacebookMae),
        (PatchSpec(1, (64, 16), (8, 8)), "fixed", AudioMae),
    ],
)
def test_the_same_numbers_before_and_after_export(tmp_path, spec, tables, layout):
    theirs = pretrained(spec, tables)
    foreign = read(opened(tmp_path, theirs.state_dict()))
    assert foreign.layout == layout.name
    assert foreign.geometry == spec
    assert foreign.model.positions == ("sincos" if tables == "fixed" else "learned")
    assert (foreign.model.heads, foreign.model.decoder.heads) == (2, 2)
    assert foreign.norm_pix is NormPix.PATCH
    x, _, mask = drawn(spec)
    with torch.no_grad():
        expected = gather_tokens(theirs(x, order_of(mask), mask.keep_BK.shape[1]), mask.masked_BM)
        encoded = theirs.encode(x)
    agree(f"{layout.target} encoder", encoded, tokens(foreign, x))
    agree(f"{layout.target} reconstruction", expected, predictions(foreign, x, mask))
    if layout is FacebookMae and spec.input_shape[0] != spec.input_shape[1]:
        with pytest.raises(NotThis, match="takes square inputs"):
            layout().write(foreign)
        assert "decoder_embed.weight" not in layout().write(foreign.without_decoder())
        return
    fresh = MaskedAutoencoderViT(spec.channels, spec.grid, spec.patch_shape, **SIZES, **DECODER).double().eval()
    fresh.load_state_dict(layout().write(foreign), strict=True)
    with torch.no_grad():
        again = gather_tokens(fresh(x, order_of(mask), mask.keep_BK.shape[1]), mask.masked_BM)
    agree(f"{layout.target} exported", expected, again)
    assert layout().remarks(foreign) == ()


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize(("spec", "layout"), [((3, (16, 40), (8, 8)), FacebookMae), ((1, (64, 16), (8, 8)), AudioMae)])
def test_fine_tuned_models_give_the_same_logits(tmp_path, pool, spec, layout):
    spec = PatchSpec(*spec)
    sizes = (spec.channels, spec.grid, spec.patch_shape, *SIZES.values(), 5)
    theirs = fixed(shaken(VisionTransformer(*sizes, global_pool=pool)), ["pos_embed"], spec.grid)
    foreign = read(opened(tmp_path, theirs.state_dict()))
    assert (foreign.layout, foreign.outputs, foreign.geometry) == (layout.name, 5, spec)
    x, *_ = drawn(spec)
    with torch.no_grad():
        expected = theirs(x)
    agree(f"{layout.target} logits", expected, logits(foreign, x))
    if layout is AudioMae and not pool:
        with pytest.raises(NotThis, match="the mean of the patches"):
            layout().write(foreign)
        return
    fresh = VisionTransformer(*sizes, global_pool=pool).double().eval()
    fresh.load_state_dict(layout().write(foreign), strict=True)
    with torch.no_grad():
        agree(f"{layout.target} logits exported", expected, fresh(x))


def test_a_linear_probe_keeps_its_normalisation(tmp_path):
    """``main_linprobe.py`` puts a batch norm without weights before the linear layer."""
    spec = PatchSpec(3, (32, 32), (8, 8))
    theirs = shaken(VisionTransformer(3, spec.grid, (8, 8), *SIZES.values(), 5, global_pool=False))
    theirs.head = torch.nn.Sequential(torch.nn.BatchNorm1d(128, affine=False, eps=1e-6), theirs.head).double()
    x, *_ = drawn(spec)
    theirs.train()
    theirs(x)
    theirs.eval()
    foreign = read(opened(tmp_path, theirs.state_dict()))
    with torch.no_grad():
        agree("mae linear probe", theirs(x), logits(foreign, x))


def test_heads_of_odd_widths_come_from_the_recipe(tmp_path):
    spec = PatchSpec(3, (32, 32), (8, 8))
    theirs = shaken(MaskedAutoencoderViT(3, spec.grid, (8, 8), 48, 1, 4, 24, 1, 3))
    state = theirs.state_dict()
    assert read(opened(tmp_path, state)).model.heads == 1
    foreign = read(opened(tmp_path, state), hint((3, (32, 32), (8, 8)), 48, 4, 24, 3))
    x, _, mask = drawn(spec)
    with torch.no_grad():
        expected = gather_tokens(theirs(x, order_of(mask), mask.keep_BK.shape[1]), mask.masked_BM)
    agree("mae hinted heads", expected, predictions(foreign, x, mask))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mae_pretrain_vit_base_full", NormPix.PATCH),
        ("mae_visualize_vit_base", NormPix.NONE),
        ("unnamed", NormPix.PATCH),
    ],
)
def test_what_the_decoder_predicts_is_told_by_the_files_name(tmp_path, name, target):
    foreign = read(opened(tmp_path, pretrained(PatchSpec(3, (32, 32), (8, 8))).state_dict(), name=name))
    assert foreign.norm_pix is target
    assert bool(foreign.notes) is (name == "unnamed")


def test_an_encoder_alone_is_refused_for_reconstruction(tmp_path):
    state = pretrained(PatchSpec(3, (32, 32), (8, 8))).state_dict()
    alone = {name: value for name, value in state.items() if not name.startswith(("decoder", "mask_token"))}
    foreign = read(opened(tmp_path, alone))
    with pytest.raises(NotThis, match="holds an encoder alone and cannot reconstruct"):
        building.autoencoder(foreign)


def test_a_decoder_of_which_a_part_is_missing_is_left_over(tmp_path):
    state = pretrained(PatchSpec(3, (32, 32), (8, 8))).state_dict()
    state.pop("decoder_pred.weight")
    foreign = FacebookMae().read(opened(tmp_path, state))
    assert not foreign.has_decoder
    assert {"decoder_embed.weight", "mask_token", "decoder_blocks.0.attn.qkv.weight"} <= set(foreign.leftover)


@pytest.mark.parametrize("name", ["blocks.1.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "patch_embed.proj.bias"])
def test_what_is_missing_is_named(tmp_path, name):
    state = pretrained(PatchSpec(3, (32, 32), (8, 8))).state_dict()
    state.pop(name)
    with pytest.raises(NotThis, match="lacks"):
        building.encoder(FacebookMae().read(opened(tmp_path, state)))


def test_a_decoder_of_windows_is_left_out_with_the_reason(tmp_path):
    """AudioMAE's released decoder is a Swin Transformer with learned biases for relative positions."""
    spec = PatchSpec(1, (64, 16), (8, 8))
    theirs = pretrained(spec)
    swin = SwinDecoder(64, 2).double().state_dict()
    checkpoint = opened(tmp_path, theirs.state_dict() | swin)
    decoder = [name for name in checkpoint.state if name.startswith(("decoder_", "mask_token"))]
    foreign = read(checkpoint, leftover=decoder)
    assert foreign.layout == AudioMae.name
    assert any("relative position (Swin)" in note for note in foreign.notes)
    x, *_ = drawn(spec)
    with torch.no_grad():
        agree("audiomae encoder beside windows", theirs.encode(x), tokens(foreign, x))


def test_audiomaes_inputs_are_audiosets(tmp_path):
    foreign = read(opened(tmp_path, pretrained(PatchSpec(1, (64, 16), (8, 8))).state_dict()))
    inputs = foreign.preprocessing
    assert (inputs.units, inputs.mean, inputs.std) == ("log-mel", (-4.2677393,), (2 * 4.5689974,))


def test_overlapping_patches_are_refused(tmp_path):
    state = pretrained(PatchSpec(1, (101 * 4, 12 * 4), (4, 4))).state_dict()
    with pytest.raises(NotThis, match="patches overlap"):
        AudioMae().read(opened(tmp_path, state))
