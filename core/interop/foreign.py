"""What every checkpoint becomes, whoever wrote it: weights under our names, and what has to be known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, nextafter
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from core.config import ModelConfig, NormPix
from core.errors import NotThis
from core.model.patches import PatchSpec

State = Mapping[str, Tensor]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTHS = {1280: 16, 1408: 16, 1664: 16}
"""Heads of the published widths whose heads are not 64 wide: ViT-H, ViT-g and ViT-G."""


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder of weights as it is."""

    name: str
    """What people call it: the path they gave, or its name on a hub."""
    state: State
    """Tensors by the names they have there, out of whatever held them and without the prefixes of wrappers."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What a `config.json` beside it says; empty where there is none."""
    processor: Mapping[str, Any] = field(default_factory=dict)
    """What a `preprocessor_config.json` beside it says; empty where there is none."""
    path: Path | None = None
    """Where it lies."""


@dataclass(frozen=True)
class Hint:
    """What the recipe says of a model, for what weights do not tell."""

    model: ModelConfig
    """Its heads are believed where its widths are those of the weights."""
    geometry: PatchSpec
    """Its grid is believed where it has as many patches as the weights have positions."""


@dataclass(frozen=True)
class Preprocessing:
    """What the model's input went through."""

    units: str
    """What features are measured in before normalisation, as `PluginInfo.units` has it."""
    mean: tuple[float, ...]
    """Subtracted from each channel."""
    std: tuple[float, ...]
    """Each channel is divided by it."""
    source: str
    """Where this is known from, in a clause for people."""


@dataclass(frozen=True)
class Foreign:
    """A checkpoint under our names."""

    layout: str
    """Whose layout it has."""
    state: dict[str, Tensor]
    """Weights: ``encoder.*`` and ``decoder.*`` of `MaskedAutoencoder`, ``fc_norm.*`` and ``head.*`` of `Classifier`.

    A head that reads the mean has ``fc_norm.*``, and the encoder then may lack its ``norm.*``. Tables of positions that
    are not stored because they are fixed are left out.
    """
    model: ModelConfig
    """The architecture; of the decoder as well, where there is one."""
    geometry: PatchSpec
    """Channels, input and patches it was trained on."""
    preprocessing: Preprocessing | None = None
    """What its inputs went through; None where nobody says."""
    norm_pix: NormPix | None = None
    """How the target of its decoder was normalised; None where nobody says, or there is no decoder."""
    classes: tuple[str, ...] = ()
    """Names of the head's outputs, where the file has them."""
    leftover: tuple[str, ...] = ()
    """Names in the file for which there is no place here."""
    notes: tuple[str, ...] = ()
    """What else people should know, a sentence each."""

    def part(self, name: str) -> dict[str, Tensor]:
        """Weights of ``encoder`` or ``decoder`` without that prefix."""
        return {key.removeprefix(f"{name}."): w for key, w in self.state.items() if key.startswith(f"{name}.")}

    @property
    def head(self) -> dict[str, Tensor]:
        """Weights of the head and what it reads through; empty where there is none."""
        head = {key: w for key, w in self.state.items() if key.startswith(("head.", "fc_norm."))}
        return head if "head.weight" in head else {}

    def without_decoder(self) -> "Foreign":
        """The encoder, and the head if there is one."""
        state = {key: w for key, w in self.state.items() if not key.startswith("decoder.")}
        return replace(self, state=state, norm_pix=None)

    @property
    def has_decoder(self) -> bool:
        """Whether it can reconstruct."""
        return "decoder.pred.weight" in self.state

    @property
    def outputs(self) -> int:
        """Width of the head; 0 where there is none."""
        return len(self.head["head.weight"]) if self.head else 0


def architecture(
    state: State,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    decoder_head_width: int = 32,
    positions: str = "learned",
    norm_eps: float = 1e-6,
    last_norm_eps: float | None = None,
    own_cls: bool = False,
) -> ModelConfig:
    """The architecture of weights under our names. Heads leave no trace in weights: 64 wide unless somebody knows.

    ``last_norm_eps`` is of the norms before the head and before the decoder's prediction, where it is another.

    Raises:
        NotThis: if the weights are not those of a plain Vision Transformer.
    """
    width = len(_needed(state, "encoder.patch_embed.proj.weight"))
    ratio = _ratio(len(_needed(state, "encoder.blocks.0.mlp.fc1.weight")), width)
    config: dict[str, Any] = {
        "width": width,
        "depth": _depth(state, "encoder"),
        "heads": heads or WIDTHS.get(width) or max(1, width // 64),
        "mlp_ratio": ratio,
        "cls_token": "encoder.cls_token" in state,
        "positions": positions,
        "norm_eps": norm_eps,
    }
    last = None if last_norm_eps == norm_eps else last_norm_eps
    if "fc_norm.weight" in state:
        config["head_norm_eps"] = last
    if "decoder.embed.weight" in state:
        inner = len(state["decoder.embed.weight"])
        own_ratio = _ratio(len(_needed(state, "decoder.blocks.0.mlp.fc1.weight")), inner)
        config["decoder"] = {
            "width": inner,
            "depth": _depth(state, "decoder"),
            "heads": decoder_heads or max(1, inner // decoder_head_width),
            "mlp_ratio": None if own_ratio == ratio else own_ratio,
            "own_cls": own_cls,
            "norm_eps": last,
        }
    try:
        return ModelConfig.model_validate(config)
    except ValidationError as error:
        raise NotThis(f"its sizes make no model: {error.errors()[0]['msg']}") from None


def patch_geometry(state: State, grid: tuple[int, ...]) -> PatchSpec:
    """The geometry of weights under our names whose positions are those of ``grid``."""
    projection = _needed(state, "encoder.patch_embed.proj.weight")
    patch = tuple(projection.shape[2:])
    return PatchSpec(projection.shape[1], tuple(n * p for n, p in zip(grid, patch, strict=True)), patch)


def _ratio(hidden: int, width: int) -> float:
    """What ``width`` is multiplied with for ``hidden``, so that cutting off the product's fraction gives it again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else nextafter(ratio, inf)


def _depth(state: State, part: str) -> int:
    numbers = {int(name.split(".")[2]) for name in state if name.startswith(f"{part}.blocks.")}
    if numbers != set(range(len(numbers))):
        raise NotThis(
            f"of its {part}'s blocks only the numbers {sorted(numbers)} are there: part of the file is missing"
        )
    return len(numbers)


def _needed(state: State, name: str) -> Tensor:
    if name not in state:
        raise NotThis(f"it lacks {name}, so it is not whole, or no Vision Transformer")
    return state[name]
