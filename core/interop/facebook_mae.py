"""facebookresearch/mae: ``mae_pretrain_vit_*.pth`` (the encoder alone), ``*_full.pth`` (with decoder), fine-tuned ones.

The encoder has timm's names. Names and shapes are those of the repository's ``models_mae.py`` and ``models_vit.py``.
"""

import re

import torch
from torch import Tensor

from core.config import NormPix
from core.interop.foreign import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Checkpoint,
    Foreign,
    Hint,
    Preprocessing,
    State,
    architecture,
    patch_geometry,
)
from core.interop.layout import Target, fixed_or_learned, grid_of, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import BLOCK, Fused, Names
from core.interop.strangers import PARTS

ENCODER = {
    "cls_token": "encoder.cls_token",
    "pos_embed": "encoder.pos_embed",
    "patch_embed.proj.": "encoder.patch_embed.proj.",
    "norm.": "encoder.norm.",
}
DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.pos_embed",
    "decoder_embed.": "decoder.embed.",
    "decoder_norm.": "decoder.norm.",
    "decoder_pred.": "decoder.pred.",
}
HEAD = {"fc_norm.": "fc_norm.", "head.": "head."}
LAYERS = {"blocks.": "encoder.blocks.", "decoder_blocks.": "decoder.blocks."}
NAMES = Names(ENCODER | DECODER | HEAD, LAYERS, BLOCK, Fused())
TARGETS = (NormPix.PATCH, NormPix.NONE)
"""How its code can normalise what is to be predicted."""
PROBE_EPS = 1e-6
"""What the batch norm of ``main_linprobe.py`` adds to the variance."""
EITHER = (
    "the file does not say whether its decoder predicts normalised pixels, as `*_full` does, or plain ones, as "
    "`mae_visualize_*` does; normalised ones are assumed"
)


class FacebookMae(Target):
    """He et al. 2021, the authors' code."""

    name = "facebookresearch/mae"
    target = "mae"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """Without a decoder the names are timm's too: files beside which no configuration lies count as MAE's."""
        return has_plain_names(checkpoint) and not is_spectrogram(checkpoint.state)

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one. A linear probe's batch norm goes into its head."""
        state, leftover = sorted_out(NAMES, with_probe(checkpoint.state))
        table = state["encoder.pos_embed"]
        grid = grid_of(table.shape[1] - 1, 2, table, hint)
        geometry = patch_geometry(state, grid)
        plain = "visualize" in checkpoint.name
        decodes = "decoder.pred.weight" in state
        return Foreign(
            self.name,
            state,
            architecture(
                state,
                **hinted_heads(hint, state),
                positions=fixed_or_learned(table, grid, 1),
            ),
            geometry,
            self.inputs(geometry.channels),
            (NormPix.NONE if plain else NormPix.PATCH) if decodes else None,
            leftover=leftover,
            notes=(EITHER,) if decodes and not plain and "full" not in checkpoint.name else (),
        )

    def inputs(self, channels: int) -> Preprocessing | None:
        """What inputs went through."""
        return imagenet(channels, "as MAE's recipes have it; the file itself says nothing")

    def limits(self, model: Foreign) -> Limits:
        """Its decoder is for square inputs alone."""
        return Limits(
            (2,),
            cls_token=True,
            one_ratio=True,
            square_patch=True,
            square_input=model.has_decoder,
            targets=TARGETS,
            norm_eps=1e-6,
        )

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        return NAMES.theirs(whole_state(model))


def has_plain_names(checkpoint: Checkpoint) -> bool:
    """Whether these are a Vision Transformer's of two axes with timm's names and nothing more, and no configuration."""
    state = checkpoint.state
    names = {"pos_embed", "cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.bias"}
    plain = names <= state.keys() and state["patch_embed.proj.weight"].ndim == 4
    return plain and not checkpoint.config and not other_parts(state)


def other_parts(state: State) -> list[str]:
    """Names of an encoder's parts that a plain Vision Transformer has not."""
    encoder = [name for name in state if not name.startswith("decoder")]
    return [name for name in encoder if any(re.search(pattern, name) for pattern, _ in PARTS)]


def is_spectrogram(state: State) -> bool:
    """Whether one channel on a grid that is not square was looked at, which MAE's own code for pictures cannot do."""
    table = state["pos_embed"]
    if state["patch_embed.proj.weight"].shape[1] != 1:
        return False
    if any("relative_position" in name for name in state):
        return True
    grid = fixed_grid(table)
    return grid is not None and grid[0] != grid[1]


def fixed_grid(table_1ND: Tensor) -> tuple[int, int] | None:
    """The grid of two axes whose fixed table this is, with a class token; None where it is no fixed one."""
    count = table_1ND.shape[1] - 1
    for rows in range(1, count + 1):
        if count % rows == 0 and fixed_or_learned(table_1ND, (rows, count // rows), 1) == "sincos":
            return rows, count // rows
    return None


def with_probe(state: State) -> State:
    """A linear probe's normalisation of features, which has no weights of its own, inside the linear layer after it."""
    if "head.1.weight" not in state or "head.0.running_var" not in state:
        return state
    kept = {name: value for name, value in state.items() if not name.startswith("head.")}
    weight = state["head.1.weight"] / torch.sqrt(state["head.0.running_var"] + PROBE_EPS)
    return kept | {"head.weight": weight, "head.bias": state["head.1.bias"] - weight @ state["head.0.running_mean"]}


def imagenet(channels: int, source: str) -> Preprocessing | None:
    """ImageNet's statistics of colours between 0 and 1; None where there are not three channels."""
    return Preprocessing("unit", IMAGENET_MEAN, IMAGENET_STD, source) if channels == 3 else None
