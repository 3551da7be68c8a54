"""Units written by processes of other machines: only where these see the same files and have the same code."""

import datetime as dt
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core import recipes
from core.data import plans
from core.data.prepare import missing_units
from core.data.shards import arrow_file, reading, result_file, run_unit
from core.registry import plugin_for
from core.request import StageRequest
from core.units import environment
from core.workspace import Home, digest_of

SETS = ["data.size=[16,16]", "data.patch=[4,4]", "prepare.shard_items=8"]


@pytest.fixture
def made(tmp_path):
    """A home, a plugin, and the units of a few pictures; a plan's folder with a request."""
    source, recipe = tmp_path / "source" / "a", recipes.load("image/tiny", SETS)
    source.mkdir(parents=True)
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"\udce9{number}.png")
    home = Home.create(tmp_path / "home")
    (home.root / "prepared" / "shards").mkdir()
    plugin = plugin_for(recipe, "evaluate")
    units = missing_units(recipe, str(source.parent), plugin, home.root / "prepared" / "shards")
    plan = tmp_path / "plan"
    plan.mkdir()
    values = {"home": str(home.root), "recipe": recipe.model_dump(mode="json"), "source": str(source.parent)}
    request = StageRequest(stage="prepare", digest="d", **values)
    (plan / plans.REQUEST).write_text(request.model_dump_json())
    return home, plugin, units, plan


def start(plan, *digests):
    command = [sys.executable, "-P", "-m", "core.units", str(plan), *digests]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(plan, *digests):
    process = start(plan, *digests)
    said = process.stdout.read()
    return process.wait(60), said


@pytest.mark.slow
def test_a_plan_holds_what_is_missing_and_its_units_come_out_as_the_stage_writes_them(made, tmp_path):
    home, plugin, units, plan = made
    assert run(plan)[0] == 0
    assert plans.planned(plan) == sorted(unit.digest for unit in units)
    assert [plans.read_unit(plan, unit.digest, plugin) for unit in units] == units
    assert run(plan, *plans.planned(plan)) == (0, "")
    (tmp_path / "own").mkdir()
    for unit in units:
        run_unit(unit, plugin, tmp_path / "own")
    there = {p.name: p.read_bytes() for p in (home.root / "prepared" / "shards").iterdir()}
    assert there == {p.name: p.read_bytes() for p in (tmp_path / "own").iterdir()}


def test_what_json_would_change_is_left_to_the_stage(made):
    _, plugin, units, plan = made
    dated = replace(units[0], items=(replace(units[0].items[0], target=dt.date(2026, 1, 1)),))
    pair = replace(units[1], items=(replace(units[1].items[0], target=(1, 2)),))
    small = replace(units[2], items=(replace(units[2].items[0], target=np.float64(0.5)),))
    fine = replace(units[3], items=(replace(units[3].items[0], target=[float("nan"), 0.1]),))
    plans.write_plan(plan, plans.Plan("", {}, None), [dated, pair, small, fine], plugin)
    assert plans.planned(plan) == [fine.digest]


@pytest.mark.slow
def test_a_machine_that_sees_other_files_writes_nothing_of_that_unit(made):
    home, plugin, units, plan = made
    plans.write_plan(plan, plans.Plan(reading_of(plugin), environment("image"), None), units, plugin)
    Path(units[0].items[0].path).unlink()
    code, said = run(plan, *(unit.digest for unit in units))
    assert code == 1
    assert f"error: 1 of {len(units)} shards: this machine sees other files than the one that planned" in said
    done = [unit for unit in units if result_file(home.root / "prepared" / "shards", unit.digest).exists()]
    assert done == units[1:]


def reading_of(plugin):
    return digest_of(reading(plugin))


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["environment", "reading"])
def test_a_machine_with_other_versions_writes_nothing(made, changed):
    home, plugin, units, plan = made
    here = environment("image")
    assert here["pillow"] != "none"
    assert "pytest" not in here
    there = plans.Plan(reading_of(plugin), here, None)
    other = {"environment": here | {"pillow": "1.0"}, "reading": "other"}
    plans.write_plan(plan, replace(there, **{changed: other[changed]}), units, plugin)
    code, said = run(plan, units[0].digest)
    assert code == 2
    assert {"environment": "the machine that planned has 1.0", "reading": "other code of maeflow"}[changed] in said
    assert not list((home.root / "prepared" / "shards").iterdir())


def test_a_plan_is_abandoned_once_its_holder_is_gone(tmp_path):
    code = f"from core.data import plans; from pathlib import Path\nwith plans.held(Path({str(tmp_path)!r})):\n"
    code += "    print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    assert not plans.abandoned(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert plans.abandoned(tmp_path)
    (tmp_path / plans.LOCK).unlink()
    assert plans.abandoned(tmp_path)


def test_a_process_that_is_told_to_stop_ends_in_the_middle_of_an_item_and_blames_none(tmp_path):
    code = f"""if True:
        import threading, time
        from pathlib import Path
        from core.units import _leave_when
        from core.workspace import temporary_beside
        folder, stop = Path({str(tmp_path)!r}), threading.Event()
        (folder / "u.reading").touch()
        (folder / ".another.1-abc.tmp").touch()
        temporary_beside(folder / "u.arrow").touch()
        _leave_when(stop, folder, [folder / "u.reading"])
        print(len(list(folder.iterdir())), flush=True)
        threading.Timer(0.2, stop.set).start()
        time.sleep(60)
    """
    start = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "3\n")
    assert time.monotonic() - start < 30
    assert [p.name for p in tmp_path.iterdir()] == [".another.1-abc.tmp"]  # Somebody else is writing that.


def test_two_writers_of_one_shard_never_show_half_of_it(made):
    home, plugin, units, _ = made
    folder, unit = home.root / "prepared" / "shards", units[0]
    run_unit(unit, plugin, folder)
    whole, result = arrow_file(folder, unit.digest).read_bytes(), result_file(folder, unit.digest).read_bytes()
    code = (
        "import pickle, sys\nfrom pathlib import Path\nfrom core.data.shards import run_unit\n"
        "unit, plugin, folder = pickle.load(sys.stdin.buffer)\nprint(flush=True)\n"
        "for _ in range(40): run_unit(unit, plugin, folder)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in "ab"
    ]
    for writer in writers:
        writer.stdin.write(pickle.dumps((unit, plugin, folder)))
        writer.stdin.close()
    for writer in writers:
        writer.stdout.readline()
    looks = 0
    while any(writer.poll() is None for writer in writers):
        assert arrow_file(folder, unit.digest).read_bytes() == whole
        assert result_file(folder, unit.digest).read_bytes() == result
        looks += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert looks > 10
    assert sorted(p.name for p in folder.iterdir()) == [f"{unit.digest}.arrow", f"{unit.digest}.json"]
