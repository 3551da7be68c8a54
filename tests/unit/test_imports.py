"""Who imports what, seen from fresh interpreters."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_core_needs_neither_prefect_nor_mlflow():
    """Both are made impossible to find, as on a machine where they are not installed."""
    code = (
        "import sys, importlib\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('prefect', 'mlflow'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {list(modules('core')) + list(modules('modalities'))!r}: importlib.import_module(name)\n"
        "try: import prefect\n"
        "except ModuleNotFoundError: print('absent')\n"
    )
    done = python(code)
    assert done.stdout.strip() == "absent", done.stderr


@pytest.mark.parametrize("package", ["flows", "infra"])
def test_the_flow_side_never_loads_torch(package):
    names = [name for name in modules(package) if name != "infra.log_model"]
    done = python(
        f"import sys, importlib\nfor n in {names!r}: importlib.import_module(n)\nprint('torch' in sys.modules)"
    )
    assert done.stdout.strip() == "False", done.stderr


def test_settings_and_recipes_load_without_torch():
    code = (
        "import sys\nfrom core import recipes, digests\nfrom core.data.sources import listing\n"
        "recipes.load('image/tiny')\nprint('torch' in sys.modules)"
    )
    done = python(code)
    assert done.stdout.strip() == "False", done.stderr


def test_packages_are_ours():
    for name in ("core", "modalities", "flows", "infra"):
        assert Path(importlib.util.find_spec(name).origin).is_relative_to(ROOT)


def test_help_answers_within_a_second():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "flows.cli", "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert "pretrain" in done.stdout
    assert median(times) < 1.0
