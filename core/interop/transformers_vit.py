"""Vision Transformers of two axes in transformers: ViTMAE, ViT, and what BEiT has in common with them.

Files have the names of 4.x: ``encoder.layer.N.attention.attention.query``. Release 5 has ``layers.N.attention.q_proj``
in memory and writes the old ones, but for ViTMAE's decoder, which it writes as ``decoder.decoder_encoder.layer.N``. All
three are read; 4.x's are written, which every release reads. A head on the mean, which ViT has not, is BEiT's.
"""

from typing import Any

from torch import Tensor

from core.config import NormPix
from core.errors import NotThis
from core.interop.facebook_mae import TARGETS, imagenet
from core.interop.foreign import Checkpoint, Foreign, Hint, Preprocessing, State, architecture, patch_geometry
from core.interop.hub_config import (
    check_activation,
    check_agreement,
    check_biases,
    classes_in,
    common,
    eps_said,
    facts,
    heads_said,
    preprocessing_in,
    sizes,
)
from core.interop.layout import Target, fixed_or_learned, grid_of, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import ALL_BIASES, NO_BIAS, NO_KEY_BIAS, Names, Split
from core.interop.transformers_videomae import BLOCK as FILE_BLOCK

FILE_ATTENTION = Split("attention.attention.{}", ("query", "key", "value"))
BEIT_ATTENTION = Split("attention.attention.{}", ("query", "key", "value"), key_bias=False)
MEMORY_BLOCK = {
    "layernorm_before": "norm1",
    "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
MEMORY_ATTENTION = Split("attention.{}_proj", ("q", "k", "v"))
PREFIXES = ("vit.", "beit.", "")
KINDS = ("vit", "vit_mae", "beit")


class TransformersVit(Target):
    """ViTMAE, ViT and plain BEiT as transformers has them."""

    name = "transformers (ViTMAE, ViT)"
    target = "hf-vit"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By its names of patches and blocks, and two axes."""
        before = prefix_of(checkpoint.state)
        patches = checkpoint.state.get(f"{before}embeddings.patch_embeddings.projection.weight")
        blocks = [
            f"{before}{layer}" for layer in ("encoder.layer.0.attention.attention.query", "layers.0.attention.q_proj")
        ]
        kind = checkpoint.config.get("model_type", "vit") in KINDS
        return (
            patches is not None
            and patches.ndim == 4
            and kind
            and any(f"{name}.weight" in checkpoint.state for name in blocks)
        )

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one."""
        config, before = checkpoint.config, prefix_of(checkpoint.state)
        given = {
            name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): value
            for name, value in checkpoint.state.items()
        }
        names = names_of(given, before)
        state, leftover = sorted_out(names, given)
        check_activation(config)
        check_biases(config, "qkv_bias", found=any(name.endswith((".query.bias", ".q_proj.bias")) for name in given))
        if "encoder.pos_embed" not in state or "encoder.cls_token" not in state:
            raise NotThis(
                "it has no table of positions, or no class token, without which nothing here can be made of it"
            )
        table = state["encoder.pos_embed"]
        grid = grid_said(config, state) or grid_of(table.shape[1] - 1, 2, table, hint)
        geometry = patch_geometry(state, grid)
        plain = "decoder.pred.weight" in state and not config.get("norm_pix_loss", False)
        model = Foreign(
            self.name,
            state,
            architecture(
                state,
                **(heads_said(config) or hinted_heads(hint, state)),
                positions=fixed_or_learned(table, grid, 1),
                norm_eps=eps_said(config),
            ),
            geometry,
            preprocessing_in(checkpoint.processor, geometry.channels) or usual(checkpoint, geometry.channels),
            (NormPix.NONE if plain else NormPix.PATCH) if "decoder.pred.weight" in state else None,
            classes_in(config, len(state.get("head.weight", ()))),
            leftover,
        )
        check_agreement(config, facts(model))
        return model

    def limits(self, model: Foreign) -> Limits:
        """ViTMAE's decoder and BEiT's head on the mean are for square pictures."""
        square = model.has_decoder or "fc_norm.weight" in model.head
        return Limits((2,), cls_token=True, square_patch=square, square_input=square, targets=TARGETS)

    def config(self, model: Foreign) -> dict[str, Any]:
        """Of the class that has what ``model`` has."""
        if model.has_decoder:
            return {
                "model_type": "vit_mae",
                "architectures": ["ViTMAEForPreTraining"],
                **common(model),
                "qkv_bias": True,
            }
        if "fc_norm.weight" in model.head:
            return {
                "model_type": "beit",
                "architectures": ["BeitForImageClassification"],
                **common(model),
                "use_absolute_position_embeddings": True,
                "use_relative_position_bias": False,
                "use_shared_relative_position_bias": False,
                "layer_scale_init_value": 0.0,
                "use_mask_token": False,
                "use_mean_pooling": True,
                "drop_path_rate": 0.0,
            }
        kind = "ViTForImageClassification" if model.head else "ViTModel"
        return {"model_type": "vit", "architectures": [kind], **common(model), "qkv_bias": True}

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        state = whole_state(model)
        if "fc_norm.weight" in model.head:
            return file_names("beit.", BEIT_ATTENTION).theirs(state)
        alone = not model.head and not model.has_decoder
        return file_names("" if alone else "vit.", FILE_ATTENTION).theirs(state)


def prefix_of(state: State) -> str:
    """What stands before the names of the encoder."""
    return next(before for before in PREFIXES if any(name.startswith(before) for name in state))


def top(before: str) -> dict[str, str]:
    """Names outside of blocks where those of the encoder begin with ``before``."""
    return {
        f"{before}embeddings.cls_token": "encoder.cls_token",
        f"{before}embeddings.position_embeddings": "encoder.pos_embed",
        f"{before}embeddings.patch_embeddings.projection.": "encoder.patch_embed.proj.",
        f"{before}layernorm.": "encoder.norm.",
        f"{before}pooler.layernorm.": "fc_norm.",
        "classifier.": "head.",
        "decoder.mask_token": "decoder.mask_token",
        "decoder.decoder_pos_embed": "decoder.pos_embed",
        "decoder.decoder_embed.": "decoder.embed.",
        "decoder.decoder_norm.": "decoder.norm.",
        "decoder.decoder_pred.": "decoder.pred.",
    }


def file_names(before: str, attention: Split) -> Names:
    """Names in files."""
    layers = {f"{before}encoder.layer.": "encoder.blocks.", "decoder.decoder_layers.": "decoder.blocks."}
    return Names(top(before), layers, FILE_BLOCK, attention, (ALL_BIASES, NO_KEY_BIAS, NO_BIAS))


def names_of(state: State, before: str) -> Names:
    """Names in files, or those in memory."""
    if not any(name.startswith(f"{before}layers.") for name in state):
        return file_names(before, FILE_ATTENTION)
    layers = {f"{before}layers.": "encoder.blocks.", "decoder.decoder_layers.": "decoder.blocks."}
    return Names(top(before), layers, MEMORY_BLOCK, MEMORY_ATTENTION, (ALL_BIASES, NO_KEY_BIAS, NO_BIAS))


def grid_said(config: Any, state: State) -> tuple[int, int] | None:
    """The grid that ``config.json`` says; None where there is none."""
    if "image_size" not in config:
        return None
    patch = state["encoder.patch_embed.proj.weight"].shape[2:]
    rows, columns = (extent // p for extent, p in zip(sizes(config["image_size"]), patch, strict=True))
    if rows * columns != state["encoder.pos_embed"].shape[1] - 1:
        count = state["encoder.pos_embed"].shape[1] - 1
        raise NotThis(f"its config.json says a grid of {rows} x {columns}, and its weights have {count} positions")
    return rows, columns


def usual(checkpoint: Checkpoint, channels: int) -> Preprocessing | None:
    """ImageNet's statistics where the kind of model says so; ViT's differ from file to file."""
    mae = checkpoint.config.get("model_type") == "vit_mae" or "decoder.mask_token" in checkpoint.state
    said = "as MAE's recipes have it; no preprocessor_config.json says otherwise"
    return imagenet(channels, said) if mae else None
