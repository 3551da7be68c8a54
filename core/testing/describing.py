"""Rules about the plugin's description: its entry point, settings and recipes."""

import os
import subprocess
import sys

from core.config import CONTRACT_VERSION, PluginInfo, PluginSettings
from core.recipes import header, load, recipe_class, resolve
from core.registry import OURS, plugin_class, recipe_files
from core.testing.rules import Broken, RuleBook
from core.testing.subject import Subject

# fmt: off
HEAVY = frozenset({
    "torch", "torchvision", "torchaudio", "timm", "transformers", "tensorflow", "jax", "numba", "cv2", "PIL",
    "imageio", "tifffile", "skimage", "scipy", "sklearn", "pandas", "pyarrow", "datasets", "matplotlib", "decord",
    "av", "soundfile", "librosa", "pydicom", "nibabel", "SimpleITK", "monai", "prefect", "mlflow",
})
# fmt: on
"""Packages that take long to import or decode data; settings need none of them."""
BOOK: RuleBook[Subject] = RuleBook()
rule = BOOK.rule


@rule(
    "entry point",
    "One package alone claims the name.",
    "Choose another name for the entry point and for `PluginInfo.name`, or uninstall the other package.",
)
def one_name(s: Subject) -> None:
    """Two packages of one name would take turns, unnoticed."""
    if not s.claims:
        raise Broken(f"no installed package has the entry point {s.name!r} in the group maeflow.modalities")
    if len(s.claims) > 1:
        raise Broken(f"{s.name!r} is claimed by " + " and by ".join(f"{c.package} ({c.value})" for c in s.claims))
    if s.claim.package != OURS and not s.name.isidentifier():
        raise Broken(f"{s.name!r} is no plain name; recipes spell it as `{s.name}/demo`")


@rule(
    "config.py",
    "The module that the entry point names can be imported.",
    "Run `python -c 'import MODULE'` and mend what it says; dependencies belong into the package's pyproject.toml.",
    "one-name",
)
def config_imports(s: Subject) -> None:
    """A package that does not import is no plugin."""
    s.claim.entry.load()


@rule(
    "PLUGIN",
    "The entry point names a PluginInfo whose name is the entry point's and whose settings are PluginSettings.",
    "In config.py: PLUGIN = PluginInfo(name=..., settings=..., plugin='package.plugin:Class', revision=1); in "
    "pyproject.toml: NAME = 'package.config:PLUGIN'.",
    "config-imports",
)
def described(s: Subject) -> None:
    """All that lists, forms and recipes know of a plugin."""
    info = s.claim.entry.load()
    if not isinstance(info, PluginInfo):
        raise Broken(f"{s.claim.value} is of type {type(info).__name__}")
    if info.name != s.name:
        raise Broken(f"the entry point is called {s.name!r}, the PluginInfo {info.name!r}")
    if not (isinstance(info.settings, type) and issubclass(info.settings, PluginSettings)):
        raise Broken(f"PluginInfo.settings is {info.settings!r}")


@rule(
    "PLUGIN",
    "The plugin was written for this version of the contract.",
    "Read in the change log what the contract now asks for, change the plugin, and leave `contract` out of PluginInfo.",
    "described",
)
def contract_version(s: Subject) -> None:
    """A plugin for another contract may run and be wrong."""
    given = s.claim.entry.load().contract
    if given != CONTRACT_VERSION:
        raise Broken(f"the plugin was written for version {given}, this maeflow has version {CONTRACT_VERSION}")


@rule(
    "config.py",
    "Importing the settings loads no heavy package.",
    "Import torch, decoders and the like in plugin.py and reading.py; config.py needs core.config and pydantic only. "
    "Leave __init__.py empty: it is imported with config.py.",
    "config-imports",
)
def light_config(s: Subject) -> None:
    """Settings are read whenever recipes are listed or a form is drawn."""
    module = s.claim.value.partition(":")[0]
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({sorted(HEAVY)!r})))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise Broken(f"in a fresh interpreter: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    if done.stdout.strip():
        raise Broken(f"`import {module}` loads {', '.join(done.stdout.split())}")


@rule(
    "settings",
    "Every field of the settings is documented by a sentence under it.",
    "Write a docstring under the field, ending in a full stop: it is the help text in errors and forms.",
    "contract-version",
)
def documented_settings(s: Subject) -> None:
    """A form without explanations is a puzzle."""
    seen: set[type] = set()
    silent = [name for name, text in _fields(s.info.settings, "", seen) if not (text or "").rstrip().endswith(".")]
    if silent:
        raise Broken(f"no sentence under {', '.join(silent)}")


def _fields(model: type, prefix: str, seen: set[type]) -> list[tuple[str, str | None]]:
    """(dotted name, description) of all fields, those of blocks inside included."""
    from core.recipes import model_in

    seen.add(model)
    found: list[tuple[str, str | None]] = []
    for name, field in getattr(model, "model_fields", {}).items():
        found.append((f"{prefix}{name}", field.description))
        inner = model_in(field.annotation)
        if inner is not None and inner not in seen:
            found += _fields(inner, f"{prefix}{name}.", seen)
    return found


@rule(
    "settings",
    "The JSON schema of a recipe with these settings builds, and a recipe survives being written and read as JSON.",
    "Use types that JSON has: numbers, strings, booleans, Literal, tuples of them, and blocks derived from Config.",
    "contract-version",
)
def recipe_schema(s: Subject) -> None:
    """Forms are drawn from the schema; stages, records and MLflow hold the recipe as JSON."""
    schema = recipe_class(s.name).model_json_schema()
    if "data" not in schema["properties"]:
        raise Broken("the schema has no group `data`")
    if resolve(s.recipe.model_dump(mode="json"), "of the kit") != s.recipe:
        raise Broken("the recipe read back from JSON differs from the one that was written")


@rule(
    "recipes/",
    "Every packaged recipe loads, and opens with a comment that says what it is for.",
    "Run `maeflow recipes NAME/RECIPE`; begin the file with `# What it is for, on which hardware, with which result`.",
    "recipe-schema",
)
def recipes_load(s: Subject) -> None:
    """A recipe that does not load is found by its first user otherwise."""
    for name, file in recipe_files(s.name).items():
        load(name)
        if not header(file):
            raise Broken(f"recipe {name} has no comment at its top")


@rule(
    "plugin.py",
    "The class that PluginInfo names is a complete Modality and can be made for every stage.",
    "Derive it from core.modality.Modality, give it all abstract methods, and keep the arguments of its constructor.",
    "recipe-schema",
)
def plugin_class_complete(s: Subject) -> None:
    """What the engine makes at the start of a stage."""
    cls = plugin_class(s.name)
    if getattr(cls, "info", None) != s.info:
        raise Broken(f"{cls.__name__}.info is not the PLUGIN of the entry point")
    for purpose in ("pretrain", "finetune", "evaluate"):
        s.plugin(purpose)
