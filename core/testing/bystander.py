"""A second process that meets the same source under other circumstances, and files that are broken.

It lists folders in the opposite order and hashes strings differently, so that whatever depends on either shows. It
reads broken copies of a file last, because a plugin may not survive them: that then costs this process alone.

    python -P -m core.testing.bystander request.json
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from core.config import Recipe
from core.data.codecs import decode
from core.data.private import hidden_items
from core.modality import Item, Modality, Purpose, Record, Unreadable
from core.recipes import resolve
from core.registry import plugin_for

LIMIT = 60.0
"""Seconds for all broken files together; a plugin that waits for ever is found by it."""
SECRET = bytes(range(32))
"""What private plugins hash names with, here and in the other process."""


def live_plugin(recipe: Recipe, purpose: Purpose, input_shape: tuple[int, ...] | None) -> Modality[Any]:
    """The recipe's plugin with the kit's secret, where it is to have one."""
    live = plugin_for(recipe, purpose, input_shape)
    if live.info.private:
        live.secret = SECRET
    return live


def discovered(live: Modality[Any], source: Path) -> list[Item]:
    """The items of a source under the names that the engine gives them."""
    items = list(live.discover(str(source)))
    return hidden_items(items, SECRET) if live.info.private else items


@dataclass
class BadFile:
    """A broken copy of a file and what reading it came to."""

    kind: str
    """How it is broken."""
    outcome: str = "never read"
    """``unreadable``, ``records``, ``raised``, ``ended the process``, ``took too long``."""
    text: str = ""
    """The reason or the error."""


@dataclass
class Account:
    """What the other process saw."""

    keys: list[str] | None = None
    """Keys of the items in its order; None where it ended before."""
    digests: list[str] | None = None
    """Digest of each item's records."""
    bad: list[BadFile] = field(default_factory=list)
    error: str = ""
    """Its last words, where it failed before it came to the broken files."""


@dataclass(frozen=True)
class End:
    """How the other process ended."""

    last_words: str
    late: bool = False
    """Whether it ran out of time."""


Runner = Callable[[Path, Path], End]
"""Runs the other process: given the request's file and the file that takes what it says, it waits for its end."""


def digest(records: Sequence[Record]) -> str:
    """A hash of everything in ``records``."""
    hasher = hashlib.sha256()
    for r in records:
        facts = [r.key, r.codec, list(r.shape), r.dtype, r.target, r.group, r.meta]
        hasher.update(json.dumps(facts, sort_keys=True, default=str).encode())
        hasher.update(bytes(r.payload))
    return hasher.hexdigest()


def ask(recipe: Recipe, source: Path, items: Sequence[Item], scratch: Path, run: Runner) -> Account:
    """Run the process, and gather what it said."""
    bad = list(_broken_copies(items, scratch / "broken"))
    request = scratch / "request.json"
    request.write_text(
        json.dumps(
            {
                "recipe": recipe.model_dump(mode="json"),
                "source": str(source),
                "items": len(items),
                "bad": [asdict(item) for _, item in bad],
            }
        )
    )
    account = Account(bad=[BadFile(kind) for kind, _ in bad])
    said = scratch / "said.jsonl"
    end = run(request, said)
    lines = [json.loads(line) for line in said.read_text().splitlines() if line.startswith('{"kit":')]
    _gather(account, lines, end)
    return account


def surroundings() -> dict[str, str]:
    """Environment of the other process: strings hash differently there, packages are found as here."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}


def start(request: Path, said: Path) -> End:
    """A fresh interpreter is the other process."""
    command = [sys.executable, "-P", "-m", "core.testing.bystander", str(request)]
    late = False
    with said.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.PIPE, text=True, env=surroundings(), errors="replace"
        )
        try:
            _, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            late = True
    return End((errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1], late)


def _gather(account: Account, lines: list[dict[str, Any]], end: End) -> None:
    for line in lines:
        if line["kit"] == "keys":
            account.keys = line["keys"]
        elif line["kit"] == "digests":
            account.digests = line["digests"]
        else:
            bad = account.bad[line["number"]]
            bad.outcome, bad.text = line["outcome"], line["text"]
    if account.digests is None:
        account.error = f"ran longer than {LIMIT:.0f} s" if end.late else end.last_words
        return
    for bad in account.bad:
        if bad.outcome == "never read":
            bad.outcome, bad.text = ("took too long", "") if end.late else ("ended the process", end.last_words)
            return


# --- broken files -----------------------------------------------------------------------------------------------------


def _broken_copies(items: Sequence[Item], folder: Path) -> Iterator[tuple[str, Item]]:
    """(kind, item) of broken files made from the first item that is a plain file."""
    model = next((item for item in items if item.row is None and Path(item.path).is_file()), None)
    if model is None:
        return
    folder.mkdir(parents=True)
    suffix, whole = Path(model.path).suffix, Path(model.path).read_bytes()
    noise = random.Random(0).randbytes(len(whole))
    contents = {
        "an empty file": b"",
        "random bytes": noise,
        "zeros": bytes(len(whole)),
        "text": b"this is no such file\n" * 20,
        "half of a file": whole[: len(whole) // 2],
        "a file with a damaged middle": whole[: len(whole) // 3] + noise[:64] + whole[len(whole) // 3 + 64 :],
    }
    for number, (kind, content) in enumerate(contents.items()):
        file = folder / f"{number}{suffix}"
        file.write_bytes(content)
        yield kind, replace(model, path=str(file), size=len(content), parts=())
    yield "a missing file", replace(model, path=str(folder / f"missing{suffix}"), size=-1, parts=())
    (folder / f"folder{suffix}").mkdir()
    yield "a folder in place of a file", replace(model, path=str(folder / f"folder{suffix}"), parts=())


# --- in the other process ---------------------------------------------------------------------------------------------


def _say(kind: str, **what: Any) -> None:
    print(json.dumps({"kit": kind, **what}), flush=True)


def main(request: dict[str, Any]) -> None:
    """Discover and read the source, then the broken files, telling each result at once."""
    _list_backwards()
    recipe = resolve(request["recipe"], "of the request")
    live = live_plugin(recipe, "pretrain", recipe.pretrain.input_shape)
    items = discovered(live, Path(request["source"]))
    _say("keys", keys=[item.key for item in items])
    whole = [list(live.read(item)) for item in items[: request["items"]]]
    _say("digests", digests=[digest(records) for records in whole])
    holes = any(_holes(record) for records in whole for record in records)
    for number, facts in enumerate(request["bad"]):
        outcome, text = _try(live, Item(**facts | {"parts": ()}), holes)
        _say("bad", number=number, outcome=outcome, text=text)


def _holes(record: Record) -> bool:
    """Whether it holds values that are not numbers."""
    array = decode(record)
    return array.dtype.kind == "f" and bool((array != array).any())  # noqa: PLR0124 - not a number


def _try(live: Any, item: Item, holes: bool) -> tuple[str, str]:
    """What comes of a broken item; ``holes`` says that sound ones may lack values."""
    try:
        records = list(live.read(item))
        if not holes and any(_holes(record) for record in records):
            return "raised", "nothing, but the record holds values that are not numbers"
    except Unreadable as reason:
        return "unreadable", str(reason)
    except Exception as error:  # noqa: BLE001 - the finding itself
        from core.testing.rules import describe

        return "raised", describe(error)
    return "records", f"{len(records)}"


def _list_backwards() -> None:
    """List folders from the last name to the first, as another file system might."""
    list_folder, scan_folder = os.listdir, os.scandir

    class Backwards(list[Any]):
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

        def __next__(self) -> Any:
            if not self:
                raise StopIteration
            return self.pop(0)

        def __iter__(self) -> Any:
            return self

    def scan(path: Any = ".") -> Any:
        with scan_folder(path) as entries:
            return Backwards(sorted(entries, key=lambda entry: entry.name, reverse=True))

    setattr(os, "listdir", lambda path=".": sorted(list_folder(path), reverse=True))  # noqa: B010 - the type differs
    setattr(os, "scandir", scan)  # noqa: B010


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
