"""Sheets of reconstructions, still and moving."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import ModelConfig, PretrainConfig
from core.evaluation.pictures import most_to_show, moving_sheet, reconstruct, rendered, sheet, sounds
from core.modality import Batch, Media, Stats
from core.model.mae import MaskedAutoencoder
from core.model.masking import sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec


def encoded(pages, kind, **options):
    out = io.BytesIO()
    pages[0].save(out, kind, **options)
    return out.getvalue()


class Clips:
    """Renders (1, T, H, W) as grey: the first frame, and all of them."""

    def __init__(self, moving=True):
        self.moving = moving

    def render(self, x):
        frames = [Image.fromarray((frame * 255).astype(np.uint8)) for frame in x[0]]
        media = [Media("image", ".png", encoded(frames, "PNG"))]
        if self.moving:
            data = encoded(frames, "GIF", save_all=True, append_images=frames[1:], duration=40)
            media.append(Media("animation", ".gif", data))
        return media


@pytest.fixture
def columns():
    """Six clips of 5 frames that grow brighter, in three columns."""
    x = torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1).expand(6, 1, 5, 8, 10)
    return x, x * 0.5, x * 0


def test_a_sheet_has_a_row_per_sample_and_a_column_per_tensor(columns):
    with Image.open(io.BytesIO(sheet(rendered(Clips(), columns)))) as page:
        assert page.size == (3 * 14 - 4, 6 * 12 - 4)


def test_a_moving_sheet_moves_as_the_clips_do(columns):
    with Image.open(io.BytesIO(moving_sheet(rendered(Clips(), columns), rows=2))) as page:
        assert page.n_frames == 5
        assert page.size == (3 * 14 - 4, 2 * 12 - 4)
        assert page.info["duration"] == 40
        assert page.info["loop"] == 0
        seen = []
        for number in range(5):
            page.seek(number)
            rgb = page.convert("RGB")
            seen.append((rgb.getpixel((2, 2))[0], rgb.getpixel((16, 2))[0], rgb.getpixel((30, 2))[0]))
    for number, (whole, half, none) in enumerate(seen):
        assert abs(whole - 255 * number / 4) <= 8
        assert abs(half - 127 * number / 4) <= 8
        assert none <= 8


def test_what_does_not_move_has_no_moving_sheet(columns):
    assert moving_sheet(rendered(Clips(moving=False), columns)) is None
    assert sounds(rendered(Clips(moving=False), columns)) == []


def test_the_first_samples_are_heard_in_every_column(columns):
    class Tones:
        def render(self, x):
            return [Media("image", ".png", b""), Media("sound", ".flac", b"%.2f" % x.max())]

    found = [(name, media.data) for name, media in sounds(rendered(Tones(), columns), rows=2)]
    one = [("original", b"1.00"), ("masked", b"0.50"), ("reconstructed", b"0.00")]
    assert found == [(f"{row}-{name}", data) for row in (1, 2) for name, data in one]


def padded(*lengths):
    """A batch of curves of 8 patches of 2 values, of which as many patches are real as ``lengths`` say."""
    x = torch.randn(len(lengths), 1, 16, generator=torch.Generator().manual_seed(0))
    return Batch(x, valid=torch.arange(8) < torch.tensor(lengths)[:, None])


def test_padding_is_no_part_of_a_reconstruction():
    model = ModelConfig(width=16, depth=1, heads=2, decoder={"width": 16, "depth": 1, "heads": 2})
    spec, config = PatchSpec(1, (16,), (2,)), PretrainConfig()
    stats = Stats(torch.tensor([3.0]), torch.tensor([2.0]))
    masks = sampler(config.mask, spec.grid)
    objective = MaskedObjective(MaskedAutoencoder(spec, model), config, masks, stats).eval()
    batch = padded(8, 5)
    original, masked, filled = reconstruct(objective, batch, torch.Generator().manual_seed(0))
    assert torch.allclose(original[0], stats.restore(batch.x)[0])
    for column in (original, masked, filled):
        assert torch.isfinite(column[0]).all()
        assert torch.isfinite(column[1, :, :10]).all()
        assert torch.isnan(column[1, :, 10:]).all()


def test_samples_with_little_padding_are_shown():
    batch = padded(3, 8, 5, 8, 1, 5)
    chosen = most_to_show(batch, 4)
    assert torch.equal(chosen.x, batch.x[[1, 3, 2, 5]])
    assert torch.equal(chosen.valid, batch.valid[[1, 3, 2, 5]])
    whole = Batch(batch.x)
    assert torch.equal(most_to_show(whole, 4).x, batch.x[:4])
    assert most_to_show(whole, 9).x.shape[0] == 6
