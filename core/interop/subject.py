"""A finished model that is to leave: all that is known of it, whatever format it leaves in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.config import FixedCrop, PluginInfo, Recipe
from core.data.card import CARD_FILE, read_card
from core.errors import UserError
from core.interop.foreign import Foreign
from core.interop.own import ModelRecord, evaluated, foreign_of
from core.model.patches import PatchSpec
from core.model.regrid import spec_of
from core.records import (
    RECORD_FILE,
    EvalReport,
    PreparedData,
    PretrainedEncoder,
    R,
    TunedModel,
    read_model,
    read_record,
)
from core.registry import plugin_info
from core.workspace import Home


@dataclass(frozen=True)
class Subject:
    """A finished encoder or tuned model."""

    folder: Path
    """Where it is."""
    home: Home
    """Where what it was made of may still be."""
    record: ModelRecord
    """What is known of it; its inputs are those that evaluation gives it."""
    recipe: Recipe
    """What it was made by."""
    with_decoder: bool = False
    """Whether the decoder of its pretraining goes along, where the format has a place for it."""

    @classmethod
    def at(cls, folder: Path, home: Home, *, with_decoder: bool = False) -> "Subject":
        """The model in the ``folder`` of a finished stage.

        Raises:
            UserError: if there is none, or its plugin is not installed.
        """
        record, recipe = evaluated(read_model(folder), folder)
        return cls(folder, home, record, recipe, with_decoder)

    @property
    def said_recipe(self) -> dict[str, Any]:
        """The recipe as it goes along: without how the work was carried out, which may name machines of one's own."""
        return self.recipe.model_dump(mode="json", exclude={"compute"})

    @property
    def tuned(self) -> TunedModel | None:
        """Its record, where it is a tuned model."""
        return self.record if isinstance(self.record, TunedModel) else None

    @property
    def segments(self) -> bool:
        """Whether it gives masks."""
        return self.tuned is not None and self.tuned.segmenter is not None

    @property
    def info(self) -> PluginInfo:
        """What its plugin says of itself."""
        return plugin_info(self.record.modality)

    @property
    def spec(self) -> PatchSpec:
        """Geometry of its inputs."""
        return spec_of(self.record.geometry)

    @property
    def crop(self) -> FixedCrop | None:
        """How evaluation crops a picture or frame; None where something else happens to a file."""
        return None if self.segments else self.recipe.data.fixed_crop

    @cached_property
    def model(self) -> Foreign:
        """Its weights under our names, with the decoder if that is wanted.

        Raises:
            UserError: if the decoder is wanted and there is none, or its head is one of segmentation.
        """
        if self.segments:
            raise UserError(
                "the head of a model that gives masks has a place in --to safetensors, onnx and torch-export alone; "
                "take one of these, or export the encoder that it was tuned from"
            )
        found = foreign_of(self.folder)
        if not self.with_decoder:
            return found.without_decoder()
        if not found.has_decoder:
            raise UserError("--with-decoder is for encoders as pretraining leaves them; this model has no decoder")
        return found

    @cached_property
    def encoder(self) -> PretrainedEncoder | None:
        """What a tuned model was tuned from, if it is still in the home."""
        return self._beside("pretrain", self.tuned.encoder, PretrainedEncoder) if self.tuned else None

    @property
    def checkpoint(self) -> str:
        """Name of the foreign checkpoint that its encoder is; empty of one that was pretrained here, or not known."""
        return self.record.checkpoint or (self.encoder.checkpoint if self.encoder else "")

    @property
    def data(self) -> Iterator[tuple[str, PreparedData, dict[str, Any]]]:
        """What it was trained on as far as that is still in the home: what for, the record, and the card."""
        purposes: dict[str, list[str]] = {}
        pretrained = self.encoder if self.tuned else self.record
        if isinstance(pretrained, PretrainedEncoder) and not pretrained.checkpoint:
            purposes.setdefault(pretrained.prepared, []).append("pretraining")
        if self.tuned:
            purpose = "the order of classes" if self.tuned.checkpoint else "fine-tuning"
            purposes.setdefault(self.tuned.prepared, []).append(purpose)
        for digest, several in purposes.items():
            prepared = self._beside("prepare", digest, PreparedData)
            if prepared is not None:
                folder = self.home.stage("prepare", digest).final
                yield " and ".join(several), prepared, read_card(folder) if (folder / CARD_FILE).is_file() else {}

    @property
    def reports(self) -> list[EvalReport]:
        """Evaluations of this model in the home."""
        folder = self.home.stage("evaluate", "any").final.parent
        found = [read_record(file.parent, EvalReport) for file in sorted(folder.glob(f"*/{RECORD_FILE}"))]
        return [report for report in found if self.record.digest in (report.model, report.encoder)]

    def _beside(self, stage: Any, digest: str, kind: type[R]) -> R | None:
        folder = self.home.stage(stage, digest).final
        return read_record(folder, kind) if (folder / RECORD_FILE).is_file() else None


def contract(subject: Subject) -> dict[str, Any]:
    """What an input has to go through before the model sees it, for programs: `preprocessing.json`."""
    record, crop = subject.record, subject.crop
    return {
        "modality": record.modality,
        "channels": record.geometry.channels,
        "size": list(record.geometry.input_shape),
        "patch": list(record.geometry.patch_shape),
        "units": subject.info.units,
        "mean": list(record.statistics.mean),
        "std": list(record.statistics.std),
        "resize": None
        if crop is None
        else {
            "interpolation": "bicubic",
            "antialias": True,
            "crop": "none" if crop.squeezed else "centre",
            "share": crop.share,
        },
        "settings": subject.recipe.data.model_dump(mode="json"),
    }


def as_json(value: Any) -> str:
    """``value`` as the text of a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
