"""Settings of the audio plugin; imports neither torch nor a decoder."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from core.config import Config, Fraction, PluginInfo, PluginSettings, check_patches, check_rules, training_only

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
SHORTEST = 0.1
"""Seconds below which nothing can be heard in a recording, let alone learned."""
FLAC_ANY_RATE = 65_535
"""Samples per second above which FLAC streams hold whole multiples of ten only."""


class SpectrogramConfig(Config):
    """From a waveform to a picture of it, on the device."""

    kind: Literal["kaldi", "mel"] = "kaldi"
    """Kaldi's filter banks as AST and AudioMAE use them, or torchaudio's plain MelSpectrogram."""
    window_ms: Positive = 25.0
    """Length of a frame in milliseconds."""
    shift_ms: Positive = 10.0
    """From one frame to the next, in milliseconds."""
    low_hz: NotNegative = 20.0
    """Lower edge of the lowest band."""
    high_hz: Positive | None = None
    """Upper edge of the highest band; null: half the sampling rate."""
    centre: Literal["none", "clip", "band"] = "none"
    """Subtract the mean of each clip (its loudness), of each band of a clip (its colour: microphone, room), or none."""


class StoreConfig(Config):
    """How recordings are kept in prepared data: one channel of 16 bits at the recipe's rate."""

    seconds: Annotated[float, Field(ge=1)] = 30.0
    """Longer recordings are cut into records of about this length; all of one recording stay in one split."""
    codec: Literal["flac", "pcm16"] = "flac"
    """FLAC keeps every bit in about half the bytes; plain samples are quicker to read."""


class RefuseConfig(Config):
    """Which recordings are listed as unusable rather than learned from."""

    shortest: Annotated[float, Field(ge=SHORTEST)] = SHORTEST
    """Seconds of sound that a recording must have."""
    clipped: Fraction = 0.2
    """Largest share of samples at the limits of the recording's range; more is distortion."""
    longest: Positive = 86_400.0
    """Seconds that a recording may claim to last."""


class AugmentConfig(Config):
    """Random changes of training clips."""

    roll: Fraction = 0.0
    """Probability that a clip is turned round in time: what leaves at its end comes in at its start."""
    gain_db: NotNegative = 0.0
    """Loudness is changed by up to so many decibels either way."""
    noise: Fraction = 0.0
    """Probability that white noise is added."""
    noise_db: tuple[float, float] = (10.0, 40.0)
    """How far the noise stays below the clip, in decibels: least and most."""
    mixup: Fraction = 0.0
    """Probability that a waveform is mixed with another of its batch, and its target with it; fine-tuning only."""
    mixup_beta: Annotated[int, Field(ge=1, le=64)] = 10
    """Shares are drawn from Beta(n, n)."""
    time_mask: Fraction = 0.0
    """Largest share of the frames that are left out, in one piece (SpecAugment)."""
    band_mask: Fraction = 0.0
    """Largest share of the frequency bands that are left out, in one piece (SpecAugment)."""

    @model_validator(mode="after")
    def _in_order(self) -> "AugmentConfig":
        if self.noise_db[0] > self.noise_db[1]:
            raise ValueError(f"noise_db {self.noise_db}: the least comes first")
        return self


class AudioSettings(PluginSettings):
    """Clips of one length as log-mel spectrograms."""

    rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000
    """Samples per second the model hears; recordings of any other rate are resampled."""
    size: tuple[PositiveInt, PositiveInt] = (1024, 128)
    """Frames and frequency bands the model sees."""
    patch: tuple[PositiveInt, PositiveInt] = (16, 16)
    """Frames and bands of a patch; must divide the size."""
    spectrogram: SpectrogramConfig = SpectrogramConfig()
    """How the spectrogram is computed."""
    store: StoreConfig = StoreConfig()
    """How recordings are kept in prepared data."""
    refuse: RefuseConfig = RefuseConfig()
    """What is not learned from."""
    test_clips: PositiveInt = training_only(1)
    """Clips along a long recording whose predictions are averaged in evaluation."""
    pretrain: AugmentConfig = training_only(AugmentConfig())
    """Changes in pretraining."""
    finetune: AugmentConfig = training_only(AugmentConfig())
    """Changes in fine-tuning."""

    @model_validator(mode="after")
    def _fits(self) -> "AudioSettings":
        check_patches(self.size, self.patch)
        spectrum, rate = self.spectrogram, self.rate
        high = spectrum.high_hz or rate / 2
        window = spectrum.window_ms / 1000
        rules = {
            f"spectrogram.high_hz {high:g} is above half the rate of {rate} Hz": high > rate / 2,
            f"spectrogram.low_hz {spectrum.low_hz:g} is not below the upper edge": spectrum.low_hz >= high,
            f"spectrogram: frames of {spectrum.window_ms:g} ms are too short at {rate} Hz": window * rate < 16,
            f"spectrogram.shift_ms {spectrum.shift_ms:g} is less than a sample": spectrum.shift_ms * rate < 1000,
            f"spectrogram.shift_ms {spectrum.shift_ms:g} leaves gaps between frames of {spectrum.window_ms:g} ms": (
                spectrum.shift_ms >= spectrum.window_ms
            ),
            f"size {self.size}: Kaldi's filters need 4 bands or more": spectrum.kind == "kaldi" and self.size[1] < 4,
            f"refuse.shortest {self.refuse.shortest:g} s is less than a frame": self.refuse.shortest < window,
            f"store.seconds {self.store.seconds:g} s is not twice a frame": self.store.seconds < 2 * window,
            f"store.codec flac cannot hold {rate} samples per second; use pcm16": (
                self.store.codec == "flac" and rate > FLAC_ANY_RATE and rate % 10 > 0
            ),
            "pretrain.mixup: there is nothing to mix in pretraining, which has no targets": self.pretrain.mixup > 0,
        }
        check_rules(rules)
        return self


PLUGIN = PluginInfo(
    name="audio",
    settings=AudioSettings,
    plugin="modalities.audio.plugin:AudioModality",
    revision=1,
    units="log-mel",
)
"""What the entry point names."""
