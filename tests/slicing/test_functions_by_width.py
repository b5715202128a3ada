"""Code that calls other functions for fewer channels, or passes other tensors to them.

No operator gets other numbers then, and torch itself transposes, copies and pads as shapes require: the check finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.slicing import check_plan, make_plan
from constructs import Net, X, network

Function = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "transpose": (lambda x: x.transpose(2, 3), lambda x: x),
    "transpose where it is narrow": (lambda x: x, lambda x: x.transpose(2, 3)),
    "other dimensions": (lambda x: x.transpose(2, 3), lambda x: x.transpose(2, 2)),
    "permute": (lambda x: x.permute(0, 1, 3, 2), lambda x: x.permute(0, 1, 2, 3)),
    "mT": (lambda x: x.mT, lambda x: x),
    "in place": (lambda x: x.transpose_(2, 3), lambda x: x),
    "movedim": (lambda x: x.movedim(2, 3), lambda x: x),
    "einsum": (lambda x: torch.einsum("nchw->ncwh", x), lambda x: torch.einsum("nchw->nchw", x)),
    "flip": (lambda x: x.flip(2), lambda x: x),
    "rot90": (lambda x: x.rot90(1, (2, 3)), lambda x: x),
    "roll": (lambda x: x.roll(1, 2), lambda x: x),
    "shuffled places": (lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2).flip(2), 2), lambda x: x),
    "pad": (lambda x: F.pad(x, (1, -1)), lambda x: x),
    "crop and pad": (lambda x: F.pad(x[:, :, 1:], (0, 0, 1, 0)), lambda x: x),
    "indices": (lambda x: x[:, :, [7, 6, 5, 4, 3, 2, 1, 0]], lambda x: x),
    "windows": (lambda x: x.unfold(2, 2, 2).reshape(x.shape), lambda x: x),
    "order of pieces": (
        lambda x: torch.stack(x.unbind(2)[::-1], 2),
        lambda x: torch.stack(x.unbind(2), 2),
    ),
    "another piece": (
        lambda x: torch.cat([x.chunk(2, 2)[1], x.chunk(2, 2)[0]], 2),
        lambda x: torch.cat([x.chunk(2, 2)[0], x.chunk(2, 2)[0]], 2),
    ),
    "another piece alone": (lambda x: x.chunk(2, 2)[1], lambda x: x.chunk(2, 2)[0]),
    "data of another piece": (lambda x: x.chunk(2, 2)[1].data, lambda x: x.chunk(2, 2)[0].data),
    "fewer tensors in a list": (
        lambda x: torch.stack([x.tanh(), x.sigmoid(), x]).mean(0),
        lambda x: torch.stack([x.tanh(), x.sigmoid()]).mean(0),
    ),
    "an option": (lambda x: F.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="none")),
    "places made by a number": (
        lambda x: x.gather(2, torch.full(x.shape, 3)),
        lambda x: x.gather(2, torch.full(x.shape, 4)),
    ),
    "rounding": (lambda x: x.to(torch.int8).to(x.dtype), lambda x: x),
}


class ByWidth(Net):
    def __init__(self, wide: Function, narrow: Function) -> None:
        super().__init__()
        self.wide, self.narrow = wide, narrow

    def mid(self, x: Tensor) -> Tensor:
        return self.wide(x) if x.shape[1] >= 32 else self.narrow(x)


class OtherWeight(Net):
    """Both weights are read elsewhere, whatever the width."""

    def parts(self) -> None:
        self.one, self.two = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)

    def mid(self, x: Tensor) -> Tensor:
        first = self.one(x).tanh() + self.two(x).sigmoid()
        return F.conv2d(first, self.one.weight if x.shape[1] >= 32 else self.two.weight)


class OtherBranch(Net):
    """Both branches run; the width decides which one the next layer reads."""

    def parts(self) -> None:
        self.one, self.two = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)

    def mid(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.two(x)]
        return branches[x.shape[1] // 32] * (branches[0].mean() + branches[1].mean())


class OtherOutput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = self.head(self.body(x).tanh().movedim(1, -1)).movedim(-1, 1)
        return maps.flip(2) if x.shape[1] >= 32 else maps


NETWORKS: dict[str, Any] = {name: partial(ByWidth, *functions) for name, functions in FUNCTIONS.items()}
NETWORKS |= {"weight": OtherWeight, "branch": OtherBranch, "output": OtherOutput}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_small_network_computes_with_the_same_tensors(name: str):
    model = network(NETWORKS[name])
    plan = make_plan(model, X, alpha=2, round_to=1)
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert (checked.error or 0) < 1e-12
    assert plan.small_shape("stem.0.weight")[0] == 32
    if name != "output":  # which shows only after all layers
        assert plan.small_shape("body.weight")[0] == 24  # the other layers are narrowed


class Alike(Net):
    """What code may do by width without another result, and a loop over parts of the channels."""

    def parts(self) -> None:
        self.parts_of_four = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(4))

    def mid(self, x: Tensor) -> Tensor:
        x = x.contiguous().clone() if x.shape[1] >= 32 else x.reshape(x.shape).to(x.dtype)
        x = x.view(*x.shape[:2], -1).unflatten(2, (8, 8)) if x.shape[1] >= 32 else x.detach()
        pieces: Sequence[Tensor] = x.chunk(4, 1)
        read: list[Tensor] = []
        for part, piece in zip(self.parts_of_four, pieces, strict=True):
            read.append(part(piece + read[-1] if read else piece))
        return torch.cat(read, 1)


def test_calls_that_change_nothing_may_depend_on_the_width():
    model = network(Alike)
    plan = make_plan(model, X, alpha=2, round_to=1)
    checked = check_plan(model, X, plan)
    assert (checked.error or 0) < 1e-12
    assert plan.small_shape("stem.0.weight")[0] == 16
