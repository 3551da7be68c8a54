"""timm: encoders and classifiers of two axes, with the ``config.json`` of a folder on its hub, or without one.

timm takes any state dict with a ``mask_token`` for DINOv2, so nothing of a decoder is ever written.
"""

from collections.abc import Mapping
from typing import Any

import torch
from timm import create_model
from timm.layers.activations import GELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from core.errors import NotThis
from core.interop.facebook_mae import ENCODER, HEAD, other_parts
from core.interop.foreign import Checkpoint, Foreign, Hint, Preprocessing, State, architecture, patch_geometry
from core.interop.layout import Layout, fixed_or_learned, grid_of, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import ALL_BIASES, BLOCK, NO_BIAS, Fused, Names

LAYERS = {"blocks.": "encoder.blocks."}
NAMES = Names(ENCODER | HEAD, LAYERS, BLOCK, Fused(), (ALL_BIASES, NO_BIAS))
EPS = 1e-6
BASIS = "vit_base_patch16_224"
"""The architecture whose arguments are replaced on export."""


class Timm(Layout):
    """Vision Transformers of timm."""

    name = "timm"
    target = "timm"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By timm's configuration, or by parts that no checkpoint of MAE's own code has or lacks."""
        state = checkpoint.state
        if checkpoint.config:
            return "architecture" in checkpoint.config
        plain = {"pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= state.keys()
        picture = plain and state["patch_embed.proj.weight"].ndim == 4
        usual = {"cls_token", "blocks.0.attn.qkv.bias"} <= state.keys()
        return picture and (not usual or bool(other_parts(state)))

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and head where there is one."""
        state, leftover = sorted_out(NAMES, checkpoint.state)
        built = built_from(checkpoint.config)
        if built is not None:
            check_against(built, checkpoint.state)
        if "encoder.pos_embed" not in state:
            raise NotThis("it has no table of positions, without which nothing here can be made of it")
        state["encoder.pos_embed"] = with_token_position(state, built)
        prefix = int("encoder.cls_token" in state)
        table = state["encoder.pos_embed"]
        count = table.shape[1] - prefix
        grid = tuple(built.patch_embed.grid_size) if built else grid_of(count, 2, table, hint)
        geometry = patch_geometry(state, grid)
        heads = hinted_heads(hint, state) if built is None else {"heads": built.blocks[0].attn.num_heads}
        return Foreign(
            self.name,
            state,
            architecture(
                state,
                **heads,
                positions=fixed_or_learned(table, grid, prefix),
                norm_eps=EPS if built is None else built.blocks[0].norm1.eps,
            ),
            geometry,
            preprocessing_said(checkpoint.config, geometry.channels),
            None,
            names_said(checkpoint.config, len(state.get("head.weight", ()))),
            leftover,
        )

    def limits(self, model: Foreign) -> Limits:
        """Two axes; a decoder is left out."""
        return Limits((2,), norm_eps=EPS)

    def write(self, model: Foreign) -> dict[str, Tensor]:
        """Encoder and head, whatever else there is.

        Raises:
            NotThis: if the layout has no place for such a model.
        """
        alone = model.without_decoder()
        self.limits(alone).check(alone)
        return NAMES.theirs(whole_state(alone))

    def config(self, model: Foreign) -> dict[str, Any]:
        """What ``timm.create_model("local-dir:...")`` builds the model from."""
        own, geometry, mean = model.model, model.geometry, "fc_norm.weight" in model.head
        pool = "avg" if mean or not own.cls_token else "token"
        given = model.preprocessing
        return {
            "architecture": BASIS,
            "num_classes": model.outputs,
            "num_features": own.width,
            "global_pool": pool,
            "model_args": {
                "img_size": list(geometry.input_shape),
                "patch_size": list(geometry.patch_shape),
                "in_chans": geometry.channels,
                "embed_dim": own.width,
                "depth": own.depth,
                "num_heads": own.heads,
                "mlp_ratio": own.mlp_ratio,
                "class_token": own.cls_token,
                "global_pool": pool,
                "fc_norm": mean,
            },
            "pretrained_cfg": {
                "input_size": [geometry.channels, *geometry.input_shape],
                "fixed_input_size": True,
                "num_classes": model.outputs,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
                "custom_load": False,
                **({"mean": list(given.mean), "std": list(given.std)} if given else {}),
            },
            **({"label_names": list(model.classes)} if model.classes else {}),
        }


def built_from(config: Mapping[str, Any]) -> Any | None:
    """The model that a configuration describes, without memory for its weights; None where there is none.

    Raises:
        NotThis: if timm cannot build it, or it computes something that no model here does.
    """
    if "architecture" not in config:
        return None
    name, arguments = config["architecture"], dict(config.get("model_args") or {})
    outputs = config.get("num_classes", (config.get("pretrained_cfg") or {}).get("num_classes", 0))
    arguments = {"num_classes": outputs, **arguments}
    try:
        with torch.device("meta"):
            built = create_model(name, pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise NotThis(f"timm cannot build the {name} that its config.json names: {error}") from None
    if type(built) is not VisionTransformer:
        raise NotThis(f"it is a {type(built).__name__} of timm ({name}), not a plain Vision Transformer")
    nonlinearity = built.blocks[0].mlp.act
    if not isinstance(nonlinearity, nn.GELU | GELU) or getattr(nonlinearity, "approximate", "none") != "none":
        act = type(nonlinearity).__name__
        raise NotThis(f"its MLPs have the nonlinearity {act}; those here have gelu alone")
    pooled = built.num_classes == 0 or built.global_pool in ("token", "avg")
    if not pooled or (built.num_classes and (built.global_pool == "avg") is isinstance(built.fc_norm, nn.Identity)):
        raise NotThis(f"its head reads by {built.global_pool!r} with the norm elsewhere, which no head here does")
    if built.pool_include_prefix and built.num_classes:
        raise NotThis("its head reads the mean of class token and patches, which no head here does")
    return built


def check_against(built: Any, state: State) -> None:
    """Refuse weights of other shapes than the configuration says.

    Raises:
        NotThis: with the weight.
    """
    for name, expected in built.state_dict().items():
        found = state.get(name)
        if found is not None and found.shape != expected.shape:
            said, have = tuple(expected.shape), tuple(found.shape)
            raise NotThis(f"its config.json says {name} is {said}, and it is {have}: they do not belong together")


def with_token_position(state: State, built: Any | None) -> Tensor:
    """The table of positions, with zeros for a class token that has none (``no_embed_class``)."""
    table = state["encoder.pos_embed"]
    absent = built is not None and built.no_embed_class and "encoder.cls_token" in state
    return nn.functional.pad(table, (0, 0, 1, 0)) if absent else table


def preprocessing_said(config: Mapping[str, Any], channels: int) -> Preprocessing | None:
    """The statistics of a configuration, which older files have without a group of their own."""
    given = config.get("pretrained_cfg") or config
    mean, std = (tuple(given.get(name) or ()) for name in ("mean", "std"))
    if len(mean) != channels or len(std) != channels:
        return None
    return Preprocessing("unit", mean, std, "its config.json")


def names_said(config: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """Names of the head's outputs; empty where nobody has named them."""
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names") or ()
    ordered = names.values() if isinstance(names, Mapping) else names
    given = tuple(str(name) for name in ordered)
    return given if outputs and len(given) == outputs else ()
