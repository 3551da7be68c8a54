"""What the reference models of this folder are made of: attention as it is written down, with each project's names."""

import math
from functools import partial

import torch
from torch import nn

Norm = partial(nn.LayerNorm, eps=1e-6)


def softmax_attention(query, key, value, heads):
    """(B, N, D) each, to (B, N, D): no fused kernel, so that nothing is shared with what is tested."""
    batch, count, width = query.shape
    apart = [t.view(batch, count, heads, width // heads).permute(0, 2, 1, 3) for t in (query, key, value)]
    scores = apart[0] @ apart[1].transpose(2, 3) / math.sqrt(width // heads)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ apart[2]).permute(0, 2, 1, 3).reshape(batch, count, width)


class Fused(nn.Module):
    """``qkv`` and ``proj``: MAE, AudioMAE."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(softmax_attention(*self.qkv(x).chunk(3, dim=-1), self.heads))


class Apart(nn.Module):
    """``q``, ``k``, ``v`` and ``proj``: mae_st."""

    def __init__(self, width, heads, bias=True):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(softmax_attention(self.q(x), self.k(x), self.v(x), self.heads))


class NoKeyBias(nn.Module):
    """``qkv`` without bias beside ``q_bias`` and ``v_bias``: VideoMAE."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.proj(softmax_attention(query + self.q_bias, key, value + self.v_bias, self.heads))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        hidden = self.fc1(x)
        return self.fc2(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


class Block(nn.Module):
    def __init__(self, width, heads, attention=Fused, ratio=4):
        super().__init__()
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn = attention(width, heads)
        self.mlp = Mlp(width, ratio * width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """``proj``, a convolution over two or three axes, to (B, N, D)."""

    def __init__(self, channels, width, patch):
        super().__init__()
        self.proj = (nn.Conv2d if len(patch) == 2 else nn.Conv3d)(channels, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def stack(count, *args, **kwargs):
    return nn.ModuleList(Block(*args, **kwargs) for _ in range(count))


def in_order(x, order):
    """The tokens (B, N, D) that ``order`` (B, K) names."""
    return x.gather(1, order[:, :, None].expand(-1, -1, x.shape[2]))


def row_major(table, number):
    """Sines and cosines of a number, by interleaved features, as VideoMAE numbers patches: (1, N, ``table``)."""
    angles = [[n / 10000 ** (2 * (j // 2) / table) for j in range(table)] for n in range(number)]
    rows = [[math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(row)] for row in angles]
    return torch.tensor(rows, dtype=torch.float32)[None]
