"""Every layout's files are claimed by it alone, and what is none of them is told what it looks like."""

import sys
from pathlib import Path

import pytest
import torch

from core.config import ModelConfig, NormPix
from core.errors import NotThis
from core.interop.foreign import Checkpoint, Foreign
from core.interop.layout import Target, grid_of
from core.interop.layouts import LAYOUTS, recognise, targets
from core.interop.names import Fused, Names, Split
from core.model.mae import MaskedAutoencoder
from core.model.patches import PatchSpec
from core.model.positions import sincos

sys.path.insert(0, str(Path(__file__).parent))
from references import facebook, mae_st, videomae
from references.comparing import fixed, hint

SIZES = (64, 1, 1)
DECODER = (32, 1, 1)
PICTURE, WIDE, CLIP = (3, (2, 2), (8, 8)), (1, (4, 2), (8, 8)), (3, (2, 2, 2), (2, 8, 8))
PLAIN = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16}


def audio():
    model = facebook.MaskedAutoencoderViT(*WIDE, *SIZES, *DECODER)
    return fixed(model, ["pos_embed"], WIDE[1])


def from_timm(name, **kwargs):
    import timm

    return timm.create_model(name, **kwargs)


def from_transformers(kind, **kwargs):
    import transformers

    cls = getattr(transformers, kind)
    return cls(cls.config_class(**kwargs))


def from_monai(kind, **kwargs):
    from monai.networks import nets

    sizes = {"hidden_size": 24, "mlp_dim": 8, "num_layers": 1, "num_heads": 2}
    return getattr(nets, kind)(in_channels=1, img_size=16, patch_size=8, **sizes, **kwargs)


@pytest.fixture(autouse=True)
def _without_einops(monkeypatch):
    from monai.networks.blocks import selfattention

    monkeypatch.setattr(selfattention, "Rearrange", lambda *_, **__: torch.nn.Identity())


FILES = {
    "mae": lambda: (facebook.MaskedAutoencoderViT(*PICTURE, *SIZES, *DECODER), {}),
    "mae tuned": lambda: (facebook.VisionTransformer(*PICTURE, *SIZES, 5, global_pool=True), {}),
    "mae of one channel": lambda: (facebook.MaskedAutoencoderViT(1, (2, 2), (8, 8), *SIZES, *DECODER), {}),
    "audiomae": lambda: (audio(), {}),
    "mae_st": lambda: (mae_st.MaskedAutoencoderViT(*CLIP, *SIZES, *DECODER, 2, apart=True, token=True), {}),
    "mae_st joint": lambda: (mae_st.MaskedAutoencoderViT(*CLIP, *SIZES, *DECODER, 2, apart=False, token=True), {}),
    "mae_st tuned": lambda: (mae_st.VisionTransformer(*CLIP, *SIZES, apart=True, token=True, classes=5), {}),
    "mae_st of SlowFast": lambda: (mae_st.MaskMViT(*CLIP, *SIZES, *DECODER, apart=True, token=True), {}),
    "videomae": lambda: (videomae.PretrainVisionTransformer(*CLIP, *SIZES, *DECODER), {}),
    "videomae tuned": lambda: (videomae.VisionTransformer(*CLIP, *SIZES, classes=5), {}),
    "hf-vit mae": lambda: (from_transformers("ViTMAEForPreTraining", **PLAIN), {"model_type": "vit_mae"}),
    "hf-vit": lambda: (from_transformers("ViTModel", **PLAIN), {"model_type": "vit"}),
    "hf-vit bare": lambda: (from_transformers("ViTForImageClassification", **PLAIN), {}),
    "hf-videomae": lambda: (from_transformers("VideoMAEForPreTraining", **PLAIN), {"model_type": "videomae"}),
    "hf-videomae bare": lambda: (from_transformers("VideoMAEModel", **PLAIN), {}),
    "timm": lambda: (from_timm("vit_tiny_patch16_224", depth=1), {"architecture": "vit_tiny_patch16_224"}),
    "timm without a token": lambda: (
        from_timm("vit_tiny_patch16_224", depth=1, class_token=False, global_pool="avg"),
        {},
    ),
    "monai": lambda: (from_monai("MaskedAutoEncoderViT", decoder_hidden_size=24), {}),
    "monai vit": lambda: (from_monai("ViT"), {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_file_is_claimed_by_its_own_layout_alone(kind):
    model, config = FILES[kind]()
    checkpoint = Checkpoint(kind, model.state_dict(), config)
    assert [layout for layout in LAYOUTS if layout.claims(checkpoint)] == [targets()[kind.split()[0]]]
    assert recognise(checkpoint) is targets()[kind.split()[0]]


def test_no_two_layouts_have_one_target():
    writable = [layout for layout in LAYOUTS if isinstance(layout, Target)]
    assert len(targets()) == len(writable)
    assert {kind.split()[0] for kind in FILES} == set(targets())


STRANGERS = {
    "a ResNet": lambda: from_timm("resnet18"),
    "ConvNeXt": lambda: from_timm("convnext_atto"),
    "a Swin Transformer": lambda: from_timm("swin_tiny_patch4_window7_224"),
    "MViT or MaxViT": lambda: from_timm("mvitv2_tiny"),
    "pooling between blocks, as in Hiera": lambda: from_timm("hiera_tiny_224"),
    "layer scale, as in DINOv2": lambda: from_timm("vit_small_patch14_dinov2"),
    "register tokens": lambda: from_timm("vit_small_patch14_reg4_dinov2"),
    "a transformer with layer scale": lambda: from_timm("vit_small_patch16_dinov3"),
    "a norm before its blocks, as in CLIP": lambda: from_timm("vit_base_patch32_clip_224"),
    "blocks.0.attn.q_bias": lambda: from_timm("eva02_tiny_patch14_224"),
    "a ResNet [(]resnet[)]": lambda: from_transformers("ResNetModel"),
    "Hiera": lambda: from_transformers("HieraModel"),
    "DINOv2 or DINOv3": lambda: from_transformers("Dinov2Model"),
    "CLIP or SigLIP": lambda: from_transformers("CLIPModel"),
    "BERT, a model of text": lambda: from_transformers("BertModel"),
    "a distillation token": lambda: from_transformers("ASTModel", hidden_size=24, num_attention_heads=2),
    "8 class tokens": lambda: from_transformers("PixioModel", num_hidden_layers=1),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_other_architectures_are_called_by_their_names(what):
    with torch.device("meta"):
        model = STRANGERS[what]()
    state = {name: torch.zeros(()).expand(value.shape) for name, value in model.state_dict().items()}
    checkpoint = Checkpoint("other", state, {"model_type": "resnet"} if "resnet" in what else {})
    with pytest.raises(NotThis, match=what):
        recognise(checkpoint).read(checkpoint)


ROOM = [
    ({"attention": "local", "window": (2, 2)}, {}, 192, "attend to everything, not within windows"),
    ({"mlp_ratio": 2.0}, {}, 192, "MLPs of one ratio, this model of two: [(]2.0, 4.0[)]"),
    ({"own_cls": True}, {}, 192, "with the encoder's class token; this one has a class token of its own"),
    ({}, {}, 96, "predicts whole patches, and this decoder a part of their values"),
    ({}, {"cls_token": False}, 192, "has a class token, and this model has none"),
]


@pytest.mark.parametrize(("decoder", "more", "values", "why"), ROOM)
def test_what_maes_layout_has_no_room_for_is_said(decoder, more, values, why):
    sizes = {"width": 64, "depth": 1, "heads": 1, "decoder": {"width": 32, "depth": 1, "heads": 1, **decoder}}
    config, spec = ModelConfig.model_validate(sizes | more), PatchSpec(3, (16, 16), (8, 8))
    state = MaskedAutoencoder(spec, config, values=values).state_dict()
    with pytest.raises(NotThis, match=why):
        targets()["mae"].write(Foreign("maeflow", state, config, spec))


def test_a_target_that_the_layouts_code_does_not_know_is_remarked():
    config, spec = ModelConfig(width=64, depth=1, heads=1), PatchSpec(3, (16, 16), (8, 8))
    state = MaskedAutoencoder(spec, config).state_dict()
    for target, said in ((NormPix.PATCH, 0), (NormPix.NONE, 0), (NormPix.CHANNEL_STD, 1)):
        model = Foreign("maeflow", state, config, spec, norm_pix=target)
        assert len(targets()["mae"].remarks(model)) == len(targets()["hf-vit"].remarks(model)) == said


def test_a_decoder_and_a_head_at_once_have_no_room():
    config, spec = ModelConfig(width=64, depth=1, heads=1), PatchSpec(3, (16, 16), (8, 8))
    state = MaskedAutoencoder(spec, config).state_dict()
    both = Foreign("maeflow", state | {"head.weight": torch.rand(5, 64), "head.bias": torch.rand(5)}, config, spec)
    with pytest.raises(NotThis, match="a decoder or a head, and this model has both; the encoder alone"):
        targets()["mae"].write(both)
    assert "head.weight" in targets()["mae"].write(both.without_decoder())


def test_lora_files_and_files_of_nothing_known_are_said_to_be_so():
    lora = Checkpoint("lora", {"base_model.model.vit.layers.0.attention.q_proj.lora_A.weight": torch.zeros(4, 8)})
    with pytest.raises(NotThis, match="a LoRA adapter, which is nothing without the model it adapts"):
        recognise(lora)
    with pytest.raises(NotThis, match=r"^its names \(something\.weight \.\.\.\) are of no known layout: .*MONAI"):
        recognise(Checkpoint("other", {"something.weight": torch.zeros(2)}))


@pytest.mark.parametrize("attention", [Fused(), Fused(bias=None, query_bias="q", value_bias="v"), Split("a.{}", "qkv")])
def test_tables_of_names_go_both_ways(attention):
    names = Names({"top.": "encoder.norm."}, {"layers.": "encoder.blocks."}, {"fc": "mlp.fc1"}, attention)
    state = {
        f"encoder.blocks.0.{name}": torch.rand(shape)
        for name, shape in {
            "attn.qkv.weight": (12, 4),
            "attn.qkv.bias": (12,),
            "mlp.fc1.weight": (8, 4),
            "mlp.fc1.bias": (8,),
        }.items()
    }
    state |= {"encoder.norm.weight": torch.rand(4), "encoder.norm.bias": torch.rand(4)}
    if attention == Fused(bias=None, query_bias="q", value_bias="v"):
        names = Names(names.top, names.layers, names.block, attention, (frozenset(("query", "value")),))
        state["encoder.blocks.0.attn.qkv.bias"][4:8] = 0
    found, leftover = names.ours(names.theirs(state))
    assert leftover == ()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    with pytest.raises(NotThis, match="no place for elsewhere"):
        names.theirs(state | {"elsewhere": torch.zeros(1)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", [(4, 16), (16, 4), (8, 8), (2, 4, 8)])
def test_a_grid_is_that_of_its_fixed_table(grid, dtype):
    """Also where weights were made half as long."""
    table = sincos(grid, 96)[None].to(dtype)
    assert grid_of(64, len(grid), table, None) == grid


def test_a_grid_that_nothing_tells_is_the_recipes():
    table = torch.rand(1, 36, 96)
    with pytest.raises(NotThis, match="nobody can tell how its 36 positions lie on 3 axes"):
        grid_of(36, 3, table, None)
    assert grid_of(36, 3, table, hint((3, (8, 24, 24), (2, 8, 8)), 96, 1)) == (4, 3, 3)
    assert grid_of(36, 2, table, None) == (6, 6)
