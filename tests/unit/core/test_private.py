"""The secret of a home, pseudonyms, tokens of sources, and items and reasons that name nobody."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from core.config import PluginInfo, PluginSettings
from core.data import private, shards
from core.data.private import Pseudonym, hidden_items, hidden_records, pseudonym
from core.data.sources import check_kind, discover, load_row, unnamed
from core.digests import prepare_digest
from core.errors import UserError, discreet
from core.modality import Item, Modality, Record
from core.recipes import load
from core.workspace import Home

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
ASK = "import sys, pathlib; from core.data.private import secret_of; from core.workspace import Home\n"


@pytest.fixture
def home(tmp_path):
    return Home.create(tmp_path / "home")


def record(key, group=None):
    return Record(key, b"abc", "raw", (3,), "uint8", None, group)


def test_processes_that_ask_at_once_get_one_secret(home):
    gate = home.root / "gate"
    code = f"import time; {ASK}while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.001)\n"
    code += f"print(secret_of(Home(pathlib.Path({str(home.root)!r}))).hex())"
    asking = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(8)]
    time.sleep(1)
    gate.touch()
    found = {process.communicate()[0].strip() for process in asking}
    assert found == {private.secret_of(home).hex()}
    assert len(private.secret_of(home)) == 32


def test_a_process_killed_while_it_writes_leaves_a_secret_or_none(home):
    """It is killed between writing the file and naming it."""
    code = f"{ASK}import os, signal; os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    code += f"secret_of(Home(pathlib.Path({str(home.root)!r})))"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (home.root / "private" / "secret").exists()
    assert len(private.secret_of(home)) == 32


def test_the_folder_and_its_files_are_the_owners_alone_whatever_the_umask(home):
    (home.root / "private").mkdir(mode=0o755)
    old = os.umask(0)
    try:
        token = private.remember_source(home, "/data/Ada")
        private.remember_items(home, "d", [Item("k", "/data/Ada/1")])
    finally:
        os.umask(old)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (home.root / "private").iterdir()}
    assert modes == dict.fromkeys(["secret", "sources.json", "items-d.jsonl", "lock"], "0o600")
    assert (home.root / "private").stat().st_mode & 0o777 == 0o700
    assert "Ada" not in token


def test_a_damaged_secret_is_refused(home):
    private.secret_of(home)
    (home.root / "private" / "secret").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged: 5 bytes"):
        private.secret_of(home)


def test_pseudonyms_depend_on_the_secret_and_on_every_part():
    names = [("a",), ("b",), ("a", "b"), ("ab",), ("a", "", "b"), ("", "ab")]
    found = {pseudonym(secret, *parts) for secret in (SECRET, OTHER) for parts in names}
    assert len(found) == 2 * len(names)
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in found)
    assert pseudonym(SECRET, "a") == pseudonym(SECRET, "a")
    assert pseudonym(SECRET, "\udcff")  # A file's name need not be text.
    with pytest.raises(ValueError, match="needs a secret"):
        pseudonym(b"", "a")


def test_a_token_leads_back_in_its_own_home_alone(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = private.remember_source(home, "Ada/../Ada")
    assert token == private.remember_source(home, tmp_path / "Ada")
    other = private.remember_source(home, "/data/\udcff")
    assert token.startswith("private:")
    assert private.resolve_source(home, token) == str(tmp_path / "Ada")
    assert private.resolve_source(home, other) == "/data/\udcff"
    assert private.resolve_source(home, "/any/path") == "/any/path"
    stranger = Home.create(tmp_path / "stranger")
    with pytest.raises(UserError, match=f"no source is called {token}"):
        private.resolve_source(stranger, token)
    assert private.remember_source(stranger, "Ada") != token


def test_the_owner_finds_the_files_behind_keys(home):
    items = [Item("k1", "/a/1", parts=("/a/1", "/a/2")), Item("k2", "/b", row=7), Item("k3", "/c")]
    file = private.remember_items(home, "d", items)
    assert [json.loads(line) for line in file.open()] == [
        {"key": "k1", "path": "/a/1", "parts": ["/a/1", "/a/2"]},
        {"key": "k2", "path": "/b", "row": 7},
        {"key": "k3", "path": "/c"},
    ]


def test_items_get_hashes_once_and_their_order_tells_nothing():
    known = pseudonym(SECRET, "patient", "Ada")
    given = ("Ada", known, None, "Alan")
    items = [Item(f"{name}.dat", f"/{name}", group=group) for name, group in zip("abcd", given, strict=True)]
    found = hidden_items(items, SECRET)
    assert [item.key for item in found] == sorted(pseudonym(SECRET, item.key) for item in items)
    groups = {item.path: item.group for item in found}
    assert groups["/a"] == groups["/b"] == known
    assert groups["/c"] is None
    assert groups["/d"] == pseudonym(SECRET, "patient", "Alan")
    # Reader processes see what was hashed already.
    assert hidden_items(pickle.loads(pickle.dumps(found)), SECRET) == found
    # Sixteen hex digits may be somebody's number.
    assert hidden_items([Item("0123456789abcdef", "/x")], SECRET)[0].key != "0123456789abcdef"


def test_records_keep_numbers_below_their_items_key_and_nothing_else():
    (item,) = hidden_items([Item("a.dat", "/a", group="Ada")], SECRET)
    inside = pseudonym(SECRET, "patient", "Alan")
    given = [
        record(item.key, item.group),
        record(f"{item.key}#003", inside),
        record(f"{item.key}#Ada", "Alan"),
        record("a.dat", item.key),
    ]
    found = hidden_records(item, given, SECRET)
    assert [r.group for r in found] == [item.group, inside, inside, item.key]
    assert [r.key for r in found[:2]] == [item.key, f"{item.key}#003"]
    assert all(r.key.startswith(f"{item.key}#") and len(r.key) == 33 for r in found[2:])


def test_reasons_lose_the_names_of_every_part_and_keep_other_words(tmp_path):
    paths = [str(tmp_path / "Ada Lovelace" / f"MRN-{n}.dcm") for n in range(2)]
    text = f"{paths[1]}: slice MRN-1.dcm of Ada Lovelace (MRN-0) is 128 x 128, the data of Adam are not"
    assert private.without_names(text, paths, "KEY") == (
        "KEY: slice KEY of KEY (KEY) is 128 x 128, the data of Adam are not"
    )


def test_errors_of_private_sources_name_no_path_and_no_sibling(tmp_path):
    (tmp_path / "Lovelace").mkdir()
    (tmp_path / "Lovelace" / "Ada.txt").touch()
    (tmp_path / "m.csv").write_text("Lovelace,Ada\nx,y\n")
    asked = [
        lambda: check_kind(str(tmp_path / "Lovelac"), "m", ["folder"]),
        lambda: check_kind(str(tmp_path / "m.csv"), "m", ["folder", "manifest"]),
        lambda: check_kind(str(tmp_path / "Lovelace"), "m", ["manifest"]),
        lambda: discover(str(tmp_path / "Lovelace"), frozenset({".dat"}), lambda _: False),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=r"Lovelac|Ada") as plain:
            ask()
        with unnamed(), pytest.raises(UserError) as quiet:
            ask()
        assert str(tmp_path) in str(plain.value)
        assert not any(name in str(quiet.value) for name in ("Lovelac", "Ada", str(tmp_path)))


def test_rows_of_every_split_are_found_by_items_whose_keys_tell_no_split(tmp_path):
    splits = {
        name: Dataset.from_dict({"x": [f"{name}{n}" for n in range(size)]})
        for name, size in (("test", 2), ("train", 3))
    }
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    items = discover(str(tmp_path / "saved"), frozenset(), lambda _: False)
    assert [load_row(item)["x"] for item in items] == ["test0", "test1", "train0", "train1", "train2"]
    assert {load_row(item)["x"] for item in hidden_items(items, SECRET)} == {load_row(item)["x"] for item in items}
    with pytest.raises(IndexError):
        load_row(replace(items[0], row=5))


def test_a_guessed_listing_cannot_be_tested_against_a_digest():
    recipe = load("image/tiny")
    listing = [("Ada/1.dat", 3, 4)]
    names = [prepare_digest(recipe, listing, secret) for secret in (b"", SECRET, OTHER)]
    assert len(set(names)) == 3
    assert names[0] == prepare_digest(recipe, listing)
    assert names[1] != prepare_digest(recipe, [("Ada/2.dat", 3, 4)], SECRET)


class Plugin(Modality):
    """As much of a plugin as reading needs."""

    info = PluginInfo("p", PluginSettings, "p:P", 1, private=True)

    discover = patches = view = features = render = None

    def __init__(self, secret, settings):
        super().__init__(settings)
        self.secret = secret

    def read(self, item):
        if "bad" in item.path:
            raise ValueError(Path(item.path).read_text())
        return [Record(item.key, Path(item.path).read_bytes(), "raw", (1,), "uint8", None, item.group)]


def series(folder, content=b"x"):
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}" for number in range(3)]
    for file in files:
        file.write_bytes(content)
    return Item("series", str(files[0]), size=3, parts=tuple(map(str, files)))


def test_a_change_of_any_part_makes_another_shard(tmp_path):
    item, plugin = series(tmp_path / "s"), Plugin(SECRET, load("image/tiny").data)

    def digest(item):
        return shards.plan([item], plugin, 10)[0].digest

    before = digest(item)
    assert before == digest(item) != digest(replace(item, parts=()))
    os.utime(item.parts[2], ns=(5, 5))
    assert digest(item) != before
    Path(item.parts[1]).unlink()
    assert digest(item) != before


def test_the_name_of_a_shard_depends_on_the_secret(tmp_path):
    item, settings = Item("k", str(tmp_path), target="Ada.nii"), load("image/tiny").data
    names = {shards.plan([item], Plugin(secret, settings), 10)[0].digest for secret in (b"", SECRET, OTHER)}
    assert len(names) == 3


def test_contents_are_hashed_under_the_secret_and_of_many_parts_as_read(tmp_path):
    item = series(tmp_path / "s")
    settings = load("image/tiny").data
    (_, [one]), (_, [other]) = (shards.read_item(item, Plugin(secret, settings)) for secret in (SECRET, OTHER))
    assert one != other
    # The file alone, whose content is the payload: equal to the item of many parts, which is hashed by its payloads.
    alone = shards.read_item(replace(item, parts=()), Plugin(SECRET, settings))[1]
    assert alone == [one]


def test_unforeseen_errors_are_told_without_their_texts(tmp_path):
    bad = tmp_path / "bad"
    bad.write_text("Ada Lovelace")
    plugin = Plugin(SECRET, load("image/tiny").data)
    with pytest.raises(shards.Unreadable, match=r"^unforeseen ValueError in read$"):
        shards.read_item(Item("k", str(bad)), plugin)
    with pytest.raises(ValueError, match="Expecting") as theirs:
        json.loads("Ada")
    assert discreet(theirs.value) == "unforeseen JSONDecodeError"  # No place of ours.
    with pytest.raises(ValueError, match="secret") as ours:
        private.pseudonym(b"", "Ada")
    assert discreet(ours.value).startswith("unforeseen ValueError at core/data/private.py:")


def test_groups_of_people_may_not_be_divided(tmp_path, monkeypatch):
    from core import recipes

    info = recipes.plugin_info("image")
    monkeypatch.setattr(recipes, "plugin_info", lambda _: replace(info, private=True))
    for kept in ("refuse", "regroup"):
        load("image/tiny", [f"prepare.divided_groups={kept}"])
    with pytest.raises(UserError, match=r"divided_groups=allow is not for 'image', whose groups are people"):
        load("image/tiny", ["prepare.divided_groups=allow"])


def test_a_pseudonym_is_told_from_any_other_text():
    assert isinstance(pseudonym(SECRET, "a"), Pseudonym)
    assert not isinstance(str(pseudonym(SECRET, "a")) + "", Pseudonym)
