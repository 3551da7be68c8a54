"""What a launcher asks of a process: one JSON document."""

from abc import abstractmethod
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from core.config import Config, TaskKind
from core.errors import UserError
from core.records import PretrainedEncoder, TunedModel
from core.registry import plugin_info

StageName = Literal["prepare", "pretrain", "finetune", "evaluate"]
STAGES: tuple[StageName, ...] = ("prepare", "pretrain", "finetune", "evaluate")
"""The stages in their order."""
RequestT = TypeVar("RequestT", bound="Request")


class WeightedInput(Config):
    """Prepared data and how much of it an epoch holds."""

    folder: str
    """Folder of the prepared data, relative to the home."""
    weight: float = 1.0
    """Times each item appears per epoch, in the mean."""


class Place(Config):
    """A foreign checkpoint on this machine."""

    name: str
    """What people call it: the file's or folder's own name, or its name on the hub."""
    path: str
    """Where it lies, absolute."""
    fingerprint: str = ""
    """16 digits that stand for its bytes."""


class Request(Config):
    """Work for a process of its own."""

    home: str
    """Absolute path of the home folder."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What the work is called in errors."""

    @property
    def file(self) -> str:
        """Where the request stands while the work is done, relative to the home: what the file's name begins with.

        With the owner's own files where sources are private: places of outputs may name people, too.
        """
        return f"{'private' if self.private else 'runs'}/requests/{self.title}"

    @property
    def place(self) -> str:
        """Whose disk is full where one is."""
        return self.home

    @property
    @abstractmethod
    def private(self) -> bool:
        """Whether names of the source may tell who somebody is; nothing of them may then leave the process.

        Raises:
            UserError: if the modality is not installed.
        """


class StageRequest(Request):
    """A stage to run: its recipe, its inputs and the folder its results belong to."""

    stage: StageName
    """Which stage."""
    digest: str
    """Name of the stage's folder."""
    recipe: dict[str, Any]
    """The resolved recipe, in JSON form."""
    source: str | None = None
    """What `prepare` reads: absolute path of a folder, manifest or dataset; its public name where that is private."""
    data: tuple[WeightedInput, ...] = ()
    """What `pretrain` learns from."""
    labelled: str | None = None
    """Folder of the labelled prepared data, relative to the home; `pretrain` keeps its test items out."""
    encoder: str | None = None
    """Folder of the encoder, for `finetune` and `evaluate`; `pretrain` goes on from it."""
    tuned: str | None = None
    """Folder of the tuned model, for `evaluate`; absent where the encoder alone is looked at."""
    checkpoint: Place | None = None
    """What `pretrain` or `finetune` takes over in place of training: a foreign encoder or tuned model."""

    @property
    def title(self) -> str:
        """The stage."""
        return self.stage

    @property
    def file(self) -> str:
        """The stage and its digest."""
        return f"runs/requests/{self.stage}-{self.digest}"

    @property
    def private(self) -> bool:
        """Whether the recipe's sources are."""
        modality = self.recipe.get("modality")
        return isinstance(modality, str) and plugin_info(modality).private


class ModelRequest(Request):
    """A finished model that is to be used."""

    modality: str
    """The plugin it was trained with."""
    model: str
    """Absolute path of the folder that holds the model."""
    out: str
    """Absolute path of what is to be written."""
    overwrite: bool = False
    """Whether what another request has left there may be replaced."""

    @property
    def place(self) -> str:
        """The output."""
        return self.out

    @property
    def private(self) -> bool:
        """Whether the modality's sources are."""
        return plugin_info(self.modality).private


class ApplyRequest(ModelRequest):
    """A finished model, and the files that it is to be applied to."""

    kind: Literal["embed", "predict"]
    """Features of an encoder, or what a tuned model says."""
    source: str
    """Absolute path of a folder, file, manifest or saved dataset; its public name where that is private."""
    patches: bool = False
    """Whether features are of each patch, and not of the whole."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """Records that go through the model at once; default: as many as in evaluation."""
    sets: tuple[str, ...] = ()
    """Changes to how the work is carried out, as ``key.key=value`` of a recipe."""

    @property
    def title(self) -> str:
        """What is done."""
        return self.kind

    def check(self, record: PretrainedEncoder | TunedModel) -> None:
        """Refuse a model that cannot do what is asked.

        Raises:
            UserError: that says which one can.
        """
        if self.kind == "embed" and isinstance(record, TunedModel):
            raise UserError(
                f"{record.digest} is a tuned model, whose features serve its head; embed takes an encoder, such as the "
                f"one it was tuned from ({record.encoder}), and predict takes this one"
            )
        if self.kind == "predict" and not isinstance(record, TunedModel):
            raise UserError(
                f"{record.digest} is an encoder, which predicts nothing; predict takes a finished folder of finetune, "
                "and embed takes this one"
            )
        masks = isinstance(record, TunedModel) and record.target.task.kind is TaskKind.SEGMENTATION
        if masks and self.out.endswith(".parquet"):
            raise UserError(f"{record.digest} gives masks, a file for each scan or picture; name a folder by --out")
        if self.modality != record.modality:
            raise UserError(f"{record.digest} was made by the modality {record.modality!r}, not {self.modality!r}")


class ExportRequest(ModelRequest):
    """A finished model that is to be written in the form of another tool."""

    to: str
    """The format, as `maeflow export --to` calls it."""
    with_decoder: bool = False
    """Whether the decoder of an encoder goes along."""

    @property
    def title(self) -> str:
        """What is done."""
        return "export"
