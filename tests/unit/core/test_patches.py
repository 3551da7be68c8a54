"""Patch geometry on 1 to 4 axes."""

import math

import pytest
import torch

from core.model.patches import PatchSpec, gather_tokens
from core.model.positions import cut_or_extend, resample, sincos

SPECS = [
    PatchSpec(2, (32,), (4,)),
    PatchSpec(1, (24, 40), (4, 8)),
    PatchSpec(3, (32, 16), (16, 4)),
    PatchSpec(6, (4, 16, 24), (2, 8, 4)),
    PatchSpec(4, (4, 6, 2, 8), (2, 3, 1, 4)),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_round_trip_is_exact(spec):
    x = torch.randn(3, spec.channels, *spec.input_shape)
    patches = spec.patchify(x)
    assert patches.shape == (3, spec.count, spec.values)
    assert torch.equal(spec.unpatchify(patches), x)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_patch_holds_its_own_cell_with_channels_last(spec):
    x = torch.randn(1, spec.channels, *spec.input_shape)
    cell = tuple(n - 1 for n in spec.grid)
    where = tuple(slice(c * p, (c + 1) * p) for c, p in zip(cell, spec.patch_shape, strict=True))
    expected = x[(0, slice(None), *where)].movedim(0, -1).flatten()
    assert torch.equal(spec.patchify(x)[0, -1], expected)
    assert math.prod(spec.grid) == spec.count


@pytest.mark.parametrize(
    ("shape", "patch"), [((30,), (4,)), ((8, 8), (4,)), ((), ()), ((2,) * 5, (1,) * 5), ((8,), (0,))]
)
def test_impossible_geometry_is_refused(shape, patch):
    with pytest.raises(ValueError, match=r"patch|axes|positive"):
        PatchSpec(1, shape, patch)


def test_gather_picks_tokens_of_each_sample():
    x = torch.arange(24.0).reshape(2, 4, 3)
    picked = gather_tokens(x, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(picked[0, 0], x[0, 3])
    assert torch.equal(picked[1, 1], x[1, 1])


@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 4), (2, 2, 3, 2)])
@pytest.mark.parametrize("width", [48, 50])
def test_positions_tell_all_places_apart(grid, width):
    table = sincos(grid, width)
    assert table.shape == (math.prod(grid), width)
    assert len(torch.unique(table, dim=0)) == len(table)


def test_two_axis_positions_encode_the_last_axis_first():
    table = sincos((2, 3), 8)
    angle = torch.tensor(2.0)
    assert torch.allclose(
        table[2, :4], torch.stack([angle.sin(), (angle / 100).sin(), angle.cos(), (angle / 100).cos()])
    )
    assert torch.allclose(table[3, 4:6], torch.tensor([1.0, 0.01]).sin())
    assert torch.allclose(table[3, :4], torch.tensor([0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("old", "new"), [((4,), (9,)), ((4, 6), (8, 3)), ((2, 3, 4), (4, 3, 2)), ((2, 2, 2, 2), (3, 2, 2, 4))]
)
def test_resampling_keeps_constants_and_reaches_the_new_grid(old, new):
    table = torch.full((1, math.prod(old), 5), 3.0)
    out = resample(table, old, new)
    assert out.shape == (1, math.prod(new), 5)
    assert torch.allclose(out, torch.tensor(3.0), atol=1e-5)


def test_resampling_to_the_same_grid_changes_nothing():
    table = torch.randn(1, 12, 4)
    assert torch.equal(resample(table, (3, 4), (3, 4)), table)


def test_resampling_follows_the_right_axis():
    rows = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 3, 1).reshape(1, 12, 1)
    out = resample(rows, (4, 3), (8, 3)).reshape(8, 3)
    assert (out[1:] >= out[:-1]).all()
    assert torch.allclose(out[:, 0], out[:, 2], atol=1e-5)


def test_resampling_to_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="axes"):
        resample(torch.randn(1, 4, 2), (4,), (2, 2))


def test_positions_that_keep_their_distance_are_cut_and_only_stretched_where_there_are_none():
    table = torch.randn(1, 6 * 2, 4)
    assert torch.equal(cut_or_extend(table, (6, 2), (4, 2)), table[:, :8])
    assert torch.equal(cut_or_extend(table, (6, 2), (6, 1)), table.reshape(1, 6, 2, 4)[:, :, 0])
    assert torch.equal(cut_or_extend(table, (6, 2), (12, 2)), resample(table, (6, 2), (12, 2)))
    assert cut_or_extend(table, (6, 2), (9, 1)).shape == (1, 9, 4)
    with pytest.raises(ValueError, match="other number of axes"):
        cut_or_extend(table, (6, 2), (12,))
