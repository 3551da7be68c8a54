"""The recipe's blocks: frozen, typed, and closed to unknown names.

The docstring under each field is its help text everywhere: in errors, in the command line and in web forms.
A field marked ``no_result`` changes how a run is carried out, never what comes out of it, and so stays out
of every digest.
"""
# ruff: noqa: PLC0414 - an alias is how mypy is told that a name may be taken from here

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from core.architecture import DecoderConfig as DecoderConfig
from core.architecture import ModelConfig as ModelConfig
from core.fields import Config as Config
from core.fields import Fraction as Fraction
from core.fields import OpenFraction as OpenFraction
from core.fields import added_later as added_later
from core.fields import check_rules as check_rules
from core.fields import no_result as no_result
from core.fields import results_only as results_only
from core.fields import training_only as training_only

CONTRACT_VERSION = 1
"""Version of the plugin contract; raised whenever a plugin would have to change."""


@dataclass(frozen=True)
class FixedCrop:
    """How evaluation brings a picture or a frame to the input's size, resized bicubically with antialiasing."""

    share: float = 1.0
    """Side of the crop from the centre, over that of the largest box that has the input's aspect."""
    squeezed: bool = False
    """Whether the whole picture is resized instead, whatever its aspect."""


class PluginSettings(Config):
    """Base of a modality's own settings, the recipe's ``data`` group."""

    @property
    def fixed_crop(self) -> FixedCrop | None:
        """How evaluation crops, where that is all that happens to a picture; `maeflow export` tells other tools."""
        return None


def check_patches(size: Sequence[int], patch: Sequence[int]) -> None:
    """Refuse a ``size`` that is not a whole number of patches along every axis; for validators of plugin settings.

    Raises:
        ValueError: with both.
    """
    if any(extent % along for extent, along in zip(size, patch, strict=True)):
        raise ValueError(f"size {tuple(size)} is not a multiple of patch {tuple(patch)}")


@dataclass(frozen=True)
class PluginInfo:
    """What the entry point of a modality names: enough to list and validate it without importing torch."""

    name: str
    """Name of the modality, as recipes spell it."""
    settings: type[PluginSettings]
    """The class of the recipe's ``data`` group."""
    plugin: str
    """Where the Modality subclass lives, as ``module:Class``; imported when the plugin is first used."""
    revision: int
    """Raised when the plugin's results change; part of every digest."""
    sources: tuple[str, ...] = ("folder", "manifest", "huggingface")
    """Kinds of source the plugin can discover."""
    private: bool = False
    """Whether file names may tell who somebody is; the plugin's keys are then salted hashes."""
    units: str = ""
    """What features are measured in before normalisation: `unit` for 0 to 1 (ImageNet's statistics apply), `log-mel`
    for natural logarithms of mel energies; empty where checkpoints of others cannot share statistics."""
    contract: int = CONTRACT_VERSION
    """Version of the plugin contract it was written for."""


class TaskKind(StrEnum):
    """What a label looks like."""

    SINGLE = "single_label"
    MULTI = "multi_label"
    REGRESSION = "regression"
    SEGMENTATION = "segmentation"


class TaskConfig(Config):
    """What is to be predicted from a labelled item."""

    kind: TaskKind = TaskKind.SINGLE
    """One class per item, any number of classes per item, real numbers, or one class per pixel or voxel."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs the loss of a class by the inverse of its frequency in the training split."""
    classes: tuple[Annotated[str, Field(pattern=r"^\w[\w .-]*$")], ...] = ()
    """Names of the values 0, 1, 2 ... of a mask, the background first; for segmentation, which needs two or more."""

    @model_validator(mode="after")
    def _masks_alone_have_given_classes(self) -> "TaskConfig":
        if self.kind is not TaskKind.SEGMENTATION:
            if self.classes:
                raise ValueError(f"`classes` are for segmentation; a {self.kind} task takes them from the labels")
        elif len(self.classes) < 2:
            raise ValueError("segmentation needs `classes`: the names of the mask's values, 2 or more from 0 on")
        elif len(set(self.classes)) < len(self.classes):
            raise ValueError(f"two of the `classes` {list(self.classes)} have one name")
        return self


class PrepareConfig(Config):
    """How raw files become prepared data."""

    val_fraction: Fraction = 0.1
    """Share of the training items that goes to validation where the source names none."""
    test_fraction: Fraction = 0.2
    """Share of the labelled items that goes to test where the source names no test split of its own."""
    divided_groups: Literal["refuse", "regroup", "allow"] = "refuse"
    """What to do when a given split divides a group: refuse with a list, move the group whole, or allow it."""
    max_unreadable: Fraction = 0.2
    """Largest share of unreadable files with which preparation still succeeds."""
    seconds_per_item: Annotated[float, Field(gt=0)] = 600.0
    """A file that takes longer to read is given up and listed, where readers are processes of their own."""
    shard_items: PositiveInt = 1024
    """About how many items go into one shard, the unit of parallel and resumed work."""


class CountRule(StrEnum):
    """How a mask ratio r on n patches becomes a whole number of patches."""

    FLOOR_KEEP = "floor_keep"
    """Keep int(n * (1 - r)), as MAE and mae_st compute it in floating point."""
    FLOOR_MASK = "floor_mask"
    """Mask int(n * r), as VideoMAE does for each frame."""
    ROUND = "round"
    """Keep n * (1 - r) rounded to the nearest, never 0 and never all."""


class MaskKind(StrEnum):
    """Which patches are hidden together."""

    RANDOM = "random"
    TUBE = "tube"
    BLOCK = "block"
    AXIS = "axis"
    AXES = "axes"


class MaskConfig(Config):
    """Which patches the encoder never sees."""

    kind: MaskKind = MaskKind.RANDOM
    """Independent patches, the same places along the first axis (tube), blocks, whole slices of an axis, or of each."""
    ratio: OpenFraction = 0.75
    """Share of the patches that is hidden; the share realised on a small grid differs and is logged."""
    count_rule: CountRule = CountRule.FLOOR_KEEP
    """Rounding of the ratio to whole patches."""
    block: tuple[PositiveInt, ...] | None = None
    """Patches per block along each axis of the grid; needed by `block`."""
    axis: Annotated[int, Field(ge=0, le=3)] = 0
    """Axis of the grid whose slices are hidden whole; used by `axis`."""
    ratios: tuple[Annotated[float, Field(ge=0, lt=1)], ...] | None = None
    """Share of each axis's slices that is hidden, such as time and frequency; needed by `axes`, in place of `ratio`."""

    @model_validator(mode="after")
    def _kinds_have_what_they_need(self) -> "MaskConfig":
        if self.kind is MaskKind.BLOCK and self.block is None:
            raise ValueError("mask kind 'block' needs `block`, patches per block along each axis")
        if self.kind is MaskKind.AXES and self.ratios is None:
            raise ValueError("mask kind 'axes' needs `ratios`, the share hidden along each axis")
        return self


class NormPix(StrEnum):
    """How the target pixels of a patch are normalised."""

    NONE = "none"
    """Raw normalised input."""
    PATCH = "patch"
    """All values of the patch together, unbiased variance, divided by sqrt(var + 1e-6): MAE, mae_st, AudioMAE."""
    CHANNEL_STD = "channel_std"
    """Each channel by itself on de-normalised input, divided by (std + 1e-6): VideoMAE."""
    LAYER_NORM = "layer_norm"
    """All values together, biased variance, divided by sqrt(var + 1e-6): SelfMedMAE."""
    CHANNEL_VAR = "channel_var"
    """Each channel by itself, unbiased variance, divided by sqrt(var + 1e-6): OmniMAE."""


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; weights and optimiser stay in float32."""

    FLOAT32 = "float32"
    BF16 = "bf16"


class TrainConfig(Config):
    """What pretraining and fine-tuning share: schedule, optimiser, arithmetic."""

    epochs: PositiveInt = 100
    """Passes over the training split."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    """Epochs over which the learning rate rises linearly from 0."""
    batch: PositiveInt = 256
    """Samples per optimiser step, over all devices and accumulation."""
    micro_batch: PositiveInt | None = None
    """Samples that go through the model at once; the batch is accumulated from them. Default: the batch."""
    repeats: PositiveInt = 1
    """Random views taken of a sample each time it is read; an epoch counts them all (Hoffer et al. 2020)."""
    base_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate per 256 samples: lr = base_lr * batch / 256."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the cosine."""
    betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.999)
    """AdamW's exponential decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """AdamW's decoupled weight decay; never applied to biases, norms, tokens and positions."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Largest global gradient norm; nothing is clipped where absent."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the last block; earlier blocks linearly less."""
    precision: Precision = Precision.FLOAT32
    """float32, or bf16 autocast."""
    ema: OpenFraction | None = None
    """Decay per step of an exponential moving average of the weights, which then is what the stage gives."""
    input_shape: tuple[PositiveInt, ...] | None = None
    """Input size of this stage where it differs from the modality's own; positions are resampled."""
    validate_every: PositiveInt = 1
    """Epochs between two looks at the validation split."""

    @model_validator(mode="after")
    def _micro_divides_batch(self) -> "TrainConfig":
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        if self.micro % self.repeats:
            raise ValueError(f"{self.micro} samples at once are not a multiple of repeats {self.repeats}")
        return self

    @property
    def micro(self) -> int:
        """Samples in one forward pass."""
        return self.micro_batch or self.batch

    @property
    def lr(self) -> float:
        """Peak learning rate after linear scaling (Goyal et al. 2017, section 2.1)."""
        return self.base_lr * self.batch / 256


class PretrainConfig(TrainConfig):
    """Masked-autoencoder pretraining (He et al. 2021, appendix A.1)."""

    epochs: PositiveInt = 800
    """Passes over the training split."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 40
    """Epochs over which the learning rate rises linearly from 0."""
    batch: PositiveInt = 4096
    """Samples per optimiser step, over all devices and accumulation."""
    base_lr: Annotated[float, Field(gt=0)] = 1.5e-4
    """Learning rate per 256 samples: lr = base_lr * batch / 256."""
    betas: tuple[OpenFraction, OpenFraction] = (0.9, 0.95)
    """AdamW's exponential decay rates."""
    validate_every: PositiveInt = 10
    """Epochs between two looks at the validation split: loss, pictures, and a k-NN probe where labels exist."""
    mask: MaskConfig = MaskConfig()
    """Which patches are hidden."""
    norm_pix: NormPix = NormPix.PATCH
    """Normalisation of the target."""
    decode_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the hidden patches that is decoded and enters the loss, drawn anew each step."""
    decode_kind: Literal["random", "running_cell"] = "random"
    """Which of them: any, or a pattern of 2x2 cells that moves on along the first axis (Wang et al. 2023)."""
    predict_stride: PositiveInt = 1
    """Of the values of a patch along its first axis, every how many-th is predicted; 2 of 2 frames halves the work."""
    masks_per_sample: PositiveInt = 1
    """How many masks one decoded sample is used with in a step."""


class SegmenterConfig(Config):
    """What turns tokens into a class for each pixel or voxel."""

    kind: Literal["linear", "unetr"] = "unetr"
    """A linear layer on each token, or convolutions over features of four depths (Hatamizadeh et al. 2022)."""
    width: PositiveInt = 16
    """Features of `unetr` at full resolution; each coarser level has twice as many."""


class FinetuneConfig(TrainConfig):
    """End-to-end fine-tuning of the encoder with a head (He et al. 2021, appendix A.1)."""

    base_lr: Annotated[float, Field(gt=0)] = 5e-4
    """Learning rate per 256 samples: lr = base_lr * batch / 256."""
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at the end of the cosine."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Factor on the learning rate from each block to the one below it."""
    pool: Literal["mean", "cls"] = "mean"
    """What the head reads: the mean of the patch tokens, or the class token."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread evenly over all classes."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of mixup; 0 turns it off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Beta parameter of cutmix; 0 turns it off."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Each item once per epoch, or at random, an item of rare classes as much more often as these are rarer."""
    epoch_samples: PositiveInt | None = None
    """Samples per epoch where they are not to be as many as there are items."""
    segmenter: SegmenterConfig = SegmenterConfig()
    """The head of segmentation."""

    @model_validator(mode="after")
    def _mixing_takes_pairs(self) -> "FinetuneConfig":
        if (self.mixup or self.cutmix) and self.micro % 2:
            raise ValueError(f"mixup and cutmix mix pairs, which {self.micro} samples at once are not; set both to 0")
        return self


class ArmConfig(Config):
    """Fine-tuning settings of one arm of the label-efficiency comparison, tuned on validation data."""

    base_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate per 256 samples."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Factor on the learning rate from each block to the one below it."""


class LabelEfficiencyConfig(Config):
    """Accuracy over labels per class, pretrained against random initialisation."""

    labels_per_class: tuple[PositiveInt, ...] = (1, 5, 25)
    """Training labels given per class; counts that no class has so many for are left out."""
    seeds: tuple[int, ...] = (1000, 1001, 1002, 1003, 1004)
    """Each seed draws its own labelled subset, head and random encoder, the same for both arms."""
    steps: PositiveInt = 300
    """Optimiser steps of each fine-tuning."""
    batch: PositiveInt = 64
    """Samples per step."""
    pretrained: ArmConfig = ArmConfig()
    """Settings that start from the pretrained encoder."""
    random: ArmConfig = ArmConfig()
    """Settings that start from random weights."""


class EvaluateConfig(Config):
    """What is measured on the test split."""

    batch: PositiveInt = 256
    """Samples per forward pass; of masks no more than fine-tuning takes at once."""
    knn_k: PositiveInt = 20
    """Neighbours of the weighted k-NN probe."""
    knn_temperature: Annotated[float, Field(gt=0)] = 0.07
    """Temperature of its weights exp(similarity / temperature)."""
    linear_c: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Inverse regularisation strengths of the linear probe, chosen on the validation split."""
    bootstrap: PositiveInt = 1000
    """Resamples behind each confidence interval; groups are drawn whole."""
    overlap: Fraction = 0.5
    """Share of a window that the next one covers as well, along each axis, where masks are predicted by windows."""
    blend: Literal["constant", "gaussian"] = "gaussian"
    """Weights with which predictions of overlapping windows are averaged: all alike, or less towards the borders."""
    label_efficiency: LabelEfficiencyConfig | None = LabelEfficiencyConfig()
    """The comparison with random initialisation; left out where null."""
    remarks: tuple[str, ...] = no_result(())
    """What readers of the results have to know, one sentence each; the report tells them."""


class ComputeConfig(Config):
    """How a run is carried out. Nothing here changes its results, so nothing here enters a digest."""

    device: Literal["auto", "cpu", "cuda", "mps"] = no_result("auto")
    """Where the arithmetic runs; `auto` takes CUDA, then MPS, then the CPU."""
    workers: Annotated[int, Field(ge=0)] | None = no_result(None)
    """Preparation and loader processes. Default: all processors prepare; loaders only beside an accelerator."""
    processes: PositiveInt | None = no_result(None)
    """Processes that train together on this machine; default: one per visible GPU, one on the CPU."""
    threads: PositiveInt | None = no_result(None)
    """Arithmetic threads on the CPU, or small fine-tunings side by side; default: torch's choice, all processors."""
    checkpoint_seconds: Annotated[float, Field(gt=0)] = no_result(60.0)
    """Seconds between two training checkpoints."""
    keep: PositiveInt = no_result(2)
    """Training checkpoints kept while a stage runs."""
    log_every: PositiveInt = no_result(10)
    """Optimiser steps between two entries of the training curves."""
    compile: bool = no_result(default=False)
    """Whether the model goes through torch.compile."""
    deterministic: bool = no_result(default=False)
    """Whether CUDA is held to deterministic kernels (slower); the CPU always is."""
    dask: Annotated[str, Field(pattern=r"^(local:[1-9][0-9]*|(tcp|tls)://[^ ]+:[0-9]+)$")] | None = no_result(None)
    """Where data are prepared: a Dask scheduler (`tcp://host:8786`), or `local:2` for two workers on this machine."""
    registry: bool = no_result(default=True)
    """Whether encoders and tuned models are copied to MLflow's registry, from where they can be served."""


class Recipe(Config):
    """One experiment, whole: what the YAML file, the command line, the web form and the checkpoint all hold."""

    name: str = no_result("unnamed")
    """What the recipe is called in lists and records."""
    modality: str
    """Name of the plugin that reads the data."""
    seed: int = 0
    """The one number all randomness comes from."""
    data: PluginSettings
    """The plugin's own settings."""
    task: TaskConfig = TaskConfig()
    """What is to be predicted."""
    prepare: PrepareConfig = PrepareConfig()
    """Settings of the first stage."""
    model: ModelConfig = ModelConfig()
    """The encoder and its decoder."""
    pretrain: PretrainConfig = PretrainConfig()
    """Settings of the second stage."""
    finetune: FinetuneConfig = FinetuneConfig()
    """Settings of the third stage."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Settings of the last stage."""
    compute: ComputeConfig = no_result(ComputeConfig())
    """How the work is carried out."""
