"""What a layout has room for, said once for each, and asked before a model is written in it."""

from dataclasses import dataclass

from torch import Tensor

from core.config import NormPix
from core.errors import NotThis
from core.interop.foreign import Foreign

AXES = {1: "one axis", 2: "two axes", 3: "three axes", 4: "four axes"}


@dataclass(frozen=True)
class Limits:
    """What models a layout can hold. Its decoders attend to everything and predict whole patches unless said."""

    axes: tuple[int, ...]
    """Numbers of axes."""
    cls_token: bool | None = None
    """Whether there must be a class token, or must not; None where both are right."""
    own_cls: bool = False
    """Whether the class token of a decoder is its own, and not the encoder's."""
    channels: int | None = None
    """Channels of the input; None for any."""
    square_patch: bool = False
    """Whether the last two extents of a patch are equal."""
    square_input: bool = False
    """Whether the last two extents of the input are equal."""
    pools: tuple[str, ...] = ("mean", "cls")
    """What heads may read."""
    decoder: bool = True
    """Whether there may be a decoder."""
    one_ratio: bool = False
    """Whether MLPs of the decoder are as wide, for its width, as the encoder's."""
    embed_bias: bool = True
    """Whether what leads from encoder to decoder has a bias."""
    strides: bool = False
    """Whether a decoder may predict a part of the values of a patch."""
    targets: tuple[NormPix, ...] = ()
    """How its code can normalise what a decoder is to predict; empty where it computes no loss."""
    norm_eps: float | None = None
    """What the layer norms of its code add to the variance; None where it can be set."""
    last_norm_eps: float | None = None
    """The same of the norms before a head and before a decoder's prediction, where these are not like the others."""

    def check(self, model: Foreign) -> None:
        """Refuse a model for which there is no room.

        Raises:
            NotThis: with what does not fit.
        """
        for fits, why in (*self._encoder(model), *self._head(model), *self._decoder(model)):
            if not fits:
                raise NotThis(f"that layout {why}")

    def remarks(self, model: Foreign) -> tuple[str, ...]:
        """What will be computed a little otherwise there, a sentence each."""
        if not self.targets or model.norm_pix in (*self.targets, None):
            return self.norms(model)
        loss = f"there, what is to be predicted is not normalised by {model.norm_pix}: a loss says less there"
        return (*self.norms(model), loss)

    def norms(self, model: Foreign) -> tuple[str, ...]:
        """Those of `remarks` that tell of norms: outputs differ a little."""
        config, said = model.model, []
        ours, theirs = config.norm_eps, self.norm_eps or config.norm_eps
        if ours != theirs:
            said.append(_eps("layer norms", ours, theirs))
        lasts = [("the norm before the head", config.head_norm_eps)] if "fc_norm.weight" in model.head else []
        lasts += [("the decoder's last norm", config.decoder.norm_eps)] if model.has_decoder else []
        for what, eps in lasts:
            own, other = eps or ours, self.last_norm_eps or theirs
            if own != other and (own, other) != (ours, theirs):
                said.append(_eps(what, own, other))
        return tuple(said)

    def _encoder(self, model: Foreign) -> list[tuple[bool, str]]:
        geometry, config = model.geometry, model.model
        axes, patch, size = len(geometry.grid), geometry.patch_shape, geometry.input_shape
        wanted = " or ".join(AXES[n] for n in self.axes)
        return [
            (axes in self.axes, f"is for {wanted}; this model has {AXES[axes]}"),
            (self.cls_token is not True or config.cls_token, "has a class token, and this model has none"),
            (self.cls_token is not False or not config.cls_token, "has no class token, and this model has one"),
            (
                self.channels in (None, geometry.channels),
                f"takes {self.channels} channel(s), and this model {geometry.channels}",
            ),
            (not self.square_patch or patch[-1] == patch[-2:][0], f"has square patches; these are {patch}"),
            (not self.square_input or size[-1] == size[-2:][0], f"takes square inputs; this model's are {size}"),
        ]

    def _head(self, model: Foreign) -> list[tuple[bool, str]]:
        if not model.head:
            return []
        pool = "mean" if "fc_norm.weight" in model.head else "cls"
        words = {"mean": "the mean of the patches", "cls": "the class token"}
        allowed = " or ".join(words[p] for p in self.pools)
        why = f"has heads on {allowed}; this one is on {words[pool]}" if allowed else "has no heads"
        return [(pool in self.pools, why)]

    def _decoder(self, model: Foreign) -> list[tuple[bool, str]]:
        if not model.has_decoder:
            return []
        size, config = model.model.decoder, model.model
        ratios = (size.mlp_ratio or config.mlp_ratio, config.mlp_ratio)
        whole = len(model.state["decoder.pred.weight"]) == model.geometry.values
        alone = "; the encoder alone can be written"
        bias = model.state["decoder.embed.bias"]
        return [
            (self.decoder, f"has no decoder{alone}"),
            (not model.head, f"has a decoder or a head, and this model has both{alone}"),
            (size.attention == "global", f"has decoders that attend to everything, not within windows{alone}"),
            (not config.cls_token or self.own_cls == size.own_cls, self._of_class_tokens() + alone),
            (
                not self.one_ratio or ratios[0] == ratios[1],
                f"has MLPs of one ratio, this model of two: {ratios}{alone}",
            ),
            (self.strides or whole, f"predicts whole patches, and this decoder a part of their values{alone}"),
            (
                self.embed_bias or not any_value(bias),
                f"has no place for the bias with which this decoder takes over tokens{alone}",
            ),
        ]

    def _of_class_tokens(self) -> str:
        own, other = "a class token of its own", "the encoder's class token"
        return f"has decoders with {own if self.own_cls else other}; this one has {other if self.own_cls else own}"


def any_value(tensor: Tensor) -> bool:
    """Whether something in it is not zero."""
    return bool(tensor.any())


def _eps(what: str, ours: float, theirs: float) -> str:
    add = "adds" if what.startswith("the") else "add"
    return f"there, {what} {add} {theirs:g} to the variance, and here {ours:g}: outputs differ a little"
