"""VideoMAE in transformers: ``VideoMAEForPreTraining``, ``VideoMAEModel`` and ``VideoMAEForVideoClassification``.

Releases differ in what they call the biases of queries and values: 4.x wrote ``attention.q_bias``, 5.x has
``query.bias`` in memory and writes the old names again. Positions are fixed by the patch's number and not stored. Two
norms, before the head and before the prediction, add 1e-5 to the variance whatever the configuration says.
"""

from typing import Any

from torch import Tensor

from core.config import NormPix
from core.errors import NotThis
from core.interop import said
from core.interop.facebook_mae import imagenet
from core.interop.foreign import Checkpoint, Foreign, Hint, architecture, patch_geometry
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
from core.interop.layout import Target, hinted_heads, sorted_out, whole_state
from core.interop.limits import Limits
from core.interop.names import NO_BIAS, NO_KEY_BIAS, Names, Split
from core.interop.videomae import clips, drop_joint, with_embed_bias
from core.model.patches import PatchSpec

BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Modules of a block by the names that all releases write to files."""
ATTENTION = Split(
    "attention.attention.{}",
    ("query", "key", "value"),
    key_bias=False,
    other_biases=("attention.attention.q_bias", "attention.attention.v_bias"),
)
LAST_EPS = 1e-5
"""Of the two norms that do not follow the configuration."""
NO_NORM = (
    "its encoder has no last norm (use_mean_pooling is true, as VideoMAEConfig has it by default), so its decoder was "
    "given tokens that were not normalised, which none here is"
)
PLAIN = "its decoder predicts colours between 0 and 1 as they are, a target that none here has"


class TransformersVideoMae(Target):
    """VideoMAE as transformers has it."""

    name = "transformers (VideoMAE)"
    target = "hf-videomae"

    def claims(self, checkpoint: Checkpoint) -> bool:
        """By its names of patches and blocks, and three axes."""
        before = prefix_of(checkpoint)
        patches = checkpoint.state.get(f"{before}embeddings.patch_embeddings.projection.weight")
        named = f"{before}encoder.layer.0.attention.attention.query.weight" in checkpoint.state
        token = f"{before}embeddings.cls_token" in checkpoint.state
        kind = checkpoint.config.get("model_type", "videomae") == "videomae"
        return named and not token and patches is not None and patches.ndim == 5 and kind

    def read(self, checkpoint: Checkpoint, hint: Hint | None = None) -> Foreign:
        """Encoder, and decoder or head where there is one."""
        config = checkpoint.config
        names = names_under(prefix_of(checkpoint))
        state, leftover = sorted_out(names, checkpoint.state)
        state = with_embed_bias(state)
        check_activation(config)
        check_biases(config, "qv_bias", found=any(name.endswith(QUERY_BIASES) for name in checkpoint.state))
        decodes = "decoder.pred.weight" in state
        if decodes and "encoder.norm.weight" not in state:
            raise NotThis(NO_NORM)
        if "head.weight" in state and "fc_norm.weight" not in state:
            raise NotThis("its head reads the first patch as if it were a class token, which no head here does")
        geometry, notes = configured_clips(config, state) or clips(state, hint)
        target = NormPix.CHANNEL_STD if decodes and config.get("norm_pix_loss", True) else None
        model = Foreign(
            self.name,
            state,
            architecture(
                state,
                **(heads_said(config) or hinted_heads(hint, state)),
                decoder_head_width=64,
                positions="sincos_joint",
                norm_eps=eps_said(config),
                last_norm_eps=LAST_EPS,
            ),
            geometry,
            preprocessing_in(checkpoint.processor, geometry.channels)
            or imagenet(geometry.channels, "as VideoMAE's recipes have it; no preprocessor_config.json says otherwise"),
            target,
            classes_in(config, len(state.get("head.weight", ()))),
            leftover,
            (*notes, *((PLAIN,) if decodes and target is None else ())),
        )
        check_agreement(config, facts(model) | {"tubelet_size": geometry.patch_shape[0]})
        return model

    def limits(self, model: Foreign) -> Limits:
        """No class token, square patches, heads on the mean."""
        return Limits(
            (3,),
            cls_token=False,
            square_patch=True,
            pools=("mean",),
            embed_bias=False,
            targets=(NormPix.CHANNEL_STD,),
            last_norm_eps=LAST_EPS,
        )

    def config(self, model: Foreign) -> dict[str, Any]:
        """Of the class that has what ``model`` has."""
        kind = "Model" if not model.head else "ForVideoClassification"
        geometry = model.geometry
        return {
            "model_type": "videomae",
            "architectures": [f"VideoMAE{'ForPreTraining' if model.has_decoder else kind}"],
            **common(model),
            "num_frames": geometry.input_shape[0],
            "tubelet_size": geometry.patch_shape[0],
            "qv_bias": True,
            "use_mean_pooling": bool(model.head),
        }

    def _written(self, model: Foreign) -> dict[str, Tensor]:
        state = whole_state(model)
        if not drop_joint(state):
            raise NotThis("that layout has fixed positions by the patch's number; this model has others")
        alone = not model.head and not model.has_decoder
        return names_under("" if alone else "videomae.").theirs(state)


QUERY_BIASES = (".query.bias", ".q_bias")


def names_under(before: str) -> Names:
    """Names where those of the encoder begin with ``before``."""
    return Names(
        {
            f"{before}embeddings.patch_embeddings.projection.": "encoder.patch_embed.proj.",
            f"{before}layernorm.": "encoder.norm.",
            "encoder_to_decoder.weight": "decoder.embed.weight",
            "mask_token": "decoder.mask_token",
            "decoder.norm.": "decoder.norm.",
            "decoder.head.": "decoder.pred.",
            "fc_norm.": "fc_norm.",
            "classifier.": "head.",
        },
        {f"{before}encoder.layer.": "encoder.blocks.", "decoder.decoder_layers.": "decoder.blocks."},
        BLOCK,
        ATTENTION,
        (NO_KEY_BIAS, NO_BIAS),
    )


def prefix_of(checkpoint: Checkpoint) -> str:
    """What stands before the names of the encoder."""
    return "videomae." if any(name.startswith("videomae.") for name in checkpoint.state) else ""


def configured_clips(config: Any, state: dict[str, Tensor]) -> tuple[PatchSpec, tuple[str, ...]] | None:
    """The geometry that ``config.json`` says; None where there is none."""
    if not config:
        return None
    size = (said.whole(config, "num_frames", 16), *sizes(config.get("image_size", 224)))
    patch = tuple(state["encoder.patch_embed.proj.weight"].shape[2:])
    if not all(size) or any(extent % p for extent, p in zip(size, patch, strict=True)):
        raise NotThis(f"its config.json says clips of {size}, no multiple of its patches of {patch}")
    return patch_geometry(state, tuple(extent // p for extent, p in zip(size, patch, strict=True))), ()
