"""Settings of the image plugin; imports neither torch nor an image library."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from core.config import Config, FixedCrop, Fraction, PluginInfo, PluginSettings, check_patches, training_only

Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class StoreConfig(Config):
    """How images are kept in prepared data."""

    short_side: PositiveInt | None = 256
    """Larger images are shrunk until their short side has this many pixels; null keeps their size."""
    codec: Literal["auto", "jpeg", "webp", "raw"] = "auto"
    """`auto` keeps small images raw and others as JPEG; images of other than 1 or 3 channels are always raw."""
    quality: Annotated[int, Field(ge=50, le=100)] = 90
    """Quality of JPEG and WebP."""


class AffineConfig(Config):
    """Small random motions for images that must be seen whole, such as digits."""

    degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation to either side."""
    translate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest shift along each axis, as a share of its extent."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of size."""


class AugmentConfig(Config):
    """Random views of a training image."""

    crop_scale: Scale = (0.2, 1.0)
    """Share of the image's area that a random resized crop takes; 1 to 1 keeps the image whole. In segmentation it is
    the share of a window of the input's size, which is taken anywhere."""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    """Aspect ratio of that crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    affine: AffineConfig | None = None
    """Small motions instead of a crop."""
    rand_augment: str | None = None
    """A timm RandAugment policy such as `rand-m9-mstd0.5-inc1`."""
    erasing: Fraction = 0.0
    """Probability that a random rectangle is replaced by noise."""


class ImageSettings(PluginSettings):
    """Images of one size and any number of channels."""

    size: tuple[PositiveInt, PositiveInt] = (224, 224)
    """Height and width the model sees, in pixels."""
    patch: tuple[PositiveInt, PositiveInt] = (16, 16)
    """Height and width of a patch, in pixels; must divide the size."""
    channels: PositiveInt = 3
    """1 for grey, 3 for RGB, other numbers for arrays and multi-channel TIFF."""
    background: tuple[int, int, int] = (0, 0, 0)
    """RGB colour behind transparent pixels, 0 to 255."""
    max_pixels: PositiveInt = 100_000_000
    """Images that claim more pixels are refused as decompression bombs."""
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the centre crop in evaluation over the resized short side; 1 squeezes the whole image into the size."""
    store: StoreConfig = StoreConfig()
    """How images are kept in prepared data."""
    pretrain: AugmentConfig = training_only(AugmentConfig())
    """Views in pretraining (He et al. 2021: random resized crop and flip only)."""
    finetune: AugmentConfig = training_only(AugmentConfig(crop_scale=(0.08, 1.0)))
    """Views in fine-tuning."""

    @property
    def fixed_crop(self) -> FixedCrop:
        """The centre, or all of it squeezed."""
        return FixedCrop(self.eval_crop, squeezed=self.eval_crop == 1)

    @model_validator(mode="after")
    def _patch_divides_size(self) -> "ImageSettings":
        check_patches(self.size, self.patch)
        if self.channels not in {1, 3} and (self.pretrain.rand_augment or self.finetune.rand_augment):
            raise ValueError(f"rand_augment changes pictures, not arrays of {self.channels} channels; set it to null")
        return self


PLUGIN = PluginInfo(
    name="image",
    settings=ImageSettings,
    plugin="modalities.image.plugin:ImageModality",
    revision=1,
    units="unit",
)
"""What the entry point names."""
