"""The package that `maeflow new-modality` writes, before it is installed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from core.errors import UserError
from flows.scaffolding import create

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return create("depth_map", tmp_path_factory.mktemp("scaffold") / "maeflow-depth-map")


@pytest.mark.parametrize("name", ["Depth", "3d", "a-b", "class", "", "../x", "image", "_x", "x_"])
def test_names_that_cannot_be_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"cannot name a modality|already installed, with maeflow"):
        create(name, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        create("depth", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_every_word_is_filled_in(package):
    files = [p for p in package.rglob("*") if p.is_file()]
    assert {"pyproject.toml", "README.md", "config.py", "reading.py", "plugin.py", "demo.py", "demo.yaml"} <= {
        p.name for p in files
    }
    for file in files:
        assert "$" not in file.read_text(), file
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == "maeflow-depth-map"
    assert project["entry-points"]["maeflow.modalities"] == {"depth_map": "maeflow_depth_map.config:PLUGIN"}


def test_it_is_written_as_maeflow_itself_is(package):
    """Formatted, linted, typed, documented."""
    for command in (["ruff", "format", "--check"], ["ruff", "check"]):
        done = subprocess.run(
            [sys.executable, "-m", *command, "--no-cache", "--config", ROOT / "pyproject.toml", "."],
            cwd=package,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree)
        assert len(file.read_text().splitlines()) <= 140


def test_its_types_hold(package):
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", package / "maeflow_depth_map"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"MYPYPATH": f"{ROOT}:{package}", "PATH": "", "HOME": str(package.parent)},
    )
    assert done.returncode == 0, done.stdout
