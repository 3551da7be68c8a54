"""The same numbers as MONAI's masked autoencoder of two and three axes and its ViT, in and out."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import NotThis
from core.interop import building
from core.interop.monai import Monai
from core.model.patches import PatchSpec, gather_tokens

sys.path.insert(0, str(Path(__file__).parent))
from references.comparing import agree, drawn, hidden_in, hint, logits, opened, predictions, read, shaken, tokens

SPECS = {2: PatchSpec(1, (16, 24), (4, 8)), 3: PatchSpec(2, (8, 12, 16), (4, 4, 2))}
SIZES = {"hidden_size": 192, "mlp_dim": 100, "num_layers": 2, "num_heads": 3}
DECODER = {"decoder_hidden_size": 96, "decoder_mlp_dim": 60, "decoder_num_layers": 1, "decoder_num_heads": 3}
LAYOUT = Monai()


class Rearrange(torch.nn.Module):
    """What MONAI asks of einops: to part queries, keys, values and heads, to join heads, to cut patches."""

    def __init__(self, pattern, **sizes):
        super().__init__()
        self.pattern, self.sizes = pattern, sizes

    def forward(self, x):
        if self.pattern == "b h (qkv l d) -> qkv b l h d":
            return x.unflatten(-1, (3, self.sizes["l"], -1)).permute(2, 0, 3, 1, 4)
        if self.pattern == "b l h d -> b h (l d)":
            return x.transpose(1, 2).flatten(2)
        assert self.pattern == "b c (h p1) (w p2) (d p3) -> b (h w d) (p1 p2 p3 c)"
        rows, columns, slices = self.sizes.values()
        x = x.unflatten(4, (-1, slices)).unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        return x.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


@pytest.fixture(autouse=True)
def _without_einops(monkeypatch):
    from monai.networks.blocks import patchembedding, selfattention

    monkeypatch.setattr(selfattention, "Rearrange", Rearrange)
    monkeypatch.setattr(patchembedding, "Rearrange", Rearrange)


def geometry(axes):
    spec = SPECS[axes]
    return {
        "in_channels": spec.channels,
        "img_size": spec.input_shape,
        "patch_size": spec.patch_shape,
        "spatial_dims": axes,
    }


def masked(axes, **kwargs):
    from monai.networks.nets import MaskedAutoEncoderViT

    return MaskedAutoEncoderViT(**geometry(axes), **SIZES, **DECODER, **kwargs).double().eval()


def shaken_but_positions(model):
    """Random weights everywhere but in tables that are fixed."""
    kept = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    model = shaken(model)
    with torch.no_grad():
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)
    return model


def reconstructed(model, x, mask, count):
    """Its predictions for the hidden patches, with the mask given to it instead of drawn."""
    hidden = hidden_in(mask, count).int()
    model._masking = lambda seen, masking_ratio=None: (gather_tokens(seen, mask.keep_BK), mask.keep_BK, hidden)
    with torch.no_grad():
        found, theirs = model(x)
    assert torch.equal(theirs, hidden)
    return gather_tokens(found, mask.masked_BM)


def encoded(model, x):
    """Tokens of whole inputs, before which the class token stands."""
    with torch.no_grad():
        patches = model.patch_embedding(x)
        return model.blocks(torch.cat([model.cls_token.expand(len(x), -1, -1), patches], dim=1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axes", [2, 3])
def test_masked_autoencoders_before_and_after_export(tmp_path, axes, bias):
    spec, theirs = SPECS[axes], shaken_but_positions(masked(axes, qkv_bias=bias))
    foreign = read(opened(tmp_path, theirs.state_dict(), wrapped="state_dict"))
    assert foreign.geometry == spec
    # With three axes MONAI gives the second of them the first share of the features, so its table is not ours.
    assert foreign.model.positions == ("sincos" if axes == 2 else "learned")
    assert (foreign.model.norm_eps, foreign.model.heads, foreign.model.decoder.heads) == (1e-5, 3, 3)
    assert foreign.model.mlp_ratio != foreign.model.decoder.mlp_ratio
    x, _, mask = drawn(spec)
    agree(f"MONAI {axes} encoder", encoded(theirs, x), tokens(foreign, x))
    expected = reconstructed(theirs, x, mask, spec.count)
    agree(f"MONAI {axes} reconstruction", expected, predictions(foreign, x, mask))
    from monai.networks.nets import MaskedAutoEncoderViT

    arguments = LAYOUT.config(foreign)
    assert arguments["qkv_bias"] is bias
    fresh = MaskedAutoEncoderViT(**arguments).double().eval()
    fresh.load_state_dict(LAYOUT.write(foreign), strict=True)
    agree(f"MONAI {axes} exported", expected, reconstructed(fresh, x, mask, spec.count))
    assert LAYOUT.remarks(foreign) == ()


def test_learned_positions_and_linear_projections_need_the_recipe(tmp_path):
    kinds = {"pos_embed_type": "learnable", "decoder_pos_embed_type": "learnable", "proj_type": "perceptron"}
    theirs = shaken(masked(3, **kinds))
    checkpoint = opened(tmp_path, theirs.state_dict())
    assert "patch_embedding.patch_embeddings.1.weight" in checkpoint.state
    with pytest.raises(NotThis, match=r"the shape of its patches of 64 values|how its 48 positions lie"):
        read(checkpoint)
    spec = SPECS[3]
    foreign = read(checkpoint, hint((spec.channels, spec.input_shape, spec.patch_shape), 192, 3, 96, 3))
    x, _, mask = drawn(spec)
    agree("MONAI perceptron encoder", encoded(theirs, x), tokens(foreign, x))
    agree("MONAI perceptron", reconstructed(theirs, x, mask, spec.count), predictions(foreign, x, mask))


def test_cubes_of_one_channel_are_taken_for_granted_and_said(tmp_path):
    from monai.networks.nets import MaskedAutoEncoderViT

    sizes = {"in_channels": 1, "img_size": 16, "patch_size": 4, "proj_type": "perceptron"}
    theirs = shaken_but_positions(MaskedAutoEncoderViT(**sizes, **SIZES, **DECODER))
    foreign = read(opened(tmp_path, theirs.state_dict()))
    assert foreign.geometry == PatchSpec(1, (16, 16, 16), (4, 4, 4))
    assert any("are taken for cubes of one channel" in note for note in foreign.notes)
    x, *_ = drawn(foreign.geometry)
    agree("MONAI cubes", encoded(theirs, x), tokens(foreign, x))


def test_layers_that_were_never_computed_are_left_out_of_older_files(tmp_path):
    """Blocks held a cross-attention once, whether they had one or not."""
    theirs = shaken_but_positions(masked(3))
    state = theirs.state_dict()
    old = {f"blocks.0.cross_attn.{name}.weight": torch.rand(192, 192).double() for name in ("to_q", "to_k", "out_proj")}
    foreign = read(opened(tmp_path, state | old))
    assert foreign.notes == ("3 weights of a cross-attention that MONAI's model never computes are left out",)
    x, *_ = drawn(SPECS[3])
    agree("MONAI old", encoded(theirs, x), tokens(foreign, x))


def vit(axes, **kwargs):
    from monai.networks.nets import ViT

    return ViT(**geometry(axes), **SIZES, pos_embed_type="sincos", **kwargs).double().eval()


@pytest.mark.parametrize("axes", [2, 3])
def test_the_encoder_of_unetr_before_and_after_export(tmp_path, axes):
    from monai.networks.nets import ViT

    theirs = shaken_but_positions(vit(axes))
    foreign = read(opened(tmp_path, theirs.state_dict()))
    assert not foreign.model.cls_token
    x, *_ = drawn(SPECS[axes])
    fresh = ViT(**LAYOUT.config(foreign)).double().eval()
    fresh.load_state_dict(LAYOUT.write(foreign), strict=True)
    with torch.no_grad():
        agree(f"MONAI ViT {axes}", theirs(x)[0], tokens(foreign, x))
        agree(f"MONAI ViT {axes} exported", theirs(x)[0], fresh(x)[0])
    with pytest.raises(NotThis, match="holds an encoder alone"):
        building.autoencoder(foreign)


def test_heads_before_and_after_export(tmp_path):
    from monai.networks.nets import ViT

    theirs = shaken_but_positions(vit(3, classification=True, num_classes=5, post_activation=""))
    foreign = read(opened(tmp_path, theirs.state_dict()))
    x, *_ = drawn(SPECS[3])
    fresh = ViT(**LAYOUT.config(foreign)).double().eval()
    fresh.load_state_dict(LAYOUT.write(foreign), strict=True)
    with torch.no_grad():
        agree("MONAI logits", theirs(x)[0], logits(foreign, x))
        agree("MONAI logits exported", theirs(x)[0], fresh(x)[0])
    bounded = vit(3, classification=True, num_classes=5)
    names = {"classification_head.0.weight", "classification_head.0.bias"}
    assert any("tangent" in note for note in read(opened(tmp_path / "b", bounded.state_dict()), leftover=names).notes)


def test_a_position_of_the_class_token_goes_into_the_token(tmp_path):
    foreign = read(opened(tmp_path, shaken_but_positions(masked(3)).state_dict()))
    state = dict(foreign.state)
    state["encoder.pos_embed"] = state["encoder.pos_embed"].clone()
    state["encoder.pos_embed"][:, 0] = 0.3
    moved = replace(foreign, state=state)
    x, *_ = drawn(SPECS[3])
    fresh = masked(3)
    fresh.load_state_dict(LAYOUT.write(moved), strict=True)
    agree("MONAI class token", encoded(fresh, x), tokens(moved, x))
    state["decoder.pos_embed"] = state["decoder.pos_embed"] + 1
    with pytest.raises(NotThis, match="gives the class token no position"):
        LAYOUT.write(moved)


def test_what_does_not_fit_is_said(tmp_path):
    foreign = read(opened(tmp_path, shaken_but_positions(masked(3)).state_dict()))
    with pytest.raises(NotThis, match="has no class token, and this model has one"):
        LAYOUT.write(foreign.without_decoder())
    same = foreign.model.model_copy(update={"norm_eps": 1e-6})
    assert "layer norms add 1e-05" in LAYOUT.remarks(replace(foreign, model=same))[0]
