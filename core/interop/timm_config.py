"""What the ``config.json`` of timm says: the model it describes, built without memory or files, and its inputs.

A stranger wrote it, and timm's own loader would follow it to other files and hosts. So only an architecture that timm
itself has is built, from plain numbers and words.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm import create_model
from timm.layers.activations import GELU
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm
from timm.layers.patch_dropout import PatchDropout
from timm.layers.patch_embed import PatchEmbed
from timm.models import is_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from core.errors import NotThis
from core.interop import said
from core.interop.foreign import Preprocessing, State


def _up_to(most: int) -> Callable[[Any], bool]:
    return lambda value: said.is_whole(value, 1, most)


def _size(value: Any) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    return 1 <= len(several) <= 2 and all(said.is_whole(extent, 1, 1 << 16) for extent in several)


def _share(value: Any) -> bool:
    return said.is_number(value) and 0 <= value <= 64


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _word(value: Any) -> bool:
    return isinstance(value, str)


ARGUMENTS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("img_size", "patch_size"), _size),
    **dict.fromkeys(("in_chans", "num_heads"), _up_to(1 << 12)),
    **dict.fromkeys(("reg_tokens", "depth"), _up_to(1 << 8)),
    "embed_dim": _up_to(1 << 15),
    "num_classes": lambda value: said.is_whole(value, 0, 1 << 20),
    **dict.fromkeys(("mlp_ratio", "init_values"), _share),
    **dict.fromkeys(("global_pool", "pos_embed", "act_layer", "norm_layer", "attn_layer"), _word),
    **dict.fromkeys(
        (
            "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "class_token", "no_embed_class",
            "pre_norm", "final_norm", "fc_norm", "pool_include_prefix", "dynamic_img_size", "dynamic_img_pad",
        ),
        _flag,
    ),
}  # fmt: skip
"""What is handed on to timm, and what such a value is like. Of anything else nobody knows what it would do."""
IDLE = (
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
    "weight_init", "fix_init",
)  # fmt: skip
"""What counts in training alone."""
PLAIN = (
    VisionTransformer, PatchEmbed, Block, Attention, Mlp, LayerNorm, nn.LayerNorm, DropPath, PatchDropout, nn.Linear,
    nn.Conv2d, nn.Dropout, nn.Identity, nn.Sequential, nn.GELU, GELU,
)  # fmt: skip
"""What a plain Vision Transformer is made of. Other parts of the same names may compute something else."""
TELLING = ("cls_token", "pos_embed", "norm.weight", "fc_norm.weight")
"""Weights that a model with all others may have or not."""


def built_from(config: Mapping[str, Any]) -> Any | None:
    """The model that a configuration describes, without memory for its weights; None where there is none.

    Raises:
        NotThis: if timm cannot build it, or it computes something that no model here does.
    """
    if "architecture" not in config:
        return None
    name = said.word(config, "architecture")
    if ":" in name or "/" in name or not is_model(name):
        raise NotThis(f"timm cannot build the {name!r} that its config.json names: it has no such architecture")
    outputs = said.whole(config, "num_classes", said.whole(said.inner(config, "pretrained_cfg"), "num_classes", 0))
    try:
        with torch.device("meta"):
            built = create_model(name, pretrained=False, **{"num_classes": outputs, **arguments_said(config)})
    except NotThis:
        raise
    except Exception as error:  # noqa: BLE001 - what does not go together fails anywhere inside of timm
        raise NotThis(f"timm cannot build the {name} that its config.json describes: {error}") from None
    check_plain(built, name)
    return built


def arguments_said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the architecture is built with.

    Raises:
        NotThis: if there is something that is no plain size or choice of a Vision Transformer.
    """
    found = {}
    for key, value in said.inner(config, "model_args").items():
        if key in IDLE or value is None:
            continue
        if key not in ARGUMENTS:
            raise NotThis(f"its config.json gives timm the argument {key!r}, which no file is allowed to give")
        if not ARGUMENTS[key](value):
            raise said.wrong(key, value, "a size or choice of a Vision Transformer")
        found[key] = tuple(value) if isinstance(value, list) else value
    return found


def check_plain(built: nn.Module, name: str) -> None:
    """Refuse what has another part than a plain Vision Transformer.

    Raises:
        NotThis: with the part.
    """
    if type(built) is not VisionTransformer:
        raise NotThis(f"it is a {type(built).__name__} of timm ({name}), not a plain Vision Transformer")
    for place, part in built.named_modules():
        kind = type(part).__name__
        if place.endswith(".act") and (
            type(part) not in (nn.GELU, GELU) or getattr(part, "approximate", "none") != "none"
        ):
            raise NotThis(f"its MLPs have the nonlinearity {kind}; those here have gelu alone")
        if type(part) not in PLAIN:
            raise NotThis(f"its {place} is timm's {kind} ({name}), which computes something that no model here does")
    pooled = built.num_classes == 0 or built.global_pool in ("token", "avg")
    if not pooled or (built.num_classes and (built.global_pool == "avg") is isinstance(built.fc_norm, nn.Identity)):
        raise NotThis(f"its head reads by {built.global_pool!r} with the norm elsewhere, which no head here does")
    if built.pool_include_prefix and built.num_classes:
        raise NotThis("its head reads the mean of class token and patches, which no head here does")


def check_against(built: Any, state: State) -> None:
    """Refuse weights that are not those of the configuration, by name or by shape; heads may be away.

    Raises:
        NotThis: with the weight.
    """
    expected = built.state_dict()
    for name, value in expected.items():
        found = state.get(name)
        if found is not None and found.shape != value.shape:
            have, wanted = tuple(found.shape), tuple(value.shape)
            raise NotThis(f"its config.json says {name} is {wanted}, and it is {have}: they do not belong together")
        if found is None and not name.startswith("head."):
            raise NotThis(f"its config.json describes a model with {name}, which it lacks: they do not belong together")
    if extra := [name for name in TELLING if name in state and name not in expected]:
        raise NotThis(f"its config.json describes a model without {extra[0]}: they do not belong together")


def preprocessing_said(config: Mapping[str, Any], channels: int) -> Preprocessing | None:
    """The statistics of a configuration, which older files have without a group of their own.

    Raises:
        NotThis: if they are no numbers to divide by.
    """
    given = said.inner(config, "pretrained_cfg") or config
    for key in ("mean", "std"):
        if said.is_number(given.get(key)):
            raise said.wrong(key, given[key], "a list of numbers")
    mean, std = said.numbers(given, "mean"), said.numbers(given, "std")
    if len(mean) != channels or len(std) != channels:
        return None
    if min(std) <= 0:
        raise said.wrong("std", std, "numbers above 0")
    return Preprocessing("unit", mean, std, "its config.json")


def names_said(config: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """Names of the head's outputs; empty where nobody has named them."""
    given = said.names(config, "label_names") or said.names(said.inner(config, "pretrained_cfg"), "label_names")
    return given if outputs and len(given) == outputs else ()
