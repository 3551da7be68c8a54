"""Every command in the README exists, takes the options it is given there, and names recipes that are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from core import recipes

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_there_are_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(line):
    target = line.split()[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", sorted({c for c in COMMANDS if "maeflow " in c}))
def test_commands_take_their_options(line):
    words = shlex.split(line)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", words[0], "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout
    names = [word for word in words if re.fullmatch(r"(image|video|audio)/\w+", word)]
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    for name in names:
        recipes.load(name, overrides)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
