"""Attention of recent detectors: keys narrower than values, all of them from one layer, on one half of the channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Attention over positions; the code computes the target of `view` from two stored numbers."""

    def __init__(self, width: int, heads: int, key: int) -> None:
        super().__init__()
        self.heads, self.value, self.key = heads, width // heads, key
        self.qkv = nn.Conv2d(width, width + 2 * key * heads, 1)
        self.place = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        fused = self.qkv(x).view(n, self.heads, 2 * self.key + self.value, h * w)
        q, k, v = fused.split([self.key, self.key, self.value], dim=2)
        weights = (q.transpose(-2, -1) @ k).softmax(-1)
        mixed = (v @ weights.transpose(-2, -1)).view(n, c, h, w)
        return self.out(mixed + self.place(v.reshape(n, c, h, w)))


class FusedLinear(nn.Module):
    """The same with a linear layer and features last."""

    def __init__(self, width: int, heads: int, key: int) -> None:
        super().__init__()
        self.heads, self.value, self.key = heads, width // heads, key
        self.qkv, self.out = nn.Linear(width, width + 2 * key * heads), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        fused = self.qkv(x.flatten(2).transpose(1, 2)).view(n, h * w, self.heads, self.value + self.key + self.key)
        q, k, v = fused.transpose(1, 2).split([self.key, self.key, self.value], dim=-1)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(n, h * w, -1)).transpose(1, 2).view(n, c, h, w)


class OnOneHalf(nn.Module):
    def __init__(self, width: int, heads: int, key: int) -> None:
        super().__init__()
        self.c = width // 2
        self.into, self.out = nn.Conv2d(width, 2 * self.c, 1), nn.Conv2d(2 * self.c, width, 1)
        self.attention = FusedAttention(self.c, heads, key)
        self.mix = nn.Sequential(nn.Conv2d(self.c, 2 * self.c, 1), nn.SiLU(), nn.Conv2d(2 * self.c, self.c, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.into(x).split((self.c, self.c), dim=1)
        b = b + self.attention(b)
        return self.out(torch.cat((a, b + self.mix(b)), 1))


class Detector(nn.Sequential):
    """One of these blocks behind a convolution, and a head."""

    def __init__(self, block: type[nn.Module], width: int, heads: int, key: int) -> None:
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
        super().__init__(nn.Conv2d(3, width, 3), block(width, heads, key), *head)
