"""Sheets of reconstructions, still and moving."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from core.evaluation.pictures import moving_sheet, rendered, sheet, sounds
from core.modality import Media


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
