"""Small networks around one construct each that stay wide, cut channels by numbers, or compute across channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs import Net
from zoo import conv

# ---- full width, for a reason --------------------------------------------------------------------------------------


class HardCodedView(Net):
    def parts(self) -> None:
        self.one = nn.Linear(32 * 64, 32)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.view(-1, 32 * 64))[:, :, None, None]


class HardCodedFold(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.view(-1, 32, 64).exp().view(-1, 32, 8, 8)


class HardCodedSlice(Net):
    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        return x[:, 16:]


class HardCodedWeight(Net):
    """A low-rank adapter whose shape is written out."""

    def parts(self) -> None:
        self.one = conv(32, 32)
        self.up, self.down = nn.Parameter(torch.randn(32, 4)), nn.Parameter(torch.randn(4, 32 * 9))

    def mid(self, x: Tensor) -> Tensor:
        delta = (self.up @ self.down).view(32, 32, 3, 3)
        return F.conv2d(x, self.one.weight + delta, self.one.bias, padding=1)


class HardCodedZeros(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 32, 8, 8) + x


class PlacesMixed(Net):
    """A linear layer over places, as in MLP-Mixer: its features are the places again, whose number is fixed."""

    def parts(self) -> None:
        self.one = nn.Linear(64, 64)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.flatten(2)).view_as(x)


class HardCodedConstant(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x * torch.arange(32.0, dtype=x.dtype)[:, None, None]


class HalvesWritten(Net):
    """A tensor of zeros that code fills in parts: which channels are in which half depends on their number."""

    def mid(self, x: Tensor) -> Tensor:
        scale = torch.zeros(x.shape[1], 1, 1, dtype=x.dtype)
        scale[: x.shape[1] // 2] = 1
        return x * scale


class PositionsWritten(Net):
    """A table of positions, half sines and half cosines, as wide as the input."""

    def mid(self, x: Tensor) -> Tensor:
        width, half = x.shape[3], x.shape[1] // 2
        waves = torch.arange(width, dtype=x.dtype) * 100 ** (-torch.arange(half, dtype=x.dtype)[:, None] / half)
        table = x.new_zeros(2 * half, 1, width)
        table[:half], table[half:] = waves.sin()[:, None], waves.cos()[:, None]
        return x + table


class HardCodedOrder(Net):
    def parts(self) -> None:
        self.register_buffer("order", torch.randperm(32))

    def mid(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.get_buffer("order"))


class ZeroPaddedShortcut(Net):
    reads = 64

    def parts(self) -> None:
        self.one = conv(32, 64)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x) + F.pad(x, (0, 0, 0, 0, 16, 16))


class CroppedByPadding(Net):
    reads = 24

    def mid(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, -8))


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(15, 32))


class RelativePositions(Net):
    """Attention along a picture's rows: a weight for each distance, moved to its place by padding and folding."""

    def parts(self) -> None:
        self.table = Positions()

    def mid(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)
        distances = F.pad(rows @ self.table.weight.t(), (0, 1)).flatten(1)
        weights = F.pad(distances, (0, 7)).view(-1, 9, 15)[:, :8, 7:].softmax(-1)
        return (weights @ rows).unflatten(0, (-1, 8)).permute(0, 3, 1, 2)


class Sorted(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.sort(1)[0]


class Fourier(Net):
    def mid(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x, dim=1).real


class Rolled(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)


class OuterProduct(Net):
    """Every element belongs to two channels."""

    reads = 64

    def parts(self) -> None:
        self.one, self.two = conv(32, 8), conv(32, 8)

    def mid(self, x: Tensor) -> Tensor:
        return (self.one(x)[:, :, None] * self.two(x)[:, None]).flatten(1, 2)


class OneAtATime(Net):
    """A convolution for each channel, in a loop."""

    def parts(self) -> None:
        self.channels, self.one = 32, nn.ModuleList(conv(1, 1) for _ in range(32))

    def mid(self, x: Tensor) -> Tensor:
        return torch.cat([self.one[i](x[:, i : i + 1]) for i in range(self.channels)], 1)


class Unbound(OneAtATime):
    def mid(self, x: Tensor) -> Tensor:
        return torch.stack([one(each[:, None])[:, 0] for one, each in zip(self.one, x.unbind(1), strict=True)], 1)


class WrittenOneByOne(OneAtATime):
    def mid(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for i, one in enumerate(self.one):
            out[:, i : i + 1] = one(x[:, i : i + 1])
        return out


# ---- statistics across channels ------------------------------------------------------------------------------------


class LayerNorm(Net):
    def parts(self) -> None:
        self.one = nn.LayerNorm(32)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.movedim(1, -1)).movedim(-1, 1)


class OneGroupNorm(Net):
    def parts(self) -> None:
        self.one = nn.GroupNorm(1, 32)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class ChannelSoftmax(Net):
    def parts(self) -> None:
        self.one = nn.Softmax(1)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class MeanOverChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True).sigmoid()


class SpatialAttention(Net):
    def parts(self) -> None:
        self.one = MeanOverChannels()

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


CROSSING: list[type[Net]] = [LayerNorm, OneGroupNorm, ChannelSoftmax, SpatialAttention]


# ---- numbers in the code that cut channels -------------------------------------------------------------------------


class HalvesScaled(Net):
    def mid(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :16] * 2, x[:, 16:] * 3], 1)


class FirstChannelsScaled(Net):
    def mid(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] *= 5
        return x


class FirstChannelsCleared(Net):
    def mid(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] = 0
        return x


class Shifted(Net):
    """Moves an eighth of the channels by one place, as temporal shift modules do."""

    fold = 4

    def mid(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, : self.fold, 1:] = x[:, : self.fold, :-1]
        y[:, self.fold :] = x[:, self.fold :]
        return y


class ShiftedByShare(Net):
    def mid(self, x: Tensor) -> Tensor:
        fold = x.shape[1] // 8
        y = torch.zeros_like(x)
        y[:, :fold, 1:] = x[:, :fold, :-1]
        y[:, fold:] = x[:, fold:]
        return y


class PartialConvolution(Net):
    def parts(self) -> None:
        self.one = conv(8, 8)

    def mid(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [8, 24], 1)
        return torch.cat([self.one(a), b], 1)


class FirstChannelGates(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x * x[:, :1]


CUTS: list[type[Net]] = [
    HalvesScaled, FirstChannelsScaled, FirstChannelsCleared, Shifted, ShiftedByShare, PartialConvolution,
    FirstChannelGates,
]  # fmt: skip
