"""The contract kit with the rule that needs Prefect: what a plugin's test derives from."""

import json
from typing import TYPE_CHECKING, Any

from core.testing.rules import Broken, RuleBook

if TYPE_CHECKING:
    from core.testing.suite import ModalityContract

__all__ = ["BOOK", "ModalityContract"]
BOOK: RuleBook[Any] = RuleBook()


@BOOK.rule(
    "settings",
    "Prefect draws a form of them in which every field has its help text.",
    "Use the types that `recipe-schema` asks for; one block of settings per group, derived from Config.",
    "recipe-schema",
)
def prefect_form(subject: Any) -> None:
    """People start runs from this form; ``subject`` has the plugin's ``name``."""
    from flows.typed import form

    schema = form(subject.name).model_dump()
    reference = json.dumps(schema["properties"]["data"])
    blocks = [name for name in schema["definitions"] if f'#/definitions/{name}"' in reference]
    if not blocks:
        raise Broken("the form shows the group `data` as bare JSON")
    fields = schema["definitions"][blocks[0]].get("properties", {})
    silent = [name for name, field in fields.items() if not _help(field, schema["definitions"])]
    if silent:
        raise Broken(f"the form has no help text for {', '.join(silent)}")


def _help(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A field's own text; where it says the same as the block it holds, the schema leaves it to the block."""
    block = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
    return str(field.get("description") or block.get("description") or "")


def __getattr__(name: str) -> Any:
    # The test class needs torch, the command does not.
    if name != "ModalityContract":
        raise AttributeError(name)
    from core.testing.suite import RULES, ModalityContract

    class WithForm(ModalityContract):
        """The contract of core, and its form."""

        rules = (*RULES, *BOOK)

    globals()[name] = WithForm
    return WithForm
