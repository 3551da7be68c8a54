"""The table of `maeflow check-modality`, and the form it checks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))
from broken_plugins import NAME, Fault, install

from core.errors import UserError
from core.testing.rules import Kit
from flows.checks import check
from flows.testing import BOOK
from flows.typed import form

COMMAND = Path(sys.executable).with_name("maeflow")


def checked(fault, folder, *options):
    install(fault, folder)
    return subprocess.run(
        [COMMAND, "check-modality", NAME, *options],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(folder), "PATH": "", "OMP_NUM_THREADS": "1"},
    )


def test_a_broken_rule_says_what_was_seen_and_what_to_do(tmp_path):
    fault = Fault("", "", "plugin.py", "generator=rng, device=x.device", "device=x.device")
    done = checked(fault, tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("FAIL")]
    assert lines[place].split()[:3] == ["FAIL", "batch-seeded", "batch"]
    assert "seen: two batches from generators of seed 0 differ" in lines[place + 1]
    assert "do:   Pass `generator=rng`" in lines[place + 2]
    assert "-    fixed-batch            batch        (waits for batch-seeded)" in lines
    held = sum(line.startswith("ok ") for line in lines)
    assert held > 35
    assert lines[-1] == f"{held} rules hold, 1 is broken, 1 was not run"


def test_a_plugin_that_ends_its_process_is_told(tmp_path):
    fault = Fault("", "", "plugin.py", "array, most = ", "__import__('os')._exit(9)\n        array, most = ")
    done = checked(fault, tmp_path)
    assert done.returncode == 1
    assert "FAIL survives" in done.stdout
    assert "seen: exit code 9" in done.stdout


def test_data_of_ones_own_take_the_place_of_the_sample(tmp_path):
    import numpy as np

    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "wrong.npy", np.zeros(3))
    done = checked(Fault("", ""), tmp_path / "package", "--data", tmp_path / "data")
    assert done.returncode == 1
    assert "an array of shape (3,)" in done.stdout


def test_what_is_not_there_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="'sonar' is not installed"):
        check("sonar", None, None)
    with pytest.raises(UserError, match="does not exist"):
        check("image", str(tmp_path / "nothing"), None)


def test_the_form_holds_the_settings_of_the_modality():
    schema = form("image").model_dump()
    block = schema["definitions"]["ImageSettings"]
    assert schema["properties"]["data"]["$ref"].endswith("/ImageSettings")
    assert block["properties"]["channels"]["description"].startswith("1 for grey")
    assert schema["definitions"]["PretrainConfig"]["properties"]["epochs"]["exclusiveMinimum"] == 0
    assert json.dumps(schema)


def test_a_form_without_help_texts_is_found(monkeypatch):
    from core.config import PluginInfo, PluginSettings

    class Silent(PluginSettings):
        width: int = 3

    class Subject:
        name = "silent"

    silent = PluginInfo(name="silent", settings=Silent, plugin="x:Y", revision=1)
    for module in ("flows.typed", "core.recipes"):
        monkeypatch.setattr(f"{module}.plugin_info", lambda name: silent)
    (found,) = Kit(Subject(), BOOK).findings()
    assert found.status == "failed"
    assert found.text == "the form has no help text for width"
