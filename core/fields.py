"""What settings are made of: the base of every block, marks for fields, and the part of a block that shapes results."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]


def no_result(default: Any, **constraints: Any) -> Any:
    """A field that cannot change results and is therefore left out of digests."""
    return Field(default, json_schema_extra={"affects_results": False}, **constraints)


def training_only(default: Any, **constraints: Any) -> Any:
    """A plugin's field that shapes views in training or testing and leaves prepared data as they are."""
    return Field(default, json_schema_extra={"affects_prepared": False}, **constraints)


def added_later(default: Any, **constraints: Any) -> Any:
    """A field that came when there were results already: digests leave its default out, so that these keep their names.

    Its default has to be what was done before it came.
    """
    return Field(default, json_schema_extra={"default_in_digests": False}, **constraints)


class Config(BaseModel):
    """Base of every settings block: immutable, documented field by field, no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        # Forms call a field what recipes and `--set` call it; some would show the class of a block instead.
        field_title_generator=lambda name, _: name,
    )


def check_rules(rules: Mapping[str, bool]) -> None:
    """Refuse settings of which some rule, its text, is violated; for validators of plugin settings.

    Raises:
        ValueError: with all violated rules.
    """
    if broken := [rule for rule, violated in rules.items() if violated]:
        raise ValueError("; ".join(broken))


def results_only(config: BaseModel, mark: str = "affects_results") -> dict[str, Any]:
    """The JSON form of ``config`` without the fields that a helper above marked as changing nothing, or not yet.

    ``mark`` "affects_prepared" leaves out `training_only` fields as well.
    """
    marks = {"affects_results", mark}
    kept: dict[str, Any] = {}
    dump = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, Mapping) and any(extra.get(m) is False for m in marks):
            continue
        value = getattr(config, name)
        late = isinstance(extra, Mapping) and extra.get("default_in_digests") is False
        if late and value == field.get_default(call_default_factory=True):
            continue
        kept[name] = results_only(value, mark) if isinstance(value, BaseModel) else dump[name]
    return kept
