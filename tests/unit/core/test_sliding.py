"""Windows that cover, predictions stitched from them, and distances between surfaces, against MONAI."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.windows import cut_window, overlap_of, window_places
from core.errors import StageError
from core.evaluation.sliding import blend_weights, predict_whole
from core.evaluation.surfaces import distances
from core.modality import Batch, Record, Sample, Stats
from core.model.patches import PatchSpec
from core.segmentation import Segmentation
from core.stages.segmenting import surfaces

EXTENTS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(EXTENTS, st.floats(0, 1))
def test_windows_cover_the_whole_and_overlap_as_asked(extents, overlap):
    whole, window = zip(*extents, strict=True)
    places = window_places(whole, window, overlap)
    assert len(set(places)) == len(places)
    for axis, (extent, size) in enumerate(extents):
        corners = sorted({place[axis] for place in places})
        assert corners[0] == 0
        assert corners[-1] == max(0, extent - size)
        steps = np.diff(corners)
        # Even to a whole element, and neighbours share what is asked for to a whole element.
        assert len(steps) == 0 or (
            steps.max() <= max(1, size * (1 - overlap) + 1e-6) and steps.max() - steps.min() <= 1
        )


def test_a_window_that_reaches_out_is_filled():
    array = np.arange(12).reshape(3, 4)
    cut = cut_window(array, (-1, 2), (3, 3), 99)
    assert cut.tolist() == [[99, 99, 99], [2, 3, 99], [6, 7, 99]]
    assert cut_window(array[None], (1, 1), (2, 2), 0)[0].tolist() == array[1:, 1:3].tolist()
    assert overlap_of((9,), (3,), (4,))[0] == (slice(9, 9),)


class Windows:
    """A plugin as far as stitching asks: arrays (C, *shape) as records."""

    def __init__(self, window, overlap=0.5, places=None):
        self.window, self.overlap, self.places = window, overlap, places

    def patches(self):
        return PatchSpec(1, self.window, (1,) * len(self.window))

    def views(self, record):
        array, mask = record.meta["array"], record.meta["mask"]
        return [
            Sample(cut_window(array, p, self.window, 0), cut_window(mask, p, self.window, 255), None, p, mask.shape)
            for p in self.places or window_places(mask.shape, self.window, self.overlap)
        ]

    def batch(self, samples, stats, rng, train):
        return Batch(samples.data.float())


def record_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    meta = {
        "array": rng.normal(size=(1, *shape)).astype(np.float32),
        "mask": rng.integers(0, 3, shape).astype(np.uint8),
    }
    return Record("r", b"", "raw", shape, "float32", meta=meta)


def network(axes, seed=0):
    torch.manual_seed(seed)
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[axes - 1]
    return torch.nn.Sequential(conv(1, 4, 3, padding=1), torch.nn.GELU(), conv(4, 3, 3, padding=1)).requires_grad_(
        False
    )


def stitched(plugin, record, model, batch=3, blend="gaussian"):
    stats = Stats(torch.zeros(1), torch.ones(1))
    return predict_whole(lambda b: model(b.x), record, plugin, stats, outputs=3, batch=batch, blend=blend)


@pytest.mark.parametrize("shape", [(9,), (6, 9), (5, 6, 7)])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_one_window_gives_what_the_whole_gives(shape, blend):
    record, model = record_of(shape), network(len(shape))
    logits, mask = stitched(Windows(shape), record, model, blend=blend)
    assert torch.allclose(logits, model(torch.from_numpy(record.meta["array"])[None])[0], atol=1e-6)
    assert np.array_equal(mask, record.meta["mask"])


def test_a_record_smaller_than_the_window_keeps_its_own_extent():
    record, model = record_of((5, 3)), network(2)
    logits, mask = stitched(Windows((8, 4)), record, model)
    padded = torch.nn.functional.pad(torch.from_numpy(record.meta["array"]), (0, 1, 0, 3))
    assert torch.allclose(logits, model(padded[None])[0, :, :5, :3], atol=1e-6)
    assert np.array_equal(mask, record.meta["mask"])


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [((24, 20), (8, 8), 0.5), ((18, 16, 12), (6, 8, 4), 0.5), ((26, 20), (8, 8), 0.25), ((20, 32), (8, 8), 0.75)],
)
def test_stitching_equals_monais_where_windows_stand_alike(shape, window, overlap, blend):
    """MONAI's windows keep their step and move the last one back; ours stand evenly. These shapes suit both."""
    from monai.inferers import sliding_window_inference

    record, model = record_of(shape), network(len(shape))
    logits, _ = stitched(Windows(window, overlap), record, model, batch=4, blend=blend)
    x = torch.from_numpy(record.meta["array"])[None]
    expected = sliding_window_inference(x, window, 4, model, overlap=overlap, mode=blend)[0]
    assert (logits - expected).abs().max() < 1e-5
    if blend == "gaussian":
        from monai.data.utils import compute_importance_map

        assert torch.allclose(blend_weights(window, blend), compute_importance_map(window, mode="gaussian"), atol=1e-7)


def test_the_batch_size_changes_nothing_and_gaps_are_found():
    record, model = record_of((20, 13)), network(2)
    one, many = (stitched(Windows((8, 6)), record, model, batch=batch)[0] for batch in (1, 100))
    assert torch.allclose(one, many, atol=1e-6)
    with pytest.raises(StageError, match=r"leave 81.5% of a record out"):
        stitched(Windows((8, 6), places=[(0, 0)]), record, model)
    silent = SimpleNamespace(views=lambda r: [Sample(r.meta["array"])], patches=Windows((20, 13)).patches)
    with pytest.raises(StageError, match="do not tell `place`"):
        stitched(silent, record, model)


# --- distances and Dice -----------------------------------------------------------------------------------------------


def blobs(shape, seed):
    """Two random masks of three classes that are not all noise."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    fields = gaussian_filter(rng.normal(size=(2, 3, *shape)), (0, 0, *[1.5] * len(shape)))
    fields[1] += 0.7 * fields[0]
    return torch.from_numpy(fields.argmax(1))


def one_hot(mask):
    return torch.nn.functional.one_hot(mask, 3).movedim(-1, 0)[None]


@pytest.mark.parametrize(
    ("shape", "spacing"), [((30, 24), (1.0, 1.0)), ((30, 24), (0.7, 2.5)), ((16, 20, 12), (0.9, 0.5, 3.0))]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_and_dice_equal_monais(shape, spacing, seed):
    from monai.metrics import DiceMetric, HausdorffDistanceMetric

    predicted, truth = blobs(shape, seed)
    found = surfaces(predicted, truth, ("a", "b", "c"), spacing)
    for name, percentile in (("hausdorff", None), ("hd95", 95)):
        metric = HausdorffDistanceMetric(include_background=False, percentile=percentile, reduction="none")
        expected = metric(one_hot(predicted), one_hot(truth), spacing=list(spacing))[0].tolist()
        assert [found[name]["b"], found[name]["c"]] == pytest.approx(expected, rel=1e-5)
    dice = Segmentation.dice(counts(predicted[None], truth[None]))[0]
    theirs = DiceMetric(include_background=True, reduction="none")(one_hot(predicted), one_hot(truth))[0]
    assert torch.allclose(dice.float(), theirs)


def counts(predicted, truth):
    from core.config import TaskConfig
    from core.records import Target

    config = TaskConfig(kind="segmentation", classes=("a", "b", "c"))
    return Segmentation(Target(task=config, classes=config.classes, outputs=3)).counts(predicted, truth)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_distances_equal_those_of_all_pairs_of_surface_elements(axes):
    rng = np.random.default_rng(axes)
    shape, spacing = (7, 6, 5)[:axes], (1.5, 0.5, 2.0)[:axes]
    one, other = rng.random(shape) < 0.6, rng.random(shape) < 0.3
    points = [np.array([p for p in itertools.product(*map(range, shape)) if on_surface(m, p)]) for m in (one, other)]
    every = np.linalg.norm((points[0][:, None] - points[1][None]) * np.array(spacing), axis=-1)
    found = distances(one, other, spacing)
    assert found.hausdorff == pytest.approx(max(every.min(0).max(), every.min(1).max()))
    assert found.hd95 == pytest.approx(max(np.percentile(every.min(a), 95) for a in (0, 1)))
    assert distances(one, np.zeros_like(one), spacing) is None


def on_surface(mask, point):
    if not mask[point]:
        return False
    for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
        beside = list(point)
        beside[axis] += step
        if not 0 <= beside[axis] < mask.shape[axis] or not mask[tuple(beside)]:
            return True
    return False
