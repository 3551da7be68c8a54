"""Settings of the inertial plugin. Imports neither torch nor NumPy: it is read whenever recipes are listed."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from core.config import Config, PluginInfo, PluginSettings, training_only


class AugmentConfig(Config):
    """Small changes that leave a movement the same, drawn for each training window."""

    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest angle, in degrees, by which the sensor sits otherwise on the body; both vectors turn together."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of a sensor's sensitivity."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Deviation of added noise, in deviations of the channel."""


class InertialSettings(PluginSettings):
    """Recordings of an accelerometer and a gyroscope with three axes each."""

    rate: PositiveFloat = 50.0
    """Samples per second of the recordings; they are not resampled."""
    window: PositiveInt = 256
    """Samples the model sees at once; shorter recordings are padded."""
    patch: PositiveInt = 16
    """Samples per patch; must divide the window."""
    segment: PositiveInt = 512
    """Samples per stored segment of a recording, each an item of its own; at least a window."""
    views: PositiveInt = 3
    """Windows of a segment, at even distances, whose predictions are averaged in evaluation."""
    units: tuple[str, str] = ("g", "rad/s")
    """Units of acceleration and of rotation in the files, as pictures name them."""
    drawn: tuple[PositiveFloat, PositiveFloat] = (3.0, 8.0)
    """Largest acceleration and rotation that pictures show, in these units; larger values are cut off."""
    pretrain: AugmentConfig = training_only(AugmentConfig(rotation=15, scale=0.1))
    """Changes of training windows in pretraining."""
    finetune: AugmentConfig = training_only(AugmentConfig(rotation=15, scale=0.1, noise=0.05))
    """Changes of training windows in fine-tuning."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "InertialSettings":
        if self.window % self.patch:
            raise ValueError(f"window {self.window} is not a multiple of patch {self.patch}")
        if self.segment < self.window:
            raise ValueError(f"segment {self.segment} is shorter than window {self.window}")
        return self


PLUGIN = PluginInfo(
    name="inertial",
    settings=InertialSettings,
    plugin="maeflow_inertial.plugin:InertialModality",
    revision=1,  # Raise it when results change, so that nobody reuses what the old code prepared.
)
"""What the entry point names."""
