"""The masked autoencoder: an encoder that sees only visible patches, and a small decoder (He et al. 2021, section 3).

Parameter names of the encoder are timm's, so its weights are timm weights. The decoder never puts tokens back in
image order: attention does not care for order, so it is enough to give each token the position it came from.
"""

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from core.config import ModelConfig
from core.model.masking import Mask
from core.model.patches import PatchSpec, gather_tokens
from core.model.positions import sincos, sincos_joint
from core.model.windows import WindowedBlocks


class _Projection(nn.Module):
    """Holds a patch projection in the shape of a convolution's weight (D, C, *patch_shape)."""

    def __init__(self, spec: PatchSpec, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, spec.channels, *spec.patch_shape))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.weight.view(width, -1))


class PatchEmbed(nn.Module):
    """Linear embedding of patches, stored as the convolution it equals, computed on the patches that are needed."""

    def __init__(self, spec: PatchSpec, width: int) -> None:
        super().__init__()
        self.proj = _Projection(spec, width)

    def forward(self, patches_BNP: Tensor) -> Tensor:
        """(B, N, P), channels last inside a patch, to (B, N, D)."""
        weight = self.proj.weight.movedim(1, -1).flatten(1)
        return nn.functional.linear(patches_BNP, weight, self.proj.bias)


def blocks(
    width: int, depth: int, heads: int, mlp_ratio: float, drop_path: float, norm_eps: float = 1e-6
) -> nn.ModuleList:
    """Timm transformer blocks whose stochastic depth rises linearly to ``drop_path``."""
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
    norm = partial(_layer_norm, norm_eps)
    return nn.ModuleList(
        Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm, drop_path=rate) for rate in rates
    )


def _layer_norm(eps: float, width: int, **_: object) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=eps)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero biases, as in MAE's reference code."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Encoder(nn.Module):
    """A Vision Transformer over patches of any `PatchSpec`, with timm's parameter names."""

    pos_embed: Tensor

    def __init__(self, spec: PatchSpec, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        self.prefix = 1 if config.cls_token else 0
        """Tokens before the patch tokens."""
        if config.cls_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.patch_embed = PatchEmbed(spec, config.width)
        positions = fixed_positions(spec, config, config.width)
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.randn_like(positions) * 0.02)
        else:
            self.register_buffer("pos_embed", positions)
        self.blocks = blocks(config.width, config.depth, config.heads, config.mlp_ratio, drop_path, config.norm_eps)
        self.norm: nn.Module = nn.LayerNorm(config.width, eps=config.norm_eps)
        init_linear(self.blocks)

    def embed(self, patches_BNP: Tensor, keep_BK: Tensor | None = None) -> Tensor:
        """Tokens (B, prefix + K, D) that enter the first block: of the patches ``keep_BK``, or of all."""
        positions = self.pos_embed[:, self.prefix :]
        tokens: Tensor
        if keep_BK is None:
            tokens = self.patch_embed(patches_BNP) + positions
        else:
            tokens = self.patch_embed(gather_tokens(patches_BNP, keep_BK))
            tokens = tokens + gather_tokens(positions.expand(keep_BK.shape[0], -1, -1), keep_BK)
        if self.prefix:
            cls = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([cls.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        return tokens

    def forward_tokens(
        self, patches_BNP: Tensor, keep_BK: Tensor | None = None, valid_BN: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, prefix + K, D) after the last block, before the final norm."""
        tokens = self.embed(patches_BNP, keep_BK)
        attend = None
        if valid_BN is not None:
            seen = valid_BN if keep_BK is None else valid_BN.gather(1, keep_BK)
            attend = attention_mask(seen, self.prefix)
        return run_blocks(self.blocks, tokens, attend)

    def forward(self, patches_BNP: Tensor, keep_BK: Tensor | None = None, valid_BN: Tensor | None = None) -> Tensor:
        """Normalised tokens (B, prefix + K, D)."""
        tokens: Tensor = self.norm(self.forward_tokens(patches_BNP, keep_BK, valid_BN))
        return tokens

    def features(self, x: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Mean of the normalised patch tokens (B, D) of whole inputs (B, C, *input_shape)."""
        tokens: Tensor = self(self.spec.patchify(x), valid_BN=valid_BN)[:, self.prefix :]
        return mean_tokens(tokens, valid_BN)


class Decoder(nn.Module):
    """Predicts the hidden patches from the encoded visible ones."""

    pos_embed: Tensor

    def __init__(self, spec: PatchSpec, config: ModelConfig, values: int | None = None) -> None:
        """Predict ``values`` per patch; by default all of them."""
        super().__init__()
        size = config.decoder
        self.prefix = 1 if config.cls_token else 0
        self.embed = nn.Linear(config.width, size.width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        self.register_buffer("pos_embed", fixed_positions(spec, config, size.width))
        if config.cls_token and size.own_cls:
            self.cls_token = nn.Parameter(torch.randn(1, 1, size.width) * 0.02)
        self.own_cls = config.cls_token and size.own_cls
        ratio = size.mlp_ratio or config.mlp_ratio
        self.blocks = blocks(size.width, size.depth, size.heads, ratio, 0.0, config.norm_eps)
        local = size.attention == "local"
        self.windows = WindowedBlocks(spec.grid, size.window or (), size.shift) if local else None
        self.norm = nn.LayerNorm(size.width, eps=size.norm_eps or config.norm_eps)
        self.pred = nn.Linear(size.width, values or spec.values)
        init_linear(self)

    def forward(
        self, encoded_BKD: Tensor, keep_BK: Tensor, decode_BM: Tensor, valid_BN: Tensor | None = None
    ) -> Tensor:
        """Predicted values (B, M, P) of the patches ``decode_BM`` from all encoded tokens (B, prefix + K, D)."""
        batch, hidden = decode_BM.shape
        visible = self.embed(encoded_BKD)
        if self.own_cls:
            visible = torch.cat([self.cls_token.expand(batch, -1, -1).to(visible.dtype), visible[:, 1:]], dim=1)
        positions = self.pos_embed.expand(batch, -1, -1)
        first = torch.arange(self.prefix, device=keep_BK.device).expand(batch, -1)
        visible = visible + gather_tokens(positions, torch.cat([first, keep_BK + self.prefix], dim=1))
        masked = self.mask_token + gather_tokens(positions, decode_BM + self.prefix)
        tokens = torch.cat([visible, masked.to(visible.dtype)], dim=1)
        ids = torch.cat([keep_BK, decode_BM], dim=1)
        if self.windows is not None:
            # A class token stands in no window.
            tokens = self.windows(self.blocks, tokens[:, self.prefix :], ids, valid_BN)
        else:
            attend = None if valid_BN is None else attention_mask(valid_BN.gather(1, ids), self.prefix)
            tokens = run_blocks(self.blocks, tokens, attend)
        values: Tensor = self.pred(self.norm(tokens[:, -hidden:]))
        return values


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder together."""

    def __init__(self, spec: PatchSpec, config: ModelConfig, drop_path: float = 0.0, values: int | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(spec, config, drop_path)
        self.decoder = Decoder(spec, config, values)

    def forward(self, patches_BNP: Tensor, mask: Mask, decode_BM: Tensor, valid_BN: Tensor | None = None) -> Tensor:
        """Predicted values (B, M, P) of the patches ``decode_BM``, a part or all of the hidden ones."""
        encoded = self.encoder(patches_BNP, mask.keep_BK, valid_BN)
        values: Tensor = self.decoder(encoded, mask.keep_BK, decode_BM, valid_BN)
        return values


def fixed_positions(spec: PatchSpec, config: ModelConfig, width: int) -> Tensor:
    """The fixed table (1, prefix + N, ``width``) that ``config`` names, zero for the class token."""
    table = sincos_joint if config.positions == "sincos_joint" else sincos
    return nn.functional.pad(table(spec.grid, width), (0, 0, int(config.cls_token), 0))[None]


def attention_mask(seen_BK: Tensor, prefix: int) -> Tensor:
    """(B, 1, 1, prefix + K) bool: which tokens may be attended to; the prefix always may."""
    return nn.functional.pad(seen_BK, (prefix, 0), value=True)[:, None, None, :]


def run_blocks(parts: nn.ModuleList, tokens: Tensor, attend: Tensor | None) -> Tensor:
    """Apply transformer blocks in turn."""
    for block in parts:
        tokens = block(tokens, attn_mask=attend)
    return tokens


def mean_tokens(tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Mean over the tokens (B, D), over the valid ones where some are padding."""
    if valid_BN is None:
        return tokens_BND.mean(dim=1)
    weights = valid_BN.to(tokens_BND.dtype).unsqueeze(-1)
    return (tokens_BND * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)
