"""Settings of the medical plugin; imports neither torch nor a decoder."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from core.config import Config, Fraction, PluginInfo, PluginSettings, check_patches, check_rules, training_only

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Window = tuple[float, float]


class IntensityConfig(Config):
    """From stored values to what the model sees, before the data's own mean and deviation are taken out."""

    kind: Literal["windows", "percentile", "zscore"] = "windows"
    """Fixed windows (HU), the scan's own 0.5th to 99.5th percentile as 0 to 1, or deviations from its own mean."""
    windows: tuple[Window, ...] = training_only(((-175.0, 250.0),))
    """Lowest and highest value of each window, scaled to 0..1; each window is a channel. Used by `windows`."""

    @model_validator(mode="after")
    def _in_order(self) -> "IntensityConfig":
        if not self.windows or any(low >= high for low, high in self.windows):
            raise ValueError(f"windows {self.windows}: each needs a lowest value and, after it, a highest")
        return self


class StoreConfig(Config):
    """How scans are kept in prepared data: bricks, so that a crop is read without the rest of its volume."""

    brick: PositiveInt = 32
    """Voxels along each side of a brick of a volume."""
    codec: Literal["lz4", "zstd", "raw"] = "lz4"
    """Compression of bricks, without loss: `lz4` is quick to read, `zstd` smaller, `raw` quicker still and as large as
    the scans are."""
    short_side: PositiveInt | None = 256
    """Images of two axes are shrunk until their short side has this many pixels; null keeps their size."""
    values: Literal["int16", "float32"] = "int16"
    """Type of the stored values; scans that do not fit into whole numbers of 16 bits need `float32`."""


class RefuseConfig(Config):
    """Which scans are listed as unusable rather than learned from."""

    fewest_slices: PositiveInt = 8
    """Slices that a volume must have."""
    gaps: bool = True
    """Refuse volumes with missing slices; otherwise these are filled in from their neighbours."""
    tilted: bool = False
    """Refuse volumes whose slices do not stand at a right angle (tilted gantry); otherwise they stay as they lie."""
    localisers: bool = True
    """Refuse scout views."""
    burned_in: Literal["never", "said", "unless_denied"] = "said"
    """Refuse images said to have writing in their pixels, or all that are not said to have none."""
    secondary_capture: bool = False
    """Refuse images that did not come from a scanner, such as screenshots."""
    most_voxels: PositiveInt = 2_000_000_000
    """Scans that claim more voxels are refused."""


class AugmentConfig(Config):
    """Random changes of training views."""

    crop_scale: tuple[Share, Share] = (1.0, 1.0)
    """Share of the area that a random resized crop of an image takes; volumes are cut without resizing."""
    flip: tuple[Fraction, ...] = ()
    """Probability of a mirror image along each axis, such as [0.5, 0, 0]; only where anatomy and labels allow it."""
    rotate: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Largest rotation to either side, in degrees, in the plane of the last two axes of an image, the first two of a
    volume."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Intensities are multiplied by a factor of up to so much more or less than 1."""
    shift: NotNegative = 0.0
    """Up to so much is added to intensities, in deviations of the data."""
    erasing: Fraction = 0.0
    """Probability that a random rectangle of an image is replaced by noise."""


class MedicalSettings(PluginSettings):
    """Radiographs (two axes) or volumes (three axes) of one size."""

    size: tuple[PositiveInt, ...] = (96, 96, 96)
    """What the model sees: height and width in pixels, or voxels to the right, to the front and upwards (R, A, S)."""
    patch: tuple[PositiveInt, ...] = (16, 16, 16)
    """Size of a patch along the same axes; must divide the size."""
    spacing: tuple[Positive, Positive, Positive] | None = None
    """Millimetres from voxel to voxel that volumes are resampled to (R, A, S); null keeps the scan's own."""
    crop_above: float | None = None
    """Volumes are cut to the box around what is larger than this; null keeps them whole."""
    channels: Literal[1, 3] = 1
    """1 for grey, 3 for colour; images of two axes only."""
    frames: PositiveInt = 1
    """Frames taken of an image with several, spread evenly; images of two axes only."""
    folder_labels: bool = False
    """Whether the first folder level names classes; leave it off where folders are named after patients or dates."""
    intensity: IntensityConfig = IntensityConfig()
    """How values are scaled."""
    store: StoreConfig = StoreConfig()
    """How scans are kept in prepared data."""
    refuse: RefuseConfig = RefuseConfig()
    """What is not learned from."""
    views: PositiveInt = training_only(1)
    """Crops along the longest axis of a volume whose predictions are averaged in evaluation."""
    pretrain: AugmentConfig = training_only(AugmentConfig())
    """Changes in pretraining."""
    finetune: AugmentConfig = training_only(AugmentConfig())
    """Changes in fine-tuning."""

    @property
    def volumes(self) -> bool:
        """Whether inputs have three axes."""
        return len(self.size) == 3

    @model_validator(mode="after")
    def _fits(self) -> "MedicalSettings":
        if len(self.size) not in (2, 3) or len(self.patch) != len(self.size):
            raise ValueError(f"size {self.size} and patch {self.patch} need 2 axes (images) or 3 (volumes) each")
        check_patches(self.size, self.patch)
        changes = (self.pretrain, self.finetune)
        flips = {len(change.flip) for change in changes} - {0, len(self.size)}
        colour, flat = self.channels == 3, not self.volumes
        areas = any(change.crop_scale != (1.0, 1.0) or change.erasing for change in changes)
        rules = {
            "flip needs one probability for each axis": bool(flips),
            "crop_scale: the smallest share comes first": any(c.crop_scale[0] > c.crop_scale[1] for c in changes),
            "channels: volumes have one; several windows make several": colour and not flat,
            "channels 3 goes with intensity.kind percentile": colour and self.intensity.kind != "percentile",
            "spacing, crop_above and views are for volumes": flat
            and (self.spacing is not None or self.crop_above is not None or self.views > 1),
            "frames, crop_scale and erasing are for images of two axes": not flat and (areas or self.frames > 1),
        }
        check_rules(rules)
        return self


PLUGIN = PluginInfo(
    name="medical",
    settings=MedicalSettings,
    plugin="modalities.medical.plugin:MedicalModality",
    revision=1,
    sources=("folder", "manifest", "file"),
    private=True,
)
"""What the entry point names."""
