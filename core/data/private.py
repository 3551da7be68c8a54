"""What keeps the names of private sources out of everything: a secret of the home, pseudonyms, and a key file.

Where `PluginInfo.private` holds, names of files and folders may tell who somebody is. All that is kept, shown or sent
then names things by keyed hashes (BLAKE2b, RFC 7693), which nobody can test a guess against who lacks the home's
secret. ``home/private``, a folder of its owner alone, holds that secret and what leads back from names to paths;
nothing else does. Labels are no identifiers by themselves and stay as they are.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.workspace import Home, sync_folder

if TYPE_CHECKING:
    from core.modality import Item, Record

FOLDER = "private"
"""Below the home; nobody but the owner may look into it."""
TOKEN = "private:"  # noqa: S105 - what the names of sources begin with, no password
"""What the public name of a source begins with."""
SECRET_BYTES = 32
SHORT = 3
"""Characters from which on a folder's name is taken out of texts."""
PLAIN = frozenset(
    {"data", "dataset", "datasets", "etc", "home", "media", "mnt", "opt", "private", "root", "srv", "tmp", "users"}
    | {"usr", "var", "volumes", "work", "train", "val", "valid", "validation", "test"}
)
"""Names of folders that tell nothing, and that a reason may well contain as words."""


class Pseudonym(str):
    """A name that was hashed already, so that it is not hashed once more on its way."""

    __slots__ = ()


def pseudonym(secret: bytes, *parts: str) -> Pseudonym:
    """What stands for ``parts`` in public: 16 hex characters of their BLAKE2b under ``secret``.

    Raises:
        ValueError: if there is no secret: anybody could then test a guessed name.
    """
    if not secret:
        raise ValueError("a pseudonym needs a secret; the engine sets `Modality.secret` where sources are private")
    hasher = hashlib.blake2b(key=secret, digest_size=8)
    for part in parts:
        text = part.encode(errors="surrogateescape")
        hasher.update(len(text).to_bytes(8, "big") + text)  # ("ab", "c") is not ("a", "bc").
    return Pseudonym(hasher.hexdigest())


# --- the owner's folder -----------------------------------------------------------------------------------------------


def secret_of(home: Home) -> bytes:
    """The secret of ``home``, 32 bytes, drawn the first time it is asked for.

    Raises:
        UserError: if it belongs to somebody else, or is damaged.
    """
    with _held(home) as folder:
        file = folder / "secret"
        if not file.exists():
            _write(file, secrets.token_bytes(SECRET_BYTES))
        secret = file.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise UserError(
            f"{file} is damaged: {len(secret)} bytes, not {SECRET_BYTES}; put its copy back, or use a new home folder"
        )
    return secret


def remember_source(home: Home, path: str | Path) -> str:
    """The public name of the source at ``path``; the owner's folder knows from now on what it stands for."""
    where = os.path.abspath(path)  # noqa: PTH100 - Path.absolute leaves ".." in
    token = TOKEN + pseudonym(secret_of(home), "source", where)
    with _held(home) as folder:
        known = _sources(folder)
        if known.get(token) != where:
            _write(folder / "sources.json", (json.dumps(known | {token: where}, indent=1) + "\n").encode())
    return token


def resolve_source(home: Home, text: str) -> str:
    """The path behind the public name of a source; any other text as it is.

    Raises:
        UserError: if this home knows no such source.
    """
    if not text.startswith(TOKEN):
        return text
    with _held(home) as folder:
        known = _sources(folder)
    if text not in known:
        raise UserError(
            f"no source is called {text} in {home.root}; give the source itself, or the home it is known in"
        )
    return known[text]


def remember_items(home: Home, digest: str, items: Iterable["Item"]) -> Path:
    """Write down, for the owner alone, which files stand behind the keys of prepared data; gives the file."""
    lines = []
    for item in items:
        facts = {"key": item.key, "path": item.path}
        more = {"row": item.row} if item.row is not None else {"parts": item.parts} if item.parts else {}
        lines.append(json.dumps(facts | more) + "\n")
    with _held(home) as folder:
        file = folder / f"items-{digest}.jsonl"
        _write(file, "".join(lines).encode())
    return file


@contextmanager
def closed(private: bool = True) -> Iterator[None]:
    """Within, where a source is ``private``, files are made for their owner alone."""
    before = os.umask(0o077)
    os.umask(0o077 if private else before)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _held(home: Home) -> Iterator[Path]:
    """The owner's folder, for this process alone; the kernel ends that when the process does."""
    folder = home.root / FOLDER
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"{folder} cannot be used: {error.strerror}; it has to be yours alone") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)


def _sources(folder: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads((folder / "sources.json").read_bytes())
    except FileNotFoundError:
        return {}
    return known


def _write(file: Path, data: bytes) -> None:
    """`core.workspace.write_bytes` for a file that nobody else may read at any moment."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
    sync_folder(file.parent)


# --- names of items, records and reasons ------------------------------------------------------------------------------


def hidden_items(items: Iterable["Item"], secret: bytes) -> list["Item"]:
    """``items`` with hashes for keys and groups, by key: the order of names would tell something of them."""
    return sorted((_hidden_item(item, secret) for item in items), key=lambda item: item.key)


def _hidden_item(item: "Item", secret: bytes) -> "Item":
    key = item.key if isinstance(item.key, Pseudonym) else pseudonym(secret, item.key)
    return replace(item, key=key, group=_hidden_group(item.group, secret))


def _hidden_group(group: str | None, secret: bytes) -> str | None:
    """A patient is called alike wherever the name was found: in a manifest, in a folder's name, inside a file."""
    return group if group is None or isinstance(group, Pseudonym) else pseudonym(secret, "patient", str(group))


def hidden_records(item: "Item", records: Sequence["Record"], secret: bytes) -> list["Record"]:
    """Records of an item of `hidden_items`: groups are hashed, keys are the item's or numbered below it."""
    found = []
    for record in records:
        key, group = record.key, record.group
        if not re.fullmatch(rf"{re.escape(item.key)}(#[0-9]{{1,6}})?", key):
            key = f"{item.key}#{pseudonym(secret, key)}"
        if group not in (item.group, item.key):
            group = _hidden_group(group, secret)
        found.append(replace(record, key=key, group=group))
    return found


def without_names(text: str, paths: Iterable[str], instead: str) -> str:
    """``text`` with ``instead`` for each of ``paths`` and for the names of the files and folders they lead through."""
    every = {name for path in paths for name in (path, os.path.realpath(path)) if path}
    for path in sorted(every, key=len, reverse=True):
        text = text.replace(path, instead)
    parts = {part for path in every for part in Path(path).parts} | {Path(path).stem for path in every}
    names = [name for name in parts if len(name) >= SHORT and name.lower() not in PLAIN and name != instead]
    if not names:
        return text
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![0-9A-Za-z])(?:{known})(?![0-9A-Za-z])", lambda _: instead, text)
