"""Parameters with dimensions that are not channels: places of kernels, samples, positions, experts, basis functions.

`KEPT` says for each network which dimensions of which parameters must keep their size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs import Net


def raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / 4)


class SumOfKernels(Net):
    def parts(self) -> None:
        self.one, self.two = raw(32, 32, 3, 3), raw(32, 32, 3, 3)

    def mid(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.one + self.two, padding=1)


class KernelsInOneDimension(Net):
    def parts(self) -> None:
        self.one, self.two = raw(32, 32, 3), raw(32, 1, 3)

    def mid(self, x: Tensor) -> Tensor:
        return F.conv1d(x.flatten(2), self.one * self.two, padding=1).view_as(x)


class KernelsInThreeDimensions(Net):
    def parts(self) -> None:
        self.one, self.two = raw(32, 32, 3, 3, 3), raw(32, 32, 1, 1, 3)

    def mid(self, x: Tensor) -> Tensor:
        return F.conv3d(x[:, :, None], self.one * self.two, padding=1)[:, :, 0]


class BasisOfKernels(Net):
    """Each kernel is a sum of six learned ones."""

    def parts(self) -> None:
        self.share, self.basis = raw(32, 32, 6), raw(6, 3, 3)

    def mid(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.einsum("oib,bhw->oihw", self.share, self.basis), padding=1)


class SeparableKernel(Net):
    def parts(self) -> None:
        self.out, self.into, self.down, self.across = raw(32, 4), raw(4, 32), raw(4, 3), raw(4, 3)

    def mid(self, x: Tensor) -> Tensor:
        kernel = torch.einsum("or,ri,rh,rw->oihw", self.out, self.into, self.down, self.across)
        return F.conv2d(x, kernel, padding=1)


class ExpertsByProduct(Net):
    """CondConv: a kernel for each image, a mixture of four."""

    def parts(self) -> None:
        self.route, self.kernels = nn.Linear(32, 4), raw(4, 32, 32, 3, 3)

    def mid(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        kernel = self.route(x.mean((2, 3))).sigmoid() @ self.kernels.flatten(1)
        kernel = kernel.view(-1, *self.kernels.shape[2:])
        return F.conv2d(x.reshape(1, -1, h, w), kernel, padding=1, groups=n).view(n, -1, h, w)


class ExpertsOfOnePlace(Net):
    """The same by a weighted sum; the kernels are 1 by 1."""

    def parts(self) -> None:
        self.route, self.kernels = nn.Linear(32, 4), raw(4, 32, 32, 1, 1)

    def mid(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        share = self.route(x.mean((2, 3))).sigmoid()[:, :, None, None, None, None]
        kernel = (share * self.kernels).sum(1).flatten(0, 1)
        return F.conv2d(x.reshape(1, -1, h, w), kernel, groups=n).view(n, -1, h, w)


class Experts(Net):
    """Four layers at each place, weighed by shares; `mix` maps places (N, P, 32) and shares (N, P, 4) to (N, P, 32)."""

    def parts(self) -> None:
        self.gate, self.matrices, self.bias = nn.Linear(32, 4), raw(4, 32, 32), raw(4, 32)

    def mid(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        return self.mix(places, self.gate(places).softmax(-1)).transpose(1, 2).unflatten(2, x.shape[2:])

    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        out = torch.einsum("npi,eoi->npeo", x, self.matrices) + self.bias
        return x + torch.einsum("npe,npeo->npo", share, out.relu())


class ExpertsOfMixedWeights(Experts):
    """One layer for each place, whose weights are a mixture."""

    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        matrices = torch.einsum("npe,eoi->npoi", share, self.matrices)
        return (matrices @ x[..., None]).squeeze(-1) + share @ self.bias


class ExpertsInABatch(Experts):
    """All experts see all places, as a batch of products; a sum weighs them."""

    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        rows = x.flatten(0, 1).repeat(4, 1).view(4, -1, x.shape[2])
        out = torch.baddbmm(self.bias[:, None], rows, self.matrices.transpose(1, 2)).relu()
        return (share.flatten(0, 1).t()[..., None] * out).sum(0).view_as(x)


class ExpertsOfTwoLayers(Experts):
    def parts(self) -> None:
        self.gate, self.up, self.down = nn.Linear(32, 4), raw(4, 32, 24), raw(4, 24, 32)

    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("npi,eih->npeh", x, self.up))
        return x + torch.einsum("npe,npeo->npo", share, torch.einsum("npeh,eho->npeo", hidden, self.down))


class ExpertsInTheMiddle(Experts):
    """The shares tell which dimension counts the experts."""

    def parts(self) -> None:
        self.gate, self.matrices = nn.Linear(32, 4), raw(32, 4, 32)

    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        return torch.einsum("npe,npeo->npo", share, torch.einsum("npi,ieo->npeo", x, self.matrices))


class ExpertsByView(Net):
    """One convolution computes what all experts do; a sum weighs them."""

    def parts(self) -> None:
        self.gate, self.experts = nn.Linear(32, 4), nn.Conv2d(32, 4 * 32, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return self.mix(self.experts(x), self.gate(x.mean((2, 3))).softmax(-1))

    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        x = x.view(len(x), share.shape[1], -1, *x.shape[2:])
        return torch.einsum("neohw,ne->nohw", x, share)


class ExpertsByViewAndSum(ExpertsByView):
    def mix(self, x: Tensor, share: Tensor) -> Tensor:
        return (x.unflatten(1, (4, -1)) * share[:, :, None, None, None]).sum(1)


class ExpertsByViewBehindChannels(ExpertsByView):
    """The gates are no shares, and the experts are the inner dimension."""

    def parts(self) -> None:
        self.gate, self.experts = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 4 * 32, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return (self.experts(x).unflatten(1, (-1, 4)) * self.gate(x).sigmoid()[:, None]).sum(2)


class ExpertsOfOneWeight(ExpertsByView):
    """CondConv, its kernels in one weight."""

    def mid(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        weight = self.experts.weight
        kernel = self.gate(x.mean((2, 3))).softmax(-1) @ weight.view(4, -1)
        return F.conv2d(x.reshape(1, -1, h, w), kernel.view(-1, *weight.shape[1:]), padding=1, groups=n).view_as(x)


class LayersWeighed(Net):
    """The same four weights for every input."""

    def parts(self) -> None:
        self.layers, self.weights = nn.Conv2d(32, 4 * 32, 3, padding=1), raw(4)

    def mid(self, x: Tensor) -> Tensor:
        return self.layers(x).unflatten(1, (-1, 4)).movedim(2, -1) @ self.weights


class LargestOfSeveral(Net):
    """Maxout: four layers, of which the largest counts."""

    def parts(self) -> None:
        self.matrices, self.bias = raw(4, 32, 32), raw(4, 32)

    def mid(self, x: Tensor) -> Tensor:
        return (torch.einsum("nihw,eoi->nhweo", x, self.matrices) + self.bias).amax(3).permute(0, 3, 1, 2)


class WindowedFilter(Net):
    """One FIR filter for all channels, its taps under a learned window."""

    def parts(self) -> None:
        self.taps, self.window = raw(7), raw(7)

    def mid(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = (self.taps * self.window).view(1, 1, 1, -1).expand(channels, -1, -1, -1)
        return F.conv2d(x, kernel, padding=(0, 3), groups=channels)


class Wavelet(Net):
    """The four bands of each channel, by two learned filters."""

    def parts(self) -> None:
        self.low, self.high = raw(4), raw(4)

    def mid(self, x: Tensor) -> Tensor:
        n, c, *_ = x.shape
        filters = (self.low, self.high)
        kernel = torch.stack([torch.outer(a, b) for a in filters for b in filters])[:, None].repeat(c, 1, 1, 1)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=c).view(n, c, 4, 4, 4).sum(2)


class CoordinatesOfAKernel(Net):
    """A kernel as a function of its places, computed by a small network."""

    def parts(self) -> None:
        self.function = nn.Sequential(nn.Linear(2, 12), nn.GELU(), nn.Linear(12, 32))
        self.register_buffer("where", torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-1.0, 2)))

    def mid(self, x: Tensor) -> Tensor:
        kernel = self.function(self.where).t().reshape(-1, 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=x.shape[1])


class LearnedResampling(Net):
    def parts(self) -> None:
        self.matrix, self.gain = raw(8, 6), raw(6)

    def mid(self, x: Tensor) -> Tensor:
        x = (x @ self.matrix) * self.gain
        return x.transpose(2, 3) @ self.matrix


class LearnedTransform(Net):
    """A learned transform, a gain for each frequency, and its inverse."""

    def parts(self) -> None:
        self.there, self.back, self.gain = raw(8, 6), raw(6, 8), raw(32, 1, 6)

    def mid(self, x: Tensor) -> Tensor:
        return ((x @ self.there) * self.gain) @ self.back


class PositionTables(Net):
    def parts(self) -> None:
        self.row, self.column, self.each = raw(1, 32, 8, 1), raw(1, 32, 1, 8), raw(1, 1, 8, 8)
        self.coarse, self.shift = raw(1, 32, 4, 4), raw(1, 32, 4, 4)

    def mid(self, x: Tensor) -> Tensor:
        coarse = F.interpolate(self.coarse + self.shift, size=x.shape[2:])
        return x + self.row * self.column + self.each + coarse


class TimeWindow(Net):
    def parts(self) -> None:
        self.window, self.fade = raw(8), raw(8)

    def mid(self, x: Tensor) -> Tensor:
        return (x * (self.window * self.fade)).sum(-1, keepdim=True)


class RelativePositions(Net):
    """A table of relative positions, put together from two, with an entry for each head."""

    index: Tensor

    def parts(self) -> None:
        self.heads = 4
        self.qkv, self.table, self.more = nn.Linear(32, 96), raw(31, 4), raw(31, 4)
        places = torch.arange(16)
        self.register_buffer("index", places[:, None] - places[None] + 15)

    def mid(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(len(x), 16, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(-2, -1) + (self.table + self.more)[self.index].permute(2, 0, 1)
        return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (4, 4))


class LearnedQueries(Net):
    """Six learned tokens look at the picture, then at each other."""

    def parts(self) -> None:
        self.tokens, self.position = raw(1, 6, 32), raw(1, 6, 32)
        self.query, self.key = nn.Linear(32, 32), nn.Linear(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        x, tokens = x.flatten(2).transpose(1, 2), self.tokens + self.position
        tokens = tokens + (self.query(tokens) @ self.key(x).transpose(1, 2)).sigmoid() @ x
        tokens = tokens + (tokens @ tokens.transpose(1, 2)).sigmoid() @ tokens
        return tokens.transpose(1, 2)[..., None]


class BasisOfFunctions(Net):
    """Each channel is read through seven bumps, with a weight for each."""

    def parts(self) -> None:
        self.share, self.centre = raw(32, 32, 7), raw(7)

    def mid(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-((x.permute(0, 2, 3, 1)[..., None] - self.centre) ** 2))
        return F.linear(bumps.flatten(3), self.share.flatten(1)).permute(0, 3, 1, 2)


class Polynomials(Net):
    def parts(self) -> None:
        self.share, self.order = raw(32, 32, 5), nn.Buffer(torch.arange(5.0))

    def mid(self, x: Tensor) -> Tensor:
        angles = x.tanh().acos()[..., None] * self.order
        return torch.einsum("nihwd,iod->nohw", angles.cos(), self.share)


class Neighbourhoods(Net):
    """A convolution written with `unfold`: channels and the nine places around are one dimension of a product."""

    def parts(self) -> None:
        self.kernel = raw(32, 32, 9)

    def mid(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
        return torch.einsum("nihwk,oik->nohw", x, self.kernel)


class HeadsInAParameter(Net):
    """Attention whose weights have a dimension for heads."""

    def parts(self) -> None:
        self.query, self.key, self.value, self.out = raw(32, 4, 8), raw(32, 4, 8), raw(32, 4, 8), raw(4, 8, 32)

    def mid(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("ncl,chd->nhld", x.flatten(2), w) for w in (self.query, self.key, self.value))
        weights = torch.einsum("nhld,nhmd->nhlm", q, k).softmax(-1)
        return torch.einsum("nhlm,nhmd,hdc->ncl", weights, v, self.out).view_as(x)


class Residuals(Net):
    """NetVLAD: how far the places are from six centres, in one vector."""

    def parts(self) -> None:
        self.near, self.centres, self.out = nn.Conv2d(32, 6, 1), raw(6, 32), nn.Linear(192, 32)

    def mid(self, x: Tensor) -> Tensor:
        near = self.near(x).flatten(2).softmax(1)
        away = (x.flatten(2)[:, None] - self.centres[None, :, :, None]) * near[:, :, None]
        return self.out(away.sum(3).flatten(1)).tanh()[..., None, None].expand(-1, -1, 8, 8)


KEPT: dict[type[Net], dict[str, tuple[int, ...]]] = {
    SumOfKernels: {"one": (2, 3), "two": (2, 3)},
    KernelsInOneDimension: {"one": (2,), "two": (2,)},
    KernelsInThreeDimensions: {"one": (2, 3, 4), "two": (4,)},
    BasisOfKernels: {"share": (2,), "basis": (0, 1, 2)},
    SeparableKernel: {"out": (1,), "into": (0,), "down": (0, 1), "across": (0, 1)},
    ExpertsByProduct: {"route.weight": (0,), "kernels": (0, 3, 4)},
    ExpertsOfOnePlace: {"route.weight": (0,), "kernels": (0,)},
    Experts: {"gate.weight": (0,), "matrices": (0,), "bias": (0,)},
    ExpertsOfMixedWeights: {"gate.weight": (0,), "matrices": (0,), "bias": (0,)},
    ExpertsInABatch: {"gate.weight": (0,), "matrices": (0,), "bias": (0,)},
    ExpertsOfTwoLayers: {"gate.weight": (0,), "up": (0,), "down": (0,)},
    ExpertsInTheMiddle: {"gate.weight": (0,), "matrices": (1,)},
    ExpertsByView: {"gate.weight": (0,)},
    ExpertsByViewAndSum: {"gate.weight": (0,)},
    ExpertsByViewBehindChannels: {"gate.weight": (0,)},
    ExpertsOfOneWeight: {"gate.weight": (0,)},
    LayersWeighed: {"weights": (0,)},
    LargestOfSeveral: {"matrices": (0,), "bias": (0,)},
    WindowedFilter: {"taps": (0,), "window": (0,)},
    Wavelet: {"low": (0,), "high": (0,)},
    CoordinatesOfAKernel: {"where": (0, 1), "function.0.weight": (1,)},
    LearnedResampling: {"matrix": (0, 1), "gain": (0,)},
    LearnedTransform: {"there": (0, 1), "back": (0, 1), "gain": (2,)},
    PositionTables: {"row": (2,), "column": (3,), "each": (2, 3), "coarse": (2, 3), "shift": (2, 3)},
    TimeWindow: {"window": (0,), "fade": (0,)},
    RelativePositions: {"table": (0,), "more": (0,)},
    LearnedQueries: {"tokens": (1,), "position": (1,)},
    BasisOfFunctions: {"share": (2,), "centre": (0,)},
    Polynomials: {"share": (2,), "order": (0,)},
    Neighbourhoods: {"kernel": (2,)},
    HeadsInAParameter: {"query": (1,), "key": (1,), "value": (1,), "out": (0,)},
    Residuals: {"centres": (0,), "near.weight": (0,)},
}
"""Network -> parameter -> dimensions that are not channels."""
