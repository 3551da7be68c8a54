"""mae_st, SlowFast and the original VideoMAE, which are in no library: the same numbers as small models of ours."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.config import NormPix
from core.errors import NotThis
from core.interop import building
from core.interop.facebook_mae import FacebookMae
from core.interop.mae_st import MaeSt
from core.interop.videomae import VideoMae
from core.model.patches import PatchSpec, gather_tokens

sys.path.insert(0, str(Path(__file__).parent))
from references import mae_st, videomae
from references.comparing import (
    agree,
    drawn,
    hidden_in,
    hint,
    logits,
    opened,
    order_of,
    predictions,
    read,
    shaken,
    tokens,
)

SIZES = (128, 2, 2)
SQUARE = PatchSpec(3, (8, 24, 24), (2, 8, 8))
WIDE = PatchSpec(3, (8, 16, 24), (2, 8, 8))
"""A clip that is not square: VideoMAE's code takes it, mae_st's does not."""


def shape(spec):
    return spec.channels, spec.grid, spec.patch_shape


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("wrapped", ["model", "model_state"])
def test_mae_st_before_and_after_export(tmp_path, token, apart, wrapped):
    arguments = {"apart": apart, "token": token}
    theirs = shaken(mae_st.MaskedAutoencoderViT(*shape(SQUARE), *SIZES, 64, 1, 2, 1, **arguments))
    said = None if apart else hint((3, (8, 24, 24), (2, 8, 8)), 128, 2)
    foreign = read(opened(tmp_path, theirs.state_dict(), wrapped=wrapped), said)
    assert (foreign.geometry, foreign.model.cls_token, foreign.model.decoder.own_cls) == (SQUARE, token, token)
    x, _, mask = drawn(SQUARE)
    with torch.no_grad():
        agree("mae_st encoder", theirs.encode(x), tokens(foreign, x))
        expected = gather_tokens(theirs(x, order_of(mask), mask.keep_BK.shape[1]), mask.masked_BM)
    agree("mae_st reconstruction", expected, predictions(foreign, x, mask))
    config = MaeSt().config(foreign)
    assert (config["sep_pos_embed"], config["cls_embed"], config["t_patch_size"]) == (apart, token, 2)
    assert (config["pred_t_dim"], config["num_frames"], config["img_size"]) == (4, 8, 24)
    fresh = mae_st.MaskedAutoencoderViT(*shape(SQUARE), *SIZES, 64, 1, 2, 1, **arguments).double().eval()
    fresh.load_state_dict(MaeSt().write(foreign), strict=True)
    with torch.no_grad():
        again = gather_tokens(fresh(x, order_of(mask), mask.keep_BK.shape[1]), mask.masked_BM)
    agree("mae_st exported", expected, again)


def test_mae_sts_head_reads_through_its_norm(tmp_path):
    arguments = {"apart": True, "token": True, "classes": 5}
    theirs = shaken(mae_st.VisionTransformer(*shape(SQUARE), *SIZES, **arguments))
    state = theirs.state_dict()
    x, *_ = drawn(SQUARE)
    with torch.no_grad():
        expected = theirs(x)
    slowfast = {name.replace("head.", "head.projection."): value for name, value in state.items()}
    for number, given in enumerate((state, slowfast)):
        foreign = read(opened(tmp_path / str(number), given))
        agree("mae_st logits", expected, logits(foreign, x))
    fresh = mae_st.VisionTransformer(*shape(SQUARE), *SIZES, **arguments).double().eval()
    fresh.load_state_dict(MaeSt().write(foreign), strict=True)
    with torch.no_grad():
        agree("mae_st logits exported", expected, fresh(x))


def test_mae_sts_head_without_a_class_token_is_refused(tmp_path):
    theirs = mae_st.VisionTransformer(*shape(SQUARE), *SIZES, apart=True, token=False, classes=5)
    with pytest.raises(NotThis, match="leaves out the first patch"):
        MaeSt().read(opened(tmp_path, theirs.state_dict()))


@pytest.mark.parametrize("fused", [True, False])
def test_slowfasts_decoder_is_taken_over(tmp_path, fused):
    arguments = {"apart": True, "token": True, "attention": mae_st.Fused if fused else mae_st.Apart}
    theirs = shaken(mae_st.MaskMViT(*shape(SQUARE), *SIZES, 128, 2, 2, **arguments))
    foreign = read(opened(tmp_path, theirs.state_dict(), wrapped="model_state"))
    assert (foreign.model.decoder.own_cls, foreign.model.decoder.depth, foreign.model.decoder.heads) == (False, 2, 2)
    x, _, mask = drawn(SQUARE)
    with torch.no_grad():
        agree("SlowFast encoder", theirs.encode(x), tokens(foreign, x))
        expected = gather_tokens(theirs(x, order_of(mask), mask.keep_BK.shape[1]), mask.masked_BM)
    agree("SlowFast reconstruction", expected, predictions(foreign, x, mask))
    with pytest.raises(NotThis, match="a class token of its own"):
        MaeSt().write(foreign)


def test_positions_of_no_such_sum_are_written_in_one(tmp_path):
    theirs = shaken(mae_st.MaskedAutoencoderViT(*shape(SQUARE), *SIZES, 64, 1, 2, 2, apart=False, token=True))
    foreign = read(opened(tmp_path, theirs.state_dict()), hint((3, (8, 24, 24), (2, 8, 8)), 128, 2))
    assert "pos_embed" in MaeSt().write(foreign)
    assert "pos_embed_spatial" not in MaeSt().write(foreign)


def video(spec, seed=1):
    return shaken(videomae.PretrainVisionTransformer(*shape(spec), *SIZES, 64, 1, 1), seed)


@pytest.mark.parametrize("spec", [SQUARE, WIDE])
def test_videomae_before_and_after_export(tmp_path, spec):
    theirs = video(spec)
    foreign = read(
        opened(tmp_path, theirs.state_dict()), hint((3, spec.input_shape, spec.patch_shape), 128, 2, inner_heads=1)
    )
    assert (foreign.geometry, foreign.model.cls_token, foreign.model.positions) == (spec, False, "sincos_joint")
    assert foreign.norm_pix is NormPix.CHANNEL_STD
    x, _, mask = drawn(spec)
    hidden = hidden_in(mask, spec.count)
    with torch.no_grad():
        agree("videomae encoder", theirs.encoder(x), tokens(foreign, x))
        expected = theirs(x, hidden)
    agree("videomae reconstruction", expected, predictions(foreign, x, mask, grid_order=True))
    fresh = video(spec, seed=5)
    fresh.load_state_dict(VideoMae().write(foreign), strict=True)
    with torch.no_grad():
        agree("videomae exported", expected, fresh(x, hidden))
    alone = VideoMae().write(foreign.without_decoder())
    fresh.encoder.load_state_dict({name.removeprefix("encoder."): value for name, value in alone.items()}, strict=True)


def test_biases_of_queries_and_values_are_not_lost(tmp_path):
    """A release of transformers set them to zero without a word."""
    theirs = video(SQUARE)
    foreign = read(opened(tmp_path, theirs.state_dict()), hint((3, (8, 24, 24), (2, 8, 8)), 128, 2))
    for part, blocks in (("encoder", theirs.encoder.blocks), ("decoder", theirs.decoder.blocks)):
        for number, block in enumerate(blocks):
            query, key, value = foreign.state[f"{part}.blocks.{number}.attn.qkv.bias"].chunk(3)
            assert torch.equal(query, block.attn.q_bias)
            assert torch.equal(value, block.attn.v_bias)
            assert query.std() > 0.01
            assert not key.any()
    state = theirs.state_dict()
    state.pop("encoder.blocks.1.attn.v_bias")
    with pytest.raises(NotThis, match="lacks biases"):
        VideoMae().read(opened(tmp_path / "b", state))


@pytest.mark.parametrize("learned", [True, False])
def test_tuned_videomae_gives_the_same_logits(tmp_path, learned):
    theirs = shaken(videomae.VisionTransformer(*shape(WIDE), *SIZES, classes=5, learned=learned))
    foreign = read(opened(tmp_path, theirs.state_dict()), hint((3, (8, 16, 24), (2, 8, 8)), 128, 2))
    x, *_ = drawn(WIDE)
    with torch.no_grad():
        expected = theirs(x)
    agree("videomae logits", expected, logits(foreign, x))
    fresh = videomae.VisionTransformer(*shape(WIDE), *SIZES, classes=5, learned=learned).double().eval()
    fresh.load_state_dict(VideoMae().write(foreign), strict=True)
    with torch.no_grad():
        agree("videomae logits exported", expected, fresh(x))


def test_the_published_size_is_assumed_where_nobody_says_another(tmp_path):
    theirs = videomae.PretrainVisionTransformer(3, (8, 14, 14), (2, 16, 16), 64, 1, 1, 640, 1, 8)
    foreign = read(opened(tmp_path, theirs.state_dict()))
    assert foreign.geometry == PatchSpec(3, (16, 224, 224), (2, 16, 16))
    assert any("does not say the size of its clips" in note for note in foreign.notes)
    assert foreign.model.decoder.heads == 8  # As published; 64 features each would make ten.


def test_what_does_not_fit_is_said(tmp_path):
    theirs = video(SQUARE)
    foreign = read(opened(tmp_path, theirs.state_dict()), hint((3, (8, 24, 24), (2, 8, 8)), 128, 2, inner_heads=1))
    assert not building.autoencoder(foreign).decoder.embed.bias.any()
    biased = foreign.state | {"decoder.embed.bias": torch.ones(64, dtype=torch.float64)}
    with pytest.raises(NotThis, match=r"no place for the bias .* the encoder alone can be written"):
        VideoMae().write(replace(foreign, state=biased))
    elsewhere = foreign.state | {"encoder.pos_embed": torch.rand(1, SQUARE.count, 128, dtype=torch.float64)}
    with pytest.raises(NotThis, match="fixed positions"):
        VideoMae().write(replace(foreign, state=elsewhere))
    with pytest.raises(NotThis, match="for two axes; this model has three axes"):
        FacebookMae().write(foreign)
