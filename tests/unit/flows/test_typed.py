"""Flows, their forms, and what `maeflow trigger` makes of a deployment's values."""

import copy
from types import SimpleNamespace

import jsonschema
import pytest

from core.errors import UserError
from core.recipes import load
from core.registry import entries
from core.request import STAGES
from flows import typed
from flows.deploying import _of_recipe
from flows.triggering import changed


def schema_of(flow):
    return flow.parameters.model_dump(exclude_unset=True)


@pytest.mark.parametrize("modality", ["image", "video", "audio", "medical"])
def test_every_group_of_the_form_is_concrete_and_described(modality):
    schema = schema_of(getattr(typed, modality))
    assert {"sources", "data"} == set(schema["required"])
    for name, field in schema["properties"].items():
        assert field["description"], name
        inner = field.get("$ref", "").rpartition("/")[2]
        for key, part in schema["definitions"].get(inner, {}).get("properties", {}).items():
            assert part.get("description") or part.get("$ref") or part.get("allOf"), f"{name}.{key}"


@pytest.mark.parametrize("modality", sorted(entries()))
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_flow_with_its_inputs_first(modality, stage):
    flow = getattr(typed, f"{modality}_{stage}")
    names = list(schema_of(flow)["properties"])
    assert names[: len(typed.INPUTS[stage])] == list(typed.INPUTS[stage])
    assert flow.name == f"{modality}-{stage}"


def test_there_is_no_flow_of_a_modality_that_is_not_installed():
    for name in ("sonar", "sonar_prepare", "image_train"):
        with pytest.raises(AttributeError, match=name):
            getattr(typed, name)


def valid(schema, values):
    return jsonschema.Draft202012Validator(schema).is_valid(values)


def test_the_form_refuses_what_a_recipe_refuses(tmp_path):
    wanted = _of_recipe(tmp_path, "image/tiny", [], None, "maeflow")[0]
    values = copy.deepcopy(wanted.parameters) | {"sources": [{"path": "/data"}]}
    assert valid(wanted.schema, values)
    for group, key, wrong in (("pretrain", "epochs", 0), ("pretrain", "epoch", 3), ("pretrain", "norm_pix", "all")):
        broken = copy.deepcopy(values)
        broken[group][key] = wrong
        assert not valid(wanted.schema, broken), key


def test_forms_of_private_modalities_take_no_path(tmp_path):
    pipeline, prepare, pretrain = _of_recipe(tmp_path, "medical/demo", [], None, "maeflow")[:3]
    for wanted, path in ((pipeline, "sources"), (prepare, "source"), (pretrain, "prepared")):
        for text, right in (("/wards/miller", False), ("private:" + "0" * 16, path != "prepared")):
            values = wanted.parameters | {path: [{"path": text}] if path == "sources" else text}
            assert valid(wanted.schema, values) == right, (path, text)
    assert valid(pretrain.schema, pretrain.parameters | {"prepared": "/kept/prepared/0123456789abcdef"})


def deployment(home, name, number=0):
    wanted = _of_recipe(home, name, [], None, "maeflow")[number]
    return SimpleNamespace(parameters=wanted.parameters, parameter_openapi_schema=wanted.schema)


def test_one_override_changes_one_value(tmp_path):
    found = deployment(tmp_path, "image/tiny")
    before = copy.deepcopy(found.parameters)
    given = changed(tmp_path, "image/tiny", found, [str(tmp_path)], None, None, ["pretrain.epochs=7"])
    assert set(given) == {"pretrain", "sources"}
    assert given["pretrain"] == before["pretrain"] | {"epochs": 7}
    assert given["pretrain"] != before["pretrain"]
    assert found.parameters == before


def test_a_value_that_is_the_same_changes_nothing(tmp_path):
    found = deployment(tmp_path, "image/tiny")
    epochs = load("image/tiny").pretrain.epochs
    assert set(changed(tmp_path, "image/tiny", found, [str(tmp_path)], None, None, [f"pretrain.epochs={epochs}"])) == {
        "sources"
    }


@pytest.mark.parametrize(
    ("number", "name", "options", "message"),
    [
        (0, "image/tiny", {"overrides": ["pretrain.epoch=3"]}, r"pretrain.epoch: unknown key; did you mean 'epochs'"),
        (0, "image/tiny", {"overrides": ["pretrain.epochs=0"]}, r"pretrain.epochs"),
        (0, "image/tiny", {"data": []}, r"needs sources; add --data SRC"),
        (0, "image/tiny", {"data": ["/no/such/folder"]}, r"/no/such/folder"),
        (0, "image/tiny", {"from_": "0123456789abcdef"}, r"--from is for the stages after prepare"),
        (2, "image-pretrain/tiny", {"data": ["."]}, r"--data is for pipelines and the stage prepare"),
        (2, "image-pretrain/tiny", {}, r"needs prepared; add --from FOLDER"),
        (1, "image-prepare/tiny", {"data": [".", "."]}, r"one --data at a time"),
    ],
)
def test_wrong_requests_are_refused_before_anything_starts(tmp_path, number, name, options, message):
    data = options.get("data", [str(tmp_path)] if number == 0 else [])
    with pytest.raises(UserError, match=message):
        changed(
            tmp_path, name, deployment(tmp_path, "image/tiny", number), data, None, options.get("from_"),
            options.get("overrides", []),
        )  # fmt: skip


def test_a_private_source_becomes_its_public_name(tmp_path):
    ward = tmp_path / "ward-of-miller"
    ward.mkdir()
    given = changed(tmp_path, "medical/demo", deployment(tmp_path, "medical/demo"), [str(ward)], None, None, [])
    assert given["sources"][0]["path"].startswith("private:")
    assert "miller" not in str(given)


def test_a_worker_without_a_home_is_told_so(monkeypatch):
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "6d35d5b5-2c9f-4f0a-8f0e-3c7ad1b9e5a1")
    monkeypatch.delenv("MAEFLOW_HOME", raising=False)
    with pytest.raises(UserError, match="MAEFLOW_HOME is not set where this worker runs"):
        typed.served_home()
    monkeypatch.setenv("MAEFLOW_HOME", "kept")
    assert typed.served_home().name == "kept"


def test_a_checkpoint_is_tuned_without_raw_data(tmp_path):
    """Whatever sources the deployment has of its own."""
    found = deployment(tmp_path, "image/tiny")
    given = changed(tmp_path, "image/tiny", found, [], str(tmp_path), None, [], "facebook/vit-mae-base")
    assert given == {"sources": [], "labelled": str(tmp_path), "checkpoint": "facebook/vit-mae-base"}
    with pytest.raises(UserError, match="the run needs sources"):
        changed(tmp_path, "image/tiny", found, [], None, None, [], "facebook/vit-mae-base")


def test_stages_need_one_thing_to_start_from(tmp_path):
    finetune = deployment(tmp_path, "image/tiny", 3)
    with pytest.raises(UserError, match="the run needs encoder; add --from FOLDER"):
        changed(tmp_path, "image-finetune/tiny", finetune, [], None, None, [])
    given = changed(tmp_path, "image-finetune/tiny", finetune, [], None, None, [], "vit_base_patch16_224.mae")
    assert given == {"checkpoint": "vit_base_patch16_224.mae"}


def test_a_private_path_hides_behind_no_other_input(tmp_path):
    from flows.typed import FINISHED, _refuse

    with pytest.raises(UserError, match="a private source was given by its path"):
        _refuse([(FINISHED, "/wards/miller"), (FINISHED, None)])
