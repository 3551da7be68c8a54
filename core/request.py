"""What a launcher asks of a stage process: one JSON document."""

from typing import Any, Literal

from core.config import Config
from core.registry import plugin_info

StageName = Literal["prepare", "pretrain", "finetune", "evaluate"]
STAGES: tuple[StageName, ...] = ("prepare", "pretrain", "finetune", "evaluate")
"""The stages in their order."""


class WeightedInput(Config):
    """Prepared data and how much of it an epoch holds."""

    folder: str
    """Folder of the prepared data, relative to the home."""
    weight: float = 1.0
    """Times each item appears per epoch, in the mean."""


class StageRequest(Config):
    """A stage to run: its recipe, its inputs and the folder its results belong to."""

    stage: StageName
    """Which stage."""
    home: str
    """Absolute path of the home folder."""
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
    """Folder of the encoder, for `finetune` and `evaluate`."""
    tuned: str | None = None
    """Folder of the tuned model, for `evaluate`."""

    @property
    def private(self) -> bool:
        """Whether names of the source may tell who somebody is; nothing of them may then leave the stage.

        Raises:
            UserError: if the recipe's modality is not installed.
        """
        modality = self.recipe.get("modality")
        return isinstance(modality, str) and plugin_info(modality).private
