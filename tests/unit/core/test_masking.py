"""Mask samplers and count rules."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import CountRule, MaskConfig
from core.model.masking import keep_count, sampler, split_by_score


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


CASES = [
    (MaskConfig(), (7, 7)),
    (MaskConfig(ratio=0.9), (40,)),
    (MaskConfig(kind="tube", ratio=0.9, count_rule="floor_mask"), (8, 14, 14)),
    (MaskConfig(kind="block", block=(2, 3)), (7, 9)),
    (MaskConfig(kind="block", block=(2, 2, 2, 1)), (4, 4, 2, 3)),
    (MaskConfig(kind="axis", axis=1, ratio=0.6), (4, 10)),
    (MaskConfig(kind="axis", axis=0, ratio=0.5), (8, 3, 3)),
]


@pytest.mark.parametrize(("config", "grid"), CASES, ids=str)
def test_masks_partition_the_patches_with_equal_counts(config, grid):
    mask = sampler(config, grid)(5, rng(), None)
    both = torch.cat([mask.keep_BK, mask.masked_BM], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(math.prod(grid)).expand(5, -1))


@pytest.mark.parametrize(("config", "grid"), CASES, ids=str)
def test_masks_repeat_with_their_seed_and_differ_between_samples(config, grid):
    draw = sampler(config, grid)
    first, again, other = (draw(6, rng(seed), None) for seed in (1, 1, 2))
    assert torch.equal(first.keep_BK, again.keep_BK)
    assert torch.equal(first.masked_BM, again.masked_BM)
    assert not torch.equal(first.keep_BK.sort(1).values, other.keep_BK.sort(1).values)
    assert len({tuple(row.sort().values.tolist()) for row in first.keep_BK}) > 1


def test_counts_of_the_two_published_video_recipes():
    """1568 tokens at 0.9: 160 kept by the per-frame rule of tubes, 156 by the floor over all tokens."""
    tube = MaskConfig(kind="tube", ratio=0.9, count_rule="floor_mask")
    assert sampler(tube, (8, 14, 14))(2, rng(), None).keep_BK.shape[1] == 160
    assert sampler(MaskConfig(ratio=0.9), (8, 14, 14))(2, rng(), None).keep_BK.shape[1] == 156


def test_count_rules_name_the_floating_point_artefact():
    assert keep_count(100, 0.9, CountRule.FLOOR_KEEP) == 9
    assert keep_count(100, 0.9, CountRule.FLOOR_MASK) == 10
    assert keep_count(100, 0.9, CountRule.ROUND) == 10


@given(st.integers(2, 5000), st.floats(0.001, 0.999), st.sampled_from(CountRule))
def test_never_all_and_never_none(patches, ratio, rule):
    assert 1 <= keep_count(patches, ratio, rule) <= patches - 1


def test_one_patch_cannot_be_masked():
    with pytest.raises(ValueError, match="smaller"):
        keep_count(1, 0.5, CountRule.ROUND)


def test_tubes_hide_the_same_places_at_every_index():
    mask = sampler(MaskConfig(kind="tube", ratio=0.75), (4, 5, 5))(8, rng(), None)
    for row in mask.keep_BK:
        per_frame = [set((row[row // 25 == t] % 25).tolist()) for t in range(4)]
        assert all(places == per_frame[0] for places in per_frame)


def test_axis_masks_hide_whole_slices():
    mask = sampler(MaskConfig(kind="axis", axis=1, ratio=0.5), (4, 10))(8, rng(), None)
    for row in mask.keep_BK:
        columns = (row % 10).bincount(minlength=10)
        assert set(columns.tolist()) == {0, 4}


def test_blocks_are_cut_at_most_once():
    grid, block = (8, 8), (2, 2)
    mask = sampler(MaskConfig(kind="block", block=block, ratio=0.7), grid)(8, rng(), None)
    for row in mask.keep_BK:
        blocks = (row // 8 // 2 * 4 + row % 8 // 2).bincount(minlength=16)
        assert ((blocks > 0) & (blocks < 4)).sum() <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(2, 30), st.floats(0.05, 0.95), st.integers(0, 10**6))
def test_no_hidden_patch_is_among_the_kept_on_any_grid(height, width, ratio, seed):
    mask = sampler(MaskConfig(ratio=ratio), (height, width))(3, rng(seed), None)
    for kept, hidden in zip(mask.keep_BK, mask.masked_BM, strict=True):
        assert not set(kept.tolist()) & set(hidden.tolist())
        assert len(kept) + len(hidden) == height * width


def lengths(*given, grid=(16,)):
    """(B, N) bool: so many slices of the first axis are real."""
    real = torch.arange(grid[0]) < torch.tensor(given)[:, None]
    return real.repeat_interleave(math.prod(grid[1:]), dim=1)


@pytest.mark.parametrize("kind", ["random", "axis"])
def test_padding_is_kept_only_after_every_real_patch(kind):
    valid = lengths(16, 6, 2)
    mask = sampler(MaskConfig(kind=kind, ratio=0.75), (16,))(3, rng(), valid)
    assert valid.gather(1, mask.keep_BK).sum(1).tolist() == [4, 4, 2]


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 20), st.integers(1, 8), st.floats(0.05, 0.95), st.integers(0, 10**6), st.data())
def test_padding_never_takes_a_place_from_real_patches(frames, bands, ratio, seed, data):
    """Each patch once; none of the padding is kept while a real patch is hidden, whatever the lengths and the kind."""
    grid = frames, bands
    given_ = data.draw(st.lists(st.integers(1, frames), min_size=3, max_size=3))
    kind = data.draw(st.sampled_from(["random", "axis", "axes"]))
    valid = lengths(*given_, grid=grid)
    mask = sampler(MaskConfig(kind=kind, ratio=ratio, ratios=(ratio, 0)), grid)(3, rng(seed), valid)
    every = torch.cat([mask.keep_BK, mask.masked_BM], dim=1).sort(dim=1).values
    assert torch.equal(every, torch.arange(frames * bands).expand(3, -1))
    keep = mask.keep_BK.shape[1]
    for row, length in enumerate(given_):
        assert int(valid[row, mask.keep_BK[row]].sum()) == min(keep, length * bands)


def test_what_padding_leaves_room_for_is_shown_anywhere():
    valid = lengths(*[16] * 400, grid=(32, 4))
    config = MaskConfig(kind="axes", ratios=(0.7, 0.3))
    mask = sampler(config, (32, 4))(400, rng(), valid)
    shown = torch.zeros(400, 128).scatter(1, mask.keep_BK, 1.0).view(400, 32, 4).mean(dim=(0, 2))
    assert (shown[16:] == 0).all()
    assert (shown[:16] - shown[:16].mean()).abs().max() < 0.12


def test_the_realised_ratio_is_that_of_real_patches():
    valid = lengths(16, 6, 2)
    mask = sampler(MaskConfig(ratio=0.75), (16,))(3, rng(), valid)
    assert float(mask.realised(valid)) == pytest.approx((12 + 2 + 0) / 24)
    assert mask.realised(None) == mask.ratio == 0.75


@pytest.mark.parametrize("kind", ["random", "axis"])
def test_a_decoder_that_looks_at_some_hidden_patches_looks_at_real_ones(kind):
    valid = lengths(14, 11)
    mask = sampler(MaskConfig(kind=kind, ratio=0.5), (16,))(2, rng(), valid)
    hidden = valid.gather(1, mask.masked_BM)
    assert hidden[0, :6].all()
    assert hidden[1, :3].all()


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(101, 12), (80, 12), (512, 8), (64, 64)]), st.sampled_from([0.3, 0.5, 0.8]), st.integers(0, 999)
)
def test_masks_over_all_axes_hide_whole_slices_of_large_grids(grid, ratio, seed):
    """960 and 4,096 tokens: masks that add 999 to the ids of what they hide, as is done elsewhere, are wrong there."""
    config = MaskConfig(kind="axes", ratios=(ratio, 0.5), count_rule="floor_keep")
    mask = sampler(config, grid)(2, rng(seed), None)
    for kept, hidden in zip(mask.keep_BK, mask.masked_BM, strict=True):
        rows, columns = set((kept // grid[1]).tolist()), set((kept % grid[1]).tolist())
        assert not set(kept.tolist()) & set(hidden.tolist())
        assert len(kept) + len(hidden) == math.prod(grid)
        assert len(rows) == keep_count(grid[0], ratio, CountRule.FLOOR_KEEP)
        assert len(columns) == keep_count(grid[1], 0.5, CountRule.FLOOR_KEEP)
        assert len(kept) == len(rows) * len(columns)


def test_masks_over_all_axes_need_a_share_for_each():
    with pytest.raises(ValueError, match="one share for each axis"):
        sampler(MaskConfig(kind="axes", ratios=(0.5,)), (4, 4))
    with pytest.raises(ValueError, match="needs `ratios`"):
        MaskConfig(kind="axes")
    with pytest.raises(ValueError, match="nothing would be hidden"):
        sampler(MaskConfig(kind="axes", ratios=(0, 0)), (4, 4))


def test_every_patch_is_hidden_about_as_often():
    mask = sampler(MaskConfig(ratio=0.75), (6, 6))(4000, rng(), None)
    share = mask.masked_BM.flatten().bincount(minlength=36) / 4000
    assert (share - 0.75).abs().max() < 0.04


def test_realised_ratio_is_told():
    assert sampler(MaskConfig(ratio=0.75), (7, 7))(2, rng(), None).ratio == pytest.approx(37 / 49)


def test_lowest_scores_are_kept():
    mask = split_by_score(torch.tensor([[0.3, 0.1, 0.2, 0.9]]), 2)
    assert mask.keep_BK.tolist() == [[1, 2]]
    assert mask.masked_BM.tolist() == [[0, 3]]


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        (MaskConfig(kind="tube"), (8,)),
        (MaskConfig(kind="block", block=(2,)), (4, 4)),
        (MaskConfig(kind="axis", axis=2), (4, 4)),
    ],
    ids=str,
)
def test_a_mask_that_does_not_fit_the_grid_is_refused(config, grid):
    with pytest.raises(ValueError, match=r"grid|axes"):
        sampler(config, grid)
