"""Networks with unusual modules, parameters, inputs and outputs; in one, two and three dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from constructs import Net
from zoo import conv, images


class Swish(torch.autograd.Function):
    """An activation with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grads[0] * (s + x * s * (1 - s))


class OwnFunction(Net):
    def mid(self, x: Tensor) -> Any:
        return Swish.apply(x)


class StraightThrough(Net):
    """Rounded values whose gradient passes as if they were not rounded."""

    def mid(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


class Scripted(Net):
    def parts(self) -> None:
        self.one, self.two = conv(32, 32), torch.jit.script(nn.Sequential(conv(32, 32), nn.ReLU()))

    def mid(self, x: Tensor) -> Any:
        return self.two(self.one(x))


class Checkpointed(Net):
    def parts(self) -> None:
        self.one = conv(32, 40)

    reads = 40

    def mid(self, x: Tensor) -> Any:
        return checkpoint(lambda y: self.one(y).relu(), x, use_reentrant=False)


class StochasticDepth(Net):
    """In train mode a random half of the samples leaves a block out."""

    def parts(self) -> None:
        self.one = conv(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        y = self.one(x)
        if self.training:
            y = y * y.new_empty(len(y), 1, 1, 1).bernoulli_(0.5) / 0.5
        return x + y


class Nested(Net):
    """Lists in dictionaries in lists of modules, called by name."""

    def parts(self) -> None:
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"ways": nn.ModuleList([conv(32, 32), nn.Sequential(conv(32, 16), conv(16, 32))])})
            for _ in range(2)
        )

    def mid(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            ways = block["ways"]
            assert isinstance(ways, nn.ModuleList)
            x = x + torch.stack([way(x) for way in ways]).mean(0)
        return x


class ParametersOfManyShapes(Net):
    def parts(self) -> None:
        self.a, self.b = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(32, 1))
        self.c, self.d = nn.Parameter(torch.rand(1, 32, 1, 1)), nn.Parameter(torch.rand(1, 32, 8, 1))
        self.scale, self.shift = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.rand(1))

    def mid(self, x: Tensor) -> Tensor:
        x = x * self.a.view(1, -1, 1, 1) + self.b[:, :, None] + self.c * self.d
        return self.scale * x + self.shift


class BuffersAndCounters(Net):
    """A running mean of every channel, kept by hand, and a count of the calls."""

    def parts(self) -> None:
        self.register_buffer("mean", torch.rand(32))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("mean").mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
            self.get_buffer("calls").add_(1)
        return x - self.get_buffer("mean")[:, None, None]


class ClassAndTimeEmbedded(Net):
    """Embeddings of numbers are added to the channels, as in diffusion models."""

    def parts(self) -> None:
        self.table, self.one = nn.Embedding(10, 32), nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32))

    def mid(self, x: Tensor) -> Tensor:
        return x + self.one(self.table(torch.arange(len(x))))[:, :, None, None]


class SinusoidsAdded(Net):
    """A table of sines that is computed for as many channels as arrive."""

    def mid(self, x: Tensor) -> Tensor:
        waves = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None] * torch.arange(8, dtype=x.dtype) / 8
        return x + waves.sin()[None, :, :, None]


class TiedAutoencoder(Net):
    """One weight for a convolution and for the transposed convolution that undoes it."""

    def parts(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(40, 32, 3, 3) / 9), nn.Parameter(torch.rand(40))

    def mid(self, x: Tensor) -> Tensor:
        hidden = F.conv2d(x, self.weight, self.bias, padding=1).relu()
        return F.conv_transpose2d(hidden, self.weight, padding=1)


class TransposedProjection(Net):
    """A matrix goes into a narrower space, and its transpose comes back."""

    def parts(self) -> None:
        self.one = nn.Linear(32, 16, bias=False)

    def mid(self, x: Tensor) -> Tensor:
        return F.linear(self.one(x.movedim(1, -1)).relu(), self.one.weight.t()).movedim(-1, 1)


class SpacesIntoDepth(Net):
    """Space to depth written out with views, and back."""

    def parts(self) -> None:
        self.one = conv(128, 96)

    reads = 24

    def mid(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        x = self.one(x).relu()
        x = x.view(n, 2, 2, -1, h // 2, w // 2).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(n, -1, h, w)


class FlattenedMixed(Net):
    """Channels and places are flattened together, mixed, and unfolded again."""

    def parts(self) -> None:
        self.one = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(128, 72), nn.Unflatten(1, (18, 2, 2)))

    reads = 18

    def mid(self, x: Tensor) -> Any:
        return self.one(x)


@dataclass
class Prediction:
    logits: Tensor
    features: list[Tensor]


class InDataclass(Net):
    """Features of fixed width and logits, in a dataclass."""

    def forward(self, x: Tensor) -> Prediction:
        x = self.stem(x)
        y = self.body(x).tanh().mean((2, 3))
        return Prediction(self.head(y), [x.sum(1)])


class WrittenOut(Net):
    """Results go to tensors that were made for them (`out=`)."""

    def mid(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shifted, size = torch.empty_like(x), x.new_empty(x.shape[:2])
            torch.add(x, 1, out=shifted)
            torch.mean(shifted, (2, 3), out=size)
        return x * size[..., None, None]


class GroupsByAttribute(Net):
    """Torch's functions get the number of groups, which the module stores."""

    def parts(self) -> None:
        self.count, self.kernel = 8, nn.Parameter(torch.randn(32, 4, 3, 3))
        self.scale, self.shift = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(32))

    def mid(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, padding=1, groups=self.count)
        return F.group_norm(x, self.groups(x), self.scale, self.shift)

    def groups(self, x: Tensor) -> int:
        return self.count


class GroupsByNumber(GroupsByAttribute):
    """The norm would have as many groups in the small network, of fewer channels each."""

    def groups(self, x: Tensor) -> int:
        return min(8, x.shape[1])


class BankForEveryChannel(Net):
    """A wavelet transform: the same four fixed filters for every channel, and back."""

    bank: Tensor

    def parts(self) -> None:
        self.register_buffer("bank", torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
        self.one = conv(128, 96)

    reads = 24

    def mid(self, x: Tensor) -> Tensor:
        x = self.one(F.conv2d(x, self.bank.repeat(x.shape[1], 1, 1, 1), stride=2, groups=x.shape[1])).relu()
        back = torch.cat([self.bank] * (x.shape[1] // 4))
        return F.conv_transpose2d(x, back, stride=2, groups=x.shape[1] // 4)


class BankForEveryGroup(Net):
    """Two learned filters of two channels each, for every pair of channels."""

    def parts(self) -> None:
        self.bank = nn.Parameter(torch.randn(2, 2, 3, 3) / 4)

    def mid(self, x: Tensor) -> Tensor:
        pairs = x.shape[1] // 2
        x = F.conv2d(x, self.bank.repeat(pairs, 1, 1, 1), padding=1, groups=pairs)
        return F.conv_transpose2d(x, self.bank.repeat(pairs, 1, 1, 1), padding=1, groups=pairs)


class Prototypes(Net):
    """The output is the distance from a row of features for each class, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.rows = nn.Identity(), nn.Parameter(torch.randn(5, 48) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x)).tanh().mean((2, 3))
        return (x[:, None] - self.rows).square().sum(-1)


class RowsTimesFeatures(Prototypes):
    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x)).tanh().mean((2, 3))
        return (x.unsqueeze(1) * self.rows).sum(2)


class LargestNorm(nn.Conv2d):
    """A convolution that shortens its filters in every forward, as in networks for EEG."""

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1.0)
        return super().forward(input)


class ShortFilters(Net):
    def parts(self) -> None:
        self.one = LargestNorm(32, 32, 3, padding=1)

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x)


class NamesItsParameters(Net):
    def parts(self) -> None:
        self.kernel0 = nn.Parameter(torch.randn(32, 32, 3, 3) / 17)

    def mid(self, x: Tensor) -> Tensor:
        assert isinstance(self.kernel0, nn.Parameter)
        return F.conv2d(x, self.get_parameter(f"kernel{0}"), padding=1)


class Kernel(nn.Module):
    """Registers a parameter as one, and what is computed from parameters as a buffer, as TensorLy-Torch does."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if isinstance(weight, nn.Parameter):
            self.register_parameter("weight", weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


class BuildsAModule(Net):
    """Its forward builds a module from its weight, as factorized spectral convolutions do."""

    def parts(self) -> None:
        self.kernel = nn.Parameter(torch.randn(32, 32, 3, 3) / 17)

    def mid(self, x: Tensor) -> Tensor:
        return Kernel(self.kernel)(x)


class Line(nn.Module):
    """Audio: strided 1-D convolutions, depthwise and transposed ones, and a gate."""

    example = images(2, 1, 64, dtype=torch.float64)
    reads = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 32, 8, stride=4), nn.BatchNorm1d(32), nn.ReLU())
        self.depthwise, self.gate = nn.Conv1d(32, 32, 3, padding=1, groups=32), nn.Conv1d(32, 64, 1)
        self.up, self.body = nn.ConvTranspose1d(32, 24, 4, stride=2), nn.Conv1d(24, 48, 3, dilation=2)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.gate(self.depthwise(self.stem(x))), 1)
        return self.head(self.body(F.max_pool1d(self.up(x).relu(), 2)).mean(2))


class Volume(nn.Module):
    """Video: a 3-D convolution split into space and time, a residual block, transposed and pooled in 3-D."""

    example = images(2, 2, 4, 8, 8, dtype=torch.float64)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(2, 32, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(32), nn.ReLU())
        self.time, self.norm = nn.Conv3d(32, 32, (3, 1, 1), padding=(1, 0, 0)), nn.GroupNorm(8, 32)
        self.up, self.body = nn.ConvTranspose3d(32, 24, 2, stride=2), nn.Conv3d(24, 48, 3)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.time(x)).relu()
        x = F.interpolate(F.avg_pool3d(x, (1, 2, 2)), scale_factor=(1, 2, 2), mode="trilinear")
        return self.head(F.adaptive_avg_pool3d(self.body(self.up(x)).relu(), 1).flatten(1))


class Siamese(nn.Module):
    """Two pictures and a vector, one network for both pictures, several results in a dictionary."""

    example = (
        images(2, 3, 8, 8, dtype=torch.float64),
        images(2, 3, 8, 8, seed=2, dtype=torch.float64),
        torch.ones(2, 4),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.extra = nn.Sequential(conv(3, 32), nn.BatchNorm2d(32), nn.ReLU()), nn.Linear(4, 32)
        self.body, self.head = conv(64, 48), nn.Linear(48, 5)

    def forward(self, a: Tensor, b: Tensor, extra: Tensor) -> dict[str, Any]:
        x, y = self.stem(a), self.stem(b) + self.extra(extra.to(b))[:, :, None, None]
        out = self.body(torch.cat([x * y, (x - y).abs()], 1)).tanh().mean((2, 3))
        return {"logits": self.head(out), "distance": (x - y).square().sum(1), "more": [(out.sum(1),)]}
