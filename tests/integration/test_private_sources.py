"""Private sources: names planted in paths and contents stand nowhere but in the owner's folder, whatever fails."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import one_server
from leaks import find

from flows.scaffolding import create

pytestmark = pytest.mark.slow
PLACE, WARD, OTHER, ID = "Saint-Elsewhere-Infirmary", "Lovelace^Ada", "Turing^Alan", "MRN-4711-0815"
BORN, UID, INSTITUTION = "18151210", "1.2.826.0.1.3680043.99.7", "Ockham Park Clinic"
NEEDLES = (PLACE, WARD, OTHER, ID, BORN, UID, INSTITUTION)
INSIDE = f"{WARD} born {BORN} {UID} {INSTITUTION}".encode()
QUICK = [
    *("--set", "pretrain.epochs=2"),
    *("--set", "pretrain.warmup_epochs=1"),
    *("--set", "pretrain.validate_every=2"),
    *("--set", "finetune.epochs=2"),
    *("--set", "evaluate.bootstrap=20"),
    *("--set", "evaluate.label_efficiency=null"),
    *("--set", "compute.threads=1"),
]
NOISY = '''
def _chatter(path: str) -> bytes:
    """As libraries do: they print, warn and log what they have before them, and quote it in what they raise."""
    import logging, os, warnings
    content = open(path, "rb").read()
    text = f"{path} holds {content[-200:]!r}"
    print(text, "\\nerror:", text, flush=True)
    os.write(1, f"error: {text}\\n".encode())
    os.write(2, f"error: {text}\\n".encode())
    warnings.warn(text)
    logging.getLogger("decoder").error(text)
    if content.endswith(b"boom"):
        raise RuntimeError(text)
    return content
'''


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of packages with a private plugin that prints and raises all it knows."""
    folder = tmp_path_factory.mktemp("packages")
    create("ward", folder / "package")
    shutil.move(folder / "package" / "maeflow_ward", folder / "maeflow_ward")
    edit(folder / "maeflow_ward" / "config.py", "revision=1,", "revision=1, private=True,")
    reading = folder / "maeflow_ward" / "reading.py"
    edit(reading, "    array = _checked(", "    inside = _chatter(item.path)\n    array = _checked(")
    edit(reading, "item.target, item.group)", "item.target, item.group or inside[-40:].decode('latin-1'))")
    reading.write_text(reading.read_text() + NOISY)
    explode = "        if __import__('os').path.exists(f'{source}/explode'):\n            raise KeyError(source)\n"
    edit(folder / "maeflow_ward" / "plugin.py", "        return discover(", f"{explode}        return discover(")
    about = folder / "ward-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ward\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[maeflow.modalities]\nward = maeflow_ward.config:PLUGIN\n")
    return folder


def edit(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.fixture
def maeflow(packages, tmp_path):
    """Runs a command with a home of its own; the home and what was printed are searched when the test is over."""
    home, said = tmp_path / "home", []

    def run(*arguments, debug=False, alone=False):
        command = [str(Path(sys.executable).with_name("maeflow")), *map(str, arguments), "--home", str(home)]
        if arguments[0] in {"run", "pretrain", "finetune"}:  # What is registered is searched in the tests of scans.
            command += ["--set", "compute.registry=false"]
        variables = one_server.environment(PYTHONPATH=str(packages))
        if alone:  # It then starts a server of its own, whose database is in the home.
            del variables["PREFECT_API_URL"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=400, env=variables, cwd=tmp_path)
        if not debug:
            said.extend((done.stdout, done.stderr))
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    run.home = home
    yield run
    assert (home / "mlflow.db").exists() or not (home / "runs" / "requests").exists()
    assert find(home, NEEDLES, extra=said) == []
    assert find(one_server.folder(), NEEDLES) == []
    for path in [home / "private", *(home / "private").glob("*")] if (home / "private").exists() else []:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def place(tmp_path):
    return tmp_path / PLACE


def write(file, number):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:8, 0:8]
    np.save(file, (8 + 7 * np.sin((rows, columns)[number % 2] * (0.6 + 0.05 * number) + number)).astype(np.float32))
    with file.open("ab") as out:
        out.write(INSIDE + f" {number:04d}".encode())


def folders(place, count=40):
    """Class folders with a folder for each patient; one file is broken, at one the decoder fails."""
    for number in range(count):
        patient = f"{(WARD, OTHER)[number % 4 // 2]}-{number // 4}"
        write(place / ("rows", "columns")[number % 2] / patient / f"{ID}-{BORN}-{number}.npy", number)
    (place / "rows" / f"{WARD}-0" / f"{ID}-broken.npy").write_bytes(b"\x93NUMPY" + INSIDE)
    with (place / "rows" / f"{WARD}-0" / f"{ID}-boom.npy").open("wb") as out:
        out.write(INSIDE + b"boom")
    return place


def table(place, *, split=None):
    """A manifest with patients in its column of groups."""
    lines = ["path,label,group,split"]
    for number in range(40):
        name = f"{WARD}/{ID}-{number}.npy"
        write(place / name, number)
        where = split[number % 2] if split else ""
        lines.append(f"{name},{('rows', 'columns')[number % 2]},{OTHER}-{number // 2},{where}")
    (place / f"{ID}.csv").write_text("\n".join(lines) + "\n")
    return place / f"{ID}.csv"


def test_a_whole_pipeline_and_its_single_stages_name_nothing(maeflow, place, tmp_path):
    source, labelled = folders(place / "much"), table(place / "little")
    command = ("run", "ward/demo", "--data", f"{source}=2", "--labelled", labelled, *QUICK)
    code, out, err = maeflow(*command, alone=True)
    assert code == 0, out + err
    assert (maeflow.home / "prefect" / "prefect.db").exists()
    assert "2 unreadable" in out
    (card,) = [f for f in (maeflow.home / "prepared").glob("*/card.md") if "RuntimeError" in f.read_text()]
    assert "unforeseen RuntimeError in _chatter |" in card.read_text()
    # The owner finds the file behind a name of the card.
    key = card.read_text().partition("unforeseen")[0].split("|")[-2].strip()
    (known,) = [line for f in (maeflow.home / "private").glob("items-*") for line in f.open() if key in line]
    assert f"{ID}-boom.npy" in known
    # All that the planted names were in has been read: the search would find them otherwise.
    assert len(find(maeflow.home / "private", NEEDLES)) > 0
    following = out_of(maeflow("prepare", "ward/demo", "--data", labelled, *QUICK))
    for _ in range(3):
        following = out_of(maeflow(*following[1:]))
    assert following is None
    assert find(one_server.folder(), ["ward/demo"])  # The server that is searched in the end has heard of all this.
    assert maeflow("runs")[0] == 0


def out_of(done):
    """The command that a stage says comes next, without its home."""
    code, out, err = done
    assert code == 0, out + err
    words = next((line.split()[1:] for line in out.splitlines() if line.startswith("next:")), None)
    return words and [w for n, w in enumerate(words) if w != "--home" and words[n - 1] != "--home"]


def test_a_source_can_be_given_by_its_token_and_a_path_is_no_parameter(maeflow, place):
    source = folders(place, 12)
    assert maeflow("prepare", "ward/demo", "--data", source)[0] == 0
    token = next(word for word in (maeflow.home / "private" / "sources.json").read_text().split('"') if ":" in word)
    code, out, _ = maeflow("prepare", "ward/demo", "--data", token)
    assert code == 0
    assert "already done" in out
    code, _, err = maeflow("prepare", "ward/demo", "--data", token[:-1] + "x")
    assert code == 2
    assert "no source is called private:" in err
    code, _, err = maeflow("pretrain", "ward/demo", "--from", source)
    assert code == 2
    assert err == "error: --from names no finished folder of a stage; `maeflow runs` lists them\n"


def test_a_source_that_is_missing_is_called_the_source(maeflow, place):
    place.mkdir()
    (place / WARD).mkdir()
    for name in (f"{WARD}s", ID * 40):
        code, _, err = maeflow("run", "ward/demo", "--data", place / name)
        assert code in (1, 2)
    assert "unforeseen OSError at core/data/sources.py:" in err
    code, _, err = maeflow("run", "ward/demo", "--data", place / f"{WARD}s")
    assert (code, err) == (
        2,
        "error: the source does not exist; give a folder, a .csv or .parquet manifest, or a saved dataset\n",
    )
    code, _, err = maeflow("run", "ward/demo", "--data", f"{place / WARD}=-1")
    assert (code, err) == (2, "error: --data: the weight must be above 0\n")


def test_a_source_of_broken_files_is_refused_without_their_names(maeflow, place):
    for number in range(3):
        file = place / WARD / f"{ID}-{number}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(INSIDE + (b"boom" if number else b""))
    code, _, err = maeflow("run", "ward/demo", "--data", place)
    assert code == 1
    assert "none of the 3 items could be read" in err
    assert "not a whole .npy array of numbers" in err
    assert err.count("unforeseen RuntimeError in _chatter\n") == 2
    assert maeflow("prepare", "ward/demo", "--data", place, "--debug", debug=True)[0] == 1


def test_an_unforeseen_error_in_the_plugin_is_told_by_its_place(maeflow, place):
    folders(place, 2)
    (place / "explode").mkdir()
    code, _, err = maeflow("run", "ward/demo", "--data", place)
    assert code == 1
    assert "unforeseen KeyError at core/data/prepare.py:" in err
    code, _, err = maeflow("run", "ward/demo", "--data", place, "--debug", debug=True)
    assert f"KeyError: '{place}'" in err  # Who asks for it is shown it; it is stored nowhere all the same.


def test_tables_that_are_wrong_are_not_quoted(maeflow, place):
    file = table(place, split=("train", "test"))
    code, _, err = maeflow("run", "ward/demo", "--data", file)
    assert code == 2
    assert "the source's own splits divide 20 groups: " in err
    code, _, err = maeflow("run", "ward/demo", "--data", file, "--set", "prepare.divided_groups=allow")
    assert code == 2
    assert "whose groups are people" in err
    lines = file.read_text().splitlines()
    wrong = {
        "line 42: its path is listed twice": [*lines, lines[1]],
        "line 42: split is none of train, val, test": [*lines, f"other.npy,rows,,{WARD}"],
        "the manifest cannot be read": [*lines, f"{WARD},{ID}"],
        "error: the manifest has no column 'path'": lines[1:],
    }
    for text, content in wrong.items():
        file.write_text("\n".join(content) + "\n")
        code, _, err = maeflow("prepare", "ward/demo", "--data", file)
        assert code == 2
        assert text in err
