"""The same numbers as the reference implementation of VideoMAE, and the same number of tokens as both video systems."""

import pytest
import torch

from core.config import CountRule, DecoderConfig, MaskConfig, MaskKind, ModelConfig, NormPix, PretrainConfig
from core.interop.videomae import autoencoder_from_videomae
from core.modality import Batch, Stats
from core.model.mae import MaskedAutoencoder
from core.model.masking import sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec, gather_tokens

SPEC = PatchSpec(3, (8, 32, 48), (2, 8, 8))
MODEL = ModelConfig(
    width=48,
    depth=3,
    heads=4,
    cls_token=False,
    positions="sincos_joint",
    decoder=DecoderConfig(width=32, depth=2, heads=2),
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def reference():
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    torch.manual_seed(1)
    config = VideoMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=(32, 48),
        patch_size=8,
        num_frames=8,
        tubelet_size=2,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        layer_norm_eps=1e-6,
        use_mean_pooling=False,
        norm_pix_loss=True,
    )
    model = VideoMAEForPreTraining(config).eval()
    # The one norm that does not follow `layer_norm_eps`; the original VideoMAE has 1e-6 there as everywhere.
    model.decoder.norm.eps = 1e-6
    with torch.no_grad():  # Biases and tokens that are zero would hide that they were forgotten.
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_loss_and_predictions_equal_the_reference(reference, dtype, tolerance):
    theirs = reference.to(dtype)
    ours = MaskedAutoencoder(SPEC, MODEL).to(dtype).eval()
    lacking, left_over = ours.load_state_dict(autoencoder_from_videomae(theirs.state_dict()), strict=False)
    assert set(lacking) == {"encoder.pos_embed", "decoder.pos_embed"}
    assert not left_over
    config = PretrainConfig(
        mask=MaskConfig(kind=MaskKind.TUBE, ratio=0.75, count_rule=CountRule.FLOOR_MASK), norm_pix=NormPix.CHANNEL_STD
    )
    stats = Stats(torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype))
    generator = torch.Generator().manual_seed(2)
    mask = sampler(config.mask, SPEC.grid)(3, generator, None)
    x = stats.normalise(torch.rand(3, 3, 8, 32, 48, dtype=dtype))
    hidden = torch.zeros(3, SPEC.count, dtype=torch.bool).scatter(1, mask.masked_BM, value=True)
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2), bool_masked_pos=hidden)
        order = mask.masked_BM.argsort(dim=1)
        predicted = gather_tokens(ours(SPEC.patchify(x), mask, mask.masked_BM), order)
        loss, _ = MaskedObjective(ours, config, lambda *_: mask, stats)(Batch(x), generator)
    assert (expected.logits - predicted).abs().max() <= tolerance
    assert (expected.loss - loss).abs() <= tolerance


@pytest.mark.parametrize(
    ("kind", "rule", "kept"), [(MaskKind.TUBE, CountRule.FLOOR_MASK, 160), (MaskKind.RANDOM, CountRule.FLOOR_KEEP, 156)]
)
def test_kept_tokens_of_a_clip_are_those_of_the_two_systems(kind, rule, kept):
    """VideoMAE keeps 20 of 196 places in each of 8 tubelets; mae_st keeps int(1568 * (1 - 0.9))."""
    spec = PatchSpec(3, (16, 224, 224), (2, 16, 16))
    mask = sampler(MaskConfig(kind=kind, ratio=0.9, count_rule=rule), spec.grid)(2, torch.Generator(), None)
    assert spec.count == 1568
    assert mask.keep_BK.shape == (2, kept)


def test_foreign_keys_are_named(reference):
    with pytest.raises(ValueError, match="unknown key 'surprise'"):
        autoencoder_from_videomae({**reference.state_dict(), "surprise": torch.zeros(1)})
