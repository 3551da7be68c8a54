"""Weights brought to other channels, patches and axes say of the same input what they said before."""

import pytest
import torch

from core.config import ModelConfig
from core.interop.adapt import adapted, with_axes, with_channels, with_grid, with_patch
from core.interop.foreign import Foreign
from core.model.mae import Encoder
from core.model.patches import PatchSpec
from core.model.positions import sincos


def kernel(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_grey_pictures_give_what_they_gave_in_three_equal_channels():
    weight, grey = kernel(8, 3, 4, 4), kernel(1, 1, 4, 4)
    before = torch.einsum("dchw,bchw->bd", weight, grey.expand(1, 3, 4, 4))
    torch.testing.assert_close(torch.einsum("dchw,bchw->bd", with_channels(weight, 1), grey), before)


@pytest.mark.parametrize(("old", "new"), [(3, 8), (1, 3), (3, 2), (4, 5)])
def test_repeated_channels_keep_the_size_of_outputs(old, new):
    weight = with_channels(kernel(512, old, 4, 4), new)
    assert weight.shape == (512, new, 4, 4)
    ones = torch.ones(1, old, 4, 4, dtype=torch.float64)
    assert float(weight[:, 0].sum()) * new / old == pytest.approx(float(kernel(512, old, 4, 4)[:, 0].sum()))
    if new % old == 0:
        more = torch.ones(1, new, 4, 4, dtype=torch.float64)
        before = torch.einsum("dchw,bchw->bd", kernel(512, old, 4, 4), ones)
        torch.testing.assert_close(torch.einsum("dchw,bchw->bd", weight, more), before)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (16, 16), (20, 12)])
def test_patches_are_resized_as_timm_does(size):
    from timm.layers.patch_embed import resample_patch_embed

    weight = kernel(8, 3, 16, 16).float()
    theirs = resample_patch_embed(weight.clone(), list(size), interpolation="bicubic", antialias=True)
    torch.testing.assert_close(with_patch(weight, size), theirs, atol=2e-5, rtol=1e-4)


def test_a_larger_patch_says_of_an_enlarged_input_what_the_smaller_one_said():
    from core.interop.adapt import resizing

    weight, x = kernel(8, 1, 4, 4), kernel(1, 1, 4, 4)
    along = resizing(4, 8)
    larger = torch.einsum("ah,bw,nchw->ncab", along, along, x)
    before = torch.einsum("dchw,bchw->bd", weight, x)
    torch.testing.assert_close(torch.einsum("dchw,bchw->bd", with_patch(weight, (8, 8)), larger), before)


@pytest.mark.parametrize("axes", [3, 4])
def test_what_stands_still_gives_what_its_picture_gave_and_back(axes):
    weight, picture = kernel(8, 3, 4, 4), kernel(2, 3, 4, 4)
    patch = (*(2, 3)[: axes - 2], 4, 4)
    inflated = with_axes(weight, axes, patch)
    assert inflated.shape == (8, 3, *patch)
    still = picture.reshape(2, 3, *[1] * (axes - 2), 4, 4).expand(2, 3, *patch)
    before = torch.einsum("dchw,bchw->bd", weight, picture)
    torch.testing.assert_close((inflated.flatten(1) @ still.flatten(1).T).T, before)
    torch.testing.assert_close(with_axes(inflated, 2, (4, 4)), weight)


def test_positions_of_a_new_axis_are_repeated_and_of_a_lost_one_averaged():
    table = torch.cat([torch.zeros(1, 1, 8), sincos((3, 4), 8)[None]], dim=1)
    longer = with_grid(table, (3, 4), (2, 3, 4))
    assert longer.shape == (1, 1 + 24, 8)
    assert torch.equal(longer[:, 1:13], longer[:, 13:])
    torch.testing.assert_close(with_grid(longer, (2, 3, 4), (3, 4)), table)
    assert with_grid(table, (3, 4), (2, 6, 8)).shape == (1, 1 + 96, 8)


def test_positions_that_are_no_fixed_table_any_more_are_learned_from_there_on():
    old, new = PatchSpec(3, (16, 16), (4, 4)), PatchSpec(3, (8, 24), (4, 4))
    config = ModelConfig(width=32, depth=1, heads=2)
    state = {f"encoder.{name}": value for name, value in Encoder(old, config).state_dict().items()}
    model = Foreign("ours", state, config, old)
    kept, _ = adapted(model, new)
    crossed, done = adapted(model, new, native=False)
    assert (kept.model.positions, kept.geometry.grid) == ("sincos", (4, 4))
    assert (crossed.model.positions, crossed.geometry.grid) == ("learned", (2, 6))
    assert done == ("positions of 4 x 4 patches -> 2 x 6: resampled along each axis",)


def test_half_precision_is_left_before_sums_are_taken():
    spec, config = PatchSpec(3, (16, 16), (4, 4)), ModelConfig(width=32, depth=1, heads=2)
    state = {f"encoder.{name}": value.bfloat16() for name, value in Encoder(spec, config).state_dict().items()}
    whole, _ = adapted(Foreign("ours", state, config, spec), PatchSpec(1, (16, 16), (4, 4)))
    exact = state["encoder.patch_embed.proj.weight"].float().sum(1, keepdim=True)
    assert torch.equal(whole.state["encoder.patch_embed.proj.weight"], exact)


def test_nothing_is_done_where_nothing_differs():
    spec, config = PatchSpec(3, (16, 16), (4, 4)), ModelConfig(width=32, depth=1, heads=2)
    state = {f"encoder.{name}": value for name, value in Encoder(spec, config).state_dict().items()}
    whole, done = adapted(Foreign("ours", state, config, spec), spec)
    assert done == ()
    assert all(torch.equal(whole.state[name], value) for name, value in state.items())
    assert whole.geometry == spec
