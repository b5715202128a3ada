"""Random networks: constructs of all kinds in any order, from a seed."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from zoo import conv, seeded

WIDTHS = (6, 8, 12, 16, 24)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, max(2, width // 4), 1), nn.Conv2d(max(2, width // 4), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class RandomNetwork(nn.Module):
    """A chain of random steps; each reads the latest features, some also earlier ones.

    Args:
        seed: the same seed draws the same steps; weights are drawn from torch's own random state.
        steps: how many.
    """

    def __init__(self, seed: int, steps: int = 8) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.stem = conv(3, 16)
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, int]] = []
        widths = [16]
        for number in range(steps):
            kind = draw.choice(KINDS)
            width, partner = widths[-1], draw.randrange(len(widths))
            layer, wider = None, width
            if kind == "conv":
                wider = draw.choice(WIDTHS)
                layer = conv(width, wider, draw.choice((1, 3)), bias=draw.random() < 0.5)
            elif kind == "grouped":
                groups = draw.choice([g for g in (2, 3, 4, 8) if width % g == 0] or [1])
                wider = groups * draw.choice((1, 2, 3))
                layer = conv(width, wider, groups=groups)
            elif kind == "depthwise":
                wider = width * draw.choice((1, 1, 2))
                layer = conv(width, wider, groups=width)
            elif kind == "transposed":
                wider = draw.choice(WIDTHS)
                layer = nn.ConvTranspose2d(width, wider, 3, padding=1)
            elif kind == "norm":
                layer = nn.BatchNorm2d(width)
            elif kind == "group norm":
                layer = nn.GroupNorm(draw.choice([g for g in (2, 3, 4) if width % g == 0] or [width]), width)
            elif kind == "activation":
                layer = draw.choice((nn.ReLU, nn.SiLU, nn.Hardsigmoid, nn.Tanh))()
            elif kind == "gate":
                layer = Gate(width)
            elif kind == "pool":
                layer = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2))
            elif kind == "cat":
                wider = width + widths[partner]
            elif kind == "halves":
                if width % 2:
                    continue
                wider = width // 2
            elif kind == "add":
                if widths[partner] != width:
                    layer = nn.Conv2d(widths[partner], width, 1)
            elif kind == "linear":
                layer = nn.Linear(width, width)
            if wider > 64:
                continue
            if layer is not None:
                self.layers[str(number)] = layer
            self.steps.append((f"{kind} {number}", partner))
            widths.append(wider)
        self.norm = nn.BatchNorm2d(widths[-1])  # so that no signal is too weak to be compared
        self.body, self.head = conv(widths[-1], 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        features, layers = [self.stem(x)], dict(self.layers.items())
        for step, partner in self.steps:
            kind, number = step.rsplit(" ", 1)
            x, other = features[-1], features[partner]
            layer = layers.get(number)
            if kind == "cat":
                x = torch.cat([x, other], 1)
            elif kind == "halves":
                a, b = x.chunk(2, 1)
                x = a * b.sigmoid()
            elif kind == "add":
                x = x + (other if layer is None else layer(other))
            elif kind == "linear":
                assert layer is not None
                x = layer(x.movedim(1, -1)).movedim(-1, 1)
            else:
                assert layer is not None
                x = layer(x)
            features.append(x)
        return self.head(self.body(self.norm(features[-1])).tanh().mean((2, 3)))


KINDS = [
    "conv", "conv", "conv", "grouped", "depthwise", "transposed", "norm", "norm", "group norm", "activation",
    "activation", "gate", "pool", "cat", "cat", "halves", "add", "add", "linear",
]  # fmt: skip


def random_network(seed: int) -> RandomNetwork:
    return seeded(lambda: RandomNetwork(seed), seed)
