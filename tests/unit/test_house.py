"""The numbers and rules the house keeps."""

import ast
import re
import subprocess
from pathlib import Path
from statistics import median

import pytest

from core.config import Config, results_only
from core.recipes import recipe_class
from core.registry import entries, plugin_info

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "modalities", "flows", "infra")
SOURCES = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
MODULES = {path: ast.parse(path.read_text()) for path in SOURCES}
FUNCTIONS = [
    (path, node)
    for path, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]


def length(node):
    return node.end_lineno - node.lineno + 1


def test_files_and_functions_keep_their_caps(record_property):
    lines = {str(p.relative_to(ROOT)): p.read_text().count("\n") for p in SOURCES}
    long_files = {name: n for name, n in lines.items() if n > 450}
    long_functions = {f"{p.name}:{f.name}": length(f) for p, f in FUNCTIONS if length(f) > 70}
    print(
        f"\nfiles: median {median(n for n in lines.values() if n > 3)} lines, longest {max(lines.values())}; "
        f"functions: median {median(length(f) for _, f in FUNCTIONS)}, longest {max(length(f) for _, f in FUNCTIONS)}"
    )
    assert not long_files
    assert not long_functions


def public(node):
    return not node.name.startswith("_")


def test_every_public_name_is_documented():
    missing = [str(p.relative_to(ROOT)) for p, tree in MODULES.items() if not ast.get_docstring(tree)]
    for path, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and public(node):
                inner = node.body if isinstance(node, ast.ClassDef) else []
                owners = [node, *(n for n in inner if isinstance(n, ast.FunctionDef) and public(n))]
                missing += [f"{path.name}: {n.name}" for n in owners if not ast.get_docstring(n)]
    assert not missing


def configs():
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


def test_core_asks_for_no_modality_by_name():
    names = {"image", "video", "audio", "medical", "spectrogram", "dicom"}
    for path, tree in MODULES.items():
        if path.is_relative_to(ROOT / "core"):
            for node in ast.walk(tree):
                if isinstance(node, ast.Compare):
                    constants = [c.value for c in (node.left, *node.comparators) if isinstance(c, ast.Constant)]
                    assert not names & set(constants), f"{path.name}:{node.lineno}"


def test_test_folders_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_tracked_files_hold_no_path_of_one_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")
    found = []
    for name in listed:
        try:
            text = (ROOT / name).read_text()
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        if pattern.search(text):
            found.append(name)
    assert not found


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


AFFECTING = """
modality seed task.kind task.class_weights prepare.val_fraction prepare.test_fraction prepare.divided_groups
prepare.max_unreadable prepare.shard_items model.width model.depth model.heads model.mlp_ratio model.cls_token
model.positions model.decoder.width model.decoder.depth model.decoder.heads pretrain.epochs
pretrain.warmup_epochs pretrain.batch pretrain.micro_batch pretrain.base_lr pretrain.min_lr pretrain.betas
pretrain.weight_decay pretrain.clip_grad pretrain.drop_path pretrain.precision pretrain.ema
pretrain.input_shape pretrain.validate_every pretrain.mask.kind pretrain.mask.ratio pretrain.mask.count_rule
pretrain.mask.block pretrain.mask.axis pretrain.norm_pix pretrain.decode_fraction pretrain.masks_per_sample
finetune.epochs finetune.warmup_epochs finetune.batch finetune.micro_batch finetune.base_lr finetune.min_lr
finetune.betas finetune.weight_decay finetune.clip_grad finetune.drop_path finetune.precision finetune.ema
finetune.input_shape finetune.validate_every finetune.layer_decay finetune.pool finetune.label_smoothing
finetune.mixup finetune.cutmix evaluate.batch evaluate.knn_k evaluate.knn_temperature evaluate.linear_c
evaluate.bootstrap evaluate.label_efficiency.labels_per_class evaluate.label_efficiency.seeds
evaluate.label_efficiency.steps evaluate.label_efficiency.batch evaluate.label_efficiency.pretrained.base_lr
evaluate.label_efficiency.pretrained.layer_decay evaluate.label_efficiency.random.base_lr
evaluate.label_efficiency.random.layer_decay
""".split()
NOT_AFFECTING = """
name compute.device compute.workers compute.threads compute.checkpoint_seconds compute.keep compute.log_every
compute.compile compute.deterministic
""".split()


def test_what_affects_results_and_what_does_not():
    """A new field must be put on one side or the other, by hand."""
    cls = recipe_class("image")
    recipe = cls(modality="image", data={})
    affecting = {name for name in leaves(results_only(recipe)) if not name.startswith("data.")}
    every = {name for name in leaves(recipe.model_dump()) if not name.startswith("data.")}
    assert affecting == set(AFFECTING)
    assert every - affecting == set(NOT_AFFECTING)
