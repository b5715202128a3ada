"""Small networks around one construct each that narrow, and equal the masked form exactly.

`odd_constructs.py` has those that stay wide, or take statistics across channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import conv, images, lively, seeded

X = images(2, 3, 8, 8, dtype=torch.float64)


class Net(nn.Module):
    """A stem of 32 channels, one construct, a convolution that reads `reads` channels, and a head."""

    reads = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 32, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.parts()
        self.body, self.head = conv(self.reads, 48), nn.Linear(48, 5)

    def parts(self) -> None:
        """Make the construct's modules."""

    def mid(self, x: Tensor) -> Any:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(self.mid(self.stem(x))).tanh().mean((2, 3)))


def network(cls: type[Net]) -> Net:
    return lively(seeded(cls), X)


class Chain(Net):
    pass


class Residual(Net):
    def parts(self) -> None:
        self.one, self.two = conv(32, 64), conv(64, 32)

    def mid(self, x: Tensor) -> Tensor:
        return (x + self.two(self.one(x).relu())).relu()


class DenseConcat(Net):
    reads = 32 + 16 + 24

    def parts(self) -> None:
        self.one, self.two = conv(32, 16), conv(48, 24)

    def mid(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.one(x)], 1)
        return torch.cat([x, self.two(x)], 1)


class ConcatWithItself(Net):
    reads = 64

    def mid(self, x: Tensor) -> Tensor:
        return torch.cat([x, x], 1)


class ChunkGate(Net):
    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a * b.sigmoid()


class SplitSizes(Net):
    reads = 40

    def parts(self) -> None:
        self.sizes = [24, 8]
        self.one, self.two = conv(24, 24), conv(8, 16)

    def mid(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, 1)
        return torch.cat([self.two(b), self.one(a)], 1)


class PixelShuffle(Net):
    reads = 8

    def mid(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)


class PixelUnshuffle(Net):
    reads = 128

    def mid(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class FlattenBeforeLinear(Net):
    def parts(self) -> None:
        self.pool, self.inner, self.back = nn.AvgPool2d(4), nn.Linear(32 * 4, 40), nn.Linear(40, 32)

    def mid(self, x: Tensor) -> Tensor:
        return self.back(self.inner(torch.flatten(self.pool(x), 1)).relu())[:, :, None, None]


class SqueezeExcitation(Net):
    def parts(self) -> None:
        self.down, self.up, self.gate = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1), nn.Sigmoid()

    def mid(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.down(x.mean((2, 3), keepdim=True)).relu()))


class Depthwise(Net):
    def parts(self) -> None:
        self.one = conv(32, 32, groups=32)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class DepthwiseMultiplier(Net):
    reads = 64

    def parts(self) -> None:
        self.one = conv(32, 64, groups=32)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class GroupedInWholeGroups(Net):
    reads = 64

    def parts(self) -> None:
        self.one = conv(32, 64, groups=8)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class GroupedDownToOneGroup(Net):
    """At alpha = 4 one of four groups is left: a convolution of one group, which is an ordinary one."""

    def parts(self) -> None:
        self.one = conv(32, 32, groups=4)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class GroupedInside(Net):
    reads = 64

    def parts(self) -> None:
        self.one, self.two = conv(32, 64, groups=2), conv(64, 64)

    def mid(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


class Transposed(Net):
    reads = 24

    def parts(self) -> None:
        self.one = nn.ConvTranspose2d(32, 24, 2, stride=2)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class GroupedTransposed(Net):
    reads = 16

    def parts(self) -> None:
        self.one = nn.ConvTranspose2d(32, 16, 2, stride=2, groups=8)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class CalledThreeTimes(Net):
    def parts(self) -> None:
        self.one = conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.one(x).relu()
        return x


class TiedParameters(Net):
    def parts(self) -> None:
        self.one, self.two = conv(32, 32), conv(32, 32)
        self.two.weight = self.one.weight

    def mid(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())


class RawParameters(Net):
    def parts(self) -> None:
        self.weight, self.scale = nn.Parameter(torch.randn(24, 32, 3, 3)), nn.Parameter(torch.randn(1, 24, 1, 1))
        self.mix = nn.Parameter(torch.randn(24, 32))
        self.register_buffer("shift", torch.randn(24))

    def mid(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1) * self.scale + self.get_buffer("shift")[:, None, None]
        return (x.movedim(1, -1) @ self.mix).movedim(-1, 1)


class Einsum(Net):
    reads = 24

    def parts(self) -> None:
        self.mix = nn.Parameter(torch.randn(24, 32))

    def mid(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", x, self.mix)


class GroupNorm(Net):
    def parts(self) -> None:
        self.one, self.norm = conv(32, 32), nn.GroupNorm(8, 32)

    def mid(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x)).relu()


class InstanceNormAndPReLU(Net):
    def parts(self) -> None:
        self.norm, self.act = nn.InstanceNorm2d(32, affine=True), nn.PReLU(32)

    def mid(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))


class FeaturewiseModulation(Net):
    """Scale and shift from a linear layer, which holds both in its outputs."""

    def parts(self) -> None:
        self.film = nn.Linear(32, 64)

    def mid(self, x: Tensor) -> Tensor:
        scale, shift = self.film(x.mean((2, 3))).chunk(2, 1)
        return x * scale[..., None, None] + shift[..., None, None]


class Resampled(Net):
    def mid(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2), scale_factor=2, mode="bilinear")
        return F.adaptive_avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2), 4)


class PaddedByAttribute(Net):
    """A shortcut that gets as many channels of zeros as the module says."""

    reads = 64

    def parts(self) -> None:
        self.one, self.more = conv(32, 64), 32

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x) + F.pad(x, (0, 0, 0, 0, 0, self.more))


class PaddedToFit(Net):
    """The same, with channels in front, and their number from the tensors' shapes."""

    reads = 64

    def parts(self) -> None:
        self.one = conv(32, 64)

    def mid(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return y + F.pad(x, (0, 0, 0, 0, y.shape[1] - x.shape[1], 0))


class DividedByOnes(Net):
    """Attention without a softmax: a column of ones beside the values sums the weights, by which heads are divided."""

    def parts(self) -> None:
        self.qkv, self.features = nn.Conv2d(32, 96, 1), 8

    def mid(self, x: Tensor) -> Tensor:
        qkv = self.mixed(self.qkv(x)).reshape(len(x), -1, 3 * self.features, 64)
        query, key, value = qkv.transpose(2, 3).chunk(3, -1)
        out = query.relu() @ (key.relu().transpose(2, 3) @ F.pad(value, (0, 1), value=1.0))
        out = out[..., :-1] / (out[..., -1:] + 1e-3)
        return out.transpose(2, 3).reshape(len(x), -1, 8, 8)

    def mixed(self, qkv: Tensor) -> Tensor:
        return qkv


class DividedByOnesAtTwoScales(DividedByOnes):
    """More heads, from a grouped convolution with a group for the queries of a head, one for its keys, and so on."""

    reads = 64

    def parts(self) -> None:
        super().parts()
        self.around, self.within = conv(96, 96, groups=96), nn.Conv2d(96, 96, 1, groups=12)

    def mixed(self, qkv: Tensor) -> Tensor:
        return torch.cat([qkv, self.within(self.around(qkv))], 1)


class PlacesAttend(Net):
    """Attention between places, as in non-local networks."""

    def parts(self) -> None:
        self.query, self.key, self.value = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(32, 32, 1)

    def mid(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        return x + (value @ weights.transpose(1, 2)).view_as(x)


class PositionTable(Net):
    def parts(self) -> None:
        self.table = nn.Parameter(torch.randn(1, 32, 8, 8))

    def mid(self, x: Tensor) -> Tensor:
        return x + self.table


class Volumes(Net):
    """Convolutions in one and three dimensions."""

    def parts(self) -> None:
        self.line, self.volume = nn.Conv1d(32, 24, 3, padding=1), nn.Conv3d(24, 32, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return self.volume(self.line(x.flatten(2)).unflatten(2, (2, 4, 8))).flatten(3)


class Conditions(Net):
    """torch.where, maximum, clamp, and a comparison."""

    def parts(self) -> None:
        self.one = conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return torch.where(y > 0, torch.maximum(x, y), x.clamp(max=0.5))


class WidthAsserted(Net):
    """The module keeps its width as a number, which is corrected."""

    def parts(self) -> None:
        self.channels = 32

    def mid(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.channels, 64).reshape(x.shape)


class LowRankAdapter(Net):
    """A convolution's weight plus a product of two thin matrices, folded into its shape."""

    def parts(self) -> None:
        self.one = conv(32, 32)
        self.up, self.down = nn.Parameter(torch.randn(32, 4)), nn.Parameter(torch.randn(4, 32 * 9))

    def mid(self, x: Tensor) -> Tensor:
        delta = (self.up @ self.down).view_as(self.one.weight)
        return F.conv2d(x, self.one.weight + delta, self.one.bias, padding=1)


class AuxiliaryHead(Net):
    """A second head that runs in train mode only."""

    def parts(self) -> None:
        self.side, self.aux = conv(32, 40), nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        out = self.head(self.body(x).tanh().mean((2, 3)))
        return (out, self.aux(self.side(x).relu().mean((2, 3)))) if self.training else out


NARROWING: list[type[Net]] = [
    each
    for each in list(globals().values())
    if isinstance(each, type) and issubclass(each, Net) and each not in (Net, AuxiliaryHead)
]
