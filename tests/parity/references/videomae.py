"""VideoMAE's models, by their names: of pretraining, and of fine-tuning. Fixed positions are no weights."""

import torch
from torch import nn

from .parts import NoKeyBias, Norm, PatchEmbed, row_major, stack


class Encoder(nn.Module):
    def __init__(self, channels, grid, patch, width, depth, heads):
        super().__init__()
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.table = row_major(width, grid[0] * grid[1] * grid[2])
        self.blocks = stack(depth, width, heads, NoKeyBias)
        self.norm = Norm(width)

    def before_norm(self, x, hidden=None):
        tokens = self.patch_embed(x) + getattr(self, "pos_embed", self.table).to(x)
        if hidden is not None:
            tokens = tokens[~hidden].view(len(x), -1, tokens.shape[2])
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, x, hidden=None):
        return self.norm(self.before_norm(x, hidden))


class Decoder(nn.Module):
    def __init__(self, values, inner, depth, heads):
        super().__init__()
        self.blocks = stack(depth, inner, heads, NoKeyBias)
        self.norm = Norm(inner)
        self.head = nn.Linear(inner, values)


class PretrainVisionTransformer(nn.Module):
    def __init__(self, channels, grid, patch, width, depth, heads, inner, inner_depth, inner_heads):
        super().__init__()
        self.encoder = Encoder(channels, grid, patch, width, depth, heads)
        self.decoder = Decoder(channels * patch[0] * patch[1] * patch[2], inner, inner_depth, inner_heads)
        self.encoder_to_decoder = nn.Linear(width, inner, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, inner))
        self.table = row_major(inner, grid[0] * grid[1] * grid[2])

    def forward(self, x, hidden):
        """Predictions (B, M, P) for the ``hidden`` (B, N) patches, in the order of the grid."""
        places = self.table.to(x).expand(len(x), -1, -1)
        seen = self.encoder_to_decoder(self.encoder(x, hidden))
        seen = seen + places[~hidden].view(len(x), -1, places.shape[2])
        asked = self.mask_token + places[hidden].view(len(x), -1, places.shape[2])
        tokens = torch.cat([seen, asked], dim=1)
        for block in self.decoder.blocks:
            tokens = block(tokens)
        return self.decoder.head(self.decoder.norm(tokens[:, seen.shape[1] :]))


class VisionTransformer(Encoder):
    """Fine-tuned, with mean pooling: ``fc_norm`` and no ``norm``."""

    def __init__(self, *args, classes, learned=False):
        super().__init__(*args)
        width = self.norm.normalized_shape[0]
        del self.norm
        if learned:
            self.pos_embed = nn.Parameter(torch.zeros_like(self.table))
        self.fc_norm = Norm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.fc_norm(self.before_norm(x).mean(1)))
