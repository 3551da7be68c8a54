"""Recipes: every packaged one loads, and every mistake is named with its nearest neighbour."""

import pytest

from core import recipes
from core.digests import pretrain_digest, recipe_digest
from core.errors import UserError


@pytest.mark.parametrize("name", recipes.available())
def test_every_packaged_recipe_loads_and_says_what_it_is(name):
    recipe = recipes.load(name)
    header = recipes.header(recipes.available()[name])
    assert recipe.name == name
    assert len(header.splitlines()[0]) > 20
    assert f"maeflow {'demo' if name.endswith('demo') else 'run'}" in header


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrian.epochs=3", ["pretrian", "did you mean 'pretrain'"]),
        ("pretrain.epoch=3", ["pretrain.epoch", "did you mean 'epochs'"]),
        ("pretrain.mask.ratoi=0.5", ["pretrain.mask.ratoi", "'ratio'"]),
        ("evaluate.label_efficiency.step=5", ["evaluate.label_efficiency.step", "'steps'"]),
        ("pretrain.epochs=many", ["pretrain.epochs", "integer", "'many'"]),
        ("pretrain.mask.ratio=1.5", ["pretrain.mask.ratio", "less than 1"]),
        ("model.heads=5", ["multiple of heads"]),
        ("data.size=[30, 30]", ["data", "multiple of patch"]),
        ("pretrain.micro_batch=7", ["multiple of micro_batch"]),
        ("epochs", ["key.key=value"]),
        ("seed.x=1", ["seed", "not a group"]),
        ("task.kind=multi_label + finetune.mixup=0.8", ["for single_label tasks", "set both to 0"]),
        ("task.kind=regression + finetune.sampling=balanced", ["needs classes"]),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(override, words):
    with pytest.raises(UserError) as caught:
        recipes.load("image/tiny", override.split(" + "))
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError, match="2 errors"):
        recipes.load("image/tiny", ["pretrain.epochs=0", "finetune.nonsense=1"])


def test_unknown_recipes_and_modalities(tmp_path):
    with pytest.raises(UserError, match="did you mean 'image/tiny'"):
        recipes.load("image/tny")
    (tmp_path / "r.yaml").write_text("modality: imag\ndata: {}\n")
    with pytest.raises(UserError, match="did you mean 'image'"):
        recipes.load(str(tmp_path / "r.yaml"))
    (tmp_path / "r.yaml").write_text("data: {}\n")
    with pytest.raises(UserError, match="`modality` is missing"):
        recipes.load(str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "mapping"), ("a: 1\na: 2", "twice")])
def test_files_that_are_no_recipes(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        recipes.load(str(tmp_path / "r.yaml"))


def test_overrides_reach_their_places():
    recipe = recipes.load("image/tiny", ["pretrain.epochs=7", "pretrain.mask.kind=axis", "compute.device=cpu"])
    assert (recipe.pretrain.epochs, recipe.pretrain.mask.kind) == (7, "axis")


def test_digests_follow_results_and_nothing_else():
    base = recipes.load("image/tiny")
    same = recipes.load("image/tiny", ["compute.workers=3", "compute.log_every=99", "compute.device=cpu", "name=other"])
    other = recipes.load("image/tiny", ["pretrain.epochs=9"])
    later = recipes.load("image/tiny", ["finetune.epochs=9", "evaluate.bootstrap=5"])
    assert recipe_digest(base) == recipe_digest(same) != recipe_digest(other)
    assert pretrain_digest(base, [], None) == pretrain_digest(same, [], None) == pretrain_digest(later, [], None)
    assert pretrain_digest(base, [], None) != pretrain_digest(other, [], None)


def test_a_resolved_recipe_is_its_own_source():
    recipe = recipes.load("image/tiny")
    assert recipes.resolve(recipe.model_dump(mode="json"), "here") == recipe
