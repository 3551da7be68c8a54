"""Names of stage folders: hashes of everything that affects a stage's results, and of nothing else.

Raise a stage's revision whenever its results change for the same recipe and inputs.
"""

import hmac
import json
from collections.abc import Sequence

from core.config import Recipe, results_only
from core.records import PreparedData, PretrainedEncoder, TunedModel
from core.registry import plugin_info
from core.workspace import SCHEMA, digest_of

REVISIONS = {"prepare": 2, "pretrain": 2, "finetune": 1, "evaluate": 4, "adopt": 1}
"""Raised by hand when the code of a stage gives other results than before."""

Listing = Sequence[tuple[str, int, int]]
"""A source's identity: (relative path, bytes, modification time in ns) of each of its files."""


def recipe_digest(recipe: Recipe) -> str:
    """Name of the whole recipe, as far as it affects results."""
    return digest_of("recipe", results_only(recipe))


def prepare_digest(recipe: Recipe, listing: Listing, secret: bytes = b"") -> str:
    """Folder name of ``recipe``'s preparation of the source with ``listing``.

    With the ``secret`` of private sources nobody else can test by it which files there are.
    """
    data, rows = results_only(recipe.data, "affects_prepared"), [list(row) for row in listing]
    inputs = hmac.digest(secret, json.dumps(rows).encode(), "sha256").hex() if secret else rows
    return _digest("prepare", recipe, ["seed", "task", "prepare"], data, inputs)


def pretrain_digest(
    recipe: Recipe,
    data: Sequence[tuple[PreparedData, float]],
    labelled: PreparedData | None,
    start: PretrainedEncoder | None = None,
) -> str:
    """Folder name of pretraining on weighted prepared ``data``, with the test items of ``labelled`` kept out.

    ``start`` is what it goes on from, if not from random weights.
    """
    inputs = [[prepared.digest, weight] for prepared, weight in data]
    held_out = labelled.digest if labelled else None
    more = [start.digest] if start else []
    return _digest(
        "pretrain", recipe, ["seed", "model", "pretrain"], results_only(recipe.data), inputs, held_out, *more
    )


def adopt_digest(recipe: Recipe, fingerprint: str, data: PreparedData | None, encoder: str = "") -> str:
    """Folder name of a foreign checkpoint with this ``fingerprint``, taken over for ``recipe``.

    ``data`` give statistics, and classes to a tuned model, whose own ``encoder`` has that digest.
    """
    shape = results_only(recipe)["finetune" if encoder else "pretrain"]["input_shape"]
    inputs = [fingerprint, data.digest if data else None, encoder, shape]
    return _digest("adopt", recipe, ["model"], results_only(recipe.data), *inputs)


def finetune_digest(recipe: Recipe, encoder: PretrainedEncoder, labelled: PreparedData) -> str:
    """Folder name of fine-tuning ``encoder`` on ``labelled``."""
    groups = ["seed", "task", "finetune"]
    return _digest("finetune", recipe, groups, results_only(recipe.data), encoder.digest, labelled.digest)


def evaluate_digest(
    recipe: Recipe, encoder: PretrainedEncoder, tuned: TunedModel | None, labelled: PreparedData
) -> str:
    """Folder name of evaluating ``encoder`` and ``tuned``, if there is one, on the test split of ``labelled``."""
    inputs = [encoder.digest, tuned.digest if tuned else None, labelled.digest]
    return _digest("evaluate", recipe, ["seed", "task", "evaluate"], results_only(recipe.data), *inputs)


def _digest(stage: str, recipe: Recipe, groups: list[str], data: object, *inputs: object) -> str:
    settings = results_only(recipe)
    chosen = {group: settings[group] for group in groups} | {"data": data}
    plugin = [recipe.modality, plugin_info(recipe.modality).revision]
    return digest_of(SCHEMA, stage, REVISIONS[stage], plugin, chosen, *inputs)
