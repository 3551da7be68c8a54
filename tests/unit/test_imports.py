"""Who imports what, seen from fresh interpreters."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("maeflow")

# Python's own search for a package finds nothing under these names, neither for `import` nor for `find_spec`: just
# what code meets where they are not installed. (A hook that raises would not do: it breaks `find_spec`, which in a
# real absence gives None, and with it the libraries that ask whether there is an mlflow.)
WITHOUT_PREFECT_AND_MLFLOW = """
import importlib, importlib.machinery, importlib.util
search = importlib.machinery.PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name.partition(".")[0] in ("prefect", "mlflow") else search(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find)
assert importlib.util.find_spec("prefect") is None and importlib.util.find_spec("mlflow") is None
"""


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python(code):
    """Run ``code`` in a fresh interpreter; gives what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def loading(names):
    return f"import importlib, sys\nfor name in {list(names)!r}: importlib.import_module(name)\n"


def test_core_works_without_prefect_and_mlflow():
    """All of core and of the plugins is imported, and a recipe read, as on a bare GPU node."""
    names = [*modules("core"), *modules("modalities")]
    assert "core.launch" in names
    code = (
        WITHOUT_PREFECT_AND_MLFLOW
        + loading(names)
        + (
            "from core import recipes\n"
            "print(recipes.load('image/tiny').modality, len(sys.modules.keys() & {'prefect', 'mlflow', 'torch'}))"
        )
    )
    assert python(code) == ["image", "1"]


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_the_absence_is_real(name):
    done = python(f"{WITHOUT_PREFECT_AND_MLFLOW}try: import {name}\nexcept ModuleNotFoundError as e: print(e.name)")
    assert done == [name]


@pytest.mark.parametrize("package", ["flows", "infra"])
def test_the_flow_side_never_loads_torch(package):
    """Save for the one process whose purpose is to bring torch and MLflow together."""
    names = [name for name in modules(package) if name != "infra.log_model"]
    assert len(names) > 5
    assert python(loading(names) + "print('torch' in sys.modules)") == ["False"]


def test_settings_recipes_and_plugin_descriptions_load_without_torch():
    code = (
        "import sys\n"
        "from core import config, digests, recipes, registry\n"
        "from core.data.sources import listing\n"
        "print(*(registry.plugin_info(name).name for name in registry.entries()))\n"
        "[recipes.load(name) for name in recipes.available()]\n"
        "print(*sorted({'torch', 'PIL', 'av', 'decord', 'soundfile', 'pydicom', 'nibabel'} & sys.modules.keys()))"
    )
    assert python(code) == ["audio", "image", "medical", "video"]


def test_packages_are_ours():
    for name in ("core", "modalities", "flows", "infra"):
        assert Path(importlib.util.find_spec(name).origin).is_relative_to(ROOT)


def test_help_answers_within_a_second():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        assert "pretrain" in done.stdout
    assert median(times) < 1.0
