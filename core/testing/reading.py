"""Rules about `discover` and `read`."""

import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath

from core.data.codecs import decode
from core.errors import UserError
from core.modality import Item, Record
from core.tasks import encode_targets
from core.testing.bystander import Account, digest
from core.testing.rules import Broken, NotApplicable, RuleBook
from core.testing.subject import Subject, small_json

LARGEST_META = 16 * 2**10
"""Bytes of a record beside its payload."""
BOOK: RuleBook[Subject] = RuleBook()
rule = BOOK.rule


@rule(
    "demo.py",
    "There is a small source to check the plugin on.",
    "Write `sample(folder: Path) -> Path` in demo.py beside config.py: a few dozen small items, labelled, some in "
    "groups. Or give a source of your own: --data SRC; in a test, override `source`.",
    "plugin-class-complete",
)
def source(s: Subject) -> None:
    """Rules about data need data."""
    if not s.source.exists():
        raise Broken(f"there is no {s.source}")


@rule(
    "discover",
    "It gives items with public names of their own, and a UserError for a source that is not there.",
    "Use core.data.sources.discover, or give every Item a key that is unique, relative and not empty.",
    "source",
)
def discover(s: Subject) -> None:
    """The keys name items everywhere from here on."""
    keys = []
    for item in s.items:
        if not isinstance(item, Item):
            raise Broken(f"an item is of type {type(item).__name__}, not Item")
        if not item.key or PurePath(item.key).is_absolute():
            raise Broken(f"the key {item.key!r} is empty or an absolute path")
        keys.append(item.key)
    if not keys:
        raise Broken(f"no item in {s.source.name}")
    repeated = sorted({key for key in keys if keys.count(key) > 1}) if len(keys) < 10_000 else []
    if repeated:
        raise Broken(f"two items are called {repeated[0]!r}")
    try:
        list(s.live.discover(str(s.scratch / "there-is-no-such-source")))
    except UserError:
        return
    raise Broken("a source that does not exist raised no UserError")


def _met(s: Subject) -> Account:
    if s.account.digests is None:
        raise Broken(f"in a second process discovering or reading failed: {s.account.error}")
    return s.account


@rule(
    "discover",
    "The items and their order are the same in another process that lists folders the other way round.",
    "Sort the items by key; never take the order of a set, or of os.listdir, Path.glob and the like.",
    "discover",
)
def discover_order(s: Subject) -> None:
    """Shards are named by their items: another order would prepare everything anew elsewhere."""
    theirs, ours = s.account.keys, [item.key for item in s.items]
    if theirs is None:
        raise Broken(f"in a second process: {s.account.error}")
    if theirs == ours:
        return
    if sorted(theirs) != sorted(ours):
        raise Broken(f"other items: {len(set(theirs) ^ set(ours))} of {len(ours)} differ")
    first = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    raise Broken(f"item {first} was {ours[first]!r} here and {theirs[first]!r} there")


@rule(
    "read",
    "It gives one or more records per item, each with a key of its own and a payload that decodes to its shape.",
    "Make payloads with core.data.codecs.encode; `shape` is the array's; name several records of an item item.key#000.",
    "discover",
)
def read(s: Subject) -> None:
    """What is stored must come back."""
    keys: set[str] = set()
    for item, records in s.read:
        if not records:
            raise Broken(f"{item.key}: no record; raise Unreadable with the reason instead")
        for record in records:
            _sound(item, record)
            if record.key in keys:
                raise Broken(f"two records are called {record.key!r}")
            keys.add(record.key)


def _sound(item: Item, record: Record) -> None:
    if not isinstance(record, Record):
        raise Broken(f"{item.key}: a record is of type {type(record).__name__}, not Record")
    array = decode(record)
    if array.size != _product(record.shape) or array.dtype != record.dtype:
        seen = f"{array.shape} of {array.dtype}"
        raise Broken(f"{record.key} says {record.shape} of {record.dtype}, its payload decodes to {seen}")


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


@rule(
    "read",
    "Records can be pickled, and their `meta` holds nothing but small JSON values.",
    "Put numbers, strings, lists and dicts of them into `meta`, and whatever is large into the payload.",
    "read",
)
def records_pickle(s: Subject) -> None:
    """Records travel between processes and are written down."""
    for _, records in s.read:
        for record in records:
            copy = pickle.loads(pickle.dumps(record))  # noqa: S301 - its own bytes, a moment old
            if digest([copy]) != digest([record]):
                raise Broken(f"{record.key} comes back from pickling as something else")
            if len(small_json(record.meta)) > LARGEST_META:
                raise Broken(f"{record.key}: meta takes more than {LARGEST_META} bytes")


@rule(
    "read",
    "Records are compact: no float64, and no payload larger than the array it stands for.",
    "Store the source's own type (uint8, int16), or float16 or float32, raw or in a codec of core.data.codecs.",
    "read",
)
def records_compact(s: Subject) -> None:
    """Prepared data are read again in every epoch."""
    for _, records in s.read:
        for record in records:
            if record.dtype in ("float64", "complex128", "object"):
                raise Broken(f"{record.key} is stored as {record.dtype}")
            array = decode(record)
            if len(record.payload) > 1.1 * array.nbytes + 4096:
                raise Broken(f"{record.key}: a payload of {len(record.payload)} bytes for an array of {array.nbytes}")


@rule(
    "read",
    "Reading the same item twice gives the same records, in another process, too.",
    "Draw nothing at random while reading; random crops belong into `view`.",
    "records-pickle",
    "discover-order",
)
def read_repeats(s: Subject) -> None:
    """A killed preparation must end in the same bytes."""
    theirs = _met(s).digests
    for (item, records), there in zip(s.read, theirs or [], strict=True):
        if digest(records) != digest(list(s.live.read(item))):
            raise Broken(f"{item.key} was read twice and gave two things")
        if digest(records) != there:
            raise Broken(f"{item.key} gives other records in another process")


@rule(
    "read",
    "An item's label stands in its records.",
    "Pass `item.target` on: Record(..., target=item.target, group=item.group).",
    "read",
)
def labels_kept(s: Subject) -> None:
    """Without it the pipeline would end after pretraining."""
    for item, records in s.read:
        if item.target is not None and any(record.target is None for record in records):
            raise Broken(f"{item.key} is labelled {item.target!r}, a record of it is not labelled")


@rule(
    "read",
    "The labels suit the recipe's task.",
    "Set `task.kind` in the recipe to single_label, multi_label, regression or segmentation, or correct the labels.",
    "labels-kept",
)
def labels_fit(s: Subject) -> None:
    """Labels are encoded when all is read."""
    encode_targets([record.target for _, records in s.read for record in records], s.recipe.task)


@rule(
    "read",
    "What stands in one group stays in one group.",
    "Pass `item.group` on to every record of the item.",
    "read",
)
def groups_kept(s: Subject) -> None:
    """A patient or a recording that stands in two splits makes every figure too good."""
    groups: dict[str, str] = {}
    for item, records in _grouped(s):
        if item.group is None:
            continue
        for record in records:
            if record.group is None:
                raise Broken(f"{item.key} is of group {item.group!r}, its record {record.key!r} of none")
            if groups.setdefault(item.group, record.group) != record.group:
                raise Broken(f"group {item.group!r} becomes both {groups[item.group]!r} and {record.group!r}")


def _grouped(s: Subject) -> Iterator[tuple[Item, list[Record]]]:
    """Items of the source where it has groups, else of a manifest made of its files that names some.

    Groups that stand inside the files, and so in the records alone, are the plugin's own to name.
    """
    named = any(record.group is not None for _, records in s.read for record in records)
    if named or any(item.group is not None for item in s.items):
        yield from s.read
        return
    files = [item for item in s.items if item.row is None and Path(item.path).is_file()][:4]
    if "manifest" not in s.info.sources or not files:
        raise NotApplicable("no item of the source has a group; give one that has to check this")
    folder = s.scratch / "grouped"
    folder.mkdir()
    names = [f"{number}{Path(item.path).suffix}" for number, item in enumerate(files)]
    for item, name in zip(files, names, strict=True):
        shutil.copyfile(item.path, folder / name)
    lines = [f"{name},group-{number // 2}" for number, name in enumerate(names)]
    (folder / "manifest.csv").write_text("\n".join(["path,group", *lines]) + "\n")
    items = list(s.live.discover(str(folder / "manifest.csv")))
    if any(item.group is None for item in items):
        raise Broken("discover loses the group that a manifest names")
    for item in items:
        yield item, list(s.live.read(item))


@rule(
    "read",
    "A broken file raises Unreadable with a reason in plain words; nothing else escapes.",
    "Catch what the decoder raises and raise Unreadable('what is wrong'); check sizes before allocating.",
    "read",
)
def bad_files(s: Subject) -> None:
    """One bad file in a million must not end a preparation."""
    if not s.account.bad:
        raise NotApplicable("no item of the source is a plain file")
    for bad in _met(s).bad:
        if bad.outcome == "unreadable" and not bad.text.strip():
            raise Broken(f"{bad.kind}: Unreadable without a reason")
        if bad.outcome == "records" and bad.kind in ("an empty file", "a missing file", "a folder in place of a file"):
            raise Broken(f"{bad.kind} was read as {bad.text} records")
        if bad.outcome in ("raised", "ended the process", "took too long"):
            raise Broken(f"{bad.kind} {bad.outcome} {bad.text}".rstrip())


@rule(
    "read",
    "Nothing public names the place of a file; where sources are private, not its name either.",
    "Keep paths out of keys, groups, meta and reasons; a private plugin gives records the key and group of their item, "
    "and hashes what it finds inside files: core.data.private.pseudonym(self.secret, 'patient', name).",
    "read",
    "bad-files",
)
def no_paths(s: Subject) -> None:
    """Keys, groups and reasons reach cards, logs, MLflow and Prefect."""
    places = [str(s.source.absolute()), os.path.realpath(s.source), str(s.scratch)]
    names = re.compile(r"(?<![0-9A-Za-z])(" + "|".join(map(re.escape, _names(s))) + r")(?![0-9A-Za-z])")
    for where, text in _public(s):
        found = next((place for place in places if place in text), None)
        named = names.search(text) if s.info.private else None
        if found or named:
            raise Broken(f"{where} holds {found or (named and named[0])!r}: {text[:120]!r}")


def _names(s: Subject) -> list[str]:
    """Names of files and folders of the source."""
    base = s.source if s.source.is_dir() else s.source.parent
    paths = [Path(path) for item, _ in s.read for path in (item.path, *item.parts)]
    parts = [path.relative_to(base).parts for path in paths if path.is_relative_to(base)]
    return sorted({PurePath(part).stem for path in parts for part in path if len(PurePath(part).stem) > 1})


def _public(s: Subject) -> Iterator[tuple[str, str]]:
    for item, records in s.read:
        yield "an item's key", item.key
        for record in records:
            yield "a record's key", record.key.partition("#")[0]
            yield "a group", record.group or ""
            yield "meta", str(record.meta)
    for bad in s.account.bad:
        if bad.outcome == "unreadable":
            yield f"the reason for {bad.kind}", bad.text
