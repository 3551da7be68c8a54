"""What flows refuse and what they keep to themselves where sources are private."""

from dataclasses import replace

import pytest

from core.errors import StageError, UserError
from core.registry import plugin_info
from core.workspace import Home
from flows import privacy
from flows.privacy import discretion, refuse_paths, refuse_strangers, source_name


@pytest.fixture
def private(monkeypatch):
    """The image plugin, were its sources private."""
    info = replace(plugin_info("image"), private=True)
    monkeypatch.setattr(privacy, "plugin_info", lambda name: info)


def test_unforeseen_errors_leave_without_their_texts(private, capsys):
    with pytest.raises(StageError) as told, discretion("image"):
        raise ValueError("Ada")
    assert "Ada" not in str(told.value)
    assert str(told.value).startswith("unforeseen ValueError at flows/privacy.py:")
    assert told.value.__suppress_context__  # Prefect logs tracebacks.
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [UserError, StageError])
def test_our_own_errors_leave_as_they_are(private, kind):
    with pytest.raises(kind, match=r"^what to do$"), discretion("image"):
        raise kind("what to do")


def test_tracebacks_are_shown_to_who_asks_and_the_error_stays_discreet(private, capsys, monkeypatch):
    monkeypatch.setenv("MAEFLOW_DEBUG", "1")
    with pytest.raises(StageError) as told, discretion("image"):
        raise ValueError("Ada")
    assert "ValueError: Ada" in capsys.readouterr().err
    assert "Ada" not in str(told.value)


def test_elsewhere_errors_keep_their_texts():
    with pytest.raises(ValueError, match="Ada"), discretion("image"):
        raise ValueError("Ada")


def test_a_flow_takes_private_sources_by_their_tokens_alone(private, tmp_path):
    home = Home.create(tmp_path / "home")
    (tmp_path / "Ada").mkdir()
    name = source_name(str(tmp_path / "Ada"), "image", home.root)
    assert name.startswith("private:")
    assert source_name(name, "image", home.root) == name
    refuse_paths([name], "image")
    with pytest.raises(UserError, match="Prefect stores the parameters") as told:
        refuse_paths([name, str(tmp_path / "Ada")], "image")
    assert "Ada" not in str(told.value)


def test_other_sources_go_by_their_paths(tmp_path):
    assert source_name(str(tmp_path), "image", tmp_path / "home") == str(tmp_path)
    refuse_paths([str(tmp_path)], "image")
    assert not (tmp_path / "home").exists()


def test_only_folders_of_stages_become_parameters(private, tmp_path):
    stage = tmp_path / "stage"
    stage.mkdir()
    with pytest.raises(UserError, match=r"^--from names no finished folder"):
        refuse_strangers({"data": str(stage), "labelled": None}, "image")
    (stage / "record.json").touch()
    refuse_strangers({"data": str(stage), "labelled": str(stage / "record.json")}, "image")
    with pytest.raises(UserError, match=r"^--labelled names no finished folder"):
        refuse_strangers({"data": str(stage), "labelled": str(tmp_path)}, "image")
