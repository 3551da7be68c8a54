"""What one stage hands to the next: small frozen JSON documents, and all that the next stage needs.

Paths are relative to the home folder, so that a home can be moved or mounted elsewhere.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from core.config import Config, ModelConfig, NormPix, SegmenterConfig, TaskConfig
from core.errors import UserError

RECORD_FILE = "record.json"
"""Name of the record inside the folder of a finished stage."""


class Geometry(Config):
    """Shape of the array the model sees; axes as in `PatchSpec`."""

    channels: int
    """Channels of the input."""
    input_shape: tuple[int, ...]
    """Extent along each of the 1 to 4 axes."""
    patch_shape: tuple[int, ...]
    """Extent of one patch along each axis."""


class Statistics(Config):
    """Mean and deviation of the features of the training split, per channel."""

    mean: tuple[float, ...]
    """Mean of each channel, in the units of the plugin's features."""
    std: tuple[float, ...]
    """Standard deviation of each channel, same units."""


class Target(Config):
    """What the labelled items are labelled with."""

    task: TaskConfig
    """The task they are for."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the model's outputs; empty for regression."""
    outputs: int
    """Width of the model's output."""


class Record(Config):
    """Common to all records."""

    stage: str
    """The stage that wrote it."""
    digest: str
    """Name of the stage's folder: hash of all that affects its results."""
    folder: str
    """The folder, relative to the home."""
    modality: str
    """The plugin the data came through."""
    recipe: str
    """Name of the recipe."""
    versions: dict[str, str]
    """Library versions the work was done with."""


class PreparedData(Record):
    """A source, read once into shards that a loader can map."""

    stage: Literal["prepare"] = "prepare"
    """The stage that wrote it."""
    data_digest: str
    """Hash over the content hashes of all readable items."""
    counts: dict[str, int]
    """Items by split: train, val, test."""
    labelled: dict[str, int]
    """Labelled items by split."""
    target: Target | None
    """What the items are labelled with; null where no item has a label."""
    statistics: Statistics
    """Input statistics of the training split."""
    geometry: Geometry
    """Shape the plugin's views have."""
    unreadable: int
    """Files in quarantine; the card lists them with their reasons."""
    duplicates: int
    """Items whose content equals an earlier item's."""
    bytes: int
    """Bytes of the shards."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The plugin's settings, as far as prepared data depend on them; empty in records of earlier versions."""


class PretrainedEncoder(Record):
    """An encoder, from pretraining or from a foreign checkpoint."""

    stage: Literal["pretrain"] = "pretrain"
    """The stage that wrote it."""
    weights: str
    """Safetensors file of the encoder under timm's names, relative to the folder."""
    model: ModelConfig
    """The architecture."""
    geometry: Geometry
    """Shape it was trained on."""
    statistics: Statistics
    """Input statistics it expects."""
    data_digest: str
    """Data it was trained on."""
    prepared: str
    """Digest of the prepared data."""
    metrics: dict[str, float]
    """Last values of the training curves; empty of one that was taken over as it is."""
    norm_pix: NormPix | None = None
    """How the target of its decoder was normalised; null where nobody says, or in records of earlier versions."""
    checkpoint: str = ""
    """Name of the foreign checkpoint that it is; empty of one that was pretrained here."""
    head: int = 0
    """Outputs of the head in that checkpoint; 0 where there is none."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The plugin's settings, as far as prepared data depend on them; empty in records of earlier versions."""


class TunedModel(Record):
    """A fine-tuned encoder with its head."""

    stage: Literal["finetune"] = "finetune"
    """The stage that wrote it."""
    weights: str
    """Safetensors file of encoder and head, relative to the folder."""
    model: ModelConfig
    """The architecture of the encoder."""
    geometry: Geometry
    """Shape it was tuned on."""
    statistics: Statistics
    """Input statistics it expects."""
    target: Target
    """What it predicts."""
    pool: Literal["mean", "cls"]
    """What its head reads."""
    segmenter: SegmenterConfig | None = None
    """Its head, where it gives masks."""
    encoder: str
    """Digest of the encoder it started from."""
    prepared: str
    """Digest of the labelled data."""
    metrics: dict[str, float]
    """Metrics of the best checkpoint on the validation split, and the last training loss."""
    checkpoint: str = ""
    """Name of the foreign checkpoint that it is, head and all; empty of one that was tuned here."""


class EvalReport(Record):
    """What the models are worth on data that no stage trained on."""

    stage: Literal["evaluate"] = "evaluate"
    """The stage that wrote it."""
    metrics: dict[str, float]
    """All scalar results, by metric name."""
    results: str
    """JSON file with tables and curves, relative to the folder."""
    encoder: str
    """Digest of the encoder."""
    model: str
    """Digest of the tuned model; empty where the encoder alone was evaluated."""
    prepared: str
    """Digest of the labelled data."""


AnyRecord = PreparedData | PretrainedEncoder | TunedModel | EvalReport
RECORDS: dict[str, type[AnyRecord]] = {
    "prepare": PreparedData,
    "pretrain": PretrainedEncoder,
    "finetune": TunedModel,
    "evaluate": EvalReport,
}
R = TypeVar("R", bound=Record)


def read_model(folder: Path) -> PretrainedEncoder | TunedModel:
    """The record of the encoder or tuned model in ``folder``.

    Raises:
        UserError: if there is neither.
    """
    try:
        stage = json.loads((folder / RECORD_FILE).read_bytes()).get("stage")
    except (OSError, ValueError, AttributeError):
        stage = None
    if stage not in {"pretrain", "finetune"}:
        raise UserError(
            f"{folder} holds no encoder and no tuned model; name the finished folder of pretrain or finetune "
            "(`maeflow runs` lists them)"
        )
    return read_record(folder, PretrainedEncoder) if stage == "pretrain" else read_record(folder, TunedModel)


def write_record(record: Record, folder: Path) -> None:
    """Write ``record`` into the folder of its stage."""
    from core.workspace import write_text

    write_text(folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")


def read_record(path: Path, kind: type[R]) -> R:
    """The record at ``path``, a file or the folder that holds it.

    Raises:
        UserError: if there is none, or it is of another kind.
    """
    file = path / RECORD_FILE if path.is_dir() else path
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"no record at {file}: {error.strerror}; name a finished stage's folder or its record.json"
        ) from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file} is not a {kind.__name__} record: {where}: {first['msg']}") from None
