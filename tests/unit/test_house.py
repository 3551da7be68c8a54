"""The numbers and rules the house keeps."""

import ast
import re
import subprocess
from pathlib import Path
from statistics import median

import pytest

from core.config import Config, results_only
from core.recipes import recipe_class, resolve
from core.registry import entries, plugin_info

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "modalities", "flows", "infra")
FILE_CAP, FUNCTION_CAP = 450, 70
SOURCES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
MODULES = {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in SOURCES}
LINES = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
FUNCTION_KINDS = (ast.FunctionDef, ast.AsyncFunctionDef)


def functions():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION_KINDS):
                yield f"{name}:{node.lineno} {node.name}", node


def length(node):
    return node.end_lineno - node.lineno + 1


def test_there_is_something_to_check():
    assert {name.split("/")[0] for name in MODULES} == set(PACKAGES)
    assert len(LINES) > 50


def test_files_and_functions_keep_their_caps(record_property):
    lengths = {where: length(node) for where, node in functions()}
    written = [n for name, n in LINES.items() if not name.endswith("__init__.py")]
    record_property(
        "house figures",  # The name that tests/conftest.py prints.
        f"files: median {median(written):g} lines, longest {max(written)} (cap {FILE_CAP}); "
        f"functions: median {median(lengths.values()):g}, longest {max(lengths.values())} (cap {FUNCTION_CAP})",
    )
    assert not {name: n for name, n in LINES.items() if n > FILE_CAP}
    assert not {where: n for where, n in lengths.items() if n > FUNCTION_CAP}


def public(body):
    """Public classes and functions of a module's or class's body, and those inside public classes."""
    for node in body:
        if isinstance(node, (*FUNCTION_KINDS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def lacks_docstring(tree):
    return [node.name for node in public(tree.body) if not ast.get_docstring(node)]


def lacks_annotation(tree):
    missing = []
    for node in public(tree.body):
        if isinstance(node, FUNCTION_KINDS):
            given = node.args
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            bare = [a.arg for a in named if a and not a.annotation and a.arg not in ("self", "cls")]
            missing += [f"{node.name}: {argument}" for argument in bare]
            missing += [] if node.returns else [f"{node.name}: what it returns"]
    return missing


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented_and_annotated(name):
    tree = MODULES[name]
    assert ast.get_docstring(tree), "the module has no docstring"
    assert not lacks_docstring(tree)
    assert not lacks_annotation(tree)


def test_gaps_are_found():
    tree = ast.parse("class A:\n    def b(self, c, *, d: int):\n        pass\n    def _e(self): pass\ndef _f(g): pass")
    assert lacks_docstring(tree) == ["A", "b"]
    assert lacks_annotation(tree) == ["b: c", "b: what it returns"]


def configs():
    """Every settings block of the house: the base's subclasses, once all plugins' settings are imported."""
    seen, waiting = [], [Config, *(plugin_info(name).settings for name in entries())]
    while waiting:
        cls = waiting.pop()
        if cls not in seen:
            seen.append(cls)
            waiting += cls.__subclasses__()
    return [cls for cls in seen if cls.__module__.split(".")[0] in PACKAGES]


@pytest.mark.parametrize("cls", configs(), ids=lambda c: c.__name__)
def test_every_setting_says_what_it_is(cls):
    silent = [name for name, field in cls.model_fields.items() if not (field.description or "").rstrip().endswith(".")]
    assert not silent


MODALITIES = {"image", "video", "audio", "medical", *entries()}


def modality_questions(tree):
    """Lines that decide by a modality's name: comparisons, membership, match cases, prefixes, tables."""
    for node in ast.walk(tree):
        asked = []
        if isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("startswith", "endswith"):
            asked = node.args
        elif isinstance(node, ast.Dict):
            asked = [key for key in node.keys if key]
        texts = {c.value for part in asked for c in ast.walk(part) if isinstance(c, ast.Constant)}
        if MODALITIES & {t.strip("/.") for t in texts if isinstance(t, str)}:
            yield node.lineno


def test_core_asks_for_no_modality_by_name():
    found = [
        (name, line) for name, tree in MODULES.items() if name.startswith("core/") for line in modality_questions(tree)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "if recipe.modality == 'image': pass",
        "x = name in ('audio', 'video')",
        "match name:\n    case 'medical': pass",
        "name.startswith('image/')",
        "reader = {'video': 1}[name]",
    ],
)
def test_questions_for_a_modality_are_found(code):
    assert list(modality_questions(ast.parse(code)))


def test_test_folders_are_no_packages():
    """A package tests/unit/core would stand in for core itself."""
    found = [p.relative_to(ROOT / "tests").parts[0] for p in (ROOT / "tests").rglob("__init__.py")]
    assert set(found) <= {"plugin_package"}  # That one is a package of its own, under a name of its own.


def test_test_files_have_names_of_their_own():
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


HOME_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")


def test_tracked_files_hold_no_path_of_one_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git checkout")
    assert HOME_PATH.search(f"see {Path('/', 'home', 'someone')}")
    found = []
    for name in filter(None, listed.split("\0")):
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if HOME_PATH.search(text):
            found.append(name)
    assert not found


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


AFFECTING = """
modality seed task.kind task.class_weights task.classes prepare.val_fraction prepare.test_fraction
prepare.divided_groups prepare.max_unreadable
prepare.seconds_per_item prepare.shard_items model.width model.depth model.heads model.mlp_ratio model.cls_token
model.positions model.other_size model.decoder.attention model.decoder.window model.decoder.shift
model.decoder.width model.decoder.depth model.decoder.heads pretrain.epochs
pretrain.warmup_epochs pretrain.batch pretrain.micro_batch pretrain.repeats
pretrain.base_lr pretrain.min_lr pretrain.betas
pretrain.weight_decay pretrain.clip_grad pretrain.drop_path pretrain.precision pretrain.ema
pretrain.input_shape pretrain.validate_every pretrain.mask.kind pretrain.mask.ratio pretrain.mask.count_rule
pretrain.mask.block pretrain.mask.axis pretrain.mask.ratios
pretrain.norm_pix pretrain.decode_fraction pretrain.decode_kind
pretrain.predict_stride pretrain.masks_per_sample
finetune.epochs finetune.warmup_epochs finetune.batch finetune.micro_batch finetune.repeats
finetune.base_lr finetune.min_lr
finetune.betas finetune.weight_decay finetune.clip_grad finetune.drop_path finetune.precision finetune.ema
finetune.input_shape finetune.validate_every finetune.layer_decay finetune.pool finetune.label_smoothing
finetune.mixup finetune.cutmix finetune.sampling finetune.epoch_samples
finetune.segmenter.kind finetune.segmenter.width evaluate.overlap evaluate.blend
evaluate.batch evaluate.knn_k evaluate.knn_temperature evaluate.linear_c
evaluate.bootstrap evaluate.label_efficiency.labels_per_class evaluate.label_efficiency.seeds
evaluate.label_efficiency.steps evaluate.label_efficiency.batch evaluate.label_efficiency.pretrained.base_lr
evaluate.label_efficiency.pretrained.layer_decay evaluate.label_efficiency.random.base_lr
evaluate.label_efficiency.random.layer_decay
""".split()
NOT_AFFECTING = """
name evaluate.remarks
compute.device compute.workers compute.processes compute.threads compute.checkpoint_seconds compute.keep
compute.log_every
compute.compile compute.deterministic compute.dask compute.registry
""".split()

ADDED_LATER = {
    "model.norm_eps": 1e-12,
    "model.head_norm_eps": 1e-5,
    "model.decoder.mlp_ratio": 2.0,
    "model.decoder.own_cls": True,
    "model.decoder.norm_eps": 1e-5,
}
"""Fields that came when there were results already, and a value that is not their default."""


def test_what_affects_results_and_what_does_not():
    """A new field must be put on one side or the other, by hand."""
    cls = recipe_class("image")
    recipe = cls(modality="image", data={})
    affecting = {name for name in leaves(results_only(recipe)) if not name.startswith("data.")}
    every = {name for name in leaves(recipe.model_dump()) if not name.startswith("data.")}
    assert affecting == set(AFFECTING)
    assert every - affecting == set(NOT_AFFECTING) | set(ADDED_LATER)


def test_what_was_added_later_enters_digests_as_soon_as_it_is_used():
    used = resolve({"modality": "image", "data": {}, **nested(ADDED_LATER)}, "here")
    assert set(ADDED_LATER) <= set(leaves(results_only(used)))


def nested(values):
    """Dotted names as nested mappings."""
    tree = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


def test_which_image_settings_reach_prepared_data():
    """Augmentation shapes training views only, so changing it must not prepare anew; all else must."""
    settings = plugin_info("image").settings()
    everything = set(settings.model_dump())
    assert set(results_only(settings)) == everything
    assert everything - set(results_only(settings, "affects_prepared")) == {"pretrain", "finetune"}
