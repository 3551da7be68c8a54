"""The same numbers as MONAI's masked autoencoder of three axes, from the same weights and masks."""

import pytest
import torch

from core.config import DecoderConfig, ModelConfig
from core.model.mae import MaskedAutoencoder
from core.model.masking import split_by_score
from core.model.patches import PatchSpec, gather_tokens

SPEC = PatchSpec(2, (8, 12, 16), (4, 4, 2))
DECODER = DecoderConfig(width=12, depth=1, heads=2)
MODEL = ModelConfig(width=24, depth=2, heads=4, norm_eps=1e-5, decoder=DECODER)


class Rearrange(torch.nn.Module):
    """What MONAI's attention asks of einops: to part queries, keys, values and heads, and to join heads."""

    def __init__(self, pattern, **sizes):
        super().__init__()
        self.pattern, self.sizes = pattern, sizes

    def forward(self, x):
        if self.pattern == "b h (qkv l d) -> qkv b l h d":
            return x.unflatten(-1, (3, self.sizes["l"], -1)).permute(2, 0, 3, 1, 4)
        assert self.pattern == "b l h d -> b h (l d)"
        return x.transpose(1, 2).flatten(2)


@pytest.fixture
def reference(monkeypatch):
    from monai.networks.blocks import selfattention
    from monai.networks.nets import MaskedAutoEncoderViT

    monkeypatch.setattr(selfattention, "Rearrange", Rearrange)
    torch.manual_seed(0)
    model = MaskedAutoEncoderViT(
        in_channels=SPEC.channels,
        img_size=SPEC.input_shape,
        patch_size=SPEC.patch_shape,
        hidden_size=MODEL.width,
        mlp_dim=4 * MODEL.width,
        num_layers=MODEL.depth,
        num_heads=MODEL.heads,
        decoder_hidden_size=MODEL.decoder.width,
        decoder_mlp_dim=4 * MODEL.decoder.width,
        decoder_num_layers=MODEL.decoder.depth,
        decoder_num_heads=MODEL.decoder.heads,
    )
    with torch.no_grad():  # Norms and biases that do nothing would hide where they go astray.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def block(theirs, name, ours):
    """A transformer block under our names: MONAI's has no bias of queries, keys and values."""
    pairs = {"norm1": "norm1", "norm2": "norm2", "attn.out_proj": "attn.proj"}
    pairs |= {"mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"}
    weights = {
        f"{ours}.{own}.{part}": theirs[f"{name}.{other}.{part}"]
        for other, own in pairs.items()
        for part in ("weight", "bias")
    }
    qkv = theirs[f"{name}.attn.qkv.weight"]
    return weights | {f"{ours}.attn.qkv.weight": qkv, f"{ours}.attn.qkv.bias": torch.zeros_like(qkv[:, 0])}


def converted(theirs):
    """MONAI's weights as ours. Its class token has no position; ours gets one of zeros."""
    weights = {
        "encoder.cls_token": theirs["cls_token"],
        "encoder.patch_embed.proj.weight": theirs["patch_embedding.patch_embeddings.weight"],
        "encoder.patch_embed.proj.bias": theirs["patch_embedding.patch_embeddings.bias"],
        "encoder.pos_embed": torch.nn.functional.pad(theirs["patch_embedding.position_embeddings"], (0, 0, 1, 0)),
        "decoder.pos_embed": torch.nn.functional.pad(theirs["decoder_pos_embedding"], (0, 0, 1, 0)),
        "decoder.mask_token": theirs["mask_tokens"],
    }
    for part in ("weight", "bias"):
        weights |= {
            f"encoder.norm.{part}": theirs[f"blocks.{MODEL.depth}.{part}"],
            f"decoder.norm.{part}": theirs[f"decoder_blocks.{MODEL.decoder.depth}.{part}"],
            f"decoder.embed.{part}": theirs[f"decoder_embed.{part}"],
            f"decoder.pred.{part}": theirs[f"decoder_pred.{part}"],
        }
    for number in range(MODEL.depth):
        weights |= block(theirs, f"blocks.{number}", f"encoder.blocks.{number}")
    for number in range(MODEL.decoder.depth):
        weights |= block(theirs, f"decoder_blocks.{number}", f"decoder.blocks.{number}")
    return weights


def test_predictions_of_volumes_equal_monais(reference, monkeypatch):
    ours = MaskedAutoencoder(SPEC, MODEL).double().eval()
    ours.load_state_dict(converted(reference.state_dict()))
    x = torch.randn(3, SPEC.channels, *SPEC.input_shape, dtype=torch.float64)
    mask = split_by_score(torch.rand(3, SPEC.count), SPEC.count // 4)
    hidden = torch.zeros(3, SPEC.count).scatter(1, mask.masked_BM, 1)

    def drawn(tokens, masking_ratio=None):
        return gather_tokens(tokens, mask.keep_BK), mask.keep_BK, hidden

    monkeypatch.setattr(reference, "_masking", drawn)
    with torch.no_grad():
        expected, their_hidden = reference(x)
        predicted = ours(SPEC.patchify(x), mask, mask.masked_BM)
    assert torch.equal(their_hidden, hidden)
    assert expected.std() > 0.1
    assert (gather_tokens(expected, mask.masked_BM) - predicted).abs().max() <= 1e-9
