"""`kill -9` of the command leaves no process behind and no work lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from broken_images import photo

pytestmark = pytest.mark.slow


def test_a_killed_command_leaves_nothing_running_and_the_next_one_goes_on(tmp_path):
    for number in range(40):
        place = tmp_path / "photos" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        photo(number, (20, 20)).save(place / f"{number}.png")
    home = tmp_path / "home"
    sets = ["data.size=[16, 16]", "data.patch=[4, 4]", "data.channels=3", "compute.threads=1"]
    sets += ["evaluate.label_efficiency=null", "pretrain.epochs=400", "compute.checkpoint_seconds=0.2"]
    command = [str(Path(sys.executable).with_name("maeflow")), "run", "image/tiny", "--data", str(tmp_path / "photos")]
    command += ["--home", str(home), *(part for s in sets for part in ("--set", s))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAEFLOW", "PREFECT", "MLFLOW"))}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    deadline = time.monotonic() + 120
    while not list((home / "runs/pretrain").glob("*.partial/checkpoints/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    family = psutil.Process(first.pid).children(recursive=True)
    assert any("core.launch" in part for child in family for part in child.cmdline())
    assert any("prefect.server" in part for child in family for part in child.cmdline())
    first.kill()
    first.wait()
    first.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "already done" in again.stdout  # prepare
    assert "pretrain continues after step" in again.stdout
