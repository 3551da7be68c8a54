"""What is known of a source once all of it is read: targets, splits, duplicates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.config import Recipe, TaskKind
from core.data.card import class_counts
from core.data.shards import Result, Row
from core.data.splits import Member, assign
from core.errors import StageError
from core.modality import Split
from core.records import Target
from core.tasks import encode_targets
from core.workspace import digest_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Facts:
    """What is known of a source once all of it is read."""

    rows: list[Row]
    target: Target | None
    targets: list[Any]
    """Encoded, one per row."""
    splits: list[Split]
    repeated: list[bool]
    """Whether a row's content stands in an earlier row."""
    unreadable: list[tuple[str, str]]
    bytes: int

    @property
    def counts(self) -> dict[str, int]:
        """Items by split."""
        return _count(self.splits)

    @property
    def labelled(self) -> dict[str, int]:
        """Labelled items by split."""
        return _count([s for s, t in zip(self.splits, self.targets, strict=True) if t is not None])

    @property
    def data_digest(self) -> str:
        """Hash over the contents."""
        return digest_of("data", sorted(row.content for row in self.rows))

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Items of each class by split."""
        known = self.target is not None and bool(self.target.classes)
        if not known or not self.target:
            return {}
        targets = self.targets
        if self.target.task.kind is TaskKind.SEGMENTATION:  # What is in a mask, as 0 and 1 for each class.
            targets = [None if t is None else [int(c in t) for c in range(self.target.outputs)] for t in targets]
        return class_counts(self.target.classes, targets, self.splits)


def gather(results: Sequence[Result], recipe: Recipe) -> Facts:
    """Targets, splits and duplicates of everything that was read.

    Raises:
        StageError: if the plugin gave two records one key.
        UserError: if a label does not suit the task, or a given split divides a group.
    """
    rows = [row for result in results for row in result.rows]
    _one_key_each(rows)
    target, targets = encode_targets([row.target for row in rows], recipe.task, [row.key for row in rows])
    members = [
        Member(row.key, encoded, row.group, row.split, row.content)  # type: ignore[arg-type]  # a Split, from the item
        for row, encoded in zip(rows, targets, strict=True)
    ]
    splits = assign(members, recipe.prepare, recipe.seed)
    size = sum(result.bytes for result in results)
    return Facts(rows, target, targets, splits, _repeated(rows), unreadable_of(results), size)


def _one_key_each(rows: Sequence[Row]) -> None:
    """Random views are drawn by key, and cards and splits name items by it."""
    key, times = Counter(row.key for row in rows).most_common(1)[0]
    if times > 1:
        raise StageError(f"the plugin gave {times} records the key {key!r}; its `read` must give each its own")


def _repeated(rows: Sequence[Row]) -> list[bool]:
    """By key, so that it does not depend on the order of shards; several records of one item do not count."""
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row.key):
        first.setdefault(row.content, row.item)
    return [first[row.content] != row.item for row in rows]


def unreadable_of(results: Sequence[Result]) -> list[tuple[str, str]]:
    """(key, reason) of everything that could not be read, by key."""
    return sorted(pair for result in results for pair in result.unreadable)


def _count(splits: Sequence[str]) -> dict[str, int]:
    counts = Counter(splits)
    return {split: counts[split] for split in SPLITS}
