"""The contract between the engine and a plugin.

A plugin says what its data is. It never sees a model, an optimiser, a loop, a tracker or a disk layout.
`discover` and `read` run while data are prepared; `view` runs in loader workers and gives one random crop or
clip, still compact; `features` and `batch` run on the device, for a whole batch at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from core.config import MaskConfig, PluginInfo, PluginSettings, TaskConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

    from core.model.masking import MaskSampler
    from core.model.patches import PatchSpec

Purpose = Literal["pretrain", "finetune", "evaluate"]
Split = Literal["train", "val", "test"]
SettingsT = TypeVar("SettingsT", bound=PluginSettings)


class Unreadable(Exception):  # noqa: N818 - a fact about an item, quarantined and reported; not a failure.
    """An item that cannot be used; its text is the reason, for people, without paths."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to read, before it is read."""

    key: str
    """Public name: the relative path, or a salted hash where sources are private."""
    path: str
    """Absolute path of its file, or of the container it is a row of."""
    row: int | None = None
    """Row in the container, for sources that are tables of contents."""
    target: Any = None
    """Label as the source spells it: a class name, a list of them, a number, a list of numbers, the absolute path of a
    mask, or None."""
    group: str | None = None
    """What must not be divided between splits: a patient, a video, a speaker."""
    split: Split | None = None
    """The split the source itself gives."""
    size: int = 0
    """Bytes of the file."""
    mtime_ns: int = 0
    """Time of its last change."""
    parts: tuple[str, ...] = ()
    """Absolute paths of all files of an item that is made of many, as a series of slices; ``path`` is the first."""


@dataclass(frozen=True, slots=True)
class Record:
    """One readable thing, compact and picklable.

    From `read`, ``target`` is spelled as in the source. In `view` it is encoded: a class index (int),
    a 0/1 list (multi-label), or a list of floats (regression); None where there is no label. In segmentation it is in
    both the sorted list of the class indices in the mask, which stands in the payload.
    """

    key: str
    payload: bytes
    codec: str
    """Name in `core.data.codecs`: raw, jpeg, webp, ..."""
    shape: tuple[int, ...]
    """Shape of the decoded array, as the plugin likes it."""
    dtype: str
    """Its NumPy dtype."""
    target: Any = None
    group: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    """Small JSON-able facts: source size, duration, spacing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One view of a record: what a loader worker sends."""

    data: "np.ndarray[Any, Any]"
    """Compact (uint8, int16 ...) array; the same shape for every view of a stage."""
    target: Any = None
    """The record's target, or a dense target (*input_shape), uint8 or uint16, cut like the data; 255 is unlabelled."""
    length: int | None = None
    """Extent of real data along the first axis of the input, where the rest is padding; all samples tell, or none."""
    place: tuple[int, ...] | None = None
    """Where the view begins in the record's whole array, along each axis of the input; may lie outside where padded."""
    whole: tuple[int, ...] | None = None
    """Extent of that whole array along each axis."""


@dataclass(slots=True)
class SampleBatch:
    """Samples of a micro-batch, stacked, on the device."""

    data: "torch.Tensor"
    """(B, ...) in the samples' dtype."""
    target: "torch.Tensor | None"
    """(B, ...): int64 classes, of the item or of each pixel or voxel (B, *input_shape); or float32."""
    length: "torch.Tensor | None" = None
    """(B,) int64."""


@dataclass(slots=True)
class Mixed:
    """How samples of a batch were mixed, so that their targets can be mixed alike."""

    partner: "torch.Tensor"
    """(B,) int64: which other sample of the batch each was mixed with."""
    share: "torch.Tensor"
    """(B,) float32: how much of each is its own, 0 to 1."""


@dataclass(slots=True)
class Batch:
    """What the model sees."""

    x: "torch.Tensor"
    """(B, C, *input_shape) float32, normalised."""
    target: "torch.Tensor | None" = None
    """(B, ...)."""
    valid: "torch.Tensor | None" = None
    """(B, N) bool: patches that hold real data; None where all do."""
    mixed: "Mixed | None" = None
    """Set by a plugin that mixes samples in fine-tuning; ``target`` is still each sample's own."""


@dataclass(slots=True)
class Stats:
    """Input statistics on the device."""

    mean: "torch.Tensor"
    """(C,) float32."""
    std: "torch.Tensor"
    """(C,) float32, positive."""

    def normalise(self, x: "torch.Tensor") -> "torch.Tensor":
        """Features (B, C, *shape) to zero mean and unit deviation per channel."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def restore(self, x: "torch.Tensor") -> "torch.Tensor":
        """The inverse of `normalise`."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x * self.std.view(shape) + self.mean.view(shape)


@dataclass(frozen=True, slots=True)
class Media:
    """Something a person can judge."""

    kind: Literal["image", "animation", "sound"]
    suffix: str
    """File suffix with its dot."""
    data: bytes


class Modality(ABC, Generic[SettingsT]):
    """Base of every plugin; see the table in ``docs/architecture.md`` for where each method runs."""

    info: ClassVar[PluginInfo]
    """The plugin's entry in the registry."""
    read_apart: ClassVar[bool] = False
    """Whether a bad file may crash or hang `read`: it then always runs in processes other than the stage's own."""
    secret: bytes = b""
    """Key for `core.data.private.pseudonym`; set by the engine where ``info.private``, and never to be shown."""
    task: TaskConfig = TaskConfig()
    """The recipe's task, set by the engine; a plugin that can read masks does so where it is segmentation."""
    overlap: float = 0.5
    """Share of a window of `views` that the next one covers as well, along each axis; set by the engine."""
    noticed: Mapping[str, int] = MappingProxyType({})
    """What `discover` has to say of a source beside its items, such as files passed over: numbers by kind."""

    def __init__(
        self, settings: SettingsT, purpose: Purpose = "pretrain", input_shape: tuple[int, ...] | None = None
    ) -> None:
        """Take the recipe's ``data`` group, the stage it is for, and that stage's own input size if it has one."""
        self.settings = settings
        self.purpose = purpose
        self.input_shape = input_shape

    @abstractmethod
    def discover(self, source: str) -> Iterable[Item]:
        """The items of ``source``, in a fixed order. Runs in the preparing process; must not read the items.

        Raises:
            UserError: if the source is missing or of no known kind.
        """

    @abstractmethod
    def read(self, item: Item) -> Sequence[Record]:
        """The one or more records of ``item``.

        Raises:
            Unreadable: with the reason, when the item cannot be used.
        """

    @abstractmethod
    def patches(self) -> "PatchSpec":
        """Geometry of what `batch` gives."""

    @abstractmethod
    def view(self, record: Record, rng: "np.random.Generator", train: bool) -> Sample:
        """One crop or clip of ``record``, random if ``train``; all randomness from ``rng``."""

    def repeated(self, record: Record, rngs: "Sequence[np.random.Generator]") -> Sequence[Sample]:
        """One training view per generator, each what `view` gives for it; override where one decoding serves all."""
        return [self.view(record, rng, train=True) for rng in rngs]

    def views(self, record: Record) -> Sequence[Sample]:
        """The views whose predictions are averaged in evaluation; by default the one fixed view.

        In segmentation they are windows that together cover the record, each with its ``place``, the ``whole`` and a
        dense target; `core.data.windows.window_places` places them.
        """
        import numpy as np

        return [self.view(record, np.random.default_rng(0), train=False)]

    @abstractmethod
    def features(self, samples: SampleBatch) -> "torch.Tensor":
        """(B, C, *input_shape) float32 before normalisation, in natural units; on the samples' device."""

    def batch(self, samples: SampleBatch, stats: Stats, rng: "torch.Generator", train: bool) -> Batch:
        """What the model sees: features, normalised; override to add augmentation on the device."""
        return Batch(stats.normalise(self.features(samples)), samples.target)

    def mask(self, config: MaskConfig) -> "MaskSampler | None":
        """A mask sampler of the plugin's own; None for the one the recipe names."""
        return None

    @abstractmethod
    def render(self, x: "np.ndarray[Any, Any]") -> Sequence[Media]:
        """Media of one input (C, *input_shape) in the units of `features`; the first is a still picture (PNG).

        Patches of padding, where `batch` tells of it, are NaN: nothing is there.
        """
