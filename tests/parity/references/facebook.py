"""MAE's and AudioMAE's models, by their names: of pretraining, and of fine-tuning."""

import torch
from torch import nn

from .parts import Norm, PatchEmbed, in_order, stack


class MaskedAutoencoderViT(nn.Module):
    def __init__(self, channels, grid, patch, width, depth, heads, inner, inner_depth, inner_heads):
        super().__init__()
        count = grid[0] * grid[1]
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, width), requires_grad=False)
        self.blocks = stack(depth, width, heads)
        self.norm = Norm(width)
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, count + 1, inner), requires_grad=False)
        self.decoder_blocks = stack(inner_depth, inner, inner_heads)
        self.decoder_norm = Norm(inner)
        self.decoder_pred = nn.Linear(inner, patch[0] * patch[1] * channels)

    def encode(self, x, keep=None):
        """Tokens (B, 1 + K, D) of the patches ``keep``, or of all."""
        tokens = self.patch_embed(x) + self.pos_embed[:, 1:]
        tokens = tokens if keep is None else in_order(tokens, keep)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, x, order, kept):
        """Predictions (B, N, P) for patches in their places, of which the first ``kept`` of ``order`` are seen."""
        tokens = self.decoder_embed(self.encode(x, order[:, :kept]))
        hidden = self.mask_token.expand(len(x), order.shape[1] - kept, -1)
        patches = in_order(torch.cat([tokens[:, 1:], hidden], dim=1), order.argsort(dim=1))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]


class VisionTransformer(nn.Module):
    """Fine-tuned: with ``fc_norm`` and no ``norm`` where ``global_pool``, the other way round where not."""

    def __init__(self, channels, grid, patch, width, depth, heads, classes, *, global_pool):
        super().__init__()
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, width))
        self.blocks = stack(depth, width, heads)
        self.pooled = global_pool
        if global_pool:
            self.fc_norm = Norm(width)
        else:
            self.norm = Norm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.fc_norm(tokens[:, 1:].mean(1)) if self.pooled else self.norm(tokens)[:, 0])


class SwinDecoder(nn.Module):
    """The names of one block of AudioMAE's released decoder (``decoder_mode 1``); nothing computes with them."""

    def __init__(self, inner, heads):
        super().__init__()
        self.decoder_blocks = stack(1, inner, heads)
        attention = self.decoder_blocks[0].attn
        attention.relative_position_bias_table = nn.Parameter(torch.zeros(49, heads))
        attention.register_buffer("relative_position_index", torch.zeros(16, 16, dtype=torch.long))
