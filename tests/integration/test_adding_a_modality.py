"""The page on adding a modality is executed, block by block, in an environment of its own."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from environments import ROOT, Environment, wheel

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "adding-a-modality.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.long
def test_every_block_of_the_page_does_what_it_says(tmp_path):
    (tmp_path / "wheels").mkdir()
    place = tmp_path / "here"
    place.mkdir()
    environment = Environment(tmp_path / "environment")
    environment.install(wheel(ROOT, tmp_path / "wheels"))
    said = ""
    for kind, text in BLOCKS:
        if kind == "sh":
            said = environment.shell(text, place).stdout
        elif kind in ("python", "yaml"):
            file = place / "maeflow-depth" / re.match(r"# (\S+)\n", text)[1]
            assert file.exists(), f"the scaffold has no {file.name} to be replaced"
            file.write_text(text.partition("\n")[2])
        elif kind == "text":
            missing = [line for line in text.splitlines() if line not in said]
            assert not missing, said
        else:
            assert not kind
    written = [kind for kind, _ in BLOCKS]
    assert written.count("sh") >= 3
    assert written.count("python") == 4
