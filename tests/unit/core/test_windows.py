"""Attention in windows: neighbours alone, on any grid, with padding and with patches left out."""

import pytest
import torch

from core.config import DecoderConfig, ModelConfig
from core.model.mae import Decoder, blocks
from core.model.patches import PatchSpec
from core.model.windows import Partition, WindowedBlocks


def reach(grid, window, shift, depth, start):
    """Which patches a change of patch ``start`` reaches through ``depth`` blocks."""
    torch.manual_seed(0)
    count, parts = torch.Size(grid).numel(), blocks(16, depth, 2, 2.0, 0.0).double().eval()
    local = WindowedBlocks(grid, window, shift)
    ids = torch.randperm(count)[None]
    tokens = torch.randn(1, count, 16, dtype=torch.float64)
    other = tokens.clone()
    other[0, ids[0] == start] += torch.randn(16, dtype=torch.float64)
    with torch.no_grad():
        moved = (local(parts, tokens, ids, None) - local(parts, other, ids, None)).abs().sum(-1)[0] > 1e-12
    return set(ids[0, moved].tolist())


def test_one_block_reaches_the_window_and_two_reach_the_neighbouring_ones():
    grid, window = (8, 4), (4, 2)
    assert reach(grid, window, (2, 0), 1, start=0) == {0, 1, 4, 5, 8, 9, 12, 13}
    # The shifted windows start two rows early, so that rows 2 to 5 are one window: it does not reach round the edge.
    assert reach(grid, window, (2, 0), 2, start=0) == {row * 4 + column for row in range(6) for column in (0, 1)}


@pytest.mark.parametrize(("grid", "window"), [((7,), (3,)), ((5, 7), (2, 3)), ((3, 4, 5), (2, 2, 2)), ((2, 2), (4, 4))])
def test_every_patch_stands_in_one_window_of_any_grid(grid, window):
    count = torch.Size(grid).numel()
    local = WindowedBlocks(grid, window, None)
    for partition in local.partitions:
        assert isinstance(partition, Partition)
        inside = partition.order[partition.order < count]
        assert torch.equal(inside.sort().values, torch.arange(count))
        assert torch.equal(partition.order.flatten()[partition.inverse], torch.arange(count))


@pytest.mark.parametrize(
    ("grid", "window", "shift"), [((12,), (4,), (1,)), ((12,), (4,), (3,)), ((12, 6), (6, 3), (2, 1))]
)
def test_shifted_windows_are_those_of_a_cyclic_shift_without_what_comes_round(grid, window, shift):
    """Swin rolls the grid back by the shift, cuts it, and lets only patches attend that were neighbours before."""
    count = torch.Size(grid).numel()
    numbers = torch.arange(count).view(grid)
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), dim=-1).view(-1, len(grid))
    moved = torch.roll(places.view(*grid, -1), [-s for s in shift], dims=list(range(len(grid)))).view(-1, len(grid))
    order = torch.roll(numbers, [-s for s in shift], dims=list(range(len(grid)))).flatten()
    together = (places // torch.tensor(window)).tolist()
    round_ = (moved < torch.tensor(shift)).tolist()
    expected = {}
    for patch, *key in zip(order.tolist(), map(tuple, together), map(tuple, round_), strict=True):
        expected.setdefault(tuple(key), set()).add(patch)
    partition = WindowedBlocks(grid, window, shift).partitions[1]
    found = [set(row[row < count].tolist()) for row in partition.order]
    assert sorted(map(sorted, filter(None, found))) == sorted(map(sorted, expected.values()))


def test_what_is_padding_or_absent_changes_nothing():
    torch.manual_seed(0)
    spec = PatchSpec(1, (8, 4), (1, 1))
    size = DecoderConfig(width=16, depth=3, heads=2, attention="local", window=(4, 2), shift=(2, 1))
    decoder = Decoder(spec, ModelConfig(width=16, depth=1, heads=2, cls_token=True, decoder=size)).double()
    keep, hidden = torch.arange(0, 32, 4)[None], torch.tensor([[1, 2, 9, 18, 30]])
    valid = torch.ones(1, 32, dtype=torch.bool)
    valid[0, 28:] = False
    encoded = torch.randn(1, 9, 16, dtype=torch.float64)
    spoiled = encoded.clone()
    spoiled[0, 8] += 5  # Patch 28, which is padding; the class token stands before the others.
    real = valid[0, hidden[0]]
    one, other = decoder(encoded, keep, hidden, valid), decoder(spoiled, keep, hidden, valid)
    assert torch.isfinite(one).all()
    assert torch.equal(one[0, real], other[0, real])
    fewer = decoder(encoded, keep, hidden[:, :3], valid)
    assert fewer.shape == (1, 3, spec.values)


def test_whole_windows_of_padding_do_not_spoil_gradients():
    torch.manual_seed(0)
    parts = blocks(16, 2, 2, 2.0, 0.0)
    tokens = torch.randn(2, 16, 16, requires_grad=True)
    valid = torch.arange(16)[None] < torch.tensor([[16], [3]])
    out = WindowedBlocks((16,), (4,), (2,))(parts, tokens, torch.arange(16).expand(2, -1), valid)
    (out * valid[..., None]).sum().backward()
    assert torch.isfinite(tokens.grad).all()


def test_a_window_needs_an_extent_for_each_axis():
    with pytest.raises(ValueError, match=r"decoder.window \(4,\)"):
        WindowedBlocks((8, 4), (4,), None)
    with pytest.raises(ValueError, match="needs `window`"):
        DecoderConfig(attention="local")
    with pytest.raises(ValueError, match="one number for each"):
        DecoderConfig(attention="local", window=(4, 4), shift=(2,))
