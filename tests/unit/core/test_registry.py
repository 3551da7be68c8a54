"""Discovery of plugins: whatever one of them does wrong, the others and every command go on."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from core import recipes, registry
from core.errors import UserError

COMMAND = Path(sys.executable).with_name("maeflow")
SOUND = """
from core.config import PluginInfo, PluginSettings
PLUGIN = PluginInfo(name="{name}", settings=PluginSettings, plugin="{module}:Nothing", revision=1)
"""


def install(folder, package, entry, **modules):
    """A distribution ``package`` with one entry point and some modules, as an installer leaves it."""
    about = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[maeflow.modalities]\n{entry}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@contextmanager
def on_path(folder):
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    registry.refresh()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]
        registry.refresh()


def faults():
    return {f"{claim.name} of {claim.package}": registry.fault(claim) for claim in registry.claims()}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no licence\\nfound')", "RuntimeError: no licence"),
        ("import there_is_no_such_package", "No module named 'there_is_no_such_package'"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("PLUGIN = 5", "is a int, not a PluginInfo"),
        ("x = 5", "has no attribute 'PLUGIN'"),
        (SOUND.format(name="other", module="m"), "calls itself 'other'"),
        (
            SOUND.format(name="sonar", module="m").replace("revision=1", "revision=1, contract=7"),
            "version 7 .* version 1",
        ),
        (
            SOUND.format(name="sonar", module="m").replace("=PluginSettings", "=dict"),
            "not a subclass of PluginSettings",
        ),
    ],
)
def test_one_broken_plugin_costs_one_clear_line_and_nothing_else(tmp_path, code, said):
    install(tmp_path, "maeflow-sonar", "sonar = sonar_config:PLUGIN", sonar_config=code)
    with on_path(tmp_path):
        with pytest.raises(UserError, match=said) as caught:
            registry.plugin_info("sonar")
        assert "sonar_config:PLUGIN of maeflow-sonar 1.2" in str(caught.value)
        found = faults()
        assert found["image of maeflow"] is None
        assert "\n" not in found["sonar of maeflow-sonar"]
        assert "image/tiny" in recipes.available()
        assert recipes.load("image/tiny").modality == "image"


def test_nothing_is_imported_before_it_is_used(tmp_path):
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
    install(tmp_path, "maeflow-sonar", "sonar = sonar_config:PLUGIN", sonar_config=trap)
    with on_path(tmp_path):
        assert "sonar" in registry.entries()
        recipes.load("image/tiny")
        assert not (tmp_path / "imported").exists()
        assert registry.fault(registry.entries()["sonar"])
        assert (tmp_path / "imported").exists()


def test_a_name_that_maeflow_has_taken_stays_with_maeflow(tmp_path):
    code = SOUND.format(name="image", module="m")
    install(tmp_path, "aaa-images", "image = my_images:PLUGIN", my_images=code)
    with on_path(tmp_path):
        assert registry.plugin_info("image").plugin == "modalities.image.plugin:ImageModality"
        found = faults()
        assert found["image of maeflow"] is None
        assert "taken by maeflow itself; rename the entry point of aaa-images" in found["image of aaa-images"]


def test_two_packages_with_one_name_are_both_refused_and_both_named(tmp_path):
    for package in ("one", "two"):
        code = SOUND.format(name="sonar", module="m")
        install(tmp_path, f"maeflow-{package}", f"sonar = config_{package}:PLUGIN", **{f"config_{package}": code})
    with on_path(tmp_path):
        with pytest.raises(UserError, match=r"claimed by maeflow-one .* and maeflow-two .*uninstall one"):
            registry.plugin_info("sonar")
        assert all(found for name, found in faults().items() if name.startswith("sonar"))
        assert faults()["image of maeflow"] is None


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(sonar_plugin.py, line 1\)"),
        ("class Nothing: pass", "no subclass of core.modality.Modality"),
        ("from core.modality import Modality\nclass Nothing(Modality): pass", "lacks the methods discover, features"),
        ("", "has no attribute 'Nothing'"),
    ],
)
def test_a_plugin_class_that_cannot_be_used_says_why(tmp_path, module, said):
    code = SOUND.format(name="sonar", module="sonar_plugin")
    install(tmp_path, "maeflow-sonar", "sonar = sonar_config:PLUGIN", sonar_config=code, sonar_plugin=module)
    with on_path(tmp_path), pytest.raises(UserError, match=said):
        registry.plugin("sonar", None)


def test_a_plugin_in_a_bare_module_works_and_brings_no_recipes(tmp_path):
    code = SOUND.format(name="sonar", module="m")
    install(tmp_path, "maeflow-sonar", "sonar = sonar_config:PLUGIN", sonar_config=code)
    with on_path(tmp_path):
        assert registry.recipe_files("sonar") == {}
        assert registry.companion("sonar", "demo") is None
        assert recipes.resolve({"modality": "sonar", "data": {}}, "here").modality == "sonar"


def test_the_commands_go_on_beside_a_plugin_that_raises_at_import(tmp_path):
    install(tmp_path, "maeflow-sonar", "sonar = sonar_config:PLUGIN", sonar_config="raise OSError('no licence')")

    def maeflow(*words):
        return subprocess.run(
            [COMMAND, *words],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        )

    listed = maeflow("modalities")
    assert listed.returncode == 0
    lines = {line.split()[0]: line for line in listed.stdout.splitlines()[1:]}
    assert set(lines) == {"audio", "image", "medical", "sonar", "video"}
    assert "OSError: no licence (sonar_config.py, line 1)" in lines["sonar"]
    assert all(line.endswith("ok") for name, line in lines.items() if name != "sonar")
    assert "image/demo" in maeflow("recipes").stdout
    refused = maeflow("run", "sonar/demo", "--data", str(tmp_path), "--home", str(tmp_path / "home"))
    assert refused.returncode == 2
    assert "of maeflow-sonar 1.2) cannot be imported: OSError: no licence" in refused.stderr
