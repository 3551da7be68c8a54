"""Rules about what runs on the device: `features`, `batch`, `patches`, `mask`, `render`; and whether a model learns."""

import io
import warnings

import torch
from torch import Tensor

from core.config import ModelConfig
from core.errors import UserError
from core.modality import Batch, Media, SampleBatch
from core.model.mae import MaskedAutoencoder
from core.model.masking import Mask, MaskSampler, sampler
from core.model.objective import MaskedObjective
from core.model.patches import PatchSpec
from core.testing.rules import Broken, RuleBook
from core.testing.subject import Subject, rng, same

STEPS, LEARNING_RATE, MUST_FALL = 30, 2e-3, 0.97
"""Of the small model: steps, learning rate of AdamW, and what the loss may at most be over what it was."""
SMALL = ModelConfig.model_validate(
    {"width": 48, "depth": 2, "heads": 3, "decoder": {"width": 32, "depth": 1, "heads": 2}}
)
STILL = "image"
"""Kind of a still picture."""
BOOK: RuleBook[Subject] = RuleBook()
rule = BOOK.rule


@rule(
    "patches",
    "It gives the geometry of one input: 1 to 4 axes, cut into at least 4 patches.",
    "Return PatchSpec(channels, input_shape, patch_shape) from the settings; each axis a multiple of its patch.",
    "plugin-class-complete",
)
def patches(s: Subject) -> None:
    """Everything the model knows of the data."""
    spec = s.live.patches()
    if not isinstance(spec, PatchSpec):
        raise Broken(f"patches() gives a {type(spec).__name__}")
    if spec.count < 4:
        raise Broken(f"a grid of {spec.grid} has {spec.count} patches: nothing is left to guess from")


@rule(
    "features",
    "It gives float32 of shape (B, channels, *input_shape), as patches() says.",
    "Make `features` and `patches` agree: channels first, then the axes in the order of input_shape.",
    "view",
    "patches",
)
def features(s: Subject) -> None:
    """The engine cuts this array into patches."""
    _expect("features()", s.live.features(s.samples(train=False)), s)


def _expect(what: str, x: Tensor, s: Subject, spec: PatchSpec | None = None) -> None:
    spec = spec or s.live.patches()
    if not isinstance(x, torch.Tensor):
        raise Broken(f"{what} gives a {type(x).__name__}, not a tensor")
    wanted = (len(s.records), spec.channels, *spec.input_shape)
    if tuple(x.shape) != wanted:
        raise Broken(f"{what} gives {tuple(x.shape)}; patches() and {len(s.records)} samples ask for {wanted}")
    if x.dtype != torch.float32:
        raise Broken(f"{what} is of type {x.dtype}, not torch.float32")


@rule(
    "features",
    "Features are finite, and not the same value everywhere.",
    "Look for logarithms and divisions of zero; raise Unreadable in `read` for items that hold such values.",
    "features",
)
def features_finite(s: Subject) -> None:
    """Statistics are measured over them."""
    x = s.live.features(s.samples(train=False))
    _finite("features()", x)
    if bool((x == x.flatten()[0]).all()):
        raise Broken(f"all {x.numel()} values are {float(x.flatten()[0]):.4g}")


def _finite(what: str, x: Tensor) -> None:
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise Broken(f"{what}: {bad} of {x.numel()} values are not finite")


def _batch(s: Subject, *, train: bool, seed: int = 0) -> Batch:
    return s.live.batch(s.samples(train=train, seed=seed), s.stats, rng(seed), train)


@rule(
    "batch",
    "It gives a Batch whose x is float32 of shape (B, channels, *input_shape).",
    "Begin with stats.normalise(self.features(samples)) and keep its shape.",
    "features-finite",
)
def batch(s: Subject) -> None:
    """What the model sees."""
    for train in (True, False):
        given = _batch(s, train=train)
        if not isinstance(given, Batch):
            raise Broken(f"batch() gives a {type(given).__name__}")
        _expect("batch().x", given.x, s)


@rule(
    "batch",
    "Its values are finite in every draw.",
    "Look for divisions by a deviation, or logarithms, that can meet zero in augmentation.",
    "batch",
)
def batch_finite(s: Subject) -> None:
    """One value that is not finite spoils a step for the whole batch."""
    for train, seed in ((False, 0), (True, 0), (True, 1), (True, 2)):
        _finite(f"batch(train={train})", _batch(s, train=train, seed=seed).x)


@rule(
    "batch",
    "Equal generators give equal batches.",
    "Pass `generator=rng` to every torch.rand, randn, randint, randperm and bernoulli.",
    "batch",
    "view-seeded",
)
def batch_seeded(s: Subject) -> None:
    """A run that was interrupted must go on with the same batches."""
    samples = s.samples(train=True)
    for seed in range(3):
        one, other = (s.live.batch(samples, s.stats, rng(seed), train=True).x for _ in range(2))
        if not same(one, other):
            raise Broken(f"two batches from generators of seed {seed} differ")


@rule(
    "batch",
    "Outside of training it does not depend on the generator.",
    "Augment only where train is True.",
    "batch-seeded",
)
def fixed_batch(s: Subject) -> None:
    """Evaluation that draws at random is another figure each time."""
    samples = s.samples(train=False)
    one, other = (s.live.batch(samples, s.stats, rng(seed), train=False).x for seed in (0, 1))
    if not same(one, other):
        raise Broken("with train=False two generators gave two batches")


@rule(
    "batch",
    "Padding that a sample tells of is told to the engine, one truth value per patch.",
    "Where samples have a `length`, return Batch(x, target, valid) with valid (B, N): True for patches of real data.",
    "batch",
)
def padding_told(s: Subject) -> None:
    """Or the model learns to fill in padding."""
    samples, count = s.samples(train=False), s.live.patches().count
    valid = s.live.batch(samples, s.stats, rng(), train=False).valid
    if valid is None:
        if samples.length is not None and int(samples.length.min()) < int(samples.length.max()):
            raise Broken("samples differ in length, but batch() gives no `valid`")
        return
    if tuple(valid.shape) != (len(s.records), count) or valid.dtype != torch.bool:
        raise Broken(f"valid is {tuple(valid.shape)} of {valid.dtype}; needed: {(len(s.records), count)} of torch.bool")
    if not bool(valid.any(dim=1).all()):
        raise Broken("a sample has no real patch at all")


@rule(
    "batch",
    "Where fine-tuning mixes samples, it tells with which and how much; nothing else mixes them.",
    "Return Batch(..., mixed=Mixed(partner, share)): (B,) int64 places in the batch and (B,) float32 of 0 to 1, "
    'only where train is True and self.purpose is "finetune".',
    "batch",
)
def mixing_told(s: Subject) -> None:
    """The engine mixes the targets by it."""
    tuned, count = s.plugin("finetune"), len(s.records)
    for made, train in ((s.live, True), (tuned, False)):
        if made.batch(s.samples(train=train), s.stats, rng(), train=train).mixed is not None:
            raise Broken(f"a batch is mixed in {made.purpose} with train={train}")
    mixed = tuned.batch(s.samples(train=True), s.stats, rng(), train=True).mixed
    if mixed is None:
        return
    if tuple(mixed.partner.shape) != (count,) or mixed.partner.dtype != torch.int64:
        raise Broken(f"partner is {tuple(mixed.partner.shape)} of {mixed.partner.dtype}; needed: {(count,)} of int64")
    if not bool(((mixed.partner >= 0) & (mixed.partner < count)).all()):
        raise Broken("a partner is not in the batch")
    if tuple(mixed.share.shape) != (count,) or not bool(((mixed.share >= 0) & (mixed.share <= 1)).all()):
        raise Broken(f"share is {tuple(mixed.share.shape)}; needed: {(count,)} numbers of 0 to 1")


@rule(
    "patches",
    "A stage may ask for an input size of its own, and gets it.",
    "Use `self.input_shape or self.settings...` wherever the size is needed; raise UserError for one that cannot be.",
    "batch",
)
def input_shape(s: Subject) -> None:
    """Fine-tuning often runs at another size than pretraining."""
    spec = s.live.patches()
    wanted = (spec.input_shape[0] + spec.patch_shape[0], *spec.input_shape[1:])
    try:
        other = s.plugin("finetune", wanted)
        given = other.patches()
    except UserError:
        return
    if given.input_shape != wanted:
        raise Broken(f"asked for {wanted}, patches() says {given.input_shape}")
    x = other.batch(s.samples(train=True, live=other), s.stats, rng(), train=True).x
    _expect(f"with input_shape={wanted}, batch().x", x, s, given)


@rule(
    "patches",
    "Cutting a batch into patches and putting it together again gives the same batch.",
    "Return a PatchSpec of core.model.patches as it is.",
    "batch",
)
def patch_round_trip(s: Subject) -> None:
    """Reconstructions are drawn by it."""
    spec, x = s.live.patches(), _batch(s, train=False).x
    if not same(spec.unpatchify(spec.patchify(x)), x):
        raise Broken("unpatchify(patchify(x)) is not x")


def _sampler(s: Subject) -> MaskSampler:
    config = s.recipe.pretrain.mask
    return s.live.mask(config) or sampler(config, s.live.patches().grid)


@rule(
    "mask",
    "Every sample has the same number of visible patches, every patch is either visible or hidden, between 5 and 95 % "
    "are hidden, and equal generators give equal masks.",
    "Score patches and use core.model.masking.split_by_score; leave some visible on small grids, too.",
    "patches",
)
def mask(s: Subject) -> None:
    """Samples of a batch share one tensor, and there must be something to see and something to guess."""
    count, draw = s.live.patches().count, _sampler(s)
    for seed in range(3):
        drawn, again = draw(5, rng(seed), None), draw(5, rng(seed), None)
        _complete(drawn, count)
        if not 0.05 <= drawn.ratio <= 0.95:
            raise Broken(f"{drawn.ratio:.0%} of {count} patches are hidden")
        if not (same(drawn.keep_BK, again.keep_BK) and same(drawn.masked_BM, again.masked_BM)):
            raise Broken(f"two masks from generators of seed {seed} differ")


def _complete(drawn: Mask, count: int) -> None:
    if drawn.keep_BK.ndim != 2 or drawn.masked_BM.ndim != 2:
        raise Broken("keep and masked must be (B, K) and (B, M) indices, one width for all samples")
    every = torch.cat([drawn.keep_BK, drawn.masked_BM], dim=1).sort(dim=1).values
    if not same(every, torch.arange(count).expand(5, -1)):
        raise Broken(f"the indices of visible and hidden patches together are not 0 to {count - 1}, each once")


@rule(
    "batch",
    "A small model's reconstruction loss falls within 30 steps.",
    "Look at `render` of a batch: is it the data? Constant inputs and pure noise cannot be filled in.",
    "batch-finite",
    "mask",
)
def loss_falls(s: Subject) -> None:
    """The whole point."""
    losses = small_training(s)
    before, after = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    if not after < MUST_FALL * before:
        raise Broken(f"the loss went from {before:.4f} to {after:.4f} in {STEPS} steps")


def small_training(s: Subject) -> list[float]:
    """Losses of a small autoencoder over `STEPS` steps on the views of the source."""
    torch.manual_seed(0)
    spec = s.live.patches()
    model = MaskedAutoencoder(spec, SMALL, 0.0, spec.values // s.recipe.pretrain.predict_stride)
    objective = MaskedObjective(model, s.recipe.pretrain, _sampler(s), s.stats)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    losses = []
    batches = [_few(s, seed) for seed in range(3)]
    for step in range(STEPS):
        loss, _ = objective(batches[step % len(batches)], rng(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


def _few(s: Subject, seed: int) -> Batch:
    records = s.records[:8]
    samples: SampleBatch = s.samples(train=True, seed=seed, records=records)
    return s.live.batch(samples, s.stats, rng(seed), train=True)


@rule(
    "render",
    "It gives media, the first a still picture (PNG) that opens.",
    'Return [Media("image", ".png", data)] with the bytes of a PNG file; Pillow makes them.',
    "features-finite",
)
def render(s: Subject) -> None:
    """People judge reconstructions by it."""
    from PIL import Image

    shown = s.live.render(s.live.features(s.samples(train=False))[0].numpy())
    media = list(shown) if isinstance(shown, (list, tuple)) else []
    if not media or not all(isinstance(m, Media) and isinstance(m.data, bytes) for m in media):
        raise Broken(f"render gives {_kind(shown)}, not a list of Media with bytes")
    if media[0].kind != STILL:
        raise Broken(f"the first medium is of kind {media[0].kind!r}")
    with Image.open(io.BytesIO(media[0].data)) as picture:
        picture.load()
        if min(picture.size) < 8:
            raise Broken(f"a picture of {picture.size} pixels is too small to judge")


@rule(
    "render",
    "It takes NaN where a sample is padded, and does not draw it.",
    "Leave what is NaN blank before values become whole numbers: np.nan_to_num(x, nan=...), or what np.isnan leaves.",
    "render",
    "padding-told",
)
def render_padding(s: Subject) -> None:
    """The engine calls it for padded samples, too."""
    samples, spec = s.samples(train=False), s.live.patches()
    if s.live.batch(samples, s.stats, rng(), train=False).valid is None:
        return
    patches = spec.patchify(s.live.features(samples)[:1])
    patches[:, -1] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        s.live.render(spec.unpatchify(patches)[0].numpy())


def _kind(value: object) -> str:
    if isinstance(value, (list, tuple)) and value:
        return f"a {type(value).__name__} of {type(value[0]).__name__}"
    return f"a {type(value).__name__}"
