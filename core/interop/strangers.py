"""What files of weights that cannot be taken over look like, so that people are told what they have."""

import re
from collections.abc import Iterable

from core.errors import NotThis
from core.interop.foreign import Checkpoint

PARTS: tuple[tuple[str, str], ...] = (
    (r"\.(ls[12]\.gamma|gamma(_[12])?|lambda_?[12]?|layer_scale\w*\.\w+)$", "layer scale, as in DINOv2, CaiT and BEiT"),
    (r"(reg_tokens?|register_tokens|storage_tokens)$", "register tokens, as in DINOv2 with registers and DINOv3"),
    (r"(dist_token|distillation_token)$", "a distillation token, as in DeiT and AST"),
    (r"\.attn\.(pool|norm)_?[qkv]\b", "attention to pooled tokens, as in MViT"),
    (r"^blocks\.\d+\.proj\.", "pooling between blocks, as in Hiera and MViT"),
    (r"\.attn\.(q_norm|k_norm)\.", "norms of queries and keys"),
    (r"\.attn\.norm\.|\.mlp\.norm\.", "norms inside attention or MLPs, as in EVA02"),
    (r"\.mlp\.(w12|w1|w2|w3|fc1_g|fc1_x|gate_proj|up_proj)\.", "gated MLPs (SwiGLU)"),
    (r"(relative_position_bias|relative_position|rel_pos|rpe_)", "relative positions, as in Swin, BEiT and SAM"),
    (r"(^|\.)(rope|freqs|periods)", "rotary positions"),
    (r"^norm_pre\.|pre_layrnorm|ln_pre", "a norm before its blocks, as in CLIP"),
    (r"^attn_pool\.", "attention pooling, as in SigLIP"),
    (r"patch_embed\.(norm|backbone|conv|stem)", "a stem of convolutions, or a norm, before its blocks"),
    (r"^(head_dist|head\.head_dist)", "a second head, as in DeiT"),
)
"""Parts of transformers that change what is computed and have no place here: a pattern of names, and what it is."""

STRANGERS: tuple[tuple[str, str], ...] = (
    (
        r"lora_[AB]\b|^base_model\.model\.|lora_(up|down)",
        "a LoRA adapter, which is nothing without the model it adapts",
    ),
    (r"(logit_scale|token_embedding|^text_model\.|^vision_model\.|^visual\.)", "CLIP or SigLIP"),
    (r"(mask_decoder|prompt_encoder)\.", "Segment Anything"),
    (r"^(bert|roberta|distilbert|electra)\.|embeddings\.word_embeddings", "BERT, a model of text"),
    (r"embed_tokens|^lm_head|(^|\.)h\.\d+\.attn\.c_attn|^wte\.", "a language model"),
    (r"^(student|teacher)\.|dino_head|ibot_head", "a checkpoint of self-distillation (DINO, iBOT)"),
    (r"layer_scale1|storage_tokens|register_tokens|^dinov2\.", "DINOv2 or DINOv3"),
    (r"multi_scale_fusion_heads|^hiera\.|^encoder\.stages\.\d+\.layers\.\d+\.attn\.qkv", "Hiera"),
    (r"(layers|stages)\.\d+\.blocks\.\d+\.(attn|attention).*relative_position|^swin\.", "a Swin Transformer"),
    (r"stages\.\d+\.(blocks|layers)\.\d+\.(conv_dw|dwconv)\.|^convnext\.", "ConvNeXt"),
    (r"^layer[1-4]\.\d+\.(conv1|bn1)\b|^embedder\.embedder\.convolution|^resnet\.", "a ResNet"),
    (r"^conv_stem\.|^blocks\.\d+\.\d+\.(conv|bn)", "EfficientNet, or a network like it"),
    (
        r"^(timesformer|vivit)\.|temporal_(attention|fc)|time_embed|^stem\.\d+\.\w+\.\d+",
        "a network of clips of another kind",
    ),
    (r"audio_spectrogram_transformer|^v\.blocks\.", "an Audio Spectrogram Transformer"),
    (r"^(yolos|detr|deit|vilt|layoutlm\w*)\.", "another transformer of transformers"),
    (r"^feature_extractor\.|quantizer\.|wav2vec2|hubert", "a speech model (wav2vec 2.0, HuBERT)"),
    (r"(down|up)_blocks\.\d+|mid_block", "a diffusion model"),
    (r"all_modules\.|seg_layers|transpconvs", "a U-Net of nnU-Net"),
    (r"^swinViT\.|^encoder1\.layer\.", "SwinUNETR"),
    (r"^vit\.patch_embedding\.", "UNETR of MONAI, of which the part `vit` could be read by itself"),
    (r"^features\.\d+\.|^encoder\.layers\.encoder_layer_\d+", "a network of torchvision"),
    (r"^(blocks|stages)\.\d+\.blocks\.\d+\.", "a network of several stages, such as MViT or MaxViT"),
)
"""Architectures people may have at hand: a pattern of their names, and what it is. The first that is found counts."""


def refuse_parts(names: Iterable[str]) -> None:
    """Refuse what changes the computation and has no place here.

    Raises:
        NotThis: with the part's name.
    """
    for name in names:
        for pattern, what in PARTS:
            if re.search(pattern, name):
                raise NotThis(f"it has {what} ({name}), for which no model here has a place")


def refuse_inside(names: Iterable[str], before: Iterable[str]) -> None:
    """Refuse names inside of blocks, whatever they are: no part of a block can be left out.

    Raises:
        NotThis: with the name.
    """
    stems = tuple(before)
    for name in names:
        if any(re.match(rf"{re.escape(stem)}\d+\.", name) for stem in stems):
            raise NotThis(f"its blocks have {name}, for which no model here has a place")


def looks_like(checkpoint: Checkpoint) -> str | None:
    """What a checkpoint of no known layout seems to be; None where nothing tells."""
    kind = checkpoint.config.get("model_type") or checkpoint.config.get("architecture")
    said = f" ({kind})" if kind else ""
    for patterns, before in ((STRANGERS, ""), (PARTS, "a transformer with ")):
        for pattern, what in patterns:
            if any(re.search(pattern, name) for name in checkpoint.state):
                return f"{before}{what}{said}"
    return f"a model of the kind {kind}" if kind else None
