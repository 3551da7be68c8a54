"""A class for each pixel or voxel from an encoder's tokens: a linear layer, or convolutions over several depths.

The second is UNETR's decoder (Hatamizadeh et al. 2022, section 3.1) for any number of axes that torch convolves, and
for patches of any extent: the extent along each axis is divided into a factor for each of four levels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from core.config import ModelConfig, SegmenterConfig, TaskKind
from core.model.heads import Classifier, Head
from core.model.mae import attention_mask
from core.model.patches import PatchSpec
from core.model.regrid import spec_of
from core.records import Target, TunedModel

LEVELS = 4
"""Steps from the grid of patches to full resolution, and depths of the encoder whose tokens are read."""
LEAK = 0.01
"""Slope of leaky ReLUs below 0."""
Shape = tuple[int, ...]
_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DECONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class Segmenter(Head):
    """Encoder with a head that gives logits of every pixel or voxel.

    Raises:
        ValueError: if `unetr` is asked for on inputs of more than three axes.
    """

    added = ("decoder.",)

    def __init__(
        self, spec: PatchSpec, config: ModelConfig, outputs: int, segmenter: SegmenterConfig, drop_path: float = 0.0
    ) -> None:
        super().__init__(spec, config, drop_path)
        axes = len(spec.grid)
        if segmenter.kind == "unetr" and axes not in _CONVOLUTIONS:
            raise ValueError(f"there are no convolutions over {axes} axes; set finetune.segmenter.kind to linear")
        self._depths = read_depths(config.depth) if segmenter.kind == "unetr" else ()
        self.decoder: nn.Module = (
            UnetrDecoder(spec, config.width, outputs, segmenter.width)
            if segmenter.kind == "unetr"
            else LinearDecoder(spec, config.width, outputs)
        )

    def classify(self, x: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Logits (B, outputs, *input_shape) in float32 of whole inputs (B, C, *input_shape)."""
        tokens = self.embed(self.spec.patchify(x))
        attend = None if valid_BN is None else attention_mask(valid_BN, self.prefix)
        read: dict[int, Tensor] = {}
        for depth, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, attn_mask=attend)
            if depth in self._depths:
                read[depth] = tokens[:, self.prefix :]
        last = self.norm(tokens)[:, self.prefix :]
        logits: Tensor = self.decoder(x, [read[depth] for depth in self._depths[:-1]], last)
        return logits.float()


def head_for(
    target: Target,
    spec: PatchSpec,
    config: ModelConfig,
    pool: str,
    segmenter: SegmenterConfig | None,
    drop_path: float = 0.0,
) -> Head:
    """The freshly drawn model for what ``target`` says: a segmenter, or a classifier that reads ``pool``.

    Raises:
        ValueError: if there is no such model for this geometry.
    """
    if target.task.kind is TaskKind.SEGMENTATION:
        return Segmenter(spec, config, target.outputs, segmenter or SegmenterConfig(), drop_path)
    return Classifier(spec, config, target.outputs, pool, drop_path)


def head_of(record: TunedModel) -> Head:
    """The freshly drawn model that ``record`` describes."""
    return head_for(record.target, spec_of(record.geometry), record.model, record.pool, record.segmenter)


def tuned_from(folder: Path, record: TunedModel) -> Head:
    """The tuned model of ``record``, whose files are in ``folder``, on the CPU."""
    model = head_of(record)
    model.load_state_dict(load_file(folder / record.weights))
    return model


def read_depths(depth: int) -> Shape:
    """The blocks, counted from 1, after which tokens are read: at even distances, the last among them."""
    return tuple(-(-depth * level // LEVELS) for level in range(1, LEVELS + 1))


class LinearDecoder(nn.Module):
    """Each token becomes the logits of its patch."""

    def __init__(self, spec: PatchSpec, width: int, outputs: int) -> None:
        super().__init__()
        self._out = PatchSpec(outputs, spec.input_shape, spec.patch_shape)
        self.pred = nn.Linear(width, self._out.values)
        nn.init.trunc_normal_(self.pred.weight, std=0.02)
        nn.init.zeros_(self.pred.bias)

    def forward(self, x: Tensor, read_BND: Sequence[Tensor], last_BND: Tensor) -> Tensor:
        """Logits (B, outputs, *input_shape)."""
        return self._out.unpatchify(self.pred(last_BND))


class UnetrDecoder(nn.Module):
    """From the grid of patches to full resolution in four levels, each met by tokens of an earlier block."""

    def __init__(self, spec: PatchSpec, width: int, outputs: int, features: int) -> None:
        super().__init__()
        self._grid, axes = spec.grid, len(spec.grid)
        factors = level_factors(spec.patch_shape)
        widths = [features * 2**level for level in reversed(range(LEVELS))]
        skips: list[nn.Module] = [
            _Rise(width, widths[level], factors[: level + 1]) for level in range(LEVELS - 1)
        ]  # The earlier the block, the further its tokens are brought up.
        self.skips = nn.ModuleList([*skips, _Residual(axes, spec.channels, features)])
        self.ups = nn.ModuleList(
            _up(inside, outside, factor)
            for inside, outside, factor in zip([width, *widths[:-1]], widths, factors, strict=True)
        )
        self.merges = nn.ModuleList(_Residual(axes, 2 * w, w) for w in widths)
        self.pred = _CONVOLUTIONS[axes](features, outputs, 1)

    def forward(self, x: Tensor, read_BND: Sequence[Tensor], last_BND: Tensor) -> Tensor:
        """Logits (B, outputs, *input_shape) of inputs ``x``, tokens of three earlier blocks, and the last ones."""
        beside = [self._map(tokens) for tokens in reversed(read_BND)] + [x]
        state = self._map(last_BND)
        for skip, up, merge, met in zip(self.skips, self.ups, self.merges, beside, strict=True):
            state = merge(torch.cat([up(state), skip(met)], dim=1))
        logits: Tensor = self.pred(state)
        return logits

    def _map(self, tokens_BND: Tensor) -> Tensor:
        """Tokens (B, N, D) as a map (B, D, *grid)."""
        return tokens_BND.transpose(1, 2).reshape(tokens_BND.shape[0], -1, *self._grid)


class _Residual(nn.Module):
    """Two convolutions of 3 with instance norms, and what they were given beside them (He et al. 2016)."""

    def __init__(self, axes: int, inside: int, outside: int) -> None:
        super().__init__()
        conv, norm = _CONVOLUTIONS[axes], _NORMS[axes]
        self.body = nn.Sequential(
            conv(inside, outside, 3, padding=1, bias=False),
            norm(outside, affine=True),
            nn.LeakyReLU(LEAK),
            conv(outside, outside, 3, padding=1, bias=False),
            norm(outside, affine=True),
        )
        same = inside == outside
        self.past = (
            nn.Identity() if same else nn.Sequential(conv(inside, outside, 1, bias=False), norm(outside, affine=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, *shape) to (B, outside, *shape)."""
        return nn.functional.leaky_relu(self.body(x) + self.past(x), LEAK)


class _Rise(nn.Sequential):
    """Tokens of an earlier block brought up to a finer level, step by step."""

    def __init__(self, inside: int, outside: int, factors: Sequence[Shape]) -> None:
        first, *rest = factors
        steps: list[nn.Module] = [_up(inside, outside, first)]
        for factor in rest:
            steps += [_up(outside, outside, factor), _Residual(len(factor), outside, outside)]
        super().__init__(*steps)


def _up(inside: int, outside: int, factor: Shape) -> nn.Module:
    """A map made finer by ``factor`` along each axis, without overlap."""
    return _DECONVOLUTIONS[len(factor)](inside, outside, factor, stride=factor, bias=False)


def level_factors(patch: Shape) -> list[Shape]:
    """For each level, coarse to fine, the factor along each axis; along an axis they multiply to the patch's extent.

    12 is 1, 2, 2, 3. Extents of few factors leave the coarse levels as they are, where that costs least.
    """
    along = [_four_factors(extent) for extent in patch]
    return list(zip(*along, strict=True))


def _four_factors(extent: int) -> list[int]:
    primes, divisor = [], 2
    while extent > 1:
        while extent % divisor == 0:
            primes.append(divisor)
            extent //= divisor
        divisor += 1
    while len(primes) > LEVELS:
        one, other, *rest = primes
        primes = sorted([one * other, *rest])
    return [1] * (LEVELS - len(primes)) + primes
