"""Networks with channel shuffles, written by hand in the usual ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU() if act else nn.Identity())


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class UnitV1(nn.Module):
    """A unit of ShuffleNet: grouped convolutions with a shuffle between them."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.groups, self.stride, inner = groups, stride, outputs // 4
        self.reduce = conv_norm(inputs, inner, groups=1 if first else groups)
        self.depthwise = conv_norm(inner, inner, 3, stride, inner, act=False)
        self.expand = conv_norm(inner, outputs - inputs if stride == 2 else outputs, groups=groups, act=False)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(shuffled(self.reduce(x), self.groups)))
        return torch.relu(torch.cat([self.pool(x), y], 1) if self.stride == 2 else x + y)


class ShuffleNetV1(nn.Module):
    """ShuffleNet with the widths of the paper for 2, 3 or 4 groups."""

    def __init__(self, groups: int, units: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        widths = {2: (200, 400, 800), 3: (240, 480, 960), 4: (272, 544, 1088)}[groups]
        self.stem, inputs, body = conv_norm(3, 24, 3, 2), 24, []
        for width, count in zip(widths, units, strict=False):
            for number in range(count):
                stride = 1 if number else 2
                body.append(UnitV1(inputs, width, groups, stride, first=not body))
                inputs = width
        self.body, self.last = nn.Sequential(*body), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x)).mean((2, 3)))


class UnitV2(nn.Module):
    """A unit of ShuffleNetV2, split, concatenated and shuffled as `style` says."""

    def __init__(self, inputs: int, outputs: int, stride: int, style: str) -> None:
        super().__init__()
        self.stride, self.style, self.half = stride, style, outputs // 2
        half = self.half
        if stride == 2:
            self.left = nn.Sequential(conv_norm(inputs, inputs, 3, 2, inputs, act=False), conv_norm(inputs, half))
        self.right = nn.Sequential(
            conv_norm(inputs if stride == 2 else half, half),
            conv_norm(half, half, 3, stride, half, act=False),
            conv_norm(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "deal":  # the authors' code: the shuffle deals channels out, which splits them, too
            return self.joined(x, x) if self.stride == 2 else self.joined(*self.dealt(x))
        return shuffled(self.joined(x, x) if self.stride == 2 else self.joined(*self.split(x)), 2)

    def joined(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.left(a) if self.stride == 2 else a, self.right(b)], 1)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        if self.style == "slice":
            return x[:, : self.half], x[:, self.half :]
        if self.style == "literal":  # as if the code held this number
            return torch.split(x, {24: 24}[self.half], 1)
        if self.style == "number":
            return torch.split(x, self.half, 1)
        return x.chunk(2, 1) if self.style == "chunk" else torch.split(x, [self.half, x.shape[1] - self.half], 1)

    @staticmethod
    def dealt(x: Tensor) -> tuple[Tensor, Tensor]:
        n, c, h, w = x.shape
        x = x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
        return x[0], x[1]


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 by hand."""

    def __init__(
        self, style: str, widths: tuple[int, ...] = (48, 96), units: tuple[int, ...] = (4, 4), stem: int = 24
    ) -> None:
        super().__init__()
        self.stem, inputs, body = conv_norm(3, stem, 3, 2), stem, []
        for width, count in zip(widths, units, strict=True):
            for number in range(count):
                body.append(UnitV2(inputs, width, 1 if number else 2, style))
                inputs = width
        self.body, self.last = nn.Sequential(*body), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x)).mean((2, 3)))
