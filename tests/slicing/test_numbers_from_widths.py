"""Code that computes something else from a number of channels: how often to loop, how far to shift, which layer to run.

The small network has fewer channels, so these numbers would change what it computes. The channels stay instead, by the
label flow if other operators run, and by the check if the same ones get other numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adjoined
from adjoined.slicing import check_plan
from constructs import Net, X, network
from unchecked import make_plan


class OneLayer(Net):
    def parts(self) -> None:
        self.one = nn.Conv2d(32, 32, 1)


class LessOften(OneLayer):
    def mid(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[1] // 8):
            x = self.one(x).tanh()
        return x


class MoreOften(OneLayer):
    def mid(self, x: Tensor) -> Tensor:
        for _ in range(64 // x.shape[1]):
            x = self.one(x).tanh()
        return x


class OnlyIfWide(OneLayer):
    """What is scaled could stay wide alone, but the number is that of other channels."""

    def mid(self, x: Tensor) -> Tensor:
        return self.one(x) * 2 if x.shape[1] >= 32 else self.one(x)


class WiderPooling(Net):
    def mid(self, x: Tensor) -> Tensor:
        size = 5 if x.shape[1] >= 32 else 3
        return F.avg_pool2d(x, size, 1, size // 2)


class ShiftedFurther(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x + x.roll(x.shape[1] // 16, 2)


class CroppedMore(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, x.shape[1] // 16 :]


class OtherNorm(Net):
    def mid(self, x: Tensor) -> Tensor:
        return F.normalize(x, 2.0 if x.shape[1] >= 32 else 1.0, 2)


class LargerEpsilon(Net):
    def mid(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, eps=1e-5 * 32 / x.shape[1])


class EveryOther(Net):
    """With the small network's number, nothing is left out, and torch runs no operator."""

    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, :: x.shape[1] // 16]


class MoreTaps(Net):
    """Channel attention whose kernel is longer for more channels."""

    def parts(self) -> None:
        self.taps = nn.Parameter(torch.randn(1, 1, 5))

    def mid(self, x: Tensor) -> Tensor:
        size = 5 if x.shape[1] >= 32 else 3
        mixed = F.conv1d(x.mean((2, 3))[:, None], self.taps[..., :size], padding=size // 2)
        return x * mixed.sigmoid().movedim(1, 2)[..., None]


class OtherScale(Net):
    def parts(self) -> None:
        self.scales = nn.ParameterList(nn.Parameter(torch.randn(32, 1, 1)) for _ in range(3))

    def mid(self, x: Tensor) -> Tensor:
        return x * self.scales[x.shape[1] // 16]


class CausalInBothHalves(Net):
    """A triangle of weights whose rows and columns would keep other channels: halves, and the first ones."""

    def parts(self) -> None:
        self.first, self.last = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)
        self.mix = nn.Parameter(torch.randn(32, 32) / 4)

    def mid(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first(x), self.last(x)], 1)
        return F.conv2d(x, self.mix.tril()[..., None, None])


class FirstRows(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, torch.arange(x.shape[1] // 8)]


class ListedRows(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, [0, x.shape[1] // 8]]


class OneRow(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, torch.tensor([x.shape[1] // 8])]


class RowsOfAnArray(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.index_select(2, torch.from_numpy(np.arange(x.shape[1] // 8)))


class MaskedRows(Net):
    def mid(self, x: Tensor) -> Tensor:
        mask = x.new_zeros(8, 1)
        mask[: x.shape[1] // 8] = 1
        return x * mask


class ComparedRows(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.masked_fill((torch.arange(8) < x.shape[1] // 8)[:, None], 0)


class FinerGrid(Net):
    def mid(self, x: Tensor) -> Tensor:
        line = torch.linspace(-1, 1, x.shape[1] // 4, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
        return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), align_corners=True)


class WiderWindow(Net):
    def mid(self, x: Tensor) -> Tensor:
        line = torch.hann_window(5 if x.shape[1] >= 32 else 3, dtype=x.dtype)
        kernel = (line[:, None] * line).repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(x, kernel, groups=x.shape[1])


class FewerPieces(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.chunk(x.shape[1] // 8, 2)[0]


class ShorterPieces(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.split(x.shape[1] // 8, 2)[0]


class SmallerWindows(Net):
    """Each window is centred on its own mean."""

    def mid(self, x: Tensor) -> Tensor:
        windows = x.unflatten(2, (-1, x.shape[1] // 16))
        return (windows - windows.mean(3, keepdim=True)).flatten(2, 3)


class MoreCopies(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.repeat(1, 1, 64 // x.shape[1], 1).cumsum(2)


class FewerOfTheBest(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x * x.flatten(2).topk(x.shape[1] // 8, 2)[0].mean(2)[..., None, None]


class WiderTriangle(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.triu(x.shape[1] // 16)


class FinerImage(Net):
    """The number decides how the input itself is cut, before a layer reads it."""

    def parts(self) -> None:
        self.look = nn.Conv2d(3, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.stem(x)
        gate = self.look(x.unflatten(2, (seen.shape[1] // 8, -1)).amax(2)).mean((2, 3), keepdim=True)
        return self.head(self.body(seen * gate).tanh().mean((2, 3)))


class FilledIndices(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, torch.full_like(torch.arange(8), x.shape[1] // 8)]


class WrittenIndex(Net):
    def mid(self, x: Tensor) -> Tensor:
        rows = torch.arange(8)
        rows[0] = x.shape[1] // 8
        return x[:, :, rows]


class MultipliedIndices(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x[:, :, torch.arange(4) * (x.shape[1] // 16)]


class LookedUp(Net):
    """An entry of a table looks like a factor, but the number chooses it."""

    def mid(self, x: Tensor) -> Tensor:
        table = torch.linspace(0, 1, 8, dtype=x.dtype).square()
        return x * table[torch.zeros(8, dtype=torch.long) + x.shape[1] // 8]


class FilledGrid(Net):
    def mid(self, x: Tensor) -> Tensor:
        grid = torch.full((len(x), 8, 8, 2), x.shape[1] / 64, dtype=x.dtype)
        return F.grid_sample(x, grid, align_corners=False)


class OneRowAndAFactor(Net):
    """The factor alone could change with the width."""

    def mid(self, x: Tensor) -> Tensor:
        return (x + x[:, :, torch.tensor(x.shape[1] // 8)][:, :, None]) * x.shape[1] ** -0.5


NETWORKS = [
    LessOften, MoreOften, OnlyIfWide, WiderPooling, ShiftedFurther, CroppedMore, MoreTaps, OtherScale,
    CausalInBothHalves, FirstRows, ListedRows, RowsOfAnArray, MaskedRows, ComparedRows, FinerGrid, WiderWindow,
    FewerPieces, ShorterPieces, SmallerWindows, MoreCopies, FewerOfTheBest, WiderTriangle,
    FinerImage, OneRow, EveryOther, OtherNorm, LargerEpsilon, FilledIndices, WrittenIndex, MultipliedIndices, LookedUp,
    FilledGrid, OneRowAndAFactor,
]  # fmt: skip


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("alpha", [2, 2.5])
def test_the_small_network_does_as_often_and_with_the_same_numbers_what_the_base_does(cls: type[Net], alpha: float):
    model = network(cls)
    plan = adjoined.make_plan(model, X, alpha=alpha, round_to=1)
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    if cls is not CausalInBothHalves:  # which reads other channels
        assert plan.small_shape("stem.0.weight")[0] == 32
    assert (checked.error or 0) < 1e-12
    if cls is not CroppedMore:
        assert plan.small_shape("body.weight")[0] == round(48 / alpha + 0.4)  # the other layers are narrowed


class Causal(Net):
    """Each channel reads those before it."""

    def parts(self) -> None:
        self.mix = nn.Parameter(torch.randn(32, 32) / 4)

    def mid(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.mix.tril(-1)[..., None, None])


class LoopOverHeads(Net):
    """Half of the heads are dropped, and with them half of the steps."""

    def parts(self) -> None:
        self.heads, self.qkv, self.out = 8, nn.Linear(32, 96), nn.Linear(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        q, k, v = (each.chunk(self.heads, -1) for each in self.qkv(places).chunk(3, -1))
        found = [(a @ b.transpose(1, 2)).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        return self.out(torch.cat(found, -1)).transpose(1, 2).unflatten(2, (8, 8))


class ShiftedChannels(Net):
    """The numbers count channels, so they change with them."""

    def parts(self) -> None:
        self.first, self.last = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)

    def mid(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first(x), self.last(x)], 1)
        return x.roll((x.shape[1] // 2, 1), (1, 2))[:, x.shape[1] // 2 :].repeat(1, 2, 1, 1)


class ChannelsAsNumbers(Net):
    """Every way in which 1/√d and its like reach an activation."""

    def mid(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        scores = x.flatten(2).mT @ x.flatten(2) / torch.tensor(channels).sqrt()
        x = x * scores.softmax(-1).mean(1).view(-1, 1, 8, 8)
        x = x * torch.full((1, 8, 8), channels**-0.5, dtype=x.dtype) + x.new_full((8,), channels / 8)
        return x.masked_fill(x < 1 / channels, 1 / channels).clamp(max=channels / 2)


class MadeForChannels(Net):
    """Tensors that code makes for so many channels, and factors that it computes from their number."""

    def mid(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
        x = F.conv2d(x, (line[:, None] * line).repeat(channels, 1, 1, 1), padding=1, groups=channels)
        x = x / torch.tensor([float(channels)]).sqrt() * torch.exp(-torch.arange(8, dtype=x.dtype) / channels)
        x = x + x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
        return x[:, torch.arange(channels)] + torch.linspace(0, 1, 8, dtype=x.dtype)[:, None]


@pytest.mark.parametrize("cls", [Causal, LoopOverHeads, ShiftedChannels, MadeForChannels, ChannelsAsNumbers])
def test_numbers_that_count_channels_change_with_them(cls: type[Net]):
    model = network(cls)
    plan = make_plan(model, X, alpha=2, round_to=1)
    checked: Any = check_plan(model, X, plan)
    assert checked.error < 1e-12
    assert plan.small_shape("stem.0.weight")[0] == 16
