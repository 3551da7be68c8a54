"""What a file of weights says of itself: the recipe it was made by, in its metadata."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from core.config import Recipe
from core.errors import UserError
from core.recipes import resolve

METADATA = "maeflow"
"""Key of what a file says; the value is JSON: a recipe, or ``{"recipe": ..., "record": ...}``."""


def metadata_of(recipe: Recipe) -> dict[str, str]:
    """What a file says of ``recipe``; one entry alone, since safetensors writes several in random order."""
    return {METADATA: recipe.model_dump_json()}


def recipe_of(weights: Path) -> Recipe:
    """The recipe that ``weights`` say they were made by.

    Raises:
        UserError: if they say nothing of the kind, or its plugin is not installed.
    """
    with safe_open(weights, "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA)
    if not text:
        raise UserError(f"{weights} does not say by which recipe it was made; was it written by another program?")
    said: dict[str, Any] = json.loads(text)
    return resolve(said.get("recipe", said), f"in {weights.name}")
