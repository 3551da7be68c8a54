"""timm: encoders and classifiers of two axes, with the ``config.json`` of a folder on its hub, or without one.

timm takes any state dict with a ``mask_token`` for DINOv2, so nothing of a decoder is ever written.
"""

from typing import Any

from torch import Tensor, nn

from core.errors import NotThis
from core.interop.facebook_mae import ENCODER, HEAD, other_parts
from core.interop.foreign import Checkpoint, Foreign, Hint, State, architecture, patch_geometry
from core.interop.layout import Target, fixed_or_learned, grid_of, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import ALL_BIASES, BLOCK, NO_BIAS, Fused, Names
from core.interop.timm_config import built_from, check_against, names_said, preprocessing_said

LAYERS = {"blocks.": "encoder.blocks."}
NAMES = Names(ENCODER | HEAD, LAYERS, BLOCK, Fused(), (ALL_BIASES, NO_BIAS))
EPS = 1e-6
BASIS = "vit_base_patch16_224"
"""The architecture whose arguments are replaced on export."""


class Timm(Target):
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
        return super().write(model.without_decoder())

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

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        return NAMES.theirs(whole_state(model))


def with_token_position(state: State, built: Any | None) -> Tensor:
    """The table of positions, with zeros for a class token that has none (``no_embed_class``)."""
    table = state["encoder.pos_embed"]
    absent = built is not None and built.no_embed_class and "encoder.cls_token" in state
    return nn.functional.pad(table, (0, 0, 1, 0)) if absent else table
