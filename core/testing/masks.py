"""The rule about masks, for plugins that are tested with a recipe for segmentation; others have nothing to show."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.config import TaskKind
from core.data.loading import collate
from core.data.windows import overlap_of
from core.modality import Modality, Record, Sample, SampleBatch
from core.records import Target
from core.segmentation import IGNORE, Segmentation
from core.testing.rules import Broken, RuleBook
from core.testing.subject import Subject, rng

ALIKE = 0.5
"""Smallest correlation of a batch with its masks where samples hold nothing but their mask."""
BOOK: RuleBook[Subject] = RuleBook()


@BOOK.rule(
    "view, batch",
    "In segmentation every view of a labelled record has its mask, cut like its data; windows of `views` cover the "
    "record; what `batch` does to an input's geometry it does to its mask.",
    "Cut data and mask with one box: Sample(data, mask, place=corner, whole=shape), the mask uint8 of the shape of the "
    "input, 255 where nothing is labelled; in `batch`, mirror and turn `samples.target` with x.",
    "views",
    "batch",
)
def dense_targets(s: Subject) -> None:
    """A mask that is not where its data are teaches nonsense, without an error."""
    config = s.recipe.task
    if config.kind is not TaskKind.SEGMENTATION:
        return
    task = Segmentation(Target(task=config, classes=config.classes, outputs=len(config.classes)))
    tuned = s.plugin("finetune", s.recipe.finetune.input_shape)
    whole = s.plugin("evaluate", s.recipe.finetune.input_shape)
    labelled = [record for record in s.records if record.target is not None]
    for record in labelled:
        for train in (True, False):
            _fits(record, tuned.view(record, np.random.default_rng(0), train), tuned, task)
        _covers(record, whole, task)
    views = [tuned.view(record, np.random.default_rng(0), train=True) for record in labelled]
    if views:
        _moves_alike(s, tuned, collate(views, task.tensor))


def _fits(record: Record, sample: Sample, live: Modality[Any], task: Segmentation) -> None:
    mask, shape = sample.target, live.patches().input_shape
    if not isinstance(mask, np.ndarray) or mask.dtype not in (np.uint8, np.uint16):
        raise Broken(f"{record.key}: the target of a view is no mask of uint8 or uint16 but a {type(mask).__name__}")
    if mask.shape != shape:
        raise Broken(f"{record.key}: a mask of shape {mask.shape}, where inputs are {shape}")
    wrong = set(np.unique(mask).tolist()) - set(record.target) - {IGNORE}
    if wrong:
        raise Broken(
            f"{record.key}: its views show the classes {sorted(wrong)}, the record is labelled {record.target}"
        )


def _covers(record: Record, live: Modality[Any], task: Segmentation) -> None:
    """All windows together are the mask; where two overlap, they say the same."""
    views = list(live.views(record))
    extents = {view.whole for view in views}
    extent = next(iter(extents))
    if extent is None or len(extents) > 1 or any(view.place is None for view in views):
        raise Broken(f"{record.key}: its `views` do not tell `place` and one `whole`")
    found, seen = np.full(extent, IGNORE), np.zeros(extent, bool)
    for view in views:
        _fits(record, view, live, task)
        there, here = overlap_of(view.place or (), view.target.shape, extent)
        if (found[there] != view.target[here])[seen[there]].any():
            raise Broken(f"{record.key}: two overlapping windows of its mask disagree")
        found[there], seen[there] = view.target[here], True
    if not seen.all():
        raise Broken(f"{record.key}: {1 - seen.mean():.1%} of it is in no window of `views`")
    inside = sorted(set(np.unique(found).tolist()) - {IGNORE})
    if inside != sorted(record.target):
        raise Broken(f"{record.key}: its windows show the classes {inside}, the record is labelled {record.target}")


def _moves_alike(s: Subject, live: Modality[Any], samples: SampleBatch) -> None:
    """Samples that hold nothing but their mask, one side of it: what `batch` makes of both has to agree."""
    shape = live.patches().input_shape
    for axis, extent in enumerate(shape):
        marked = torch.zeros(shape, dtype=torch.int64)
        marked.narrow(axis, 0, max(1, extent // 4)).fill_(1)
        data = _like(samples.data, marked)
        if data is None:  # How the data are laid out is the plugin's own.
            return
        target = marked.expand(len(data), *shape).clone()
        for seed in range(4):
            batch = live.batch(
                SampleBatch(data.clone(), target.clone(), samples.length), s.stats, rng(seed), train=True
            )
            _same_place(batch.x, batch.target, len(data), shape, axis)


def _like(data: Tensor, marked: Tensor) -> Tensor | None:
    """Samples laid out like ``data`` that are at their highest where ``marked`` is 1 and at their lowest elsewhere."""
    high, axes = data.max(), marked.ndim
    one = torch.where(marked == 1, high, data.min())
    shapes = [tuple(data.shape[1:]), tuple(data.shape[2:]), tuple(data.shape[1:-1])]
    if tuple(marked.shape) not in shapes or high == data.min():
        return None
    if data.ndim == axes + 1:
        return one.expand(data.shape).clone()
    first = shapes.index(tuple(marked.shape)) == 1
    return (one[None, None] if first else one[None, ..., None]).expand(data.shape).clone()


def _same_place(x: Tensor, target: Tensor | None, count: int, shape: tuple[int, ...], axis: int) -> None:
    if target is None or tuple(target.shape) != (count, *shape) or target.dtype != torch.int64:
        seen = "no target" if target is None else f"a target {tuple(target.shape)} of {target.dtype}"
        raise Broken(f"batch() gives {seen}; needed: {(count, *shape)} of torch.int64")
    for values, mask in zip(x.mean(dim=1), target, strict=True):
        known = mask != IGNORE
        both = torch.stack([values[known], mask[known].float()]).double()
        if both.shape[1] < 2 or bool((both.std(dim=1) == 0).any()):
            continue
        if abs(float(torch.corrcoef(both)[0, 1])) < ALIKE:
            raise Broken(f"a batch and its masks lie apart along axis {axis}: one was moved without the other")
