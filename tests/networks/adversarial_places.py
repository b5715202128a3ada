"""Networks that cut, permute, write and count channels in awkward ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs import Net
from zoo import conv

# ---- reading some of the channels ----------------------------------------------------------------------------------


class EveryOtherChannel(Net):
    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        return x[:, ::2]


class ListedChannels(Net):
    reads = 2

    def mid(self, x: Tensor) -> Tensor:
        return x[:, [3, 1]]


class PermutedByIndexing(Net):
    def parts(self) -> None:
        self.register_buffer("order", torch.randperm(32))

    def mid(self, x: Tensor) -> Tensor:
        return x[:, self.get_buffer("order")]


class ReversedOrder(Net):
    """The order follows the number of channels that arrive."""

    def mid(self, x: Tensor) -> Tensor:
        return x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1))


class Flipped(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.flip(1)


class GatheredChannels(Net):
    def parts(self) -> None:
        self.register_buffer("order", torch.randperm(32))

    def mid(self, x: Tensor) -> Tensor:
        return x.gather(1, self.get_buffer("order").view(1, -1, 1, 1).expand_as(x))


class GatheredPlaces(Net):
    """gather along places: every channel stays what it is."""

    def mid(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        order = torch.arange(63, -1, -1).view(1, 1, -1).expand_as(flat)
        return flat.gather(2, order).view_as(x)


class SortedPlaces(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.flatten(2).sort(-1)[0].view_as(x)


class StrongestPlaces(Net):
    def parts(self) -> None:
        self.one = nn.Conv1d(32, 32, 1)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x.flatten(2).topk(16, dim=-1)[0])[..., None]


class StrongestChannels(Net):
    reads = 8

    def mid(self, x: Tensor) -> Tensor:
        return x.topk(8, dim=1)[0]


class CumulatedPlaces(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.cumsum(2)


class CumulatedChannels(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class MultipliedChannels(Net):
    def mid(self, x: Tensor) -> Tensor:
        return (x + 1).cumprod(1)


class ManyPieces(Net):
    """Res2Net: pieces of the channels, each convolved with the sum of those before it."""

    def parts(self) -> None:
        self.width = 8
        self.ones = nn.ModuleList(nn.ModuleList([conv(8, 8)]) for _ in range(3))

    def mid(self, x: Tensor) -> Tensor:
        pieces = torch.split(x, self.width, 1)
        outs = [pieces[0]]
        for ones, piece in zip(self.ones, pieces[1:], strict=True):
            for one in ones:
                outs.append(one(piece + outs[-1]).relu())
        return torch.cat(outs, 1)


class Negated(Net):
    """CReLU: both signs of every channel."""

    reads = 64

    def mid(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], 1).relu()


class GatedLinearUnit(Net):
    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        return F.glu(x, 1)


class Maxout(Net):
    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)


class Shuffled(Net):
    """A channel shuffle between two layers of groups."""

    def parts(self) -> None:
        self.one, self.two = conv(32, 32, groups=4), conv(32, 32, groups=4)

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = self.one(x).view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.two(x)


class ChannelsAsBatch(Net):
    """Every channel is blurred as a separate image, with one kernel for all of them."""

    def parts(self) -> None:
        self.kernel = nn.Parameter(torch.randn(1, 1, 3, 3))

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return F.conv2d(x.reshape(n * c, 1, h, w), self.kernel, padding=1).view(n, c, h, w)


class BlurRepeated(Net):
    """A kernel repeated for as many channels as arrive."""

    def parts(self) -> None:
        self.register_buffer("kernel", torch.randn(1, 1, 3, 3))

    def mid(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.get_buffer("kernel").repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])


class BlurStored(Net):
    """A kernel stored once for every channel."""

    def parts(self) -> None:
        self.register_buffer("kernel", torch.randn(32, 1, 3, 3))

    def mid(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.get_buffer("kernel"), padding=1, groups=x.shape[1])


class Patches(Net):
    """F.unfold, a linear layer over each patch, F.fold back."""

    def parts(self) -> None:
        self.one = nn.Linear(32 * 4, 24 * 4)

    reads = 24

    def mid(self, x: Tensor) -> Tensor:
        rows = F.unfold(x, 2, stride=2)
        return F.fold(self.one(rows.transpose(1, 2)).transpose(1, 2), (8, 8), 2, stride=2)


class OverlappingWindows(Net):
    """Tensor.unfold: windows as a new dimension."""

    def parts(self) -> None:
        self.kernel = nn.Parameter(torch.randn(32, 3, 3))

    def mid(self, x: Tensor) -> Tensor:
        windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
        return (windows * self.kernel[:, None, None]).sum((-1, -2))


class Coordinates(Net):
    """CoordConv: two channels of coordinates are appended."""

    reads = 34

    def mid(self, x: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, 8, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))
        return torch.cat([x, grid.expand(len(x), -1, -1, -1)], 1)


# ---- writing into tensors ------------------------------------------------------------------------------------------


class HalvesWritten(Net):
    """Two results are written side by side into a new tensor."""

    reads = 40

    def parts(self) -> None:
        self.one, self.two = conv(32, 24), conv(32, 16)

    def mid(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        out = x.new_zeros(len(x), a.shape[1] + b.shape[1], *x.shape[2:])
        out[:, : a.shape[1]] = a
        out[:, a.shape[1] :] = b
        return out


class HalvesCopied(HalvesWritten):
    """The same with empty memory and copy_."""

    def mid(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        out = torch.empty(len(x), a.shape[1] + b.shape[1], *x.shape[2:], dtype=x.dtype)
        out.narrow(1, 0, a.shape[1]).copy_(a)
        out.narrow(1, a.shape[1], b.shape[1]).copy_(b)
        return out


class HalvesScattered(HalvesWritten):
    """The same out of place."""

    def mid(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        out = torch.zeros(len(x), a.shape[1] + b.shape[1], *x.shape[2:], dtype=x.dtype)
        out = torch.slice_scatter(out, a, 1, 0, a.shape[1])
        return torch.slice_scatter(out, b, 1, a.shape[1])


class HalvesSwapped(Net):
    def mid(self, x: Tensor) -> Tensor:
        y, half = x.new_zeros(x.shape), x.shape[1] // 2
        y[:, :half] = x[:, half:]
        y[:, half:] = x[:, :half]
        return y


class Interleaved(Net):
    reads = 64

    def parts(self) -> None:
        self.one, self.two = conv(32, 32), conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        out = x.new_zeros(len(x), 2 * a.shape[1], *x.shape[2:])
        out[:, 0::2] = a
        out[:, 1::2] = b
        return out


class StackedOneByOne(Net):
    """select_scatter along a new dimension, folded into the channels."""

    reads = 64

    def parts(self) -> None:
        self.one, self.two = conv(32, 32), conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.two(x)
        out = torch.zeros(len(a), 2, *a.shape[1:], dtype=a.dtype)
        return out.select_scatter(a, 1, 0).select_scatter(b, 1, 1).flatten(1, 2)


class PlacesWritten(Net):
    """Four maps are interleaved in space, as an inverse wavelet transform does."""

    reads = 8

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        out = torch.zeros(n, c // 4, 2 * h, 2 * w, dtype=x.dtype)
        for i, piece in enumerate(x.chunk(4, 1)):
            out[:, :, i // 2 :: 2, i % 2 :: 2] = piece
        return out


class PutByIndex(Net):
    """index_put_ at as many channels as arrive."""

    def parts(self) -> None:
        self.one = conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, torch.arange(x.shape[1])] = self.one(x)
        return out


class PutByOrder(Net):
    """index_put_ in an order that is stored."""

    def parts(self) -> None:
        self.register_buffer("order", torch.randperm(32))

    def mid(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, self.get_buffer("order")] = x
        return out


class PutPlaces(Net):
    """A mask over places: chosen elements of all channels are replaced."""

    def mid(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, 2:5, [1, 3]] = 0.5
        return x


class AddedByIndex(Net):
    def mid(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(1, torch.arange(x.shape[1]), x)


class ScatteredPlaces(Net):
    """Max pooling and unpooling: values go back to the places where they came from."""

    def mid(self, x: Tensor) -> Tensor:
        pooled, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(pooled, places, 2)


class ScatteredByHand(Net):
    def mid(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        order = flat.argsort(-1)
        return torch.zeros_like(flat).scatter(2, order, flat).view_as(x)


class MaskedFill(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.masked_fill(x < 0.3, -1.0)


class InPlace(Net):
    def parts(self) -> None:
        self.one = conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y += x
        y.mul_(0.5).add_(x, alpha=2)
        y[:, :, 0] *= 3
        return y


# ---- numbers written down ------------------------------------------------------------------------------------------


class FoldedByNumber(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 32, 64).tanh().view(len(x), 32, 8, 8)


class SplitByNumber(Net):
    reads = 16

    def mid(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, 16, 1)
        return a * b


class WidthChecked(Net):
    def mid(self, x: Tensor) -> Tensor:
        if x.shape[1] != 32:
            raise ValueError(f"expected 32 channels, got {x.shape[1]}")
        return x
