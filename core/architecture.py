"""The recipe's model block: what the encoder and its decoder are built like."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from core.fields import Config, added_later


class DecoderConfig(Config):
    """The small transformer that fills in the hidden patches and is thrown away."""

    width: PositiveInt = 512
    """Features per token."""
    depth: PositiveInt = 8
    """Number of blocks."""
    heads: PositiveInt = 16
    """Attention heads; must divide the width."""
    mlp_ratio: Annotated[float, Field(gt=0)] | None = added_later(None)
    """Hidden width of its MLPs over its width; null takes the encoder's."""
    own_cls: bool = added_later(default=False)
    """Whether a class token is the decoder's own (mae_st), and not the encoder's, which it otherwise is."""
    norm_eps: Annotated[float, Field(gt=0)] | None = added_later(None)
    """What its last layer norm adds to the variance; null takes the encoder's."""
    attention: Literal["global", "local"] = "global"
    """Whether a patch attends to all others, or to those in its window of the grid (Liu et al. 2021)."""
    window: tuple[PositiveInt, ...] | None = None
    """Patches of a window along each axis of the grid; needed by `local`."""
    shift: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """By how many patches the windows of every other block are moved; default: half a window."""

    @model_validator(mode="after")
    def _windows_fit(self) -> "DecoderConfig":
        if self.attention == "local" and self.window is None:
            raise ValueError("decoder attention 'local' needs `window`, patches along each axis of the grid")
        if self.shift is not None and (self.window is None or len(self.shift) != len(self.window)):
            raise ValueError("decoder `shift` needs one number for each of `window`")
        return self


class ModelConfig(Config):
    """The Vision Transformer encoder, by its timm names, and its decoder."""

    width: PositiveInt = 768
    """Features per token."""
    depth: PositiveInt = 12
    """Number of blocks."""
    heads: PositiveInt = 12
    """Attention heads; must divide the width."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width of the MLPs over the width, in encoder and decoder."""
    norm_eps: Annotated[float, Field(gt=0)] = added_later(1e-6)
    """What layer norms add to the variance: 1e-6 in MAE and timm, 1e-12 in some of transformers' checkpoints."""
    head_norm_eps: Annotated[float, Field(gt=0)] | None = added_later(None)
    """What the layer norm of a head that reads the mean adds to the variance; null takes `norm_eps`."""
    cls_token: bool = True
    """Whether a class token goes through the encoder with the patches."""
    positions: Literal["sincos", "sincos_joint", "learned"] = "sincos"
    """Fixed sine-cosine positions, separable over the axes or by the patch's number (VideoMAE); or learned ones."""
    other_size: Literal["stretch", "keep"] = "stretch"
    """Positions of an input of another size: stretched over it, as for pictures of another resolution, or as far apart
    as before, as for recordings of another length."""
    decoder: DecoderConfig = DecoderConfig()
    """The decoder of pretraining."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "ModelConfig":
        for where, width, heads in (
            ("", self.width, self.heads),
            ("decoder.", self.decoder.width, self.decoder.heads),
        ):
            if width % heads:
                raise ValueError(f"{where}width {width} is not a multiple of {where}heads {heads}")
        return self
