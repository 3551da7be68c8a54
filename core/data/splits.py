"""Who is in which split: groups are never divided, equal contents stay together, classes are spread evenly."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from core.config import PrepareConfig
from core.data.seeds import seed_of
from core.errors import UserError
from core.modality import Split

ORDER: tuple[Split, ...] = ("test", "val", "train")
"""Where equal contents go that the source puts into several splits: an item that is tested on is not trained on."""
SMALLEST_FOR_VAL = 10
"""Training items from which on there is always a validation item."""


@dataclass(frozen=True)
class Member:
    """What splitting knows of an item."""

    key: str
    target: Any
    group: str | None
    split: Split | None
    content: str
    """Hash of its content."""


@dataclass
class _Cluster:
    """Items that must stay together."""

    members: list[int]
    order: int
    """A random number from the seed and the keys, independent of the order of items."""
    stratum: Hashable
    """Their commonest label; None for unlabelled ones."""
    split: Split | None

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.members)


def assign(members: Sequence[Member], config: PrepareConfig, seed: int) -> list[Split]:
    """The split of each member.

    Given splits are kept; a test or validation split that the source does not give is taken from its training part
    by the recipe's fraction. Unlabelled items are never taken for testing.

    Raises:
        UserError: if a given split divides a group and the recipe does not allow for that.
    """
    clusters = _clusters(members, config, seed)
    given = {member.split for member in members}
    for cluster in clusters:
        cluster.split = cluster.split or "train"
    if "test" not in given:
        _take(_training(clusters), "test", config.test_fraction, labelled_only=True)
    if "val" not in given:
        _take(_training(clusters), "val", config.val_fraction, labelled_only=False)
        _never_empty(clusters)
    splits: list[Split] = ["train"] * len(members)
    for cluster in clusters:
        for member in cluster.members:
            splits[member] = cluster.split or "train"
    if config.divided_groups == "allow":
        splits = [member.split or split for member, split in zip(members, splits, strict=True)]
    return splits


def _clusters(members: Sequence[Member], config: PrepareConfig, seed: int) -> list[_Cluster]:
    """Connected components over equal groups and equal contents, sorted by their random order."""
    parent = list(range(len(members)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for number, member in enumerate(members):
        names = [("content", member.content)] + ([("group", member.group)] if member.group is not None else [])
        for name in names:
            other = first.setdefault(name, number)
            parent[root(number)] = root(other)
    together: dict[int, list[int]] = {}
    for number in range(len(members)):
        together.setdefault(root(number), []).append(number)
    _refuse_divided(members, config)
    clusters = [_cluster(members, numbers, seed) for numbers in together.values()]
    return sorted(clusters, key=lambda c: c.order)


def _cluster(members: Sequence[Member], numbers: list[int], seed: int) -> _Cluster:
    labels = Counter(_label(members[n].target) for n in numbers)
    stratum = min(labels, key=lambda label: (-labels[label], str(label)))
    given: Counter[Split] = Counter(split for n in numbers if (split := members[n].split) is not None)
    grouped = len({members[n].group for n in numbers if members[n].group is not None}) > 0
    place: Split | None = None
    if given and grouped:  # The group goes, whole, to where most of it is.
        place = min(given.items(), key=lambda pair: (-pair[1], ORDER.index(pair[0])))[0]
    elif given:
        place = min(given, key=ORDER.index)
    return _Cluster(numbers, seed_of(seed, "split", min(members[n].key for n in numbers)), stratum, place)


def _label(target: Any) -> Hashable:
    """What to spread evenly: the class of single-label items; merely whether there is a label otherwise."""
    return target if isinstance(target, int) or target is None else "labelled"


def _refuse_divided(members: Sequence[Member], config: PrepareConfig) -> None:
    where: dict[str, set[Split]] = {}
    for member in members:
        if member.group is not None and member.split is not None:
            where.setdefault(member.group, set()).add(member.split)
    divided = sorted(group for group, splits in where.items() if len(splits) > 1)
    if divided and config.divided_groups == "refuse":
        shown = ", ".join(divided[:10]) + (", ..." if len(divided) > 10 else "")
        raise UserError(
            f"the source's own splits divide {len(divided)} groups: {shown}; correct its split column, or set "
            f"prepare.divided_groups=regroup to move each group to where most of it is"
        )


def _training(clusters: Sequence[_Cluster]) -> list[_Cluster]:
    return [cluster for cluster in clusters if cluster.split == "train"]


def _take(clusters: list[_Cluster], split: Split, fraction: float, *, labelled_only: bool) -> None:
    """Give ``fraction`` of the items of every stratum to ``split``; something of each stratum stays."""
    strata: dict[Hashable, list[_Cluster]] = {}
    for cluster in clusters:
        if cluster.stratum is not None or not labelled_only:
            strata.setdefault(cluster.stratum, []).append(cluster)
    short: list[tuple[float, int, list[_Cluster]]] = []
    for members in strata.values():
        quota = fraction * sum(cluster.size for cluster in members)
        got = _fill(members, split, round(quota))
        short.append((quota - got, members[0].order, members))
    # In strata too small for a whole item each, rounding must not leave the split without any of them.
    missing = round(sum(lack for lack, _, _ in short))
    for _, _, members in sorted(short, key=lambda s: (-s[0], s[1])):
        if missing > 0:
            missing -= _fill([cluster for cluster in members if cluster.split == "train"], split, 1)


def _fill(clusters: Sequence[_Cluster], split: Split, wanted: int) -> int:
    """Move about ``wanted`` items to ``split``, never the last cluster, and say how many they were.

    Clusters that fit go in random order: largest first would test on the largest groups only. Where none fits any
    more, the smallest goes if it overshoots by no more than it fills.
    """
    got, spare = 0, len(clusters) - 1
    for cluster in clusters:
        if cluster.size <= wanted - got and spare:
            cluster.split, got, spare = split, got + cluster.size, spare - 1
    rest = [cluster for cluster in clusters if cluster.split != split]
    smallest = min(rest, key=lambda c: (c.size, c.order), default=None)
    if smallest and spare and wanted > got and (smallest.size + 1) // 2 <= wanted - got:
        smallest.split, got = split, got + smallest.size
    return got


def _never_empty(clusters: list[_Cluster]) -> None:
    """Take the smallest cluster of the largest stratum for validation where rounding left none."""
    train = _training(clusters)
    strata = Counter(cluster.stratum for cluster in train)
    spare = [cluster for cluster in train if strata[cluster.stratum] > 1]
    if any(cluster.split == "val" for cluster in clusters) or not spare:
        return
    if sum(cluster.size for cluster in train) >= SMALLEST_FOR_VAL:
        min(spare, key=lambda c: (-strata[c.stratum], c.size, c.order)).split = "val"
