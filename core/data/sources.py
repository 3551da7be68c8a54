"""Discovery of items in the kinds of source that every file-based plugin shares: folders, manifests, datasets.

A folder may have ``train``, ``val``, ``test`` on top and class folders below. A manifest is a CSV or Parquet table with
the columns ``path``, and optionally ``label``, ``split``, ``group``; paths are relative to it. A dataset is one that
Hugging Face `datasets` saved to disk. A plugin may also read single files that hold everything. Imports no torch: the
flow side asks for a source's identity, too.
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from core.data.files import facts
from core.errors import UserError
from core.modality import Item, Split

SPLITS: dict[str, Split] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TABLES = frozenset({".csv", ".parquet"})
Sniff = Callable[[str], bool]
"""Whether the file at a path looks like one of the plugin's, by its first bytes."""
_UNNAMED: ContextVar[bool] = ContextVar("unnamed", default=False)


@contextmanager
def unnamed(private: bool = True) -> Iterator[None]:
    """Within, where a source is ``private``, errors of this module hold no path and nothing out of files."""
    token = _UNNAMED.set(private)
    try:
        yield
    finally:
        _UNNAMED.reset(token)


def called(source: str, what: str = "source") -> str:
    """A source in an error's text."""
    return f"the {what}" if _UNNAMED.get() else f"{what} {source}"


def _aside(text: str) -> str:
    """Part of an error's text that quotes names or contents."""
    return "" if _UNNAMED.get() else text


def kind_of(source: str) -> str:
    """``folder``, ``manifest``, ``huggingface``, or ``file``: a single file that holds everything.

    A table is a manifest if it has a column ``path``, else a file like others.

    Raises:
        UserError: if the source is missing.
    """
    path = Path(source)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() and not _UNNAMED.get() else []
        near = get_close_matches(path.name, siblings, n=1)
        hint = (
            f"; did you mean {near[0]!r}?"
            if near
            else "; give a folder, a .csv or .parquet manifest, or a saved dataset"
        )
        raise UserError(f"{called(source)} does not exist{hint}")
    if path.is_dir():
        saved = any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
        return "huggingface" if saved else "folder"
    return "manifest" if path.suffix.lower() in TABLES and "path" in _columns(path) else "file"


def check_kind(source: str, modality: str, kinds: Sequence[str]) -> None:
    """Refuse a source that is missing, or of a kind that ``modality``, which reads ``kinds``, has no use for.

    Raises:
        UserError: that says what it is and what would do.
    """
    kind = kind_of(source)
    if kind in kinds:
        return
    if kind == "file" and Path(source).suffix.lower() in TABLES and "manifest" in kinds:
        _table(source)  # Says which column is missing, or that the table cannot be read.
    known = ", ".join(_KINDS.get(name, name) for name in kinds)
    raise UserError(f"{called(source)} is {_KINDS[kind]}, which {modality!r} does not read; it reads {known}")


_KINDS = {
    "folder": "a folder of files",
    "manifest": "a .csv or .parquet manifest",
    "huggingface": "a dataset saved by Hugging Face datasets",
    "file": "a single file",
}


def _columns(table: Path) -> Sequence[str]:
    """Column names of a table; none of one that cannot be read."""
    from pyarrow import ArrowException, parquet

    try:
        if table.suffix.lower() == ".parquet":
            names: list[str] = parquet.read_schema(table).names
            return names
        with table.open(encoding="utf-8", errors="replace", newline="") as lines:
            return next(csv.reader(lines), [])
    except (ArrowException, OSError, csv.Error):
        return []


def listing(source: str) -> list[tuple[str, int, int]]:
    """The identity of a source: (relative path, bytes, modification time in ns) of its files, sorted.

    A file that a manifest names and that is missing has -1 bytes; masks that it names in place of labels count, too.
    """
    kind = kind_of(source)
    if kind == "file":
        return [(Path(source).name, *facts(source))]
    if kind != "manifest":
        return sorted((key, *facts(path)) for key, path in walk(source))
    rows = [(Path(source).name, *facts(source))]
    base = Path(source).parent
    for row in _table(source):
        rows.append((str(row["path"]), *facts(base / str(row["path"]))))
        mask = str(row.get("label") or "")
        if Path(mask).suffix and (base / mask).is_file():  # A label that is a mask's path.
            rows.append((mask, *facts(base / mask)))
    return sorted(rows)


def discover(source: str, suffixes: frozenset[str], sniff: Sniff) -> list[Item]:
    """The items of ``source``, sorted by key.

    A single file is one item. In a folder, files with one of ``suffixes`` (lower case, with dot) are items, whatever
    they hold; so are others that ``sniff`` takes for data, hidden files aside.

    Raises:
        UserError: if the source is missing, of no known kind, or holds no item.
    """
    kind = kind_of(source)
    if kind == "folder":
        items = list(_in_folder(source, suffixes, sniff))
    elif kind == "file" and Path(source).suffix.lower() not in TABLES - suffixes:
        items = list(_alone(Path(source), suffixes, sniff))
    else:  # A table that is no manifest is told so, with the columns it has.
        items = list(_in_dataset(source) if kind == "huggingface" else _in_manifest(source))
    if not items:
        raise UserError(f"{called(source)} ({kind}) holds no item; looked for {', '.join(sorted(suffixes))}")
    return sorted(items, key=lambda item: item.key)


def load_row(item: Item) -> dict[str, Any]:
    """The row of a Hugging Face dataset behind ``item``, with media as ``{"bytes", "path"}``, not decoded."""
    assert item.row is not None
    number = item.row
    for data in _dataset(item.path).values():
        if number < len(data):
            row: dict[str, Any] = data[number]
            return row
        number -= len(data)
    raise IndexError(item.row)


# --- folders --------------------------------------------------------------------------------------------------------


def walk(source: str) -> Iterator[tuple[str, str]]:
    """(relative posix path, path) of every visible file, broken link and empty folder below ``source``."""
    stack = [(source, "")]
    while stack:
        folder, prefix = stack.pop()
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            if not prefix:
                raise UserError(f"{called(folder)} cannot be listed: {error.strerror}") from None
            yield prefix.rstrip("/"), folder
            continue
        if prefix and not entries:
            yield prefix.rstrip("/"), folder
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) or _leads_to_folder(entry):
                stack.append((entry.path, f"{prefix}{entry.name}/"))
            else:
                yield f"{prefix}{entry.name}", entry.path


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether a link leads to a folder that does not contain the link itself."""
    try:
        return entry.is_dir() and not Path(entry.path).absolute().is_relative_to(os.path.realpath(entry.path))
    except OSError:  # A link to itself.
        return False


def _in_folder(source: str, suffixes: frozenset[str], sniff: Sniff) -> Iterator[Item]:
    found = [
        (key, path)
        for key, path in walk(source)
        if (Path(key).suffix.lower() in suffixes or (Path(path).is_file() and sniff(path))) and not _is_manifest(path)
    ]
    tops = {key.split("/")[0] for key, _ in found if "/" in key}
    split_names = bool(tops) and tops <= SPLITS.keys()
    for key, path in found:
        folders = key.split("/")[:-1]
        split = SPLITS[folders.pop(0)] if split_names and folders else None
        label = folders[0] if folders else None
        size, mtime = facts(path)
        yield Item(key, path, target=label, split=split, size=size, mtime_ns=mtime)


def _is_manifest(path: str) -> bool:
    """Whether a table lists files, as one beside them may where a plugin reads tables."""
    return Path(path).suffix.lower() in TABLES and Path(path).is_file() and "path" in _columns(Path(path))


def _alone(file: Path, suffixes: frozenset[str], sniff: Sniff) -> Iterator[Item]:
    if file.suffix.lower() in suffixes or sniff(str(file)):
        size, mtime = facts(file)
        yield Item(file.name, str(file), size=size, mtime_ns=mtime)


# --- manifests ------------------------------------------------------------------------------------------------------


def _table(source: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    try:
        if source.lower().endswith(".csv"):
            text = dict.fromkeys(("path", "label", "split", "group"), pa.string())
            options = arrow_csv.ConvertOptions(column_types=text, strings_can_be_null=True, null_values=[""])
            table = arrow_csv.read_csv(source, convert_options=options)
        else:
            table = parquet.read_table(source)
    except (pa.ArrowException, OSError) as error:
        why = _aside(f": {str(error).splitlines()[0]}")
        raise UserError(f"{called(source, 'manifest')} cannot be read{why}") from None
    if "path" not in table.column_names:
        near = get_close_matches("path", table.column_names, n=1, cutoff=0.4)
        hint = f" (it has {', '.join(table.column_names)})" + (f"; is {near[0]!r} meant?" if near else "")
        # Without a line of names, the first line of data is taken for it.
        raise UserError(f"{called(source, 'manifest')} has no column 'path'{_aside(hint)}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _in_manifest(source: str) -> Iterator[Item]:
    base, seen = Path(source).parent, set()
    for number, row in enumerate(_table(source), start=2):
        key = Path(str(row["path"])).as_posix()
        if key in seen:
            name = _aside(f" {key!r}") or " its path"
            raise UserError(f"{called(source, 'manifest')}, line {number}:{name} is listed twice")
        seen.add(key)
        path = base / key
        split = _split(row.get("split"), f"{called(source, 'manifest')}, line {number}")
        group = row.get("group")
        size, mtime = facts(path)
        yield Item(
            key,
            str(path),
            target=row.get("label"),
            group=None if group is None else str(group),
            split=split,
            size=size,
            mtime_ns=mtime,
        )


def _split(name: Any, where: str) -> Split | None:
    if name is None:
        return None
    if str(name) not in SPLITS:
        raise UserError(f"{where}: split{_aside(f' {name!r}')} is none of train, val, test")
    return SPLITS[str(name)]


# --- datasets on disk -----------------------------------------------------------------------------------------------


def _dataset(folder: str) -> dict[str, Any]:
    """Splits by name; media columns are not decoded."""
    from datasets import Audio, Dataset, Image, Video, load_from_disk

    if folder not in _OPEN:
        loaded = load_from_disk(folder)
        splits = {"all": loaded} if isinstance(loaded, Dataset) else dict(loaded)
        for name, data in splits.items():
            for column, feature in data.features.items():
                if isinstance(feature, (Image, Audio, Video)):
                    data = data.cast_column(column, type(feature)(decode=False))  # noqa: PLW2901
            splits[name] = data
        _OPEN[folder] = splits
    return _OPEN[folder]


_OPEN: dict[str, dict[str, Any]] = {}


def _in_dataset(source: str) -> Iterator[Item]:
    before = 0  # Rows are counted through all splits, for a private source's keys do not tell theirs.
    for name, data in _dataset(source).items():
        columns = {c: data[c] for c in ("label", "labels", "target", "group") if c in data.column_names}
        labels = next((columns[c] for c in ("label", "labels", "target") if c in columns), None)
        column = next((c for c in ("label", "labels", "target") if c in columns), "")
        names = getattr(data.features.get(column), "names", None)
        width = len(str(max(len(data) - 1, 0)))
        for row in range(len(data)):
            target = labels[row] if labels is not None else None
            if names and isinstance(target, int):
                target = names[target] if target >= 0 else None
            group = columns["group"][row] if "group" in columns else None
            yield Item(
                f"{name}/{row:0{width}d}",
                source,
                row=before + row,
                target=target,
                group=None if group is None else str(group),
                split=SPLITS.get(name),
            )
        before += len(data)
