"""The file for Prefect's own deploy command says what the recipes say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_file_is_what_the_recipes_give():
    command = [sys.executable, ROOT / ".ci" / "prefect_yaml"]
    written = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert (ROOT / "prefect.yaml").read_text() == written, "a recipe has changed: `make prefect.yaml` writes it anew"
