"""Softmax over the entries of a table, whose number stays (`KEPT`), and over channels, which narrow (`NARROWED`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructs import Net
from places import raw


class Codes(Net):
    """A vector quantizer by softmax: a mixture of codes at each place."""

    def parts(self) -> None:
        self.score, self.codes = nn.Conv2d(32, 24, 1), nn.Embedding(24, 32)

    def mid(self, x: Tensor) -> Tensor:
        return torch.einsum("nkhw,kc->nchw", self.shares(self.score(x)), self.codes.weight)

    def shares(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)


class CodesAtRandom(Codes):
    """By Gumbel softmax, with some of the shares dropped."""

    def shares(self, scores: Tensor) -> Tensor:
        return F.dropout(F.gumbel_softmax(scores, tau=0.5, dim=1), 0.1, self.training)


class Memory(Net):
    """Attention to learned keys and values."""

    def parts(self) -> None:
        self.keys, self.values = raw(24, 32), raw(24, 32)

    def mid(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return ((rows @ self.keys.t()).softmax(-1) @ self.values).transpose(1, 2).reshape(x.shape)


class Tasks(Net):
    """Channels scaled by a mixture of tasks; the product and the sum are written out."""

    def parts(self) -> None:
        self.gate, self.tasks = nn.Linear(32, 6), raw(6, 32)

    def mid(self, x: Tensor) -> Tensor:
        share = (self.gate(x.mean((2, 3))) / 2).softmax(-1)
        return x * (share[..., None] * self.tasks).sum(1)[..., None, None]


class Distances(Net):
    """A distance as the mean of a distribution over bins, as detectors predict the sides of a box."""

    def parts(self) -> None:
        self.sides, self.bins = nn.Conv2d(32, 4 * 16, 1), nn.Conv2d(16, 1, 1, bias=False)
        with torch.no_grad():
            self.bins.weight.copy_(torch.linspace(-1, 1, 16).view(1, 16, 1, 1))

    def mid(self, x: Tensor) -> Tensor:
        sides = self.bins(self.sides(x).flatten(2).unflatten(1, (4, 16)).transpose(1, 2).softmax(1))
        return x * sides.mean(2).view(len(x), 1, *x.shape[2:])


class Ages(Net):
    """Regression by classes: the mean of a table in a buffer."""

    def parts(self) -> None:
        self.years = nn.Linear(32, 21)
        self.register_buffer("table", torch.linspace(-1, 1, 21))

    def mid(self, x: Tensor) -> Tensor:
        return x * (self.years(x.mean((2, 3))).softmax(1) @ self.get_buffer("table"))[:, None, None, None]


class Routed(Net):
    """Each token goes to the expert whose gate is the largest, which may be the same one for all of them."""

    def parts(self) -> None:
        self.gate, self.experts = nn.Linear(32, 4), nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def mid(self, x: Tensor) -> Tensor:
        t = x.movedim(1, -1).flatten(0, 2)
        share, chosen = self.gate(t).softmax(1).max(1)
        out = torch.zeros_like(t)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            out[mine] = expert(t[mine]) * share[mine, None]
        return x + out.view(len(x), *x.shape[2:], -1).movedim(-1, 1)


class RoutedToTwo(Routed):
    """To two experts; the tokens of each are picked by their numbers."""

    def mid(self, x: Tensor) -> Tensor:
        t = x.movedim(1, -1).flatten(0, 2)
        share, chosen = self.gate(t).softmax(1).topk(2, 1)
        out = torch.zeros_like(t)
        for number, expert in enumerate(self.experts):
            mine, place = torch.where(chosen == number)
            out.index_add_(0, mine, expert(t[mine]) * share[mine, place, None])
        return x + out.view(len(x), *x.shape[2:], -1).movedim(-1, 1)


class ByChannel(Net):
    """Softmax over channels, with a scale for each."""

    def parts(self) -> None:
        self.gate, self.scale = nn.Linear(32, 32), raw(32)

    def mid(self, x: Tensor) -> Tensor:
        return x * (self.gate(x.mean((2, 3))).softmax(1) * self.scale)[..., None, None]


class Activation(Net):
    """Softmax as an activation: the next layer reads what it returns as channels."""

    def parts(self) -> None:
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def mid(self, x: Tensor) -> Tensor:
        return x * self.down(self.up(x.mean((2, 3))).softmax(1))[..., None, None]


class ByBranch(Net):
    """Selective kernels: softmax over two branches, for each channel."""

    def parts(self) -> None:
        self.branches = nn.ModuleList(nn.Conv2d(32, 32, k, padding=k // 2) for k in (1, 3))
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    def mid(self, x: Tensor) -> Tensor:
        both = torch.stack([branch(x) for branch in self.branches], 1)
        gates = torch.stack([gate(both.sum(1).mean((2, 3))) for gate in self.gates], 1)
        return (both * gates.softmax(1)[..., None, None]).sum(1)


class AcrossChannels(Net):
    """Attention between channels, as XCiT and EdgeNeXt have it."""

    def parts(self) -> None:
        self.qkv, self.out = nn.Conv2d(32, 96, 1), nn.Conv2d(32, 32, 1)

    def mid(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)
        return self.out(((q @ k.transpose(1, 2)).softmax(-1) @ v).view_as(x))


KEPT: dict[type[Net], dict[str, tuple[int, ...]]] = {
    Codes: {"score.weight": (0,), "codes.weight": (0,)},
    Memory: {"keys": (0,), "values": (0,)},
    Tasks: {"gate.weight": (0,), "tasks": (0,)},
    Distances: {"sides.weight": (0,), "bins.weight": (1,)},
    Ages: {"years.weight": (0,), "table": (0,)},
    Routed: {"gate.weight": (0,)},
    RoutedToTwo: {"gate.weight": (0,)},
}
"""Network -> parameter or buffer -> dimensions that count entries."""

NARROWED: dict[type[Net], dict[str, tuple[int, ...]]] = {
    ByChannel: {"gate.weight": (16, 16), "scale": (16,)},
    Activation: {"up.weight": (24, 16), "down.weight": (16, 24)},
    ByBranch: {"branches.1.weight": (16, 16, 3, 3), "gates.0.weight": (16, 16)},
    AcrossChannels: {"qkv.weight": (48, 16, 1, 1), "out.weight": (16, 16, 1, 1)},
}
"""Network -> the small shapes of its parameters, at alpha 2."""
