"""Your own network: look at its small network, then train both from the command line.

The network concatenates, shuffles and adds channels by hand: adjoined needs no description of its structure.

Usage:

    adjoined plan examples/03_own_model.py:build --channels 1 --classes 10 --input-size 8
    adjoined train --recipe digits --model examples/03_own_model.py:build --epochs 5 --run runs/own
    adjoined evaluate runs/own --model examples/03_own_model.py:build
    python examples/03_own_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import adjoined


class Mixer(nn.Module):
    """Two convolutions side by side, concatenated, shuffled, and added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.near = nn.Sequential(nn.Conv2d(channels, half, 3, padding=1, bias=False), nn.BatchNorm2d(half))
        self.far = nn.Sequential(nn.Conv2d(channels, half, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(half))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of `x`, float32 (N, C, H, W)."""
        both = torch.cat([self.near(x), self.far(x)], dim=1)
        shuffled = both.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return torch.relu(x + shuffled)


class Net(nn.Module):
    """Stem, mixers, a linear layer on the average."""

    def __init__(self, num_classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.mixers = nn.Sequential(*(Mixer(width) for _ in range(depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, float32 (N, num_classes)."""
        return self.head(self.mixers(self.stem(x)).mean(dim=(2, 3)))


def build(num_classes: int = 10, in_channels: int = 1, width: int = 64, depth: int = 3) -> nn.Module:
    """Return the network; `--model-options` reaches `width` and `depth`."""
    return Net(num_classes, in_channels, width, depth)


def main() -> None:
    images = torch.randn(2, 1, 8, 8)
    net = adjoined.adjoin(build(), images, alpha=4).eval()
    print(net.plan)
    small = net.extract()
    print(small.mixers)
    _, q = net(images)
    print(f"the small network alone gives the same logits: {torch.allclose(small(images), q, atol=1e-5)}")


if __name__ == "__main__":
    main()
