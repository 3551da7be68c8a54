"""Targets, losses and the autoencoder on any number of axes."""

import pytest
import torch

from core.config import DecoderConfig, FinetuneConfig, MaskConfig, ModelConfig, NormPix, PretrainConfig, TaskConfig
from core.modality import Batch, Stats
from core.model.heads import Classifier
from core.model.mae import Encoder, MaskedAutoencoder
from core.model.masking import Mask, running_cells, sampler
from core.model.objective import MaskedObjective, PixelTarget, reconstruction_loss
from core.model.patches import PatchSpec
from core.tasks import Task, encode_targets
from core.training.classification import ClassifierObjective

SPECS = [
    PatchSpec(2, (32,), (4,)),
    PatchSpec(3, (32, 24), (4, 8)),
    PatchSpec(1, (4, 16, 8), (2, 4, 4)),
    PatchSpec(6, (4, 4, 2, 4), (2, 2, 1, 2)),
]
SMALL = ModelConfig(width=48, depth=2, heads=4, decoder=DecoderConfig(width=32, depth=1, heads=2))


def objective(spec, *, model=SMALL, **config):
    settings = PretrainConfig(**config)
    stats = Stats(torch.full((spec.channels,), 0.4), torch.full((spec.channels,), 0.2))
    torch.manual_seed(0)
    network = MaskedAutoencoder(spec, model, values=spec.values // settings.predict_stride)
    return MaskedObjective(network, settings, sampler(settings.mask, spec.grid), stats)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_parameter_learns_on_any_number_of_axes(spec, cls_token):
    task = objective(spec, model=SMALL.model_copy(update={"cls_token": cls_token}))
    loss, facts = task(Batch(torch.randn(3, spec.channels, *spec.input_shape)), rng())
    loss.backward()
    silent = [name for name, p in task.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    assert facts["mask_ratio"] == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("norm_pix", list(NormPix))
def test_restoring_the_exact_target_gives_the_input_back(norm_pix):
    stats = Stats(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1]))
    target = PixelTarget(PretrainConfig(norm_pix=norm_pix), PatchSpec(3, (16,), (16,)), stats)
    features = torch.rand(2, 5, 48, dtype=torch.float64)
    patches = ((features.unflatten(-1, (-1, 3)) - stats.mean) / stats.std).flatten(-2)
    values, scale = target(patches)
    assert torch.allclose(target.restore(values, scale), features, atol=1e-6)


def test_the_four_conventions_by_their_formulas():
    stats = Stats(torch.tensor([0.4, 0.5]), torch.tensor([0.2, 0.3]))
    x = torch.randn(1, 1, 8, dtype=torch.float64)
    pixels = x.reshape(4, 2)
    expected = {
        NormPix.NONE: x,
        NormPix.PATCH: (x - x.mean()) / (x.var() + 1e-6).sqrt(),
        NormPix.LAYER_NORM: torch.nn.functional.layer_norm(x, (8,), eps=1e-6),
        NormPix.CHANNEL_VAR: ((pixels - pixels.mean(0)) / (pixels.var(0) + 1e-6).sqrt()).reshape(1, 1, 8),
    }
    raw = pixels * stats.std + stats.mean
    expected[NormPix.CHANNEL_STD] = ((raw - raw.mean(0)) / (raw.std(0) + 1e-6)).reshape(1, 1, 8)
    for norm_pix, value in expected.items():
        assert torch.allclose(
            PixelTarget(PretrainConfig(norm_pix=norm_pix), PatchSpec(2, (4,), (4,)), stats)(x)[0], value, atol=1e-9
        ), norm_pix


def test_a_constant_patch_is_no_division_by_zero():
    stats = Stats(torch.zeros(3), torch.ones(3))
    for norm_pix in NormPix:
        assert (
            PixelTarget(PretrainConfig(norm_pix=norm_pix), PatchSpec(3, (4,), (4,)), stats)(torch.zeros(1, 2, 12))[0]
            .isfinite()
            .all()
        )


def test_padding_does_not_enter_the_loss():
    predicted, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    spoiled = predicted.clone()
    spoiled[~valid] = 1e6
    expected = (predicted - target).square().mean(-1)[valid].mean()
    assert torch.allclose(reconstruction_loss(spoiled, target, valid), expected)


def test_padding_changes_nothing_the_encoder_says_of_real_patches():
    spec = PatchSpec(1, (32,), (4,))
    torch.manual_seed(0)
    encoder = Encoder(spec, SMALL).eval()
    x = torch.randn(1, 1, 32)
    noisy = x.clone()
    noisy[..., 16:] = 100.0
    valid = torch.tensor([[True] * 4 + [False] * 4])
    assert torch.allclose(encoder.features(x, valid), encoder.features(noisy, valid), atol=1e-5)
    assert not torch.allclose(encoder.features(x), encoder.features(noisy), atol=1e-2)


def test_a_sample_that_is_mixed_with_a_longer_one_is_as_long():
    spec = PatchSpec(1, (32,), (4,))
    target, _ = encode_targets(["a", "b"], TaskConfig())
    task, seen = Task.of(target), []
    model = Classifier(spec, SMALL, 2, "mean")
    model.classify = lambda x, valid: seen.append(valid) or torch.zeros(len(x), 2, requires_grad=True)
    batch = Batch(torch.randn(2, 1, 32), torch.tensor([0, 1]), torch.arange(8) < torch.tensor([[8], [3]]))
    for mixup, lengths in ((0.0, [8, 3]), (1.0, [8, 8])):
        ClassifierObjective(model, task, FinetuneConfig(mixup=mixup), None)(batch, rng())
        assert seen.pop().sum(1).tolist() == lengths


def test_several_masks_enlarge_the_batch_inside():
    task = objective(SPECS[1], masks_per_sample=3)
    seen = []
    task.model.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    task(Batch(torch.randn(2, 3, 32, 24)), rng())
    assert seen[0][0] == 6


def test_a_part_of_the_hidden_patches_is_decoded_and_drawn_anew():
    task = objective(SPECS[1], decode_fraction=0.34)
    seen = []
    task.model.register_forward_hook(lambda _, args, out: seen.append((out.shape[1], args[2])))
    for seed in (0, 1):
        task(Batch(torch.randn(2, 3, 32, 24)), rng(seed))
    hidden = 24 - 6
    assert [count for count, _ in seen] == [round(hidden * 0.34)] * 2
    assert not torch.equal(seen[0][1], seen[1][1])


def test_decoding_a_part_predicts_no_other_tokens_than_asked():
    """The order of tokens must not matter: the same patches asked in another order get the same values."""
    spec = SPECS[1]
    model = objective(spec).model.double().eval()
    patches = torch.randn(2, spec.count, spec.values, dtype=torch.float64)
    ids = torch.stack([torch.randperm(spec.count) for _ in range(2)])
    mask, turned = Mask(ids[:, :6], ids[:, 6:]), Mask(ids[:, :6].flip(1), ids[:, 6:].flip(1))
    straight = model(patches, mask, mask.masked_BM)
    assert torch.allclose(model(patches, turned, turned.masked_BM).flip(1), straight, atol=1e-10)


def test_visible_patches_alone_reach_the_encoder():
    spec = SPECS[0]
    encoder = objective(spec).model.encoder.eval()
    patches = torch.randn(1, spec.count, spec.values)
    keep = torch.tensor([[1, 5]])
    changed = patches.clone()
    changed[:, [0, 2, 3, 4, 6, 7]] = 9.0
    assert torch.equal(encoder(patches, keep), encoder(changed, keep))


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_classifier_takes_over_the_encoder(spec, pool):
    encoder = Encoder(spec, SMALL)
    model = Classifier(spec, SMALL, 5, pool)
    model.load_encoder(encoder.state_dict())
    x = torch.randn(2, spec.channels, *spec.input_shape)
    assert model.classify(x).shape == (2, 5)
    assert torch.equal(model.forward_tokens(spec.patchify(x)), encoder.forward_tokens(spec.patchify(x)))


def test_incomplete_or_foreign_weights_are_refused():
    weights = Encoder(SPECS[0], SMALL).state_dict()
    model = Classifier(SPECS[0], SMALL, 5, "mean")
    with pytest.raises(ValueError, match=r"lack.*blocks\.1"):
        model.load_encoder({k: v for k, v in weights.items() if not k.startswith("blocks.1")})
    with pytest.raises(ValueError, match="unknown"):
        model.load_encoder({**weights, "mask_token": torch.zeros(1)})


def test_class_pooling_without_class_token_is_refused():
    with pytest.raises(ValueError, match="class token"):
        Classifier(SPECS[0], SMALL.model_copy(update={"cls_token": False}), 5, "cls")


def test_loss_falls():
    spec = PatchSpec(1, (16, 16), (4, 4))
    task = objective(spec, mask=MaskConfig(ratio=0.5))
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    ramp = torch.linspace(0, 6, 16)
    x = torch.stack([(ramp[:, None] + s).sin() * (ramp * (1 + s)).cos() for s in torch.linspace(0, 1, 8)])[:, None]
    losses = []
    for step in range(40):
        loss, _ = task(Batch(x), rng(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


CLIPS = PatchSpec(3, (8, 16, 24), (2, 4, 4))


def test_every_second_frame_is_predicted_and_scaled_back():
    """As mae_st predicts 8 of 16 frames: the target is of those frames alone, the picture holds them in between."""
    task = objective(CLIPS, predict_stride=2, norm_pix=NormPix.PATCH)
    x = torch.randn(2, 3, 8, 16, 24)
    patches = CLIPS.patchify(x)
    target, scale = task.target(patches)
    frames = PatchSpec(3, (4, 16, 24), (1, 4, 4))
    expected = frames.patchify(x[:, :, ::2])
    expected = (expected - expected.mean(-1, keepdim=True)) / (expected.var(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(target, expected, atol=1e-5)
    shown = CLIPS.unpatchify(task.target.restore(target, scale))
    assert torch.allclose(shown[:, :, ::2], x[:, :, ::2] * 0.2 + 0.4, atol=1e-5)
    assert torch.equal(shown[:, :, 1::2], shown[:, :, ::2])
    loss, _ = task(Batch(x), rng())
    loss.backward()
    assert task.model.decoder.pred.weight.shape[0] == CLIPS.values // 2


def test_a_stride_that_does_not_divide_the_patch_is_refused():
    with pytest.raises(ValueError, match="predict_stride 3 does not divide the patch's first axis of 2"):
        objective(CLIPS, predict_stride=3)


def test_running_cells_choose_a_moving_half_of_every_cell():
    draw = running_cells((4, 4, 6), 0.5)
    pattern = draw(64, rng()).view(64, 4, 2, 2, 3, 2)
    assert (pattern.sum(dim=(3, 5)) == 2).all(), "half of every cell of 2x2"
    cells = pattern.permute(0, 1, 2, 4, 3, 5).reshape(64, 4, 6, 4)
    assert (cells == cells[:, :, :1]).all(), "the same in every cell"
    turning = cells[:, :, 0][..., [0, 1, 3, 2]]  # Round the cell.
    for time in range(3):
        assert torch.equal(turning[:, time + 1], turning[:, time].roll(1, dims=-1))
    assert len({tuple(p.tolist()) for p in turning[:, 0]}) == 4, "it starts anywhere"


def test_a_decoder_looks_at_the_running_cells_first():
    task = objective(CLIPS, decode_fraction=0.5, decode_kind="running_cell")
    mask = task.draw(4, rng(), None)
    decoded = task.decoded(mask, rng(7))
    wanted = running_cells(CLIPS.grid, 0.5)(4, rng(7))
    assert decoded.shape[1] == round(0.5 * mask.masked_BM.shape[1])
    for sample in range(4):
        hidden = set(mask.masked_BM[sample].tolist())
        chosen = decoded[sample].tolist()
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= hidden
        within = [place for place in hidden if wanted[sample, place]]
        assert len(set(chosen) & set(within)) == min(len(within), len(chosen))
    with pytest.raises(ValueError, match="three axes or more"):
        running_cells((4, 4), 0.5)
