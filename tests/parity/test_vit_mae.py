"""The same numbers as the reference implementation of the image MAE, and weights that timm takes."""

import pytest
import torch

from core.config import DecoderConfig, ModelConfig, PretrainConfig
from core.interop.timm import encoder_to_timm
from core.interop.transformers import autoencoder_from_vit_mae
from core.modality import Batch, Stats
from core.model.mae import Encoder, MaskedAutoencoder
from core.model.masking import keep_count, split_by_score
from core.model.objective import MaskedObjective, reconstruction_loss
from core.model.patches import PatchSpec, gather_tokens

SPEC = PatchSpec(3, (32, 32), (4, 4))
MODEL = ModelConfig(width=48, depth=3, heads=4, decoder=DecoderConfig(width=32, depth=2, heads=2))


@pytest.fixture(scope="module")
def reference():
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(1)
    config = ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=32,
        patch_size=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        layer_norm_eps=1e-6,
        norm_pix_loss=True,
    )
    model = ViTMAEForPreTraining(config).eval()
    # A model built without a checkpoint has zero positions; random ones show where a position goes astray.
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.normal_()
        model.decoder.decoder_pos_embed.normal_()
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_loss_predictions_and_masks_equal_the_reference(reference, dtype, tolerance):
    theirs = reference.to(dtype)
    ours = MaskedAutoencoder(SPEC, MODEL).to(dtype).eval()
    ours.load_state_dict(autoencoder_from_vit_mae(theirs.state_dict()))
    x, noise = torch.randn(4, 3, 32, 32, dtype=dtype), torch.rand(4, SPEC.count, dtype=dtype)
    with torch.no_grad():
        expected = theirs(x, noise=noise)
        mask = split_by_score(noise, keep_count(SPEC.count, 0.75, PretrainConfig().mask.count_rule))
        patches = SPEC.patchify(x)
        predicted = ours(patches, mask, mask.masked_BM)
        stats = Stats(torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype))
        objective = MaskedObjective(ours, PretrainConfig(), lambda *_: mask, stats)
        target, _ = objective.target(gather_tokens(patches, mask.masked_BM))
        loss = reconstruction_loss(predicted, target)
        from_objective, _ = objective(Batch(x), torch.Generator())
    hidden = torch.zeros(4, SPEC.count, dtype=dtype).scatter(1, mask.masked_BM, 1.0)
    assert torch.equal(hidden, expected.mask)
    assert (gather_tokens(expected.logits, mask.masked_BM) - predicted).abs().max() <= tolerance
    assert (expected.loss - loss).abs() <= tolerance
    assert (expected.loss - from_objective).abs() <= tolerance


@pytest.mark.parametrize("cls_token", [True, False])
def test_timm_loads_the_exported_encoder_strictly_with_the_same_features(tmp_path, cls_token):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    autoencoder = MaskedAutoencoder(SPEC, MODEL.model_copy(update={"cls_token": cls_token})).eval()
    ours = autoencoder.encoder
    save_file(encoder_to_timm(ours.state_dict()), tmp_path / "encoder.safetensors")
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=4,
        class_token=cls_token,
        global_pool="token" if cls_token else "avg",
        fc_norm=False,
        num_classes=0,
        checkpoint_path=str(tmp_path / "encoder.safetensors"),
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (theirs.forward_features(x) - ours(SPEC.patchify(x))).abs().max() <= 1e-5


def test_a_decoder_never_reaches_timm():
    """timm takes any state dict with a mask token for another model family."""
    weights = {
        "norm.weight": torch.ones(2),
        "mask_token": torch.zeros(1),
        "decoder_norm.weight": torch.ones(2),
    }
    assert set(encoder_to_timm(weights)) == {"norm.weight"}


def test_foreign_keys_are_named(reference):
    with pytest.raises(ValueError, match="unknown key 'surprise'"):
        autoencoder_from_vit_mae({**reference.state_dict(), "surprise": torch.zeros(1)})


def test_positions_of_another_input_size_are_resampled_for_timm_and_us_alike():
    """A wider input: ours resampled by `resample`, timm's by its own loader."""
    from core.model.positions import resample

    small = Encoder(SPEC, MODEL)
    wide = PatchSpec(3, (32, 48), (4, 4))
    table = resample(small.pos_embed[:, 1:], SPEC.grid, wide.grid)
    from timm.layers import resample_abs_pos_embed

    theirs = resample_abs_pos_embed(
        small.pos_embed, new_size=list(wide.grid), old_size=list(SPEC.grid), num_prefix_tokens=1
    )
    assert torch.allclose(table, theirs[:, 1:], atol=1e-5)
