"""mae_st's models, by their names, and SlowFast's masked one."""

import torch
from torch import nn

from .parts import Apart, Block, Fused, Norm, PatchEmbed, in_order, stack

__all__ = ["Apart", "Fused", "MaskMViT", "MaskedAutoencoderViT", "VisionTransformer"]


class Positions(nn.Module):
    """Mixed in: tables under names that begin with ``name``, apart or in one."""

    def add_positions(self, name, grid, width, *, apart, token):
        places = grid[1] * grid[2]
        self.grid = grid
        if not apart:
            setattr(self, name, nn.Parameter(torch.zeros(1, grid[0] * places + token, width)))
            return
        setattr(self, f"{name}_spatial", nn.Parameter(torch.zeros(1, places, width)))
        setattr(self, f"{name}_temporal", nn.Parameter(torch.zeros(1, grid[0], width)))
        if token:
            setattr(self, f"{name}_class", nn.Parameter(torch.zeros(1, 1, width)))

    def positions(self, name):
        """(1, token + N, D)."""
        if hasattr(self, name):
            return getattr(self, name)
        spatial, temporal = getattr(self, f"{name}_spatial"), getattr(self, f"{name}_temporal")
        table = (temporal[:, :, None] + spatial[:, None]).flatten(1, 2)
        return torch.cat([getattr(self, f"{name}_class"), table], 1) if hasattr(self, f"{name}_class") else table


class Encoder(Positions):
    def __init__(self, channels, grid, patch, width, depth, heads, *, apart, token, attention=Apart):
        super().__init__()
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.token = int(token)
        if token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.add_positions("pos_embed", grid, width, apart=apart, token=self.token)
        self.blocks = stack(depth, width, heads, attention)
        self.norm = Norm(width)

    def before_norm(self, x, keep=None):
        table = self.positions("pos_embed")
        tokens = self.patch_embed(x) + table[:, self.token :]
        tokens = tokens if keep is None else in_order(tokens, keep)
        if self.token:
            tokens = torch.cat([(self.cls_token + table[:, :1]).expand(len(x), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def encode(self, x, keep=None):
        return self.norm(self.before_norm(x, keep))


class MaskedAutoencoderViT(Encoder):
    """The decoder has a class token of its own; it predicts ``frames`` of the frames of a patch."""

    def __init__(self, channels, grid, patch, width, depth, heads, inner, inner_depth, inner_heads, frames, **kwargs):
        super().__init__(channels, grid, patch, width, depth, heads, **kwargs)
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        if self.token:
            self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.add_positions("decoder_pos_embed", grid, inner, apart=kwargs["apart"], token=self.token)
        self.decoder_blocks = stack(inner_depth, inner, inner_heads, Apart)
        self.decoder_norm = Norm(inner)
        self.decoder_pred = nn.Linear(inner, frames * patch[1] * patch[2] * channels)

    def forward(self, x, order, kept):
        seen = self.decoder_embed(self.encode(x, order[:, :kept])[:, self.token :])
        hidden = self.mask_token.expand(len(x), order.shape[1] - kept, -1)
        tokens = in_order(torch.cat([seen, hidden], dim=1), order.argsort(dim=1))
        if self.token:
            tokens = torch.cat([self.decoder_cls_token.expand(len(x), -1, -1), tokens], dim=1)
        tokens = tokens + self.positions("decoder_pos_embed")
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, self.token :]


class VisionTransformer(Encoder):
    """Fine-tuned: ``norm`` comes after the mean over all but the first token."""

    def __init__(self, *args, classes, **kwargs):
        super().__init__(*args, **kwargs)
        self.head = nn.Linear(self.norm.normalized_shape[0], classes)

    def forward(self, x):
        return self.head(self.norm(self.before_norm(x)[:, 1:].mean(1)))


class MaskMViT(Encoder):
    """SlowFast's: ``dec_pos_embed_*`` and ``pred_head``, one matrix in its attention, the encoder's class token."""

    def __init__(self, channels, grid, patch, width, depth, heads, inner, inner_depth, inner_heads, **kwargs):
        super().__init__(channels, grid, patch, width, depth, heads, **kwargs)
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.add_positions("dec_pos_embed", grid, inner, apart=True, token=1)
        layers = [*(Block(inner, inner_heads) for _ in range(inner_depth)), Norm(inner)]
        self.pred_head = nn.Module()
        self.pred_head.transforms = nn.ModuleList([nn.Sequential(*layers)])
        self.pred_head.projections = nn.ModuleList([nn.Linear(inner, patch[1] * patch[2] * channels)])

    def forward(self, x, order, kept):
        tokens = self.decoder_embed(self.encode(x, order[:, :kept]))
        hidden = self.mask_token.expand(len(x), order.shape[1] - kept, -1)
        patches = in_order(torch.cat([tokens[:, 1:], hidden], dim=1), order.argsort(dim=1))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.positions("dec_pos_embed")
        return self.pred_head.projections[0](self.pred_head.transforms[0](tokens)[:, 1:])
