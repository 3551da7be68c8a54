"""Settings of the video plugin; imports neither torch nor a decoder."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from core.config import Config, FixedCrop, Fraction, PluginInfo, PluginSettings, check_patches, training_only

Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class StoreConfig(Config):
    """How videos are kept in prepared data."""

    short_side: PositiveInt | None = 256
    """Larger videos are shrunk until their short side has this many pixels; null keeps their size."""
    codec: Literal["h264", "jpeg"] = "h264"
    """H.264 in short groups of frames, or each frame as a JPEG: larger, and quicker where frames lie far apart."""
    crf: Annotated[int, Field(ge=0, le=40)] = 23
    """Constant rate factor of H.264: smaller is better and larger."""
    gop: PositiveInt = 4
    """Frames that an H.264 decoder may have to go through to reach one."""
    quality: Annotated[int, Field(ge=50, le=100)] = 90
    """Quality of JPEG frames."""
    segment_frames: PositiveInt = 300
    """Longer videos are cut into records of about this many frames; all of one video stay in one split."""


class ClipConfig(Config):
    """Which frames of a video make a clip; the first number of the size says how many."""

    by: Literal["stride", "seconds", "uniform"] = "stride"
    """Every so many frames, frames spread over a time, or frames spread over the whole video (TSN)."""
    stride: PositiveInt = 4
    """Frames from one frame of a clip to the next; used by `stride`."""
    seconds: Annotated[float, Field(gt=0)] = 2.0
    """Time that a clip spans, whatever the video's frame rate; used by `seconds`."""


class ViewConfig(Config):
    """Random views of a training clip; every frame is treated alike."""

    crop: Literal["resized", "multi_scale"] = "resized"
    """A crop of random area and aspect, or of a few fixed sides at a few fixed places."""
    crop_scale: Scale = (0.5, 1.0)
    """Share of the frame's area that a `resized` crop takes."""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    """Aspect ratio of that crop; 1 to 1 and a scale of 1 to 1 keep square frames whole."""
    crop_sides: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1.0, 0.875, 0.75, 0.66)
    """Sides of a `multi_scale` crop, as shares of the frame's short side."""
    flip: Fraction = 0.0
    """Probability that a clip is mirrored; keep it 0 where left and right are part of the label."""
    rand_augment: str | None = None
    """A timm RandAugment policy such as `rand-m7-n4-mstd0.5-inc1`, the same for all frames of a clip."""
    erasing: Fraction = 0.0
    """Probability that a random rectangle of a clip is replaced by noise."""


class VideoSettings(PluginSettings):
    """Clips of one size."""

    size: tuple[PositiveInt, PositiveInt, PositiveInt] = (16, 224, 224)
    """Frames, height and width the model sees."""
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] = (2, 16, 16)
    """Frames, height and width of a patch (a tube of pixels); must divide the size."""
    channels: Literal[1, 3] = 3
    """3 for RGB, 1 for its brightness."""
    clip: ClipConfig = ClipConfig()
    """Which frames make a clip."""
    finetune_clip: ClipConfig | None = training_only(None)
    """Which frames make a clip in fine-tuning and evaluation, where they differ."""
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the fixed crop over the resized short side."""
    test_segments: PositiveInt = training_only(1)
    """Clips along a video whose predictions are averaged in evaluation."""
    test_crops: PositiveInt = training_only(1)
    """Crops along the longer side of each of these clips."""
    store: StoreConfig = StoreConfig()
    """How videos are kept in prepared data."""
    max_pixels: PositiveInt = 40_000_000
    """Videos whose frames claim more pixels are refused."""
    pretrain: ViewConfig = training_only(ViewConfig())
    """Views in pretraining."""
    finetune: ViewConfig = training_only(ViewConfig(crop_scale=(0.08, 1.0)))
    """Views in fine-tuning."""

    @property
    def fixed_crop(self) -> FixedCrop:
        """The centre of each frame."""
        return FixedCrop(self.eval_crop)

    @model_validator(mode="after")
    def _patch_divides_size(self) -> "VideoSettings":
        check_patches(self.size, self.patch)
        return self


PLUGIN = PluginInfo(
    name="video",
    settings=VideoSettings,
    plugin="modalities.video.plugin:VideoModality",
    revision=1,
    units="unit",
)
"""What the entry point names."""
