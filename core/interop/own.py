"""maeflow's own layout: the folder of a finished stage, and the one file that says all of itself.

In a file, metadata under the key ``maeflow`` is one JSON text: the recipe alone inside a stage's folder, whose
``record.json`` says the rest, or ``{"recipe": ..., "record": ...}`` in what `maeflow export --to safetensors` writes.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from core.config import ModelConfig, NormPix, Recipe
from core.errors import NotThis, UserError
from core.interop.foreign import Checkpoint, Foreign, Hint, Preprocessing, State, patch_geometry
from core.interop.layout import Layout, grid_of
from core.model.regrid import geometry_of, on_grid, spec_of
from core.model.weights import METADATA, recipe_of
from core.records import PretrainedEncoder, TunedModel, read_model
from core.registry import plugin_for, plugin_info

WHOLE = "autoencoder.safetensors"
"""Encoder and decoder in the folder of a finished pretraining."""
ModelRecord = PretrainedEncoder | TunedModel


class Own(Layout):
    """What maeflow itself writes."""

    name = "maeflow"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """It says so of itself."""
        return isinstance(checkpoint.config.get(METADATA), Mapping)

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one; of a segmenter the encoder alone."""
        said = checkpoint.config[METADATA]
        record = said.get("record")
        if record is None:
            return _without_record(checkpoint.state, said.get("recipe", said), hint)
        try:
            known = (TunedModel if record.get("stage") == "finetune" else PretrainedEncoder).model_validate(record)
        except (ValidationError, AttributeError):
            raise NotThis("the record beside its weights is of no version of maeflow that is known here") from None
        try:
            return _foreign(checkpoint.state, known, said.get("recipe", {}))
        except ValueError as error:
            raise NotThis(f"the record beside its weights is damaged: {error}") from None

    def write(self, model: Foreign) -> dict[str, Tensor]:
        """The encoder, and its head, under timm's names; encoder and decoder apart where there is a decoder."""
        if model.has_decoder:
            return dict(model.state)
        return {key.removeprefix("encoder."): value for key, value in model.state.items()}


def foreign_of(folder: Path) -> Foreign:
    """The model of a finished stage's ``folder`` as evaluation sees it, with a decoder if there is one.

    Raises:
        UserError: if there is none, or its plugin is not installed.
    """
    record = read_model(folder)
    file = folder / WHOLE if (folder / WHOLE).is_file() else folder / record.weights
    seen, recipe = evaluated(record, folder)
    return _foreign(weights_in(file, record, seen), seen, recipe.model_dump(mode="json"))


def evaluated(record: ModelRecord, folder: Path) -> tuple[ModelRecord, Recipe]:
    """The record of the model in ``folder`` with the inputs that evaluation gives it, and its recipe.

    A checkpoint that was taken over keeps the grid it came with, and each stage brings its positions to its own inputs.

    Raises:
        UserError: if the weights do not say by which recipe they were made, or its plugin is not installed.
    """
    recipe = recipe_of(folder / record.weights)
    if isinstance(record, TunedModel):
        return record, recipe
    spec, old = plugin_for(recipe, "evaluate", recipe.pretrain.input_shape).patches(), spec_of(record.geometry)
    changes: dict[str, Any] = {"geometry": geometry_of(spec)}
    if spec.grid != old.grid and record.model.other_size == "stretch":  # What is resampled is no fixed table any more.
        changes["model"] = record.model.model_copy(update={"positions": "learned"})
    return record.model_copy(update=changes), recipe


def weights_in(file: Path, record: ModelRecord, seen: ModelRecord) -> dict[str, Tensor]:
    """The weights in a ``file`` of ``record``'s folder, with positions for the inputs that ``seen`` has."""
    state: dict[str, Tensor] = load_file(file)
    if isinstance(record, PretrainedEncoder):
        width, decoder = record.model.width, record.model.decoder.width
        tables = {"pos_embed": width, "encoder.pos_embed": width, "decoder.pos_embed": decoder}
        for name in state.keys() & tables.keys():
            state[name] = on_grid(state[name], record, spec_of(seen.geometry), tables[name])
    return state


def units_of(modality: str) -> str:
    """What the modality's features are measured in; empty also where its plugin is not installed."""
    with suppress(UserError):
        return plugin_info(modality).units
    return ""


def _foreign(state: State, record: ModelRecord, recipe: Mapping[str, Any]) -> Foreign:
    weights, leftover = _named(state)
    geometry, statistics = record.geometry, record.statistics
    classes = record.target.classes if isinstance(record, TunedModel) and not leftover else ()
    return Foreign(
        Own.name,
        weights,
        record.model,
        spec_of(geometry),
        Preprocessing(units_of(record.modality), statistics.mean, statistics.std, "its own record"),
        _target(record, recipe) if "decoder.pred.weight" in weights else None,
        classes=classes,
        leftover=leftover,
        notes=(f"a head of segmentation lies beside the encoder ({len(leftover)} weights)",) if leftover else (),
    )


def _without_record(state: State, recipe: Mapping[str, Any], hint: Hint | None) -> Foreign:
    """What weights and recipe tell, where the file was taken out of its folder."""
    weights, leftover = _named(state)
    try:
        model = ModelConfig.model_validate(recipe["model"])
    except (ValidationError, KeyError, TypeError):
        raise NotThis("the recipe in it is of no version of maeflow that is known here") from None
    table, projection = (weights.get(f"encoder.{name}") for name in ("pos_embed", "patch_embed.proj.weight"))
    if table is None or projection is None:
        raise NotThis("it holds no whole encoder")
    prefix = int(model.cls_token)
    grid = grid_of(table.shape[1] - prefix, projection.ndim - 2, table, hint)
    note = "its record.json is not beside it, so nobody says by which statistics its inputs were normalised"
    return Foreign(
        Own.name,
        weights,
        model,
        patch_geometry(weights, grid),
        norm_pix=_norm_pix(recipe) if "decoder.pred.weight" in weights else None,
        leftover=leftover,
        notes=(note,),
    )


def _named(state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights by the names that `Foreign` has, and the names of a segmenter's head, which it has not.

    ``decoder.`` is MAE's beside names that begin with ``encoder.``, and otherwise the head of a segmenter.
    """
    if any(name.startswith("encoder.") for name in state):
        return {name: value for name, value in state.items() if name.startswith(("encoder.", "decoder."))}, ()
    leftover = tuple(name for name in state if name.startswith("decoder."))
    head = ("head.", "fc_norm.")
    kept = {name: value for name, value in state.items() if name not in leftover}
    return {name if name.startswith(head) else f"encoder.{name}": value for name, value in kept.items()}, leftover


def _target(record: ModelRecord, recipe: Mapping[str, Any]) -> NormPix | None:
    """How a decoder's target was normalised; the recipe tells nothing of one that comes from elsewhere."""
    said = record.norm_pix if isinstance(record, PretrainedEncoder) else None
    return said if said or record.checkpoint else _norm_pix(recipe)


def _norm_pix(recipe: Mapping[str, Any]) -> NormPix | None:
    """How the decoder's target was normalised, as far as the recipe tells."""
    with suppress(KeyError, ValueError, TypeError):
        return NormPix(recipe["pretrain"]["norm_pix"])
    return None
