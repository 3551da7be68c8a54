"""Plugins that read masks keep the contract, and masks that go astray are found."""

import numpy as np
import pytest
from PIL import Image

from core.testing.rules import Kit
from core.testing.subject import subject
from core.testing.suite import RULES
from flows.testing import ModalityContract
from modalities.image.plugin import ImageModality

RECIPE = """
# Masks of small images
modality: image
data: {size: [24, 24], patch: [6, 6], channels: 1, pretrain: {crop_scale: [1, 1]}, finetune: {crop_scale: [0.5, 1]}}
task: {kind: segmentation, classes: [nothing, disc]}
"""


def write(folder):
    """Two dozen images with a disc on a slope, and their masks."""
    rows, columns = np.mgrid[:34, :30]
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number in range(24):
        rng = np.random.default_rng(number)
        mask = (np.hypot(rows - rng.integers(5, 29), columns - rng.integers(5, 25)) < 5).astype(np.uint8)
        Image.fromarray((3 * rows + 80 * mask + columns).astype(np.uint8)).save(folder / f"images/{number:02d}.png")
        Image.fromarray(mask).save(folder / f"masks/{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "masks.yaml"
    file.write_text(RECIPE)
    return str(file)


class TestImageMasks(ModalityContract):
    modality = "image"

    @pytest.fixture(autouse=True)
    def _named(self, recipe):
        type(self).recipe = recipe

    def source(self, folder):
        return write(folder)


def seen(recipe):
    with subject("image", write, recipe) as under_test:
        return Kit(under_test, RULES).finding("dense-targets")


def test_a_mask_that_is_not_mirrored_with_its_image_is_found(recipe, monkeypatch):
    batch = ImageModality.batch

    def left_behind(self, samples, stats, rng, train):
        made = batch(self, samples, stats, rng, train)
        made.target = samples.target
        return made

    monkeypatch.setattr(ImageModality, "batch", left_behind)
    assert "lie apart along axis 1" in seen(recipe).text


def test_windows_that_leave_something_out_are_found(recipe, monkeypatch):
    monkeypatch.setattr(ImageModality, "views", lambda self, record, views=ImageModality.views: views(self, record)[1:])
    assert "is in no window" in seen(recipe).text


def test_a_mask_out_of_place_is_found(recipe, monkeypatch):
    cut = ImageModality._cut

    def moved(self, pixels, mask, corner):
        return cut(self, pixels, None if mask is None else np.roll(mask, corner[0], axis=0), corner)

    monkeypatch.setattr(ImageModality, "_cut", moved)
    assert "overlapping windows of its mask disagree" in seen(recipe).text
